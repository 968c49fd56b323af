"""The plot of the remedies: test error and perplexity of each, grouped by what became of it."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter

from vqjax.results import summaries
from vqjax.results.records import MethodResult, Results
from vqjax.studies.remedies import verdicts
from vqjax.studies.reporting import plots

# What a group is called where there is little room.
_SHORT = {
    verdicts.ENOUGH: 'enough alone',
    verdicts.COSTS: 'no collapse, at a cost',
    verdicts.HELPS: 'better than weak',
    verdicts.NOTHING: 'no effect shown',
    verdicts.IDLE: 'never acted',
    verdicts.HARMS: 'worse than weak',
}
_CONTROLS = (summaries.BASELINE, verdicts.WEAK)
_SOUND, _COLLAPSED = plots.BLUE, plots.VERMILION


@plots.styled
def figure(results: Results) -> Figure:
    """Error of every seed, mean and interval, and the perplexity, on log scales; best on top."""
    methods = results.methods
    members: dict[str, list[str]] = {
        'controls': [n for n in verdicts.by_accuracy(results) if n in _CONTROLS]
    }
    for name in verdicts.by_accuracy(results):
        if name not in _CONTROLS:
            members.setdefault(_SHORT[verdicts.group(name, results)], []).append(name)
    groups = [g for g in ('controls', *_SHORT.values()) if members.get(g)]
    size = sum(len(members[g]) + 1 for g in groups)  # with a row for its title
    drawn = plots.new_figure(9, 1.4 + 0.22 * size)
    left, right = drawn.subplots(1, 2, sharey=True, width_ratios=(3, 2))
    errors = [100 * (1 - s.accuracy) for m in methods.values() for s in m.seeds]
    floor = 0.7 * min((e for e in errors if e > 0), default=1.0)  # stands for no error at all
    for name, colour in zip(_CONTROLS, (plots.GREY, _COLLAPSED), strict=True):
        if name in methods:
            mean, low, high = _error(methods[name], floor)
            left.axvspan(low, high, color=colour, alpha=0.13, lw=0)
            left.axvline(mean, color=colour, lw=1, ls='--', alpha=0.7)
    labels = []
    for title in groups:
        labels.append(title)
        for name in members[title]:
            _draw_row(left, right, row=len(labels), method=methods[name], floor=floor, name=name)
            labels.append(name)
    left.set_yticks(range(len(labels)), labels)
    left.set_ylim(len(labels), -1)
    left.tick_params(axis='y', length=0)
    for label in left.get_yticklabels():
        label.set_weight('bold' if label.get_text() in groups else 'normal')
    for axis in (left, right):
        axis.set_xscale('log')
        axis.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f'{x:g}'))
        axis.grid(axis='y', visible=False)
    left.set_xlim(right=100)
    left.xaxis.set_minor_formatter(FuncFormatter(plots.two_and_five))
    left.set_xlabel('test error (%)')
    right.tick_params(axis='y', length=0)
    right.set_xlabel('test perplexity (mean over stages)')
    left.set_title(f'{results.config["dataset"]}: each remedy alone')
    drawn.legend(handles=_legend(), loc='outside lower center', ncols=4, fontsize=9)
    return drawn


def _error(method: MethodResult, floor: float) -> tuple[float, float, float]:
    """Mean, low and high of the test error in percent, not below what stands for none."""
    mean, low, high = method.accuracy
    mean, low, high = (max(100 * (1 - x), floor) for x in (mean, high, low))
    return mean, low, high


def _draw_row(
    left: Axes, right: Axes, *, row: int, method: MethodResult, floor: float, name: str
) -> None:
    for axis, key in ((left, 'accuracy'), (right, 'perplexity')):
        if key not in method.seeds[0].figures:
            continue
        values = np.array([seed.figures[key] for seed in method.seeds])
        if key == 'accuracy':
            values = np.maximum(100 * (1 - values), floor)
        collapsed = np.array([bool(seed.figures.get('collapsed', 0)) for seed in method.seeds])
        marks = ((~collapsed, 'o', _SOUND, 0.3, 0), (collapsed, 'x', _COLLAPSED, 0.6, 1))
        for kind, mark, colour, alpha, edge in marks:
            x = values[kind]
            axis.plot(x, np.full(len(x), row), mark, color=colour, ms=4, alpha=alpha, mew=edge)
        mean, low, high = method.summary[key]
        if key == 'accuracy':
            mean, low, high = _error(method, floor)
        colour = plots.GREY if name == summaries.BASELINE else plots.DARK
        axis.plot([low, high], [row] * 2, color=colour, lw=2, solid_capstyle='butt')
        axis.plot(mean, row, 'D', color=colour, ms=4.5, mec='white', mew=0.8)


def _legend():
    return [
        Line2D([], [], color=plots.DARK, lw=2, marker='D', ms=4.5, mec='white', label='mean, 95%'),
        Line2D([], [], color=_SOUND, ls='', marker='o', ms=4, alpha=0.5, label='a seed'),
        Line2D([], [], color=_COLLAPSED, ls='', marker='x', ms=4.5, label='a seed that collapsed'),
        Line2D([], [], color=plots.GREY, lw=1, ls='--', label='mean of none, of weak'),
    ]
