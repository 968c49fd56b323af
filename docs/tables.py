"""Rewrites every table of the pages below from committed results: python docs/tables.py

`<!-- table: FILE FUNCTION -->` in a page is followed by what FUNCTION of this file makes of FILE,
the name of a benchmark or a path from the root without its `.json`; or of several files, with
commas between them. A test compares.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from vqjax.studies import remedies_report
from vqjax.trainer import summaries

ROOT = Path(__file__).parent.parent
PAGES = ('README.md', 'docs/index.md', 'docs/behaviour.md', 'benchmarks/README.md')


def _table(header, rows):
    lines = [header, ['---'] * len(header), *rows]
    return '\n'.join('| ' + ' | '.join(map(str, line)) + ' |' for line in lines)


def _ms(row, name):
    return f'{row["runs"][name]["median_ms"]:,.1f}' if name in row['runs'] else ''


def _factor(value):
    if value is None:
        return ''
    return f'{value:.1f}' if value < 20 else f'{value:.0f}'


def _shape(row):
    return f'{row["N"]:,} x {row["D"]} x {row["K"]:,}'


def nearest(results):
    """Milliseconds of the search, one row a shape."""
    names = list(results['search']['rows'][0]['runs'])
    rows = [
        [_shape(r), *[_ms(r, name) for name in names], r['ratio_to_faiss']]
        for r in results['search']['rows']
    ]
    mean = results['search']['geometric_mean_ratio_to_faiss']
    rows.append(['geometric mean', *[''] * len(names), f'**{mean}**'])
    return _table(['N x D x K', *names, 'vqjax / faiss'], rows)


def codebooks(results):
    """Milliseconds, time a score and memory for large codebooks."""
    rows = [
        [f'{r["K"]:,}', *[_ms(r, name) for name in r['runs']], r['ns_per_score']]
        + [f'{r["extra_bytes"] / 1e6:.1f}']
        for r in results['against_K']
    ]
    return _table(['K', *results['against_K'][0]['runs'], 'ns a score', 'MB beyond'], rows)


def steps(results):
    """Milliseconds of a training step, one row a quantizer."""
    names = list(next(iter(results['steps'].values()))['runs'])
    rows = [
        [name, *[_ms(r, n) for n in names], _factor(r['speedup']), r['compile_s']]
        for name, r in results['steps'].items()
    ]
    return _table(['', *names, 'times faster', 'compile, s'], rows)


def fits(results):
    """Milliseconds and error of a fit."""
    rows = [
        [name, r['bits'], *[_ms(r, n) for n in r['runs']], *r['error'].values()]
        for name, r in results['fits'].items()
    ]
    row = next(iter(results['fits'].values()))
    header = [
        '',
        'bits',
        *[f'{n}, ms' for n in row['runs']],
        *[f'{n}, error' for n in row['error']],
    ]
    return _table(header, rows)


def pipeline(results):
    """Milliseconds of a step with the data pipeline and without, one row a data set."""
    names = list(next(iter(results['rows'].values()))['runs'])
    rows = [
        [name, r['batch_size'], *[_ms(r, n) for n in names], r['ratio']]
        for name, r in results['rows'].items()
    ]
    return _table(['', 'batch', *names, 'pipeline / resident'], rows)


def _bytes(carried):
    return ', '.join(f'{size:,} ({kind})' for kind, size in carried.items()) or '0'


def collectives(results):
    """Bytes that the collectives of a step carry, one row a shape."""
    rows = [
        [f'{r["N"]:,} x {r["D"]} x {r["K"]:,}', r['devices'], _bytes(r['step'])]
        + [f'{r["formula"]:,}', _bytes(r['with revival']), f'{r["z"]:,}']
        for r in results['collectives']
    ]
    header = ['N x D x K', 'devices', 'a step', '4 K (D + 1)', 'one that revives', 'all of z']
    return _table(header, rows)


def weak_scaling(results):
    """Operations and memory a device, one row a number of devices."""
    first = results['weak_scaling'][0]['operations']
    rows = [
        [r['devices'], f'{r["operations"]:,.0f}', f'{r["operations"] / first:.3f}']
        + [', '.join(map(str, r['tiles'])), f'{r["operations of a tile"]:,.0f}']
        + [f'{r["temporary bytes"] / 1e6:.1f}']
        for r in results['weak_scaling']
    ]
    header = ['devices', 'operations a device', 'to one device']
    return _table([*header, 'tiles at 16,384 rows', 'operations with one', 'temporary MB'], rows)


def large_codebook(results):
    """Memory a device of a large codebook."""
    rows = [
        [f'{r["codes on a device"]:,}', *[f'{r[k] / 1e6:,.0f}' for k in ('arguments', 'temporary')]]
        + [_bytes(r['carried'])]
        for r in results['large_codebook']
    ]
    return _table(['codes on a device', 'arguments, MB', 'temporary, MB', 'carried, bytes'], rows)


def projection(results):
    """Search and all-reduce on 256 chips, on paper."""
    rows = [
        [r['chip'], f'{r["N a chip"]:,} x {r["D"]} x {r["K"]:,}', r['search_us']]
        + [r['all_reduce_us'], f'{r["efficiency"]:.1%}']
        for r in results['projection']
    ]
    header = ['', 'N a chip x D x K', 'search, us', 'all-reduce, us', 'of perfect scaling']
    return _table(header, rows)


def sequence(results):
    """Milliseconds and memory of the sequence model, one row a computation and number of phases."""
    rows = [
        [name, row['phases'], f'{runs["vqjax"]["median_ms"]:,.0f}']
        + [f'{runs["hmmlearn"]["median_ms"]:,.0f}' if 'hmmlearn' in runs else '']
        + [f'{row["memory_mb"][name]:.1f}']
        for row in results['rows']
        for name, runs in row['runs'].items()
    ]
    return _table(['', 'phases', 'vqjax', 'hmmlearn', 'MB beyond inputs'], rows)


def behaviours(results):
    """How many behaviours each way to fit finds, a number for each of several worlds."""
    rows = [
        [name, ', '.join(map(str, row['states']))]
        + [f'{sum(row["adjusted_rand_index"]) / len(row["adjusted_rand_index"]):.3f}']
        for name, row in results['found'].items()
    ]
    return _table(['', 'states found, of 4', 'adjusted Rand index, mean'], rows)


def machine(results):
    """One line: what the figures were measured on."""
    e = results['environment']
    versions = ', '.join(f'{name} {version}' for name, version in e['versions'].items() if version)
    clock = 'processor time' if e['clock'] == 'process_time' else 'wall time'
    cores = f'{e["cores_used"]} of {e["cores"]} cores'
    return f'{e["cpu"]}, {cores}, {clock}, load average {e["load_average"][0]}; {versions}.'


def speed(results):
    """The ratios of training steps to the peer's that a reader wants first, in a sentence."""
    factors = {name: _factor(row['speedup']) for name, row in results['steps'].items()}
    first, *others = ('VQ-EMA', 'Residual 8 x VQ-EMA', 'LFQ', 'FSQ')
    rest = ', '.join(f'{factors[name]} for {name}' for name in others)
    return (
        f"A training step takes {factors[first]} times less than vector-quantize-pytorch's for "
        f'{first}, {rest} ({results["environment"]["cpu"]}).'
    )


