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
from vqjax.results.excerpts import Excerpt
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
    'benchmarks/README.md',
)
EXCERPTS = ('docs/comparison/trials', 'docs/comparison/halves')  # made by excerpts.py


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
    mean, low, high = (f'{100 * x:{sign}.1f}' for x in interval)
    return f'{mean} ({low}, {high})'


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
    for name, said in trials.outcome.items():
        compared = '' if said.compared is None else _percent(said.compared, '+')
        own = _percent(results.methods[name].accuracy)
        rows.append([_NAMES.get(name, name), _percent(said.accuracy), compared, own])
    header = ['method', "each fold's own choice %", 'compared with none', 'committed settings %']
    return benchmark_tables.table(header, rows)


def halves(deals):
    """Fifty runs a method: all, and the two halves of the deals."""
    rows = []
    for name, said in deals.halves.items():
        whole = deals.outcome[name]
        rows.append(
            [
                _NAMES.get(name, name),
                _percent(whole.accuracy),
                *map(_percent, said.accuracy),
                'yes' if said.overlap else 'no',
                '' if whole.compared is None else _percent(whole.compared, '+'),
                whole.verdict or '',
            ]
        )
    header = ['method', 'all %', 'first half %', 'second half %', 'overlap', 'compared with none']
    return benchmark_tables.table([*header, 'verdict'], rows)


# Remedies --------------------------------------------------------------------------------------


def remedies(digits, mnist):
    """What became of every remedy, on either set, and what the guard is worth."""
    lines = []
    for title, results in {'Digits': digits, 'MNIST': mnist}.items():
        seeds = results.config['seeds']
        without = 100 * results.methods[summaries.BASELINE].accuracy.mean
        lines.append(f'{title}, {seeds} seeds, without a quantizer {without:.1f}%:\n')
        for group, names in verdicts.members(results).items():
            if names:
                lines.append(f'- {group}: {", ".join(f"`{n}`" for n in names)}.')
        weak, guard = (
            summaries.compare(results, name, verdicts.HEALTHY)
            for name in (verdicts.WEAK, verdicts.GUARD)
        )
        lines.append(
            f'- The baseline ends {answers.points(weak)} points from a healthy run, and with the '
            f'guard that re-fits a codebook whose perplexity falls (`{verdicts.GUARD}`) '
            f'{answers.points(guard)}.\n'
        )
    return '\n'.join(lines).rstrip('\n')


# Answer ----------------------------------------------------------------------------------------


def sentences():
    """Every sentence of the sources with its verdict and figures; see recompute.py."""
    return recompute.table()


# Rates -----------------------------------------------------------------------------------------


def enough_bits(results):
    """The bits a token that are enough for each quantizer."""
    header, *rows = enough_rows(results)
    return benchmark_tables.table(header, rows)


# Pages -----------------------------------------------------------------------------------------


def _read(name):
    """Results or an excerpt of them; of a benchmark, without a path, its plain data."""
    if '/' not in name:
        return json.loads((ROOT / f'benchmarks/results/{name}.json').read_text())
    kind = Excerpt if name in EXCERPTS else Results
    return kind.load(ROOT / f'{name}.json')


def render(text: str) -> str:
    """The text of a page with every block filled in."""

    def fill(match):
        make = globals().get(match[2]) or getattr(benchmark_tables, match[2])
        files = [] if match[1] == '-' else match[1].split(',')
        found = make(*map(_read, files))
        return f'{match[0].splitlines()[0]}\n{found}\n<!-- end -->'

    return re.sub(r'<!-- table: (\S+) (\w+) -->\n.*?<!-- end -->', fill, text, flags=re.S)


if __name__ == '__main__':
    for page in PAGES:
        path = ROOT / page
        path.write_text(render(path.read_text()))
