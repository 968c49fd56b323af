"""Sizes of grids, and grids as rows: what `MultiScale` is made of beside its algorithm."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from vqjax import ops
from vqjax.quantizers.base import check, check_count

Size = tuple[int, int]


def size_of(scale: int | Size) -> Size:
    """(h, w) of a scale."""
    pair = (scale, scale) if not isinstance(scale, tuple | list) else tuple(scale)
    check(len(pair) == 2, 'scales', scale, 'a size s or a pair (h, w)')
    for side in pair:
        check_count('scales', side)
    return int(pair[0]), int(pair[1])


def growing(scales: Sequence[int | Size]) -> tuple[int | Size, ...]:
    """The field `scales`, s where (s, s) was given.

    Raises:
      ValueError: for what is no tuple of sizes, each larger than the one before it.
    """
    check(isinstance(scales, tuple | list), 'scales', scales, 'a tuple')
    check(len(scales) > 0, 'scales', scales, 'at least one size')
    sizes = [size_of(scale) for scale in scales]
    for before, after in zip(sizes, sizes[1:], strict=False):
        grows = before != after and before[0] <= after[0] and before[1] <= after[1]
        need = 'growing: each larger than the one before it in an axis, smaller in none'
        check(grows, 'scales', scales, need)
    return tuple(h if h == w else (h, w) for h, w in sizes)


def real_vectors(z: jax.Array, mask: jax.Array | None) -> jax.Array:
    """Which vectors count: bool [..., H, W]."""
    finite = jnp.all(jnp.isfinite(z), axis=-1)
    return finite if mask is None else finite & mask


def one_after_another(grids: Sequence[jax.Array]) -> jax.Array:
    """Grids [..., h, w, D] one after the other: [..., L, D]."""
    flat = [grid.reshape(*grid.shape[:-3], -1, grid.shape[-1]) for grid in grids]
    return jnp.concatenate(flat, axis=-2)


def with_codes(grid: jax.Array, axes: int) -> jax.Array:
    """Which places of codes [..., h, w, *inner] have one, bool [..., h, w]; inner has `axes`."""
    return jnp.any(grid >= 0, axis=tuple(range(-axes, 0)))


def real_by_codes(grids: Sequence[jax.Array], axes: int, size: Size) -> jax.Array:
    """Which vectors are real by the finest scale that has a code, bool [..., H, W].

    grids: the codes of each scale, as in `with_codes`; size: (H, W).
    """
    coded = [with_codes(grid, axes) for grid in grids]
    real = ops.area_cover(coded[0], size)
    for grid in coded[1:]:
        used = jnp.any(grid, axis=(-2, -1), keepdims=True)
        real = jnp.where(used, ops.area_cover(grid, size), real)
    return real
