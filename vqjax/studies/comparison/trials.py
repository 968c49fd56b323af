"""What a report says of a search of settings, and of two halves of the folds."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from vqjax.metrics import Interval
from vqjax.results.records import Results
from vqjax.results.summaries import BASELINE, halves
from vqjax.results.tuning import Tuning
from vqjax.studies.reporting import notes, tables
from vqjax.trainer.config.space import mean


def tuning_section(results: Results) -> list[str]:
    """Paragraphs on how the settings were chosen; where the run did not, one that says so."""
    tuning = results.tuning
    if tuning is None:
        return [
            'The settings are those of the configuration, and this run did not choose them. Those '
            'of `configs/digits.py` were chosen on validation images that other folds test (68% of '
            'the test images), so that differences on digits are optimistic: `docs/comparison.md` '
            'has those of a nested search.'
        ]
    each = (
        'The search is nested: every fold chose on its own validation part, so no image is tested '
        'with a setting that it helped to choose.'
        if tuning.nested
        else f'The score of a trial is its mean over {notes.counted(tuning.seeds, "seeds")}.'
    )
    return [
        '## How the settings were chosen',
        f'Each method had {tuning.trials} random trials, drawn from the space in `results.json`. '
        'The trial with the highest validation accuracy was chosen, and among equal ones that with '
        f'the lowest NLL. {each} The test split was opened after that, {tuning.test_opened}.',
        tables.markdown(_tuning_rows(tuning), words=2),
    ]


def _tuning_rows(tuning: Tuning) -> Iterable[list[str]]:
    """A row for each choice: one a method, or one a fold."""
    nested = tuning.nested
    yield ['fold' if nested else 'method', 'chosen', 'validation %', 'median of trials',
           'lowest', 'diverged']  # fmt: skip
    for method, said in tuning.methods.items():
        trials, chosen = said.trials, said.chosen
        for seed in range(len(chosen)) if nested else (0,):
            scores = [t.accuracy[seed] if nested else mean(t.accuracy) for t in trials]
            best = scores[chosen[seed]]
            known = [100 * x for x in scores if x is not None]
            yield [
                f'{method}, {seed}' if nested else method,
                ', '.join(f'{k} {_said(v)}' for k, v in trials[chosen[seed]].settings.items()),
                '' if best is None else f'{100 * best:.1f}',
                f'{np.median(known):.1f}',
                f'{min(known):.1f}',
                str(scores.count(None)),
            ]


def _said(value: Any) -> str:
    """A value of a setting; of a spec what tells it from others."""
    if isinstance(value, Mapping):
        inner = value.get('inner', value)
        told = ('name', 'levels', 'bound', 'num_codes', 'num_stages')
        return ' '.join(_said(inner[k]) for k in told if k in inner)
    return ' '.join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def halves_section(results: Results) -> list[str]:
    """Paragraphs on the agreement of two halves of the deals; none without two deals of folds."""
    rows = list(_halves_rows(results))
    if len(rows) < 2:
        return []
    return [
        '## Agreement of two halves',
        tables.markdown(rows),
        'The same images were divided into folds in several ways. The table compares the accuracy '
        '(%) in the first half of these divisions with that in the second half. Each has the 95% '
        f'interval of its half alone. The last two columns are differences to `{BASELINE}`, paired '
        'by fold.',
    ]


def _halves_rows(results: Results) -> Iterable[list[str]]:
    yield [
        'method',
        'first half',
        'second half',
        'overlap',
        'first, difference',
        'second, difference',
    ]
    seeds = {name: method.seeds for name, method in results.methods.items()}
    for name, said in halves(seeds).items():
        compared = ['', ''] if said.compared is None else [_interval(x, '+') for x in said.compared]
        accuracy = [_interval(x, '') for x in said.accuracy]
        yield [name, *accuracy, 'yes' if said.overlap else 'no', *compared]


def _interval(x: Interval, sign: str) -> str:
    mean, low, high = (f'{100 * share:{sign}.1f}' for share in x)
    return f'{mean} ({low} to {high})'
