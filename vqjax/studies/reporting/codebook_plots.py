"""Pictures of a codebook: each function returns a Matplotlib figure, in the style of `plots`."""

from collections.abc import Mapping, Sequence

import matplotlib as mpl
import numpy as np
from matplotlib import patheffects
from matplotlib.figure import Figure

from vqjax.studies.reporting.plots import DARK, GREY, new_figure, styled


@styled
def code_use_over_training(steps: Sequence[int], counts: np.ndarray) -> Figure:
    """Heat map of code use: a column for each of `steps` [T], a row a code of `counts` [T, K].

    Codes are sorted by their use at the end; colour is use relative to a uniform source, white
    where a code is unused.
    """
    counts = np.asarray(counts, np.float64)
    relative = counts / counts.sum(-1, keepdims=True) * counts.shape[-1]
    relative = relative[:, np.argsort(-relative[-1], kind='stable')].T
    figure = new_figure(7, 4)
    axis = figure.subplots()
    image = axis.pcolormesh(
        np.asarray(steps), np.arange(counts.shape[-1]), np.where(relative > 0, relative, np.nan),
        norm=mpl.colors.LogNorm(0.1, 10), cmap="viridis", shading="nearest", rasterized=True,
    )  # fmt: skip
    bar = figure.colorbar(image, ax=axis, extend='both', pad=0.02, ticks=[0.1, 1, 10])
    bar.set_ticklabels(['0.1', '1', '10'])
    bar.set_label('use relative to uniform (white: unused)')
    bar.outline.set_visible(False)
    axis.invert_yaxis()
    axis.grid(visible=False)
    axis.set(xlabel='step', ylabel='code, by use at the end')
    return figure


@styled
def feature_map(features: np.ndarray, labels: np.ndarray, codebook: np.ndarray) -> Figure:
    """Features [N, D] by class and the codes [K, D], on the two main axes of the features.

    The area of a code's mark is the share of the features nearest to it; crosses are unused codes.
    """
    features, codebook = (np.asarray(x, np.float64) for x in (features, codebook))
    centre = features.mean(0)
    _, scale, basis = np.linalg.svd(features - centre, full_matrices=False)
    explained = scale[:2] ** 2 / (scale**2).sum()
    flat, codes = ((x - centre) @ basis[:2].T for x in (features, codebook))
    distance = (codebook**2).sum(-1) - 2 * features @ codebook.T
    count = np.bincount(distance.argmin(-1), minlength=len(codebook))
    used = count > 0
    figure = new_figure(7, 5.5)
    axis = figure.subplots()
    classes = np.unique(labels)
    palette = mpl.colormaps['tab10' if len(classes) <= 10 else 'viridis']
    for i, label in enumerate(classes):
        colour = palette(i if len(classes) <= 10 else i / (len(classes) - 1))
        own = flat[np.asarray(labels) == label]
        axis.plot(*own.T, 'o', ms=3, mew=0, alpha=0.35, color=colour)
        # Named where it lies: ten colours are more than anyone tells apart by a legend.
        axis.annotate(
            str(label), np.median(own, axis=0), weight="bold", color=colour, fontsize=13,
            ha="center", va="center", zorder=5,
            path_effects=[patheffects.withStroke(linewidth=3, foreground="white")],
        )  # fmt: skip
    # The codes that no feature is near may lie far outside, and would squeeze the rest.
    margin = 0.1 * np.ptp(flat, axis=0)
    axis.set_xlim(flat[:, 0].min() - margin[0], flat[:, 0].max() + margin[0])
    axis.set_ylim(flat[:, 1].min() - margin[1], flat[:, 1].max() + margin[1])
    area = 12 + 1500 * count[used] / count.sum()
    x, y = codes[used].T
    axis.scatter(x, y, s=area, color='none', edgecolor=DARK, lw=1.1, zorder=4)
    axis.plot(*codes[~used].T, 'x', color=GREY, ms=4, mew=0.8, zorder=4)
    axis.set_title(
        f'{used.sum():,} of {len(codebook):,} codes in use (circles; crosses: unused)',
        weight='normal',
    )
    axis.set(
        xlabel=f'first component ({explained[0]:.0%} of the variance)',
        ylabel=f'second component ({explained[1]:.0%})',
    )
    return figure


@styled
def reconstructions(rows: Mapping[str, np.ndarray]) -> Figure:
    """Rows of images side by side, {title: [N, H, W, C], values 0 to 1}: originals, decoded, ..."""
    num = min(len(images) for images in rows.values())
    figure = new_figure(0.75 * num + 1.2, 0.8 * len(rows) + 0.2)
    axes = figure.subplots(len(rows), num, squeeze=False)
    for line, (title, images) in zip(axes, rows.items(), strict=True):
        for axis, image in zip(line, images, strict=False):
            image = np.clip(np.asarray(image, np.float64), 0, 1)
            if image.shape[-1] == 1:
                image = image[..., 0]
            axis.imshow(image, cmap='gray', vmin=0, vmax=1)
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
        line[0].set_ylabel(title, rotation=0, ha='right', va='center', labelpad=8)
    return figure
