"""Rewrites every table of the pages below from committed results: python docs/tables.py

`<!-- table: FILE FUNCTION -->` in a page is followed by what FUNCTION of this file or of
`benchmark_tables.py` makes of FILE, the name of a benchmark or a path from the root without its
`.json`; or of several files, with commas between them; `-` for none. A test compares.
"""

from __future__ import annotations

import json
import re
import statistics
from pathlib import Path

import benchmark_tables
import recompute

from vqjax.results import summaries
from vqjax.results.records import Results
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
    'docs/costs.md',
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


def _three(value):
    """Three digits: 148, 87.7."""
    return f'{value:.0f}' if value >= 100 else f'{value:.3g}'


def comparison(results):
    """The outcome of each method, one row a method, intervals in brackets."""
    rows = []
    for name, method in results.methods.items():
        compared = summaries.compare(results, name)
        perplexity = ''
        if compared is not None:
            uniform = summaries.code_use(method).uniform.perplexity
            stages = ' a stage' if 'num_stages' in method.spec else ''
            mean = method.summary['perplexity'].mean
            perplexity = f'{_three(mean)} [{_three(uniform)}]{stages}'
        calibrated = summaries.mean_calibrated_error(method).mean
        rows.append(
            [
                _describe(name, method.spec),
                _percent(method.accuracy),
                '' if compared is None else answers.points(compared),
                f'{method.summary["ece"].mean:.3f} [{calibrated:.3f}]',
                perplexity,
                f'{round(method.bits):,}',
                f'{method.params:,}',
            ]
        )
    header = ['method', 'accuracy %', 'compared with none', 'ECE [calibrated model]']
    return benchmark_tables.table(
        [*header, 'test perplexity [uniform source]', 'bits an image', 'parameters'], rows
    )


def _percent(interval, sign=''):
    mean, low, high = (f'{100 * x:{sign}z.1f}' for x in interval)
    return f'{mean} ({low}, {high})'


def _compared(results, name):
    found = summaries.compare(results, name)
    return '' if found is None else _percent(found, '+')


def settings(trials):
    """What the search chose for a configuration: the best on average over the folds."""
    rows = []
    for name, said in trials.tuning.methods.items():
        means = [space.mean(trial.accuracy) for trial in said.trials]
        best, known = said.trials[said.together], [x for x in means if x is not None]
        chosen = ', '.join(f'{k} {_short(v)}' for k, v in best.settings.items())
        scores = [means[said.together], statistics.median(known), min(known)]
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
    for name, said in trials.methods.items():
        own = _percent(results.methods[name].accuracy)
        rows.append([_NAMES.get(name, name), _percent(said.accuracy), _compared(trials, name), own])
    header = ['method', "each fold's own choice %", 'compared with none', 'committed settings %']
    return benchmark_tables.table(header, rows)


def overview(trials, cifar10):
    """README's table: accuracy and bits on digits (nested) and on CIFAR-10, a row a method."""
    names = {
        'none': ('No quantizer', 'none'),
        'vq_ema': ('VQ-EMA, 256 codes', 'vq_ema-8'),
        'fsq': ('FSQ, 64,000 codes', 'fsq-16'),
        'rvq': ('RVQ, 4 x 256 codes', 'rvq-32'),
    }
    rows = []
    for name, (shown, other) in names.items():
        said, method = trials.methods[name], cifar10.methods[other]
        rows.append(
            [
                shown,
                f'{round(method.bits):,}',
                _percent(said.accuracy),
                _compared(trials, name),
                _percent(method.accuracy),
                _compared(cifar10, other),
            ]
        )
    header = ['method', 'bits per image', 'digits %[^1]', 'change[^3]']
    return benchmark_tables.table([*header, 'CIFAR-10 %[^2]', 'change[^3]'], rows)


