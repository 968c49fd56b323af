"""What a report says of a search of settings, and of two halves of the folds."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from vqjax.metrics import Interval
from vqjax.results.records import Results
from vqjax.results.summaries import BASELINE, halves
from vqjax.results.tuning import Tuning
from vqjax.studies.reporting import tables
from vqjax.trainer.config.space import mean


def tuning_section(results: Results) -> list[str]:
    """Paragraphs on how the settings were chosen; where the run did not, one that says so."""
    tuning = results.tuning
    if tuning is None:
        return [
            'The settings are those of the configuration: this run did not choose them. How those '
            'of `configs/digits.py` were chosen stands in `docs/comparison.md`.'
        ]
    each = (
        'The search is nested: every fold chose on its own validation part, so that no image is '
        'told by a setting that it helped to choose.'
        if tuning.nested
        else f'Scored by the mean over {tuning.seeds} seeds.'
    )
    return [
        '## How the settings were chosen',
        f'{tuning.trials} random trials a method, drawn from the space that `results.json` '
        f'holds, of which the highest validation accuracy chose (of equals the lowest NLL). {each} '
        f'The test split was opened after that, {tuning.test_opened}.',
        tables.markdown(_tuning_rows(tuning), words=2),
    ]


def _tuning_rows(tuning: Tuning) -> Iterable[list[str]]:
    """A row for each choice: one a method, or one a fold."""
    nested = tuning.nested
    yield ['fold' if nested else 'method', 'chosen', 'its validation %', 'median of trials',
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
        '## Two halves',
        tables.markdown(rows),
        'The same images, dealt out to folds in other ways: the accuracy (%) in the first half of '
        f'the deals and in the others, with the 95% interval of each half alone; `{BASELINE}` is '
        'subtracted, fold by fold, in the last two columns.',
    ]


def _halves_rows(results: Results) -> Iterable[list[str]]:
    yield ['method', 'first half', 'second half', 'overlap', 'first, compared', 'second, compared']
    seeds = {name: method.seeds for name, method in results.methods.items()}
    for name, said in halves(seeds).items():
        compared = ['', ''] if said.compared is None else [_interval(x, '+') for x in said.compared]
        accuracy = [_interval(x, '') for x in said.accuracy]
        yield [name, *accuracy, 'yes' if said.overlap else 'no', *compared]


def _interval(x: Interval, sign: str) -> str:
    mean, low, high = (f'{100 * share:{sign}.1f}' for share in x)
    return f'{mean} ({low} to {high})'
