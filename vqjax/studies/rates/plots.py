"""The plot of rates: accuracy against bits a token, a panel a bottleneck, a line a quantizer."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from vqjax.metrics import Interval
from vqjax.results.records import Results
from vqjax.studies.rates.curves import (
    WITHIN,
    baseline,
    bottlenecks,
    curves,
    label,
    nominal,
    title,
    tokens,
)
from vqjax.studies.reporting import plots

_COLOURS = (*plots.COLOURS, '#8C564B', '#111111', '#7F7F00', '#9467BD')
_MARKS = 'osD^vPX*<>'
# Percent: the first of these with enough in sight, else whole ones between.
_TICKS = (
    (99.9, 99.5, 99, 98, 97, 95, 90, 80, 60, 40, 20),
    (95, 90, 85, 80, 75, 70, 60, 50, 40, 30, 20),
)
# How far the points of one rate are drawn apart, so that bars do not hide each other: bits at most,
# and a share of all rates.
_SPREAD, _SHARE = 0.5, 0.04


@plots.styled
def figure(results: Results) -> Figure:
    """Mean and 95% interval of every point, none a band; errors on a log scale."""
    kinds = [kind for kind in bottlenecks(results) if curves(results, kind)]
    families = list(dict.fromkeys(f for kind in kinds for f in curves(results, kind)))
    styles = {
        family: (_COLOURS[i % len(_COLOURS)], _MARKS[i % len(_MARKS)])
        for i, family in enumerate(families)
    }
    floor = _floor(results)
    drawn = plots.new_figure(1 + 5.2 * max(len(kinds), 1), 5.4)
    axes = drawn.subplots(1, max(len(kinds), 1), sharey=True, squeeze=False)[0]
    for kind, axis in zip(kinds, axes, strict=False):
        _panel(axis, results, kind=kind, styles=styles, floor=floor)
    axes[0].set_yscale('log')
    axes[0].invert_yaxis()
    axes[0].set_ylim(top=floor)  # a bar that ends there goes on to no error at all
    axes[0].yaxis.set_major_locator(FixedLocator(_ticks(*axes[0].get_ylim())))
    axes[0].yaxis.set_minor_locator(NullLocator())
    axes[0].yaxis.set_major_formatter(FuncFormatter(lambda error, _: f'{100 - error:g}'))
    axes[0].set_ylabel('test accuracy (%)')
    columns = 5 if len(kinds) > 1 else 3
    drawn.legend(handles=_legend(styles), loc='outside lower center', ncols=columns, fontsize=9)
    return drawn


def _floor(results: Results) -> float:
    """The error in percent at which the picture ends: it stands for none, where bars reach that."""
    means = [100 * (1 - method.accuracy.mean) for method in results.methods.values()]
    least = [100 * (1 - method.accuracy.high) for method in results.methods.values()]
    if min(least, default=0.0) > 0:
        return 0.9 * min(least)
    return 0.3 * min((e for e in means if e > 0), default=1.0)


def _ticks(most: float, least: float) -> list[float]:
    """Errors in percent to name on an axis between these two; round accuracies."""
    whole = MaxNLocator(6, steps=[1, 2, 5, 10]).tick_values(least, most)
    for accuracies in (*_TICKS, [100 - error for error in whole]):
        inside = [100 - tick for tick in accuracies if least <= 100 - tick <= most]
        if len(inside) >= 4:
            break
    return inside


def _errors(accuracy: Interval, floor: float) -> tuple[float, float, float]:
    """Mean of the error in percent, and how far its bar reaches below and above."""
    mean, high, low = (max(100 * (1 - x), floor) for x in accuracy)
    return mean, mean - low, high - mean


def _panel(axis, results, kind, styles, floor):
    by_family, none = curves(results, kind), baseline(results, kind)
    if none:
        mean, below, above = _errors(results.methods[none].accuracy, floor)
        axis.axhspan(mean - below, mean + above, color=plots.LIGHT, alpha=0.6, lw=0)
        axis.axhline(mean, color=plots.GREY, lw=1, ls='--')
        axis.axhline(mean + 100 * WITHIN, color=plots.GREY, lw=1, ls=':')
    rates = sorted({nominal(p) for points in by_family.values() for p in points})
    apart = min(_SPREAD, _SHARE * (rates[-1] - rates[0]) or _SPREAD)
    places = np.linspace(-apart, apart, len(styles)) if len(styles) > 1 else [0.0]
    offsets = dict(zip(styles, places, strict=True))
    for family, points in by_family.items():
        colour, mark = styles[family]
        found = np.array([_errors(point.accuracy, floor) for point in points]).T
        axis.errorbar(
            [p.bits + offsets[family] for p in points], found[0], found[1:],
            fmt=f'{mark}-', color=colour, ms=5.5, mec='white', mew=0.6, lw=1.4, elinewidth=1.0,
            alpha=0.9,
        )  # fmt: skip
        learning = [i for i, point in enumerate(points) if point.learning]
        axis.plot(
            [points[i].bits + offsets[family] for i in learning], found[0, learning], mark,
            color=colour, ms=5.5, mfc='white', zorder=3,
        )  # fmt: skip
    axis.set_xticks(rates, [str(rate) for rate in rates])
    axis.set_xlabel('bits a token')
    axis.set_title(f'{results.config["dataset"]}: {title(kind, by_family)}')
    if (number := tokens(by_family)) > 1:
        above = axis.secondary_xaxis('top')
        above.set_xticks(rates, [str(number * rate) for rate in rates])
        above.set_xlabel('bits an image')


def _legend(styles):
    lines = [
        Line2D([], [], color=colour, marker=mark, ms=5.5, mec='white', lw=1.4, label=name)
        for name, (colour, mark) in ((label(f), style) for f, style in styles.items())
    ]
    empty = {'color': plots.GREY, 'ls': '', 'marker': 'o', 'mfc': 'white'}
    grey = {'color': plots.GREY, 'lw': 1}
    return [
        *lines,
        Line2D([], [], ls='--', **grey, label='none (shaded: 95%)'),
        Line2D([], [], ls=':', **grey, label=f'{100 * WITHIN:g} point below none'),
        Line2D([], [], ms=5.5, **empty, label='not converged'),
    ]
