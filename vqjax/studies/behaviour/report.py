"""What the study of behaviours says: tables over folds, conclusions, the picture of a session."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from rich import box
from rich.markup import escape
from rich.table import Table

from vqjax import health
from vqjax.atomic import replace_file
from vqjax.intervals import corrected_t
from vqjax.metrics import Interval
from vqjax.results.records import Results
from vqjax.results.summaries import MARGIN
from vqjax.studies.behaviour.outcome import Behaviours, Figures, Picture
from vqjax.studies.behaviour.plots import figure
from vqjax.studies.reporting.plots import save
from vqjax.studies.reporting.tables import made_by, markdown, points, points_range

UNCHANGED = 'make no significant difference to boundary F1'
SHOWN = {
    'frame_accuracy': 'frame accuracy %', 'adjusted_rand_index': 'adjusted Rand',
    'boundary_f1': 'boundary F1', 'states_found': 'states', 'log_likelihood': 'nats per place',
}  # fmt: skip


def over_folds(found: Behaviours, values: Sequence[float]) -> Interval:
    """Mean over folds, one value each, with its corrected interval: their training sets overlap."""
    if len(values) < 2:
        return Interval(float(np.mean(values)), math.nan, math.nan)
    sizes = [fold.recordings for fold in found.folds]
    ratios = [of['test']['recordings'] / of['train']['recordings'] for of in sizes]
    return corrected_t(values, float(np.mean(ratios)))


def of_method(found: Behaviours, method: str, name: str) -> list[float]:
    """A figure of the windows on every fold, mean over seeds; [] where it has none."""
    folds = [fold.methods[method].runs for fold in found.folds]
    return _means([[run.figures for run in runs] for runs in folds], name)


def of_model(found: Behaviours, method: str, model: str, name: str) -> list[float]:
    """A figure of a sequence model on a method's codes, likewise."""
    folds = [fold.methods[method].runs for fold in found.folds]
    return _means([[run.models.get(model, {}) for run in runs] for runs in folds], name)


def of_peer(found: Behaviours, peer: str, name: str) -> list[float]:
    """A figure of a peer, likewise."""
    folds = [fold.peers.values() for fold in found.folds]
    return _means([[peers.get(peer, {}) for peers in seeds] for seeds in folds], name)


def _means(folds: Sequence[Sequence[Figures]], name: str) -> list[float]:
    """The figure of that name, a value for each fold; [] where one does not have it."""
    if not all(name in figures for seeds in folds for figures in seeds):
        return []
    return [float(np.mean([figures[name] for figures in seeds])) for seeds in folds]


def methods_of(found: Behaviours) -> list[str]:
    """The methods, in order."""
    return list(found.folds[0].methods)


def models_of(found: Behaviours, method: str) -> list[str]:
    """The sequence models that were fitted to its codes."""
    return list(found.folds[0].methods[method].runs[0].models)


def peers_of(found: Behaviours) -> list[str]:
    """The peers that were installed."""
    return list(next(iter(found.folds[0].peers.values())))


def _cell(of: Behaviours, name: str, values: Sequence[float]) -> str:
    if not values:
        return ''
    found = over_folds(of, values)
    if name == 'frame_accuracy':
        return f'{100 * found.mean:.1f} ({100 * found.low:.1f}, {100 * found.high:.1f})'
    digits = 1 if name == 'states_found' else 2
    return f'{found.mean:.{digits}f} ({found.low:.{digits}f}, {found.high:.{digits}f})'


def window_rows(found: Behaviours) -> Iterator[tuple[str, ...]]:
    """Cells of the table of the tokenizers, the headings first."""
    yield (
        'tokenizer',
        'window accuracy %',
        'ECE',
        'perplexity: mean, lowest fold',
        'bits per window',
    )
    for name in methods_of(found):
        use = of_method(found, name, 'perplexity')
        method = found.folds[0].methods[name]
        yield (
            name,
            _cell(found, 'frame_accuracy', of_method(found, name, 'accuracy')),
            _cell(found, 'ece', of_method(found, name, 'ece')).replace('0.', '.'),
            f'{np.mean(use):.1f}, {min(use):.1f}' if use else '',
            f'{method.bits:,.0f}' if method.spec else '',
        )


