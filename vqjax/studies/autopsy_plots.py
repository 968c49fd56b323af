"""The plot of an autopsy's case: the faulty run over the cured one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from vqjax.studies import plots

_SIDES = {'faulty': '#D55E00', 'cured': '#0072B2'}


def write(path: Path, name: str, record: Mapping[str, Any]) -> None:
    """Writes the plot of the case `name` as PNG."""
    plots.save(figure(name, record), path)


@plots.styled
def figure(name: str, record: Mapping[str, Any]) -> Figure:
    """The series the case shows, over the steps, on a log scale where it spans decades."""
    shown = record['case']['shown']
    drawn = plots.new_figure(6, 3.4)
    axis = drawn.subplots()
    values = []
    for side, colour in _SIDES.items():
        points = [
            (r['step'], r[shown]) for r in record['history'][side] if r.get(shown) is not None
        ]
        if not points:
            continue
        steps, series = np.array(points, float).T
        values.append(series)
        marker = 'o' if len(steps) < 30 else None
        axis.plot(steps, series, color=colour, lw=1.6, marker=marker, ms=4, label=side)
    positive = np.concatenate(values) if values else np.ones(1)
    largest, least = positive.max(), positive[positive > 0].min(initial=np.inf)
    if largest > 100 * least:
        axis.set_yscale('symlog', linthresh=least) if positive.min() <= 0 else axis.set_yscale(
            'log'
        )
    else:
        axis.set_ylim(bottom=0)
    axis.set_title(name)
    axis.set_xlabel('step')
    axis.set_ylabel(shown.replace('_', ' '))
    axis.legend()
    return drawn
