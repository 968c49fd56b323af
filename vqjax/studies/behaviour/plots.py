"""The picture of a session: signals, true and found behaviours, codes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from vqjax.studies.behaviour.outcome import Picture
from vqjax.studies.behaviour.segmentation import fit_matching
from vqjax.studies.reporting import plots
from vqjax.studies.reporting.names import readable


def _strips(picture: Picture) -> Iterator[tuple[str, np.ndarray, bool]]:
    """Name, states [T] and whether they are codes, of every strip below the signals."""
    yield 'true behaviour', picture.session.labels[0], False
    others = []
    for method, found in picture.found.items():
        yield f'{readable(method)}: codes', found['codes'], True
        yield 'behaviours found', found['HSMM'], False
        if 'classifier' in found:
            yield 'by a classifier', found['classifier'], False
        others += [(name, found[name], False) for name in found if ' + ' in name]
    yield from others


@plots.styled
def figure(picture: Picture) -> Figure:
    """Signals, true and found behaviours and codes of one session, below each other."""
    from matplotlib.colors import to_rgb
    from matplotlib.patches import Patch

    session, dataset = picture.session, picture.dataset
    labels = session.labels[0]
    steps = int((labels >= 0).sum())
    seconds = steps / dataset.rate
    strips = list(_strips(picture))
    drawn = plots.new_figure(9, 1.9 + 0.24 * len(strips) + 0.6)
    heights = [7] + [1] * len(strips)
    axes = drawn.subplots(len(heights), 1, sharex=True, height_ratios=heights)
    signals = session.signals[0, :steps]
    scaled = (signals - np.nanmean(signals, 0)) / np.nanstd(signals, 0)
    at = np.arange(steps) / dataset.rate
    for sensor, values in enumerate(scaled.T):
        axes[0].plot(at, values / 6 - sensor, color=plots.DARK, linewidth=0.4)
    axes[0].set(yticks=[], xlim=(0, seconds))
    axes[0].set_ylabel('sensors', rotation=0, ha='right', va='center')
    colours = [to_rgb(c) for c in plots.COLOURS] * (1 + len(dataset.labels) // len(plots.COLOURS))
    for axis, (name, states, coded) in zip(axes[1:], strips, strict=True):
        row = _coloured(states[:steps], labels[:steps], colours=colours, coded=coded)
        axis.imshow(row[None], aspect='auto', extent=(0, seconds, 0, 1), interpolation='nearest')
        axis.set(yticks=[])
        axis.grid(visible=False)
        axis.set_ylabel(name, rotation=0, ha='right', va='center')
        axis.tick_params(bottom=axis is axes[-1])
        axis.spines[:].set_visible(False)
    axes[-1].set_xlabel('seconds')
    handles = [Patch(color=colours[i], label=label) for i, label in enumerate(dataset.labels)]
    drawn.legend(handles=handles, loc='outside upper center', ncols=len(handles))
    return drawn


def _coloured(
    states: np.ndarray, labels: np.ndarray, colours: Sequence[Any], coded: bool
) -> np.ndarray:
    """Colours [T, 3]: of the matched behaviour, grey for none; of codes a grey each."""
    row = np.ones((len(states), 3))
    if coded:
        # Hues stand for behaviours alone. Far apart for neighbouring numbers: codes have no order.
        row[states >= 0] = (0.1 + 0.75 * (states[states >= 0] * 0.618034 % 1))[:, None]
        return row
    for i, state in enumerate(np.unique(states[states >= 0])):
        row[states == state] = 0.55 + 0.3 * (i % 3) / 2
    for state, label in fit_matching(labels, states).items():
        row[states == state] = colours[label]
    return row