# Comparison ----------------------------------------------------------------------------------

_NAMES = {'vq_ema': 'VQ-EMA', 'fsq': 'FSQ', 'rvq': 'RVQ'}


def _describe(name, spec):
    """A method's name and its size: 'FSQ 8 8 8 5 5 5'."""
    shown = _NAMES.get(name, name)
    while spec and spec['name'] == 'projected':
        spec = spec['inner']
    if not spec:
        return shown
    if spec['name'] == 'residual':
        return f'{shown} {spec["num_stages"]} x {spec["inner"]["num_codes"]}'
    if spec['name'] == 'fsq':
        return f'{shown} {" ".join(map(str, spec["levels"]))}'
    return f'{shown}, {spec["num_codes"]} codes'


def _percent(mean, low, high, sign=''):
    return f'{100 * mean:{sign}.1f} ({100 * low:{sign}.1f}, {100 * high:{sign}.1f})'


def _points(interval):
    return _percent(*interval, sign='+')


def _three(value):
    """Three digits: 148, 87.7."""
    return f'{value:.0f}' if value >= 100 else f'{value:.3g}'


def comparison(results):
    """The outcome of each method, one row a method, intervals in brackets."""
    methods, rows = results['methods'], []
    for name, method in methods.items():
        summary = method['summary']
        accuracy = summary['accuracy']
        difference = perplexity = ''
        if name != summaries.BASELINE:
            others = methods[summaries.BASELINE]['seeds']
            difference = summaries.paired_difference(method['seeds'], others, 'accuracy')
            difference = _points(difference)
            uniform = summaries.code_use(method).uniform.perplexity
            stages = ' a stage' if 'num_stages' in method['spec'] else ''
            perplexity = f'{_three(summary["perplexity"]["mean"])} [{_three(uniform)}]{stages}'
        calibrated = summaries.mean_calibrated_error(method).mean
        rows.append(
            [
                _describe(name, method['spec']),
                _percent(accuracy['mean'], accuracy['low'], accuracy['high']),
                difference,
                f'{summary["ece"]["mean"]:.3f} [{calibrated:.3f}]',
                perplexity,
                f'{round(method["bits"]):,}',
                f'{method["params"]:,}',
            ]
        )
    header = ['method', 'accuracy %', 'compared with none', 'ECE [calibrated model]']
    return _table(
        [*header, 'test perplexity [uniform source]', 'bits an image', 'parameters'], rows
    )


