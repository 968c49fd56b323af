"""Rewrites every table of the pages below from committed results: python docs/tables.py

`<!-- table: FILE FUNCTION -->` in a page is followed by what FUNCTION of this file or of
`benchmark_tables.py` makes of FILE, the name of a benchmark or a path from the root without its
`.json`; or of several files, with commas between them. A test compares.
"""

from __future__ import annotations

import json
import re
import statistics
from pathlib import Path

import benchmark_tables

from vqjax.results import summaries
from vqjax.studies import answer as answers
from vqjax.studies.rates.report import enough_rows
from vqjax.studies.remedies import verdicts
from vqjax.trainer.config import space

ROOT = Path(__file__).parent.parent
PAGES = (
    'README.md',
    'docs/index.md',
    'docs/comparison.md',
    'docs/quantizers.md',
    'docs/behaviour.md',
    'docs/answer.md',
    'benchmarks/README.md',
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
    if spec['name'] == 'product':
        return f'{_describe(name, spec["inner"])}, {spec["num_groups"]} groups'
    return f'{shown}, {spec["num_codes"]} codes'


def _percent(mean, low, high, sign=''):
    return f'{100 * mean:{sign}.1f} ({100 * low:{sign}.1f}, {100 * high:{sign}.1f})'


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
            difference = answers.points(difference)
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
    return benchmark_tables.table(
        [*header, 'test perplexity [uniform source]', 'bits an image', 'parameters'], rows
    )


def _of(interval, sign=''):
    return _percent(interval['mean'], interval['low'], interval['high'], sign)


def settings(results):
    """What the search chose for a configuration: the best on average over the folds."""
    rows = []
    for name, said in results['tuning']['methods'].items():
        trials = [{'mean': space.mean(t['accuracy'])} | t for t in said['trials']]
        best, known = trials[said['together']], [t['mean'] for t in trials if t['mean'] is not None]
        chosen = ', '.join(f'{k} {_short(v)}' for k, v in best['settings'].items())
        scores = [best['mean'], statistics.median(known), min(known)]
        rows.append([_NAMES.get(name, name), chosen, *(f'{100 * x:.1f}' for x in scores)])
    header = ['method', 'best on average', 'validation %', 'median trial', 'worst']
    return benchmark_tables.table(header, rows)


def _short(value):
    """A value of a setting; of FSQ's specs levels and bound."""
    if not isinstance(value, dict):
        return str(value)
    grid = value['inner']
    return f'levels {" ".join(map(str, grid["levels"]))}, bound {grid["bound"]}'


def nested(trials, results):
    """Accuracy with each fold's own choice, beside that of the committed settings."""
    rows = []
    for name, said in trials['outcome'].items():
        own = results['methods'][name]['summary']['accuracy']
        compared = _of(said['compared'], '+') if 'compared' in said else ''
        rows.append([_NAMES.get(name, name), _of(said['accuracy']), compared, _of(own)])
    header = ['method', "each fold's own choice %", 'compared with none', 'committed settings %']
    return benchmark_tables.table(header, rows)


def halves(results):
    """Fifty runs a method: all, and the two halves of the deals."""
    rows = []
    for name, said in results['halves'].items():
        whole = results['outcome'][name]
        rows.append(
            [
                _NAMES.get(name, name),
                _of(whole['accuracy']),
                *(_of(half) for half in said['accuracy']),
                'yes' if said['overlap'] else 'no',
                _of(whole['compared'], '+') if 'compared' in whole else '',
                whole.get('verdict', ''),
            ]
        )
    header = ['method', 'all %', 'first half %', 'second half %', 'overlap', 'compared with none']
    return benchmark_tables.table([*header, 'verdict'], rows)


# Remedies --------------------------------------------------------------------------------------


def remedies(digits, mnist):
    """Which remedies prevent the collapse, on both sets or on one, and what the guard is worth."""
    sets = {'digits': digits, 'MNIST': mnist}
    names = [n for n in verdicts.by_accuracy(digits) if n in mnist['methods']]
    names = [n for n in names if n not in (verdicts.WEAK, summaries.NONE)]
    members = {'both': [], 'digits': [], 'MNIST': [], 'neither': []}
    for name in names:
        good = [s for s, results in sets.items() if verdicts.prevents(name, results)]
        gains = [verdicts.difference(r, name, verdicts.WEAK) for r in sets.values()]
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
            verdicts.difference(results, name, verdicts.HEALTHY)
            for name in (verdicts.WEAK, verdicts.GUARD)
        )
        lines.append(
            f'- {title}: the baseline ends {answers.points(weak)} points from a healthy run, and '
            f'with the guard that re-fits a codebook whose perplexity falls '
            f'(`{verdicts.GUARD}`), {answers.points(guard)}.'
        )
    return '\n'.join(lines)


# Answer ----------------------------------------------------------------------------------------


def answer(digits, deals, cifar10, finetuned, behaviour, *others):
    """The verdict on each sentence of the sources, with its figures."""
    names = ('rates', 'remedies on digits', 'remedies on MNIST', 'autopsy')
    found = answers.verdicts(
        digits, deals, cifar10, finetuned, behaviour, dict(zip(names, others, strict=True))
    )
    rows = [
        [f'{i}. {v.sentence} (source {v.source})', f'**{v.verdict}**', '; '.join(v.figures)]
        for i, v in enumerate(found, 1)
    ]
    return benchmark_tables.table(['sentence', 'verdict', 'figures: points, 95% interval'], rows)


# Rates -----------------------------------------------------------------------------------------


def enough_bits(results):
    """The bits a token that are enough for each quantizer."""
    header, *rows = enough_rows(results)
    return benchmark_tables.table(header, rows)


# Pages -----------------------------------------------------------------------------------------


def _results(name):
    path = name if '/' in name else f'benchmarks/results/{name}'
    return json.loads((ROOT / f'{path}.json').read_text())


def render(text: str) -> str:
    """The text of a page with every block filled in."""

    def fill(match):
        make = globals().get(match[2]) or getattr(benchmark_tables, match[2])
        found = make(*map(_results, match[1].split(',')))
        return f'{match[0].splitlines()[0]}\n{found}\n<!-- end -->'

    return re.sub(r'<!-- table: (\S+) (\w+) -->\n.*?<!-- end -->', fill, text, flags=re.S)


if __name__ == '__main__':
    for page in PAGES:
        path = ROOT / page
        path.write_text(render(path.read_text()))
