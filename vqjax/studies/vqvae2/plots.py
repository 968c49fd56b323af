"""Pictures of two levels of codes against one: reconstructions."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure

from vqjax.studies.reporting import plots


@plots.styled
def figure(pictures: Mapping[tuple[str, str], np.ndarray]) -> Figure:
    """Rows of reconstructions: {(method, part): [n, H, W, C]}, pixels as the dataset has them."""
    pictures = {key: x for key, x in pictures.items() if key[1] != 'bottom'}
    originals = np.asarray(next(iter(pictures.values())))
    least, most = originals.min(), originals.max()
    number = len(originals)
    drawn = plots.new_figure(number + 1.3, 1.02 * len(pictures))
    axes = drawn.subplots(len(pictures), number, squeeze=False)
    for row, ((name, part), images) in zip(axes, pictures.items(), strict=True):
        for axis, image in zip(row, images, strict=False):
            image = np.clip((np.asarray(image) - least) / (most - least), 0, 1)
            axis.imshow(image.squeeze(-1) if image.shape[-1] == 1 else image, cmap='gray',
                        vmin=0, vmax=1, interpolation='nearest')  # fmt: skip
            axis.set(xticks=[], yticks=[])
            axis.grid(visible=False)
            axis.spines[:].set_visible(False)
        label = name if part == 'all' else f'{name},\n{part} alone'
        row[0].set_ylabel(label.replace('_', ' '), rotation=0, ha='right', va='center')
    return drawn
