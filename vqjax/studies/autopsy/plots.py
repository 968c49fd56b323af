"""The plot of an autopsy's case: what the case shows of the faulty run, beside the cured one."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from vqjax.studies.autopsy.cases import Case, Panel
from vqjax.studies.autopsy.outcome import CaseRecord
from vqjax.studies.reporting import plots

_SIDES = {'faulty': plots.VERMILION, 'cured': plots.BLUE}
_STYLES = ('-', '--')


def write(path: Path, name: str, case: Case, record: CaseRecord) -> None:
    """Writes the plot of the case `name` as PNG."""
    plots.save(figure(name, case, record), path)


@plots.styled
def figure(name: str, case: Case, record: CaseRecord) -> Figure:
    """The panels of the case side by side, and under them the sentence that says what they show."""
    drawn = plots.new_figure(8.8, 3.6)
    axes = drawn.subplots(1, len(case.shown), squeeze=False)[0]
    for axis, panel in zip(axes, case.shown, strict=True):
        _DRAW[panel.kind](axis, panel, record)
        axis.set_title(panel.title, fontsize=10, weight='normal')
    drawn.suptitle(
        name.replace('_', ' ').capitalize(), x=0.01, ha='left', weight='bold', fontsize=11
    )
    entries: dict[Any, Artist] = {}
    for axis in axes:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    drawn.legend(
        list(entries.values()), list(entries), loc='outside upper right', ncols=4, fontsize=9
    )
    drawn.supxlabel(textwrap.fill(case.seen, 105), fontsize=9, color=plots.GREY)
    return drawn


def _steps(axis: Axes, panel: Panel, record: CaseRecord) -> None:
    """An entry of the records over the steps."""
    (name,) = panel.names
    found = []
    for side, colour in _SIDES.items():
        points = [
            (step, r[name])
            for r in record.history[side]
            if (step := r['step']) is not None
            and r.get(name) is not None
            and (panel.until is None or step <= panel.until)
        ]
        if not points:
            continue
        steps, series = np.array(points, float).T
        found.append(series)
        marker = 'o' if len(steps) < 30 else None
        # The cured run on top and dashed: where both are the same, both can be seen.
        style = '-' if side == 'faulty' else (0, (4, 1.5))
        axis.plot(steps, series, color=colour, lw=1.6, ls=style, marker=marker, ms=4, label=side)
    if not found:
        raise ValueError(f'no record of either run has {name!r}, which the plot is to show')
    _fit_scale(axis, found)
    axis.set_xlabel('step')
    axis.xaxis.set_major_locator(MaxNLocator(6, integer=True, steps=[1, 2, 5, 10]))


def _total(axis: Axes, panel: Panel, record: CaseRecord) -> None:
    """Entries of the records summed up to each step, the second of them dashed."""
    for side, colour in _SIDES.items():
        for name, style in zip(panel.names, _STYLES, strict=False):
            points = [(r['step'], r[name]) for r in record.history[side] if 'gradient_norm' in r]
            steps, series = np.array(points, float).T
            label = side if len(panel.names) == 1 else f'{side}: {panel.names[name]}'
            axis.plot(steps, np.cumsum(series), color=colour, lw=1.8, ls=style, label=label)
    axis.set_ylim(bottom=0)
    axis.set_xlabel('step')
    axis.yaxis.set_major_formatter(FuncFormatter(lambda x, _: f'{x:,.0f}'))


def _bars(axis: Axes, panel: Panel, record: CaseRecord) -> None:
    """Figures of the case, the faulty run's beside the cured one's, with their values."""
    places = np.arange(len(panel.names))
    for i, (side, colour) in enumerate(_SIDES.items()):
        values = np.array([record.case.figures[side][name] for name in panel.names], float)
        bars = axis.bar(places + 0.4 * (i - 0.5), values, 0.36, color=colour, label=side)
        axis.bar_label(bars, [f'{v:.3g}' for v in values], fontsize=9, padding=2)
    axis.set_xticks(places, panel.names.values())
    axis.tick_params(axis='x', length=0, labelcolor=plots.DARK)
    axis.grid(axis='x', visible=False)
    axis.margins(y=0.12)


def _halves(axis: Axes, panel: Panel, record: CaseRecord) -> None:
    """How many codes the first position uses alone, both use, and the second alone; a bar a side.

    One with a single position has one segment of codes in use.
    """
    for place, (side, colour) in enumerate(_SIDES.items()):
        used = np.asarray(record.counts[side]) > 0
        first, second = used[0], used[1] if len(used) > 1 else np.zeros_like(used[0])
        segments = [
            ('first half only' if len(used) > 1 else 'all features', first & ~second, 1.0),
            ('both halves', first & second, 0.75),
            ('second half only', second & ~first, 0.5),
        ]
        start = 0
        for label, codes, alpha in segments:
            if not (number := int(codes.sum())):
                continue
            axis.barh(place, number, 0.55, left=start, color=colour, alpha=alpha, label=side)
            axis.text(
                start + number / 2, place, f'{label}: {number}', ha='center', va='center',
                color='white' if alpha == 1 else plots.DARK, fontsize=9,
            )  # fmt: skip
            start += number
        unused = used.shape[-1] - start
        axis.barh(place, unused, 0.55, left=start, color=plots.LIGHT)
        axis.text(
            start + unused / 2, place, f'unused: {unused}', ha='center', va='center', fontsize=9
        )
    axis.set_yticks(range(len(_SIDES)), list(_SIDES))
    axis.invert_yaxis()
    axis.grid(axis='y', visible=False)
    axis.set_xlabel('codes')


def _fit_scale(axis: Axes, found: Sequence[np.ndarray]) -> None:
    """A log scale where the values span decades, one that holds 0 where they do."""
    values = np.concatenate(found)
    positive = values[values > 0]
    if not len(positive) or values.max() <= 12 * positive.min():
        # A line at 0 would be lost in the axis.
        axis.set_ylim(bottom=0 if values.min() > 0 else -0.04 * max(values.max(), 1e-30))
        return
    if values.min() > 0:
        axis.set_yscale('log')
        if values.max() < 100 * positive.min():
            axis.yaxis.set_minor_formatter(FuncFormatter(plots.two_and_five))
    else:
        least = 10 ** np.floor(np.log10(positive.min()))
        axis.set_yscale('symlog', linthresh=least, linscale=0.5)
        most = int(np.ceil(np.log10(values.max() / least)))
        axis.set_yticks([0, *(least * 10.0**i for i in range(most + 1))])
        axis.set_ylim(bottom=-0.2 * least)
    axis.yaxis.set_major_formatter(FuncFormatter(lambda x, _: f'{x:,.12g}'))


_DRAW = {'steps': _steps, 'total': _total, 'bars': _bars, 'halves': _halves}