def model_rows(found: Behaviours) -> Iterator[tuple[str, ...]]:
    """Cells of the table of the sequence models and peers, the headings first."""
    yield ('codes of', 'model', *SHOWN.values())
    for method in methods_of(found):
        for model in models_of(found, method):
            yield (
                method,
                model,
                *(_cell(found, n, of_model(found, method, model=model, name=n)) for n in SHOWN),
            )
    for peer in peers_of(found):
        yield (peer, '', *(_cell(found, name, of_peer(found, peer, name)) for name in SHOWN))


def table(results: Results) -> Table:
    """Both tables in one, for the terminal: the sequence models."""
    header, *rows = model_rows(Behaviours.of(results))
    found = Table(title='behaviour', box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for i, name in enumerate(header):
        found.add_column(name, justify='left' if i < 2 else 'right', style='bold' if not i else '')
    before = None
    for row in rows:
        if before not in (None, row[0]):
            found.add_section()
        found.add_row(*(escape(cell) for cell in ('' if row[0] == before else row[0], *row[1:])))
        before = row[0]
    return found


def _difference(found: Behaviours, a: Sequence[float], b: Sequence[float]) -> Interval | None:
    """Mean over folds of a - b with its interval; None where either is missing."""
    if not a or not b:
        return None
    return over_folds(found, [x - y for x, y in zip(a, b, strict=True)])


def _points(difference: Interval) -> str:
    return f'{points(difference)} ({points_range(difference)})'


def conclusions(found: Behaviours) -> list[str]:
    """What the figures say of the claims, a sentence each."""
    methods, said = methods_of(found), []
    base = of_method(found, 'none', 'accuracy') if 'none' in methods else []
    # The HMM is given as many states as there are behaviours.
    states = [x for m in methods for x in of_model(found, m, model='HMM', name='states_found')]
    bound = health.CLASS_SHARE * max(states, default=0)
    for method in methods:
        apart = _difference(found, of_method(found, method, 'accuracy'), base)
        use = of_method(found, method, 'perplexity')
        if method == 'none' or apart is None or not use:
            continue
        fallen = sum(value < bound for value in use)
        small = -MARGIN < apart.low and apart.high < MARGIN
        apart_by = f'a difference of {100 * MARGIN:g} points is {"" if small else "not "}excluded'
        if apart.high < -MARGIN:
            apart_by = f'a loss of more than {100 * MARGIN:g} points'
        said.append(
            f'**{method}**: the window accuracy is {_points(apart)} points compared with the '
            f'encoder alone, {apart_by}; collapsed in {fallen} of {len(use)} folds.'
        )
    for better, worse, name in (
        ('sticky HMM', 'HMM', 'Sticky states (compared with an HMM)'),
        ('HSMM', 'sticky HMM', 'Explicit durations (compared with a sticky HMM)'),
        ('HSMM', 'HMM', 'Durations and stickiness together (compared with an HMM)'),
    ):
        said.append(f'{name} {_raises(found, methods, better=better, worse=worse)}.')
    said.append(_found(found, methods))
    said += [_against(found, methods, peer) for peer in peers_of(found)]
    return said


def _raises(found: Behaviours, methods: Sequence[str], better: str, worse: str) -> str:
    """What a model does to boundary F1 over another one, the methods by verdict."""
    by_verdict: dict[str, list[str]] = {}
    for method in methods:
        a, b = (of_model(found, method, model=m, name='boundary_f1') for m in (better, worse))
        apart = _difference(found, a, b)
        if apart is None:
            continue
        less = 'lower boundary F1' if apart.high < 0 else UNCHANGED
        verdict = 'raise boundary F1' if apart.low > 0 else less
        by_verdict.setdefault(verdict, []).append(
            f'{method} ({apart.mean:+.2f}, {apart.low:+.2f} to {apart.high:+.2f})'
        )
    order = ('raise boundary F1', 'lower boundary F1', UNCHANGED)
    return '; '.join(
        f'{v} on codes of {", ".join(by_verdict[v])}' for v in order if v in by_verdict
    )


def _found(found: Behaviours, methods: Sequence[str]) -> str:
    parts = []
    for method in methods:
        values = of_model(found, method, model='HSMM, states found', name='states_found')
        parts.append(f'{np.mean(values):.1f} on codes of {method}')
    return f'Number of states found, of at most {found.own.states}: {", ".join(parts)}.'


def _against(found: Behaviours, methods: Sequence[str], peer: str) -> str:
    parts = []
    for method in methods:
        ours = of_model(found, method, model='HSMM', name='adjusted_rand_index')
        apart = _difference(found, ours, of_peer(found, peer, 'adjusted_rand_index'))
        if apart is not None:
            parts.append(f'{method} {apart.mean:+.2f} ({apart.low:+.2f} to {apart.high:+.2f})')
    return f'Adjusted Rand index of the HSMM minus that of {peer}: {", ".join(parts)}.'


def text(results: Results) -> str:
    """The text of report.md."""
    found = Behaviours.of(results)
    config, folds, own = results.config, found.folds, found.own
    held = [fold.recordings['test']['recordings'] for fold in folds]
    parts = [
        f'# Behaviours from the codes of {config["dataset"]}',
        made_by(results.command, results.environment),
        '![a session](session.png)',
        'The picture shows a held-out session of the first fold: the signals, the true behaviours, '
        'the codes of every tokenizer (a shade for each code), the states that the HSMM '
        'found in these codes, and two baselines from other libraries. A state has the colour of '
        'the behaviour that it is matched to. Grey states are matched to none.',
        '\n'.join(f'- {sentence}' for sentence in conclusions(found)),
        '## Tokenizers',
        markdown(window_rows(found)),
        '## Sequence models',
        markdown(model_rows(found), words=2),
        '## Method',
        f'There are {len(folds)} folds with {", ".join(map(str, held))} held-out recordings and '
        f'{config["seeds"] // len(folds)} seed each. Parentheses hold the 95% interval over folds, '
        'corrected for overlapping training sets (Nadeau and Bengio 2003).',
        f'A network is trained on labelled windows of {config["window"]} steps. Sessions are then '
        f'made of {own.session} recordings in random order, and every recording occurs '
        f'{own.rounds} times. Neighbouring recordings with the same label are one segment. The '
        'sequence models are fitted without labels to the codes of training sessions, and find the '
        'most likely states of held-out sessions.',
        f'For `none`, the codes are those of k-means with {own.tokens} centroids on the vectors of '
        'the encoder. `classifier` is the class that the trained network predicts for the window '
        'around each place. `codes` takes every code as a state. HMM, sticky HMM and HSMM are '
        f'given the number of behaviours; "states found" looks for up to {own.states}. "Late" '
        f'means that only codes up to {own.lag_s:g} s after each place are used, as in a stream. '
        f'Durations are negative binomial with {own.phases} phases and an expected '
        f'{own.duration_s:g} s. The estimate is a point estimate of the weak limit of a sticky '
        'HDP-HSMM by EM, the best of a few starts.',
        'Frame accuracy is the share of steps that agree after the best one-to-one matching of '
        'states to labels. Boundary F1 matches found and true boundaries one to one within half a '
        'second. "States" is the number of states that occur in held-out sessions. "Nats per '
        'place" is the log likelihood of held-out codes, which can be compared only among models '
        'of the same codes.',
    ]  # fmt: skip
    return '\n\n'.join(parts) + '\n'


def write(workdir: str | Path, results: Results, picture: Picture) -> None:
    """Writes report.md and session.png."""
    replace_file(Path(workdir) / 'report.md', text(results))
    save(figure(picture), Path(workdir) / 'session.png')
