"""Sizes of grids, and grids as rows: what `MultiScale` is made of beside its algorithm."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from vqjax import ops
from vqjax.quantizers.base import check, check_count

# (h, w), or (t, h, w).
Size = tuple[int, ...]


def axes_of(scales: Sequence[int | Size]) -> int:
    """Axes of the grids of these scales: 3 where one is given as a triple, else 2."""
    triples = any(isinstance(scale, tuple | list) and len(scale) == 3 for scale in scales)
    return 3 if triples else 2


def size_of(scale: int | Size, axes: int = 2) -> Size:
    """(h, w) or (t, h, w) of a scale."""
    sides = tuple(scale) if isinstance(scale, tuple | list) else (scale,) * axes
    need = 'a size s or a pair (h, w)' if axes == 2 else 'a size s or a triple (t, h, w), as others'
    check(len(sides) == axes, 'scales', scale, need)
    for side in sides:
        check_count('scales', side)
    return tuple(int(side) for side in sides)


def growing(scales: Sequence[int | Size]) -> tuple[int | Size, ...]:
    """The field `scales`: s where (s, s) was given, and triples where one of them was.

    Raises:
      ValueError: for what is no tuple of sizes, each larger than the one before it.
    """
    check(isinstance(scales, tuple | list), 'scales', scales, 'a tuple')
    check(len(scales) > 0, 'scales', scales, 'at least one size')
    axes = axes_of(scales)
    sizes = [size_of(scale, axes) for scale in scales]
    for before, after in zip(sizes, sizes[1:], strict=False):
        grows = before != after and all(a <= b for a, b in zip(before, after, strict=True))
        need = 'growing: each larger than the one before it in an axis, smaller in none'
        check(grows, 'scales', scales, need)
    return tuple(size if axes == 3 or len(set(size)) > 1 else size[0] for size in sizes)


def real_vectors(z: jax.Array, mask: jax.Array | None) -> jax.Array:
    """Which vectors count: bool [..., *grid]."""
    finite = jnp.all(jnp.isfinite(z), axis=-1)
    return finite if mask is None else finite & mask


def one_after_another(grids: Sequence[jax.Array], axes: int) -> jax.Array:
    """Grids [..., *size, D] of so many axes one after the other: [..., L, D]."""
    flat = [grid.reshape(*grid.shape[: -1 - axes], -1, grid.shape[-1]) for grid in grids]
    return jnp.concatenate(flat, axis=-2)


def with_codes(grid: jax.Array, inner_axes: int) -> jax.Array:
    """Which places of codes [..., *size, *inner] have one, bool [..., *size]."""
    return jnp.any(grid >= 0, axis=tuple(range(-inner_axes, 0)))


def real_by_codes(grids: Sequence[jax.Array], inner_axes: int, size: Size) -> jax.Array:
    """Which vectors are real by the finest scale that has a code, bool [..., *size].

    grids: the codes of each scale, as in `with_codes`; size: that of the last one.
    """
    coded = [with_codes(grid, inner_axes) for grid in grids]
    real = ops.area_cover(coded[0], size)
    for grid in coded[1:]:
        used = jnp.any(grid, axis=tuple(range(-len(size), 0)), keepdims=True)
        real = jnp.where(used, ops.area_cover(grid, size), real)
    return real
