"""The plot of a tokenizer's training: loss, perplexity and active codes over its steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from vqjax.studies.reporting import plots
from vqjax.studies.reporting.names import readable
from vqjax.studies.tokenizer.targets import TARGETS


@plots.styled
def figure(histories: Mapping[str, Sequence[Mapping[str, float]]], num_codes: int) -> Figure:
    """Quantizer loss of every step, and perplexity and active codes of every evaluation.

    A column for each tokenizer, in which the others are grey: none hides another.
    """
    rows = (
        ('quantizer_loss', 'gradient_norm', "quantizer's loss"),
        ('perplexity', 'tokens', 'perplexity'),
        ('active_codes', 'tokens', f'active codes of {num_codes:,}'),
    )
    drawn = plots.new_figure(1.2 + 2.1 * len(histories), 6.4)
    grid = drawn.subplots(3, len(histories), sharex=True, sharey='row', squeeze=False)
    targets = {1: TARGETS['perplexity'][0], 2: TARGETS['share of codes active'][0] * num_codes}
    for line, (key, kind, title) in enumerate(rows):
        series = {
            name: np.array([(r['step'], r[key]) for r in history if kind in r], float).T
            for name, history in histories.items()
        }
        for axis, name in zip(grid[line], series, strict=True):
            for points in series.values():
                axis.plot(*points, color=plots.LIGHT, lw=0.8, zorder=1)
            axis.plot(*series[name], color=plots.BLUE, lw=1.4, zorder=2)
            if line in targets:
                axis.axhline(targets[line], color=plots.VERMILION, lw=1, ls='--')
        grid[line, 0].set_ylabel(title)
    grid[0, 0].set_yscale('log')
    for axis in grid[1:, 0]:
        axis.set_ylim(bottom=0)
    for axis, name in zip(grid[0], histories, strict=True):
        axis.set_title(readable(name))
    drawn.supxlabel(
        'step; blue: this tokenizer, grey: the others; dashed: target; perplexity and active codes '
        'are those of the validation split',
        fontsize=9,
        color=plots.GREY,
    )
    return drawn
