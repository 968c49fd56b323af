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
from vqjax.studies.behaviour.outcome import Behaviours, Figures, Picture
from vqjax.studies.behaviour.plots import figure
from vqjax.studies.reporting.plots import save
from vqjax.studies.reporting.tables import made_by, markdown, points, points_range

SHOWN = {
    'frame_accuracy': 'frame accuracy %', 'adjusted_rand_index': 'adjusted Rand',
    'boundary_f1': 'boundary F1', 'states_found': 'states', 'log_likelihood': 'nats a place',
}  # fmt: skip


def over_folds(values: Sequence[float]) -> Interval:
    """Mean over folds, one value each, with its corrected interval: their training sets overlap."""
    number = len(values)
    if number < 2:
        return Interval(float(np.mean(values)), math.nan, math.nan)
    return corrected_t(values, 1 / (number - 1))


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


def _cell(name: str, values: Sequence[float]) -> str:
    if not values:
        return ''
    found = over_folds(values)
    if name == 'frame_accuracy':
        return f'{100 * found.mean:.1f} ({100 * found.low:.1f}, {100 * found.high:.1f})'
    digits = 1 if name == 'states_found' else 2
    return f'{found.mean:.{digits}f} ({found.low:.{digits}f}, {found.high:.{digits}f})'


def window_rows(found: Behaviours) -> Iterator[tuple[str, ...]]:
    """Cells of the table of the tokenizers, the headings first."""
    yield ('', 'window accuracy %', 'ECE', 'perplexity, least', 'bits a window')
    for name in methods_of(found):
        use = of_method(found, name, 'perplexity')
        method = found.folds[0].methods[name]
        yield (
            name,
            _cell('frame_accuracy', of_method(found, name, 'accuracy')),
            _cell('ece', of_method(found, name, 'ece')).replace('0.', '.'),
            f'{np.mean(use):.1f}, {min(use):.1f}' if use else '',
            f'{method.bits:,.0f}' if method.spec else '',
        )


def model_rows(found: Behaviours) -> Iterator[tuple[str, ...]]:
    """Cells of the table of the sequence models and peers, the headings first."""
    yield ('codes of', 'then', *SHOWN.values())
    for method in methods_of(found):
        for model in models_of(found, method):
            yield (
                method,
                model,
                *(_cell(n, of_model(found, method, model=model, name=n)) for n in SHOWN),
            )
    for peer in peers_of(found):
        yield (peer, '', *(_cell(name, of_peer(found, peer, name)) for name in SHOWN))


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


def _difference(a: Sequence[float], b: Sequence[float]) -> Interval | None:
    """Mean over folds of a - b with its interval; None where either is missing."""
    if not a or not b:
        return None
    return over_folds([x - y for x, y in zip(a, b, strict=True)])


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
        apart = _difference(of_method(found, method, 'accuracy'), base)
        use = of_method(found, method, 'perplexity')
        if method == 'none' or apart is None or not use:
            continue
        fallen = sum(value < bound for value in use)
        within = 'within' if abs(apart.mean) <= 0.02 else 'not within'
        said.append(
            f'**{method}**: windows are told apart {_points(apart)} points from the encoder alone, '
            f'{within} 2 points; collapsed in {fallen} of {len(use)} folds.'
        )
    for better, worse, name in (
        ('sticky HMM', 'HMM', 'Sticky states'),
        ('HSMM', 'sticky HMM', 'Explicit durations in place of geometric ones'),
        ('HSMM', 'HMM', 'Durations and stickiness together'),
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
        apart = _difference(a, b)
        if apart is None:
            continue
        less = 'lower boundary F1' if apart.high < 0 else 'are not shown to move boundary F1'
        verdict = 'raise boundary F1' if apart.low > 0 else less
        by_verdict.setdefault(verdict, []).append(
            f'{method} ({apart.mean:+.2f}, {apart.low:+.2f} to {apart.high:+.2f})'
        )
    order = ('raise boundary F1', 'lower boundary F1', 'are not shown to move boundary F1')
    return '; '.join(
        f'{v} on codes of {", ".join(by_verdict[v])}' for v in order if v in by_verdict
    )


def _found(found: Behaviours, methods: Sequence[str]) -> str:
    parts = []
    for method in methods:
        values = of_model(found, method, model='HSMM, states found', name='states_found')
        parts.append(f'{np.mean(values):.1f} on codes of {method}')
    return f'States found, at most {found.own.states}: {", ".join(parts)}.'


def _against(found: Behaviours, methods: Sequence[str], peer: str) -> str:
    parts = []
    for method in methods:
        ours = of_model(found, method, model='HSMM', name='adjusted_rand_index')
        apart = _difference(ours, of_peer(found, peer, 'adjusted_rand_index'))
        if apart is not None:
            parts.append(f'{method} {apart.mean:+.2f} ({apart.low:+.2f} to {apart.high:+.2f})')
    return f'Adjusted Rand index of the HSMM less that of {peer}: {", ".join(parts)}.'


def text(results: Results) -> str:
    """The text of report.md."""
    found = Behaviours.of(results)
    config, folds, own = results.config, found.folds, found.own
    held = [fold.recordings['test']['recordings'] for fold in folds]
    parts = [
        f'# Behaviours from codes of {config["dataset"]}',
        made_by(results.command, results.environment),
        '![a session](session.png)',
        'A held-out session of the first fold: the signals, the true behaviours, and for every '
        'tokenizer its codes, a colour each, with the states that the HSMM found in them; below '
        'them the peers. A state has the colour of the behaviour that it is matched to, grey '
        'where it is matched to none.',
        '\n'.join(f'- {sentence}' for sentence in conclusions(found)),
        '## Tokenizers',
        markdown(window_rows(found)),
        '## Sequence models',
        markdown(model_rows(found), words=2),
        '## How',
        f'{len(folds)} folds of {", ".join(map(str, held))} held-out recordings, '
        f'{config["seeds"] // len(folds)} seed each; in brackets the 95% interval over folds, '
        'corrected for training sets that overlap '
        '(Nadeau and Bengio 2003). A network is trained on labelled windows of '
        f'{config["window"]} steps. Then every recording occurs {own.rounds} times, in random '
        f'order, {own.session} to a session; two neighbours of one label are one stretch. The '
        'sequence models are fitted to the codes of sessions of training recordings, without '
        'labels, and find the most likely states of held-out sessions. For `none` the codes are '
        f'those of k-means with {own.tokens} centroids on the encoder\'s vectors, and '
        '`classifier` is the class of the window around each place, which labels made. `codes` '
        'takes every code for a state. HMM, sticky HMM and HSMM are given the number of '
        f'behaviours; "states found" looks for up to {own.states}. Durations are negative '
        f'binomial with {own.phases} phases, {own.duration_s:g} s expected. "late": from '
        f'codes up to {own.lag_s:g} s after each place, as in a stream. The estimate is that '
        'of the weak limit of a sticky HDP-HSMM by EM, no sample of its posterior; it ends in the '
        'best optimum of a few starts, which need not be the best there is.',
        'Frame accuracy: states matched one to one to labels so that most steps agree. Boundary '
        'F1: found and true boundaries within half a second, one to one. States: those that '
        'occur in held-out sessions. Nats a place: log likelihood of held-out codes; to be '
        'compared among models of the same codes.',
    ]  # fmt: skip
    return '\n\n'.join(parts) + '\n'


def write(workdir: str | Path, results: Results, picture: Picture) -> None:
    """Writes report.md and session.png."""
    replace_file(Path(workdir) / 'report.md', text(results))
    save(figure(picture), Path(workdir) / 'session.png')