# Remedies --------------------------------------------------------------------------------------


def remedies(digits, mnist):
    """Which remedies prevent the collapse, on both sets or on one, and what the guard is worth."""
    sets = {'digits': digits, 'MNIST': mnist}
    names = [n for n in remedies_report.by_accuracy(digits) if n in mnist['methods']]
    names = [n for n in names if n not in (remedies_report.WEAK, remedies_report.NONE)]
    members = {'both': [], 'digits': [], 'MNIST': [], 'neither': []}
    for name in names:
        good = [s for s, results in sets.items() if remedies_report.prevents(name, results)]
        gains = [remedies_report.difference(r, name, remedies_report.WEAK) for r in sets.values()]
        if good:
            members[good[0] if len(good) == 1 else 'both'].append(name)
        elif not any(gain.low > 0 for gain in gains):
            members['neither'].append(name)
    titles = {
        'both': 'Prevent it on both sets (more accurate than the baseline, and no run collapsed)',
        'digits': 'On digits only',
        'MNIST': 'On MNIST only',
        'neither': 'No more accurate than the baseline on either',
    }
    lines = [
        f'- {titles[k]}: {", ".join(f"`{n}`" for n in found)}.'
        for k, found in members.items()
        if found
    ]
    for title, results in sets.items():
        weak, guard = (
            remedies_report.difference(results, name, remedies_report.HEALTHY)
            for name in (remedies_report.WEAK, remedies_report.GUARD)
        )
        lines.append(
            f'- {title}: the baseline ends {_points(weak)} points from a healthy run, and with the '
            f'guard that re-fits a codebook whose perplexity falls (`{remedies_report.GUARD}`), '
            f'{_points(guard)}.'
        )
    return '\n'.join(lines)


# Pages -----------------------------------------------------------------------------------------


def _results(name):
    path = name if '/' in name else f'benchmarks/results/{name}'
    return json.loads((ROOT / f'{path}.json').read_text())


def render(text: str) -> str:
    """The text of a page with every block filled in."""

    def fill(match):
        found = globals()[match[2]](*map(_results, match[1].split(',')))
        return f'{match[0].splitlines()[0]}\n{found}\n<!-- end -->'

    return re.sub(r'<!-- table: (\S+) (\w+) -->\n.*?<!-- end -->', fill, text, flags=re.S)


if __name__ == '__main__':
    for page in PAGES:
        path = ROOT / page
        path.write_text(render(path.read_text()))
