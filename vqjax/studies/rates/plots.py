"""The plot of rates: accuracy against bits a token, a panel a bottleneck, a line a quantizer."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from vqjax.metrics import Interval
from vqjax.results.records import Results
from vqjax.studies.rates.curves import (
    WITHIN,
    baseline,
    bottlenecks,
    curves,
    nominal,
    title,
    tokens,
)
from vqjax.studies.reporting import plots
from vqjax.studies.reporting.names import dataset, readable

_COLOURS = (*plots.COLOURS, '#8C564B', '#111111', '#7F7F00', '#9467BD')
_MARKS = 'osD^vPX*<>'
LINEAR = 2.0  # percent of error up to which the scale is linear
_TICKS = (
    (100, 99.5, 99, 98.5, 98, 97, 96, 95, 90, 85, 80, 70, 60, 50, 40, 20, 0),
    (97, 96, 95, 94, 93, 92, 90, 87, 86, 85, 84, 83, 82, 80, 75, 70, 60, 50, 40, 20, 0),
)
# How far the points of one rate are drawn apart, so that bars do not hide each other: bits at most,
# and a share of all rates.
_SPREAD, _SHARE = 0.5, 0.04


@plots.styled
def figure(results: Results) -> Figure:
    """Mean and 95% interval of every point, the network without a quantizer a band.

    The error is on a scale that is linear up to LINEAR and logarithmic from there on, so that an
    interval that ends at an accuracy of 100% is drawn whole.
    """
    kinds = [kind for kind in bottlenecks(results) if curves(results, kind)]
    families = list(dict.fromkeys(f for kind in kinds for f in curves(results, kind)))
    styles = {
        family: (_COLOURS[i % len(_COLOURS)], _MARKS[i % len(_MARKS)])
        for i, family in enumerate(families)
    }
    drawn = plots.new_figure(1 + 5.2 * max(len(kinds), 1), 5.6)
    axes = drawn.subplots(1, max(len(kinds), 1), sharey=True, squeeze=False)[0]
    for kind, axis in zip(kinds, axes, strict=False):
        _panel(axis, results, kind=kind, styles=styles)
    best = min(100 * (1 - method.accuracy.high) for method in results.methods.values())
    most = max(100 * (1 - method.accuracy.low) for method in results.methods.values())
    bottom = min(1.15 * most, 100)
    if best > LINEAR:
        axes[0].set_yscale('log')
        top, said = 0.9 * best, 'log scale of the error'
    else:
        axes[0].set_yscale('symlog', linthresh=LINEAR, linscale=0.6)
        top, said = (
            -0.06 * LINEAR,
            f'linear above {100 - LINEAR:g}, below it log scale of the error',
        )
    axes[0].set_ylim(bottom, top)
    axes[0].yaxis.set_major_locator(FixedLocator(_ticks(bottom, top)))
    axes[0].yaxis.set_minor_locator(NullLocator())
    axes[0].yaxis.set_major_formatter(FuncFormatter(lambda error, _: f'{100 - error:g}'))
    axes[0].set_ylabel(f'test accuracy (%)\n{said}')
    columns = 5 if len(kinds) > 1 else 3
    drawn.legend(handles=_legend(styles), loc='outside lower center', ncols=columns, fontsize=9)
    return drawn


def _ticks(most: float, least: float) -> list[float]:
    """Errors in percent to name on an axis between these two; round accuracies."""
    ticks = _TICKS[bool(least > 0)]
    return [100 - tick for tick in ticks if max(least, 0) <= 100 - tick <= most]


def _errors(accuracy: Interval) -> tuple[float, float, float]:
    """Mean of the error in percent, and how far its bar reaches below and above."""
    mean, high, low = (100 * (1 - x) for x in accuracy)
    return mean, mean - low, high - mean


def _panel(axis, results, kind, styles):
    by_family, none = curves(results, kind), baseline(results, kind)
    if none:
        mean, below, above = _errors(results.methods[none].accuracy)
        axis.axhspan(mean - below, mean + above, color=plots.LIGHT, alpha=0.6, lw=0)
        axis.axhline(mean, color=plots.GREY, lw=1, ls='--')
        axis.axhline(mean + 100 * WITHIN, color=plots.GREY, lw=1, ls=':')
    rates = sorted({nominal(p) for points in by_family.values() for p in points})
    apart = min(_SPREAD, _SHARE * (rates[-1] - rates[0]) or _SPREAD)
    places = np.linspace(-apart, apart, len(styles)) if len(styles) > 1 else [0.0]
    offsets = dict(zip(styles, places, strict=True))
    for family, points in by_family.items():
        colour, mark = styles[family]
        found = np.array([_errors(point.accuracy) for point in points]).T
        axis.errorbar(
            [p.bits + offsets[family] for p in points], found[0], found[1:],
            fmt=f'{mark}-', color=colour, ms=5.5, mec='white', mew=0.6, lw=1.4, elinewidth=0.8,
            alpha=0.9,
        )  # fmt: skip
        learning = [i for i, point in enumerate(points) if point.learning]
        axis.plot(
            [points[i].bits + offsets[family] for i in learning], found[0, learning], mark,
            color=colour, ms=5.5, mfc='white', zorder=3,
        )  # fmt: skip
    axis.set_xticks(rates, [str(rate) for rate in rates])
    axis.set_xlabel('bits per token')
    axis.set_title(f'{dataset(results.config["dataset"])}: {title(kind, by_family)}')
    if (number := tokens(by_family)) > 1:
        above = axis.secondary_xaxis('top')
        above.set_xticks(rates, [str(number * rate) for rate in rates])
        above.set_xlabel('bits per image')


def _legend(styles):
    lines = [
        Line2D([], [], color=colour, marker=mark, ms=5.5, mec='white', lw=1.4, label=name)
        for name, (colour, mark) in ((readable(f), style) for f, style in styles.items())
    ]
    empty = {'color': plots.GREY, 'ls': '', 'marker': 'o', 'mfc': 'white'}
    grey = {'color': plots.GREY, 'lw': 1}
    return [
        *lines,
        Line2D([], [], ls='--', **grey, label='no quantizer (shaded: 95%)'),
        Line2D([], [], ls=':', **grey, label=f'{100 * WITHIN:g} point below'),
        Line2D([], [], ms=5.5, **empty, label='not converged'),
    ]