def halves(results):
    """Fifty runs a method: all, and the two halves of the deals."""
    rows = []
    halved = summaries.halves({name: method.seeds for name, method in results.methods.items()})
    for name, said in halved.items():
        rows.append(
            [
                _NAMES.get(name, name),
                _percent(results.methods[name].accuracy),
                *map(_percent, said.accuracy),
                _compared(results, name),
            ]
        )
    header = ['method', 'all %', 'first half %', 'second half %', 'compared with none']
    return benchmark_tables.table(header, rows)


# Remedies --------------------------------------------------------------------------------------


def collapse(digits, mnist, longer):
    """What some single changes make of the setup that collapses, in a few sentences."""
    changes = {
        'init_kmeans': 'a k-means start',
        'revival': 'dead-code revival',
        'l2_normalised': 'l2-normalised codes and vectors',
    }
    lines = []
    places = (
        ('digits', digits),
        ('MNIST after 560 steps', mnist),
        ('MNIST after 1,680', longer),
    )
    for title, results in places:
        accuracy = {
            name: f'{100 * results.methods[name].accuracy.mean:.1f}%'
            for name in (verdicts.WEAK, summaries.BASELINE, *changes)
        }
        runs = len(results.methods[verdicts.WEAK].seeds)
        used = {
            name: f'{results.methods[name].summary["active_codes"].mean:.0f}' for name in changes
        }
        sound = ', '.join(
            f'{accuracy[name]} with {what} ({used[name]} of 256 codes in use)'
            for name, what in changes.items()
        )
        bad = {
            name: sum(round(seed.figures['collapsed']) for seed in results.methods[name].seeds)
            for name in (verdicts.WEAK, *changes)
        }
        none = 'none' if not sum(bad[name] for name in changes) else 'some'
        lines.append(
            f'- On {title}, {bad[verdicts.WEAK]} of {runs} runs of the setup collapsed, at '
            f'{accuracy[verdicts.WEAK]} accuracy. It reached {sound}; {none} of these runs '
            f'collapsed. The network without a quantizer reached {accuracy[summaries.BASELINE]}.'
        )
    return '\n'.join(lines).rstrip('\n')


# Answer ----------------------------------------------------------------------------------------


def sentences():
    """Every sentence of the sources with its verdict and figures; see recompute.py."""
    return recompute.table()


def costs():
    """What codes cost; see recompute.py."""
    return recompute.costs()


def other_encoders():
    """The verdicts with other encoders; see recompute.py."""
    return recompute.other_encoders()


# Rates -----------------------------------------------------------------------------------------


def enough_bits(results):
    """The bits a token that are enough for each quantizer."""
    header, *rows = enough_rows(results)
    return benchmark_tables.table(header, rows)


# Pages -----------------------------------------------------------------------------------------


_BENCHMARKS = ROOT / 'benchmarks/results'


def _read(name, every=False):
    """Results; of a benchmark, without a path, its plain data.

    every: of a benchmark that has a file for each machine, machine -> data, not the newest alone.
    """
    if '/' in name:
        return Results.load(ROOT / f'{name}.json')
    path = _BENCHMARKS / f'{name}.json'
    if path.exists():
        return json.loads(path.read_text())
    files = sorted(_BENCHMARKS.glob(f'*/{name}.json'))
    found = {path.parent.name: json.loads(path.read_text()) for path in files}
    return found if every else max(found.values(), key=lambda x: x['environment'].get('date', ''))


def render(text: str) -> str:
    """The text of a page with every block filled in."""

    def fill(match):
        make = globals().get(match[2]) or getattr(benchmark_tables, match[2])
        files = [] if match[1] == '-' else match[1].split(',')
        every = make in benchmark_tables.OF_EVERY_MACHINE
        found = make(*[_read(name, every) for name in files])
        return f'{match[0].splitlines()[0]}\n{found}\n<!-- end -->'

    return re.sub(r'<!-- table: (\S+) (\w+) -->\n.*?<!-- end -->', fill, text, flags=re.S)


if __name__ == '__main__':
    for page in PAGES:
        path = ROOT / page
        path.write_text(render(path.read_text()))
