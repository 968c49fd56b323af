"""Figures of a comparison: each function returns a Matplotlib figure.

The colours are those of Okabe and Ito, told apart by colour-blind readers too. Figures are made
without pyplot, so no window system and no global state is touched.
"""

import functools
import io
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, StrMethodFormatter

from vqjax.atomic import replace_file
from vqjax.results.records import MethodResult, Results
from vqjax.results.summaries import code_use
from vqjax.studies.reporting import notes
from vqjax.studies.reporting.names import dataset, readable

BLUE, VERMILION = '#0072B2', '#D55E00'
COLOURS = (BLUE, VERMILION, '#009E73', '#CC79A7', '#E69F00', '#56B4E9')
DARK, GREY, LIGHT = '#333333', '#666666', '#DDDDDD'
_STYLE = {
    'font.size': 10,
    'axes.titlesize': 11,
    'axes.titleweight': 'bold',
    'axes.titlelocation': 'left',
    'axes.spines.top': False,
    'axes.spines.right': False,
    'axes.edgecolor': GREY,
    'axes.labelcolor': DARK,
    'text.color': DARK,
    'axes.grid': True,
    'axes.axisbelow': True,
    'grid.color': '#EBEBEB',
    'legend.frameon': False,
    'xtick.color': GREY,
    'ytick.color': GREY,
    'figure.constrained_layout.h_pad': 0.08,
    'figure.constrained_layout.w_pad': 0.08,
}


def styled(function: Callable) -> Callable:
    """The function, drawing in the style above."""

    @functools.wraps(function)
    def draw(*args, **kwargs):
        # A context of its own for each call: one that is entered by hand cannot decorate again.
        with mpl.rc_context(_STYLE):
            return function(*args, **kwargs)

    return draw


