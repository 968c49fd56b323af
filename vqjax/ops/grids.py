"""Grids of vectors: made smaller and larger as PyTorch's `interpolate` does it, convolved."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from vqjax.ops.statistics import rounded

# Of a grid's axes: (h, w) or (t, h, w), say.
Size = tuple[int, ...]


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


@functools.cache
def _linear(coarse: int, fine: int) -> np.ndarray:
    """Weights of linear interpolation along one axis, float32 [fine, coarse].

    Places at the centres of their areas, the border repeated: PyTorch's `interpolate` in the modes
    'linear', 'bilinear' and 'trilinear' with align_corners=False.
    """
    at = np.clip((np.arange(fine) + 0.5) * coarse / fine - 0.5, 0, coarse - 1)
    return np.maximum(1 - np.abs(at[:, None] - np.arange(coarse)), 0).astype(np.float32)


def _along(matrices, x):
    """Matrices [h, H], ... of each axis applied to x [..., H, ..., D]: [..., h, ..., D]."""
    last = x.ndim - 1
    for axis, matrix in enumerate(matrices, start=last - len(matrices)):
        moved = jnp.tensordot(matrix, x, axes=(1, axis), precision=lax.Precision.HIGHEST)
        x = jnp.moveaxis(moved, 0, axis)
    return x


def _sides(x, size):
    """The grid's axes of x [..., *grid, D]."""
    return x.shape[-1 - len(size) : -1]


def area_means(z: jax.Array, real: jax.Array, size: Size) -> tuple[jax.Array, jax.Array]:
    """A grid made smaller: the mean of the real vectors of each area.

    Args:
      z: float32 [..., *grid, D]; where `real` is False it may hold anything.
      real: bool [..., *grid].
      size: of the smaller grid, as many axes as the grid has, none longer.

    Returns:
      float32 [..., *size, D], and bool [..., *size], True where an area has a real vector; where
      none has, the mean is zero.
    """
    if _sides(z, size) == tuple(size):
        return jnp.where(real[..., None], z, 0.0), real
    areas = [_areas(*sides) for sides in zip(size, _sides(z, size), strict=True)]
    # Sums of ones and zeros are exact: what is real does not depend on rounding.
    number = _along(areas, real[..., None].astype(jnp.float32))
    total = _along(areas, jnp.where(real[..., None], z, 0.0))
    return total / jnp.maximum(number, 1.0), number[..., 0] > 0


def area_cover(real: jax.Array, size: Size) -> jax.Array:
    """Which places of a finer grid lie in a real area: bool [..., *grid] -> bool [..., *size]."""
    grid = real.shape[-len(size) :]
    areas = [_areas(*sides).T for sides in zip(grid, size, strict=True)]
    return _along(areas, real[..., None].astype(jnp.float32))[..., 0] > 0


def bicubic(z: jax.Array, size: Size) -> jax.Array:
    """A grid made larger: float32 [..., h, w, D] -> float32 [..., H, W, D], size (H, W).

    The same grid gives the same bits in any program.
    """
    return _larger(_cubic, z, size)


def multilinear(z: jax.Array, size: Size) -> jax.Array:
    """A grid made larger: float32 [..., *grid, D] -> float32 [..., *size, D].

    Linear along each axis: bilinear of two, trilinear of three. The same bits in any program.
    """
    return _larger(_linear, z, size)


def _larger(weights_of, z, size):
    """Interpolation along each axis by the weights that `weights_of` (coarse, fine) gives."""
    sides = _sides(z, size)
    if sides == tuple(size):
        return z
    weights = [weights_of(*both) for both in zip(sides, size, strict=True)]
    return rounded(_along(weights, z))


@functools.cache
def _moved(weights_of: Any, coarse: int, fine: int) -> np.ndarray:
    """The weights of each place's neighbours: before it, itself, after it; [3, fine, coarse].

    Beyond the border there is nothing, as for padding with zeros.
    """
    padded = np.pad(weights_of(coarse, fine), ((1, 1), (0, 0)))
    return np.stack([padded[first : first + fine] for first in range(3)])


def _product(form, a, b):
    return jnp.einsum(form, a, b, precision=lax.Precision.HIGHEST)


