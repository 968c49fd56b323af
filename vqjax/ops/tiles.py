"""Arrays cut into tiles along their rows, such that sharded rows stay on their devices.

The number of rows may be symbolic, in a program that `jax.export` makes for batches of any size:
tiles are then of min(rows, most) rows, which is a number again once the program is called.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import core, export, lax

from vqjax.ops.meshes import mesh_size

_ALIGN = 128
# A number of rows, or a symbolic one.
Number = Any


class Lanes(NamedTuple):
    """Equal parts that rows are cut into, and how many of them may hold a whole tile each."""

    number: int
    tiles: int


def row_lanes(total: Number, *arrays: jax.Array) -> Lanes:
    """The parts from which tiles of the `total` rows of an array are cut, a piece of each.

    A tile cut from the whole would be held by one device of many, and all would have to fetch it:
    the compiler gathers the array instead. There are as many parts as devices, so that each device
    holds whole parts whichever axes of the mesh the rows are sharded over (unevenly they cannot
    be). Where no mesh is known there may be many devices or one: parts for many, which on a single
    one cost nothing but longer strides, and a tile shared among them.

    arrays: those whose types may name the mesh. A symbolic number of rows is one part.
    """
    if export.is_symbolic_dim(total):
        return Lanes(1, 1)
    size = mesh_size(*arrays)
    number = math.gcd(total, jax.device_count() if size is None else size)
    return Lanes(number, 1 if size is None else number)


def code_lanes(num_codes: Number, *arrays: jax.Array) -> int:
    """The same for the rows of a codebook, which only a known mesh shards; 128 codes at least."""
    if export.is_symbolic_dim(num_codes):
        return 1
    size = math.gcd(num_codes, mesh_size(*arrays) or 1)
    parts = (n for n in range(size, 0, -1) if size % n == 0)
    return next(n for n in parts if n == 1 or num_codes // n >= _ALIGN)


def starts(total: Number, size: Number) -> tuple[Number, jax.Array]:
    """Tiles of one static size, at most `size`, that cover `total`; the last may overlap.

    An overlap costs a few rows twice and saves what a ragged end would need: a padded copy of the
    input or a second compiled body. Evening the tiles out first keeps it below `_ALIGN` a tile.
    """
    if export.is_symbolic_dim(total):
        size = core.min_dim(total, size)
        tiles: Number = -(-total // size)
        return size, jnp.minimum(jnp.arange(tiles, dtype=jnp.int32) * size, total - size)
    tiles = -(-total // size)
    size = min(total, size, -(-total // (tiles * _ALIGN)) * _ALIGN)
    tiles = -(-total // size)
    return size, jnp.minimum(jnp.arange(tiles, dtype=jnp.int32) * size, total - size)


def in_lanes(x: jax.Array, lanes: int) -> jax.Array:
    """[N, ...] -> [lanes, N / lanes, ...]."""
    return x.reshape(lanes, x.shape[0] // lanes, *x.shape[1:])


def cut(x: jax.Array, start: jax.Array, size: Number) -> jax.Array:
    """The tile [lanes * size, ...] of an array in lanes [lanes, n, ...]."""
    tile = lax.dynamic_slice_in_dim(x, start, size, axis=1)
    return tile.reshape(-1, *x.shape[2:])


def row_tiles(x: jax.Array, most: int) -> jax.Array:
    """An array in lanes [lanes, n, ...] cut for a scan: [tiles, lanes, size, ...].

    At most `most` rows of each lane a tile; the last is filled up with zeros.
    """
    lanes: Number = x.shape[0]
    number: Number = x.shape[1]
    if export.is_symbolic_dim(number):
        size = core.min_dim(number, most)
        tiles = -(-number // size)
        filled = jnp.zeros((lanes, tiles * size, *x.shape[2:]), x.dtype)
        filled = filled.at[:, jnp.arange(number)].set(x)
        return jnp.moveaxis(filled.reshape(lanes, tiles, size, *x.shape[2:]), 1, 0)
    size = min(most, number)
    x = jnp.pad(x, ((0, 0), (0, -x.shape[1] % size), *[(0, 0)] * (x.ndim - 2)))
    return jnp.moveaxis(x.reshape(lanes, -1, size, *x.shape[2:]), 1, 0)


def map_tiles(function: Callable[..., Any], arrays: Sequence[jax.Array], most: int) -> jax.Array:
    """`function` over tiles of rows, one after the other; the result in the rows' order.

    Args:
      function: of arrays [n, ...], for any n, giving an array [n, ...]; row by row.
      arrays: [N, ...] each.
      most: rows of a tile on one device.

    Returns:
      An array [N, ...].
    """
    total = arrays[0].shape[0]
    if not export.is_symbolic_dim(total) and total <= most:
        return function(*arrays)
    lanes, whole = row_lanes(total, *arrays)
    size, begin = starts(total // lanes, max(most * whole // lanes, 1))
    parts = [in_lanes(x, lanes) for x in arrays]
    return join_tiles(
        lax.map(lambda at: in_lanes(function(*[cut(x, at, size) for x in parts]), lanes), begin),
        total,
    )


def join_tiles(tiles: jax.Array, total: Number) -> jax.Array:
    """Results of tiles in lanes [tiles, lanes, size, ...] as rows in order [total, ...]."""
    shape: tuple[Number, ...] = tiles.shape
    number, lanes, size = shape[:3]
    if export.is_symbolic_dim(total):
        row = jnp.arange(total)
        tile = row // size
        start = jnp.minimum(tile * size, total - size)
        return tiles.reshape(number * size, *tiles.shape[3:])[tile * size + row - start]
    fresh = total // lanes - (number - 1) * size
    first = jnp.moveaxis(tiles[:-1], 0, 1).reshape(lanes, (number - 1) * size, *tiles.shape[3:])
    rows = jnp.concatenate([first, tiles[-1, :, size - fresh :]], axis=1)
    return rows.reshape(total, *tiles.shape[3:])
