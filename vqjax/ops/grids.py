"""Grids of vectors: made smaller and larger as PyTorch's `interpolate` does it, convolved."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from vqjax.ops.statistics import rounded

Size = tuple[int, int]


@functools.cache
def _areas(coarse: int, fine: int) -> np.ndarray:
    """Which of `fine` places belong to each of `coarse` areas: 0 or 1, float32 [coarse, fine].

    Area i reaches from floor(i fine / coarse) to ceil((i + 1) fine / coarse): areas overlap where
    one number does not divide the other.
    """
    areas = np.zeros((coarse, fine), np.float32)
    for i in range(coarse):
        areas[i, i * fine // coarse : -(-(i + 1) * fine // coarse)] = 1
    return areas


@functools.cache
def _cubic(coarse: int, fine: int) -> np.ndarray:
    """Weights of bicubic interpolation along one axis, float32 [fine, coarse].

    Keys' kernel with a = -0.75, places at the centres of their areas, the border repeated:
    `interpolate(mode='bicubic', align_corners=False)`. (jax.image.resize has a = -0.5.)
    """
    a, weights = -0.75, np.zeros((fine, coarse))
    for i in range(fine):
        at = (i + 0.5) * coarse / fine - 0.5
        first = int(np.floor(at))
        for j in range(first - 1, first + 3):
            t = abs(at - j)
            near = ((a + 2) * t - (a + 3)) * t * t + 1
            far = a * (((t - 5) * t + 8) * t - 4)
            weights[i, min(max(j, 0), coarse - 1)] += near if t <= 1 else far
    return weights.astype(np.float32)


def _along(rows, columns, x):
    """rows [h, H] and columns [w, W] applied to x [..., H, W, D]: [..., h, w, D]."""
    x = jnp.einsum('hH,...HWd->...hWd', rows, x, precision=lax.Precision.HIGHEST)
    return jnp.einsum('wW,...hWd->...hwd', columns, x, precision=lax.Precision.HIGHEST)


def area_means(z: jax.Array, real: jax.Array, size: Size) -> tuple[jax.Array, jax.Array]:
    """A grid made smaller: the mean of the real vectors of each area.

    Args:
      z: float32 [..., H, W, D]; where `real` is False it may hold anything.
      real: bool [..., H, W].
      size: (h, w), at most (H, W).

    Returns:
      float32 [..., h, w, D], and bool [..., h, w], True where an area has a real vector; where
      none has, the mean is zero.
    """
    areas = _areas(size[0], z.shape[-3]), _areas(size[1], z.shape[-2])
    # Sums of ones and zeros are exact: what is real does not depend on rounding.
    number = _along(*areas, real[..., None].astype(jnp.float32))
    total = _along(*areas, jnp.where(real[..., None], z, 0.0))
    return total / jnp.maximum(number, 1.0), number[..., 0] > 0


def area_cover(real: jax.Array, size: Size) -> jax.Array:
    """Which places of a finer grid lie in a real area: bool [..., h, w] -> bool [..., H, W]."""
    areas = _areas(real.shape[-2], size[0]).T, _areas(real.shape[-1], size[1]).T
    return _along(*areas, real[..., None].astype(jnp.float32))[..., 0] > 0


def bicubic(z: jax.Array, size: Size) -> jax.Array:
    """A grid made larger: float32 [..., h, w, D] -> float32 [..., H, W, D], size (H, W).

    The same grid gives the same bits in any program.
    """
    if z.shape[-3:-1] == tuple(size):
        return z
    weights = _cubic(z.shape[-3], size[0]), _cubic(z.shape[-2], size[1])
    return rounded(_along(*weights, z))


def convolve(
    x: jax.Array,
    kernel: jax.Array,
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    **options: Any,
) -> jax.Array:
    """`lax.conv_general_dilated` of [B, H, W, C] as a product of patches with the kernel.

    On a CPU the gradient is two to four times faster so on 8 x 8 images, and in a loop, where the
    trainer takes its steps, 45 times (jax-ml/jax#12868). Large images have too many patches.

    Args:
      x: float [B, H, W, C]; kernel: float [h, w, C, F]; padding: 'SAME', 'VALID' or pairs;
        options: those of `lax.conv_general_dilated` that nn.Conv gives.

    Returns:
      float [B, H', W', F], of the dtype of the product.

    Raises:
      ValueError: for a convolution in groups or dilated.
    """
    height, width, channels, features = kernel.shape
    dilation = (*(options.get('lhs_dilation') or ()), *(options.get('rhs_dilation') or ()))
    if options.get('feature_group_count', 1) != 1 or any(d != 1 for d in dilation):
        raise ValueError(
            f'feature_group_count={options.get("feature_group_count", 1)} with dilations '
            f'{dilation}: patches are of plain convolutions, use lax.conv_general_dilated'
        )
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(x.shape[1:3], (height, width), window_strides, padding)
    x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    strides = (1, *window_strides, 1)
    rows, columns = (
        (size - side) // stride * stride + 1
        for size, side, stride in zip(x.shape[1:3], (height, width), window_strides, strict=True)
    )
    patches = [
        lax.slice(x, (0, i, j, 0), (x.shape[0], i + rows, j + columns, channels), strides)
        for i in range(height)
        for j in range(width)
    ]
    precision = options.get('precision')
    kernel = kernel.reshape(-1, features)
    return jnp.matmul(jnp.concatenate(patches, axis=-1), kernel, precision=precision)