def save(figure: Figure, path: str | Path) -> None:
    """Writes `figure` as PNG, 150 dots an inch; whole, or not at all."""
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=150, facecolor='white', format='png')
    replace_file(Path(path), drawn.getvalue())


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of that size in inches."""
    return Figure(figsize=(width, height), layout='constrained')


def _note(text: str) -> Figure:
    figure = new_figure(6, 1.5)
    figure.text(0.5, 0.5, text, ha='center', va='center', color=GREY)
    return figure


def _colours(names: Sequence[str]) -> dict[str, str]:
    """Grey for 'none', the others in turn: a method has one colour in all figures of a run."""
    quantized = [name for name in names if name != 'none']
    found = {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(quantized)}
    return found | {'none': GREY}


def _panels(names: Sequence[str], **kwargs: Any) -> tuple[Figure, dict[str, Axes]]:
    """Equal panels, at most four in a row, each titled with its name."""
    columns = min(len(names), 4)
    rows = math.ceil(len(names) / columns)
    figure = new_figure(max(2.9 * columns, 4.5) + 0.3, 2.8 * rows + 0.4)
    axes = figure.subplots(rows, columns, squeeze=False, **kwargs).ravel()
    for unused in axes[len(names) :]:
        unused.set_visible(False)
    for name, axis in zip(names, axes, strict=False):
        axis.set_title(readable(name))
    return figure, dict(zip(names, axes, strict=False))


def two_and_five(x: float, _: Any = None) -> str:
    """Label of a minor tick of a log scale: those at 2 and 5 have one."""
    return f'{x:g}' if f'{x:e}'[0] in '25' else ''


def _caption(figure: Figure, text: str) -> None:
    figure.supxlabel(text, fontsize=9, color=GREY)


def _counts(method: MethodResult) -> np.ndarray:
    """Use of the codes at the end, [seeds, stages, K]: the most of both, where folds differ."""
    counts = [seed.counts for seed in method.seeds if seed.counts is not None]
    counts = [x.reshape(-1, x.shape[-1]) for x in counts]
    most = np.max([x.shape for x in counts], axis=0)
    return np.stack([np.pad(x, [(0, n) for n in most - x.shape]) for x in counts])


def _stage_colour(colour: str, stage: int, num_stages: int) -> tuple[float, ...]:
    """The colour of a method, paler for later stages."""
    keep = 1 - 0.65 * stage / max(num_stages - 1, 1)
    return tuple(1 - keep * (1 - x) for x in mpl.colors.to_rgb(colour))


def _percent(method: MethodResult) -> tuple[float, float, float]:
    """Accuracy with its interval; both ends are the mean of one run, which tells of no other."""
    mean, low, high = (100 * x for x in method.accuracy)
    return (mean, low, high) if len(method.seeds) > 1 else (mean, mean, mean)


# A comparison.


@styled
def accuracy(results: Results) -> Figure:
    """Test accuracy of every seed, its mean and 95% interval, one row a method."""
    methods = results.methods
    colours = _colours(list(methods))
    figure = new_figure(7, 1.2 + 0.6 * len(methods))
    axis = figure.subplots()
    for row, (name, method) in enumerate(methods.items()):
        mean, low, high = _percent(method)
        seeds = [100 * seed.accuracy for seed in method.seeds]
        if name == 'none':
            axis.axvspan(low, high, color=LIGHT, alpha=0.6, lw=0)
            axis.axvline(mean, color=GREY, lw=1, ls='--')
        # Equal seeds would hide each other: they are spread a little across the row.
        offset = 0.2 + 0.1 * (np.arange(len(seeds)) % 3 - 1)
        axis.plot(seeds, row + offset, 'o', color=colours[name], ms=4.5, alpha=0.45, mew=0)
        axis.plot([low, high], [row - 0.14] * 2, color=colours[name], lw=3)
        axis.plot(mean, row - 0.14, 'D', color=colours[name], ms=7, mec='white')
        axis.annotate(
            f"{mean:.1f}", (mean, row - 0.14), (0, 7),
            textcoords="offset points", ha="center", color=colours[name], weight="bold",
            path_effects=[patheffects.withStroke(linewidth=3, foreground="white")],
        )  # fmt: skip
    axis.set_yticks(range(len(methods)), [readable(name) for name in methods], color=DARK)
    axis.set_ylim(len(methods) - 0.4, -0.75)
    axis.grid(axis='y', visible=False)
    axis.set_xlabel(f'{notes.split(results)} accuracy (%)')
    axis.set_title(dataset(results.config['dataset']))
    shaded = '; shaded: the interval without a quantizer' if 'none' in methods else ''
    _caption(
        figure,
        'one run of each method, so no interval'
        if notes.alone(results)
        else f'dots: {notes.runs(results)}; diamonds: mean with its 95% interval{shaded}',
    )
    return figure


@styled
def perplexity(histories: Mapping[str, Sequence[Sequence[Mapping[str, Any]]]]) -> Figure:
    """Perplexity on the validation split over training, seeds thin, their mean thick, per stage."""
    colours = _colours(list(histories))
    quantized = [name for name, seeds in histories.items() if 'perplexity' in seeds[0][0]]
    if not quantized:
        return _note('no method with codes: no perplexity')
    figure, axes = _panels(quantized, sharey=True)
    for name, axis in axes.items():
        seeds = histories[name]
        epochs = [record['epoch'] for record in seeds[0]]
        same = len({len(seed[0]['perplexity_per_stage']) for seed in seeds}) == 1
        key = 'perplexity_per_stage' if same else 'perplexity'
        found = np.asarray([[record[key] for record in seed] for seed in seeds])
        found = found.reshape(len(seeds), len(epochs), -1)  # the last axis: stages
        num_stages = found.shape[-1]
        for stage in range(num_stages):
            colour = _stage_colour(colours[name], stage, num_stages)
            axis.plot(epochs, found[..., stage].T, color=colour, lw=0.8, alpha=0.35)
            label = f'stage {stage + 1}' if num_stages > 1 else None
            axis.plot(
                epochs, found[..., stage].mean(0), 'o-', color=colour, lw=2.4, ms=4, label=label
            )
        if num_stages > 1:
            axis.legend(fontsize=8, ncols=2, handlelength=1.2, columnspacing=1)
        axis.set_xlabel('epoch')
        axis.set_xlim(left=0)
        axis.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    next(iter(axes.values())).set_ylim(bottom=0)  # last: the panels share one scale
    figure.supylabel('perplexity (codes)', fontsize=10)
    _caption(figure, 'validation split; thin lines: single runs, thick line: their mean')
    return figure


@styled
def usage(results: Results) -> Figure:
    """Sorted use of the codes at the end, mean over seeds, beside a uniform source."""
    uses = {name: code_use(method) for name, method in results.methods.items()}
    methods = {name: use for name, use in uses.items() if use is not None}
    if not methods:
        return _note('no method with codes: no usage')
    colours = _colours(list(results.methods))
    figure, axes = _panels(list(methods), sharex=True, sharey=True)
    for name, axis in axes.items():
        counts = -np.sort(-_counts(results.methods[name]), axis=-1)
        num_codes, num_tokens, baseline = methods[name]
        num_stages = counts.shape[1]
        rank = np.arange(1, num_codes + 1)
        draws = np.random.default_rng(0).multinomial(
            num_tokens, [1 / num_codes] * num_codes, size=8
        )
        uniform = -np.sort(-draws, axis=-1).mean(0) / num_tokens
        axis.plot(rank, np.where(uniform > 0, uniform, np.nan), color=GREY, lw=1.5, ls=(0, (3, 2)))
        for stage in range(num_stages):
            share = counts[:, stage].mean(0) / num_tokens
            axis.plot(
                rank, np.where(share > 0, share, np.nan), lw=2.2,
                color=_stage_colour(colours[name], stage, num_stages),
                label=f"stage {stage + 1}" if num_stages > 1 else None,
            )  # fmt: skip
        if num_stages > 1:
            axis.legend(fontsize=8, loc='lower left', handlelength=1.2)
        active = (counts > 0).sum(-1).mean()
        axis.text(
            0.97, 0.95,
            f"{active:,.0f} of {num_codes:,} codes used;\n"
            f"uniform source: {baseline.usage * num_codes:,.0f}",
            transform=axis.transAxes, ha="right", va="top", fontsize=9,
        )  # fmt: skip
        axis.set_xscale('log')
        axis.set_yscale('log')
        axis.xaxis.set_major_formatter(StrMethodFormatter('{x:,.0f}'))
        axis.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f'{100 * share:g}%'))
        axis.set_xlabel('code, by rank of use')
    split = notes.split(results)
    figure.supylabel(f'share of the {split} tokens', fontsize=10)
    _caption(
        figure,
        f'{split} split, mean over {notes.runs(results)}; dashed: the same number of tokens of a '
        'uniform source',
    )
    return figure


@styled
def reliability(results: Results) -> Figure:
    """Accuracy against confidence of each bin, all seeds together, and the images of each bin.

    The grey bars hold 95% of calibrated models: a bin of few images may lie far from the diagonal.
    """
    methods = results.methods
    colours = _colours(list(methods))
    columns = min(len(methods), 4)
    rows = math.ceil(len(methods) / columns)
    figure = new_figure(max(2.7 * columns, 4.5) + 0.4, 4.0 * rows + 0.4)
    axes = figure.subplots(
        2 * rows, columns, squeeze=False, sharex=True, sharey='row', height_ratios=[3, 1] * rows
    )
    for place in range(rows * columns):
        pair = axes[2 * (place // columns) : 2 * (place // columns) + 2, place % columns]
        if place >= len(methods):
            for axis in pair:
                axis.set_visible(False)
            continue
        name = list(methods)[place]
        tables = [seed.reliability for seed in methods[name].seeds if seed.reliability]
        confidence, hits, count = (
            np.array(columns, float)
            for columns in zip(*((t.confidence, t.accuracy, t.count) for t in tables), strict=True)
        )
        total = count.sum(0)
        full = total > 0
        sure = (confidence * count).sum(0)[full] / total[full]
        right = (hits * count).sum(0)[full] / total[full]
        # Seeds share one test split, so the band is that of one split and not of all their sums.
        size = np.maximum(np.round(count.mean(0)[full]), 1).astype(int)
        draws = np.random.default_rng(0).binomial(size, np.clip(sure, 0, 1), (2000, len(sure)))
        low, high = np.quantile(draws / size, [0.025, 0.975], axis=0)
        main, below = pair
        main.plot([0, 100], [0, 100], color=GREY, lw=1, ls='--', zorder=1.5)
        main.vlines(100 * sure, 100 * low, 100 * high, color=LIGHT, lw=6, zorder=1)
        main.plot(
            100 * sure, 100 * right, 'o', color=colours[name], ms=7, mec='white', zorder=3,
            clip_on=False,
        )  # fmt: skip
        main.set_title(
            f'{readable(name)}, ECE {methods[name].summary["ece"].mean:.3f}', fontsize=10
        )
        main.set(xlim=(0, 100), ylim=(0, 100), xticks=range(0, 101, 25), yticks=range(0, 101, 25))
        edges = np.linspace(0, 100, len(total) + 1)
        share = 100 * total / total.sum()
        below.bar(edges[:-1], share, np.diff(edges), align='edge', color=colours[name], alpha=0.6)
        most = int(np.argmax(share))
        before = most > len(share) // 2  # where there is room beside the highest bar
        below.text(
            edges[most] - 2 if before else edges[most + 1] + 2, max(0.92 * share[most], 25),
            f'{share[most]:.0f}%', ha='right' if before else 'left', va='top', fontsize=9,
        )  # fmt: skip
        below.set(ylim=(0, 100), yticks=[0, 50, 100], xlabel='confidence (%)')
        if not place % columns:
            main.set_ylabel('accuracy (%)')
            below.set_ylabel('images (%)')
    _caption(
        figure,
        f'{len(total)} confidence bins, all {notes.runs(results)} together; dashed: perfect '
        'calibration; grey bars: 95% of calibrated models',
    )
    return figure


@styled
def accuracy_against_bits(results: Results) -> Figure:
    """Test accuracy with its 95% interval against bits per image; without quantizer, a band."""
    methods = results.methods
    colours = _colours(list(methods))
    figure = new_figure(7, 4.2)
    axis = figure.subplots()
    points: dict[str, tuple[float, float]] = {}
    taken: list[Any] = []
    for name, method in methods.items():
        mean, low, high = _percent(method)
        if name == 'none':  # thousands of bits away from the others: a level and not a point
            axis.axhspan(low, high, color=LIGHT, alpha=0.6, lw=0)
            axis.axhline(mean, color=GREY, lw=1, ls='--')
            taken.append(
                axis.annotate(
                    f"{readable(name)}\n({method.bits:,.0f} bits)", (1, mean), (6, 0),
                    xycoords=("axes fraction", "data"), textcoords="offset points",
                    va="center", color=GREY,
                )
            )  # fmt: skip
            continue
        bars = axis.errorbar(
            method.bits, mean, [[mean - low], [high - mean]],
            fmt="o", ms=7, capsize=3, lw=2, color=colours[name], mec="white",
        )  # fmt: skip
        points[name] = (method.bits, mean)
        taken += [*bars.lines[2], bars.lines[0]]
    axis.margins(x=0.15)
    axis.set_xlim(left=0)
    axis.set(xlabel='bits per image', ylabel='test accuracy (%)')
    _label_points(figure, axis, points=points, colours=colours, taken=taken)
    return figure


def _label_points(figure, axis, points, colours, taken):
    """Names beside points: right or left of them, and away from what is drawn, where that fits."""
    figure.draw_without_rendering()  # the layout is settled, and texts have a size
    boxes = [artist.get_window_extent().padded(2) for artist in taken]
    offsets = [(side, height) for height in (5, -13, 17, -25, 29) for side in (7, -7)]
    for name, point in points.items():
        label = axis.annotate(
            readable(name),
            point,
            offsets[0],
            textcoords='offset points',
            color=colours[name],
            weight='bold',
        )
        clashes = []
        for offset in offsets:
            label.set_position(offset)
            label.set_ha('left' if offset[0] > 0 else 'right')
            box = label.get_window_extent()
            clashes.append(box.count_overlaps(boxes))
            if not clashes[-1]:
                break
        best = offsets[int(np.argmin(clashes))]
        label.set(position=best, ha='left' if best[0] > 0 else 'right')
        boxes.append(label.get_window_extent())