def convolve(
    x: jax.Array,
    kernel: jax.Array,
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    **options: Any,
) -> jax.Array:
    """`lax.conv_general_dilated` of [B, *grid, C] as a product of patches with the kernel.

    On a CPU the gradient is two to four times faster so on 8 x 8 images, and in a loop, where the
    trainer takes its steps, 45 times (jax-ml/jax#12868). Large images have too many patches.

    Args:
      x: float [B, *grid, C]; kernel: float [*sides, C, F]; padding: 'SAME', 'VALID' or pairs;
        options: those of `lax.conv_general_dilated` that nn.Conv gives.

    Returns:
      float [B, *grid', F], of the dtype of the product.

    Raises:
      ValueError: for a convolution in groups or dilated, negative padding, or another option.
    """
    known = {
        'lhs_dilation',
        'rhs_dilation',
        'feature_group_count',
        'precision',
        'dimension_numbers',
    }
    # None is what another version of Flax may pass for an option that it has and nobody has set.
    if unknown := [name for name in options if name not in known and options[name] is not None]:
        raise ValueError(f'{unknown[0]}={options[unknown[0]]!r}: convolve has no such option')
    *sides, channels, features = kernel.shape
    dilation = (*(options.get('lhs_dilation') or ()), *(options.get('rhs_dilation') or ()))
    if options.get('feature_group_count', 1) != 1 or any(d != 1 for d in dilation):
        raise ValueError(
            f'feature_group_count={options.get("feature_group_count", 1)} with dilations '
            f'{dilation}: patches are of plain convolutions, use lax.conv_general_dilated'
        )
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(x.shape[1:-1], sides, window_strides, padding)
    if any(side < 0 for pair in padding for side in pair):
        raise ValueError(f'padding={padding}: give sides from 0, and cut x before')
    x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    strides = (1, *window_strides, 1)
    reach = [
        (size - side) // stride * stride + 1
        for size, side, stride in zip(x.shape[1:-1], sides, window_strides, strict=True)
    ]
    patches = [
        lax.slice(x, (0, *at, 0), (x.shape[0], *map(sum, zip(at, reach)), channels), strides)  # noqa: B905
        for at in np.ndindex(*sides)
    ]
    precision = options.get('precision')
    kernel = kernel.reshape(-1, features)
    return jnp.matmul(jnp.concatenate(patches, axis=-1), kernel, precision=precision)


def convolve_enlarged(
    enlarge: Callable[[jax.Array, Size], jax.Array], z: jax.Array, kernel: jax.Array, size: Size
) -> jax.Array:
    """A grid made larger and then convolved, `convolve(enlarge(z, size), kernel, ..., 'SAME')`.

    Both are linear, and enlarging treats all features alike. So the products with the kernel are
    taken on the small grid, and their results are made larger. On a CPU, with 32 features and a
    grid of 16 x 16, that takes half of the time from 4 x 4 and a quarter from 1 x 1; the gradient
    to the kernel takes a third and a seventh.

    Args:
      enlarge: `bicubic` or `multilinear`.
      z: float32 [..., *grid, C].
      kernel: float32 [3, ..., C, F], a 3 for each axis of the grid.
      size: of the larger grid.

    Returns:
      float32 [..., *size, F]; the same bits in any program.

    Raises:
      ValueError: for another function as `enlarge`, or a kernel of another shape.
    """
    known: dict[Any, Any] = {bicubic: _cubic, multilinear: _linear}
    if enlarge not in known:
        raise ValueError(f'enlarge={enlarge!r}: give ops.bicubic or ops.multilinear')
    axes, (channels, features) = len(size), kernel.shape[-2:]
    need = (*(3,) * axes, z.shape[-1])
    if axes not in (1, 2, 3) or kernel.shape[:-1] != need:
        raise ValueError(
            f'kernel must be [{", ".join(map(str, need))}, F], a 3 for each of the 1 to 3 axes of '
            f'size={size}, got shape {kernel.shape}'
        )
    sides, lead = _sides(z, size), z.shape[: -1 - len(size)]
    if sides == tuple(size):
        flat = z.reshape(-1, *size, channels)
        moved = convolve(flat, kernel, (1,) * axes, 'SAME', precision=lax.Precision.HIGHEST)
        return rounded(moved).reshape(*lead, *size, features)
    weights_of = known[enlarge]
    small, near, large = 'abc'[:axes], 'ijk'[:axes], 'ABC'[:axes]
    flat, rows = z.reshape(-1, *sides, channels), jnp.moveaxis(kernel, -2, 0)
    x = _product(f'n{small}d,d{near}f->n{small}{near}f', flat, rows)
    # Axis by axis, the last first: a place and the neighbour it is taken for make a large one.
    for axis in reversed(range(axes)):
        weights = _moved(weights_of, sides[axis], size[axis])
        before = f'n{small[: axis + 1]}{near[: axis + 1]}{large[axis + 1 :]}f'
        after = f'n{small[:axis]}{near[:axis]}{large[axis:]}f'
        x = _product(f'{before},{near[axis]}{large[axis]}{small[axis]}->{after}', x, weights)
    return rounded(x).reshape(*lead, *size, features)
