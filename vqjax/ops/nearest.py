"""Nearest-code search that never holds the N x K distance matrix."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import export, lax
from jax.custom_batching import custom_vmap

from vqjax.ops.meshes import automatic, mesh_size, rows_spec, whole_features
from vqjax.ops.scores import METRICS, bias_and_codes, normalize, usable_codes
from vqjax.ops.tiles import code_lanes, cut, in_lanes, join_tiles, row_lanes, starts

PRECISIONS = ('highest', 'default', 'bfloat16')

_LEAST_ROWS = 128
# From so many codes on, tiles on a CPU are of fewer rows: see `_rows_on_cpu`.
_MANY = 768


class _Tile(NamedTuple):
    """The size of a tile."""

    codes: int  # at most, unless rows are few
    rows: Callable[[int, Any], Any]  # at most, against so many codes, of so many rows in all
    scores: int  # at most, where rows are few
    # Of so many codes those that share a minimum; all are filled up to a multiple of it.
    group: Callable[[int], int] = lambda codes: 1


def _group_on_cpu(codes: int) -> int:
    """How many codes share a minimum, see `_least`; of few codes each has its own."""
    return 1 if codes < 256 else 16 if codes < _MANY else 32


def _rows_on_cpu(codes: int, n: Any) -> Any:
    """Rows of a tile; benchmarks/README.md has the sizes that were tried.

    Rows that are no multiple of 48 (24 without AVX-512), the height of the panels of Eigen's
    product, cost up to a half more.
    """
    if codes < _MANY:
        return min(2**20 // codes, 2**13)
    if export.is_symbolic_dim(n) or n > 2048:
        return 384
    return -(-n // max(n // 384, 1) // 48) * 48  # few tiles would overlap by much


_TILE_CPU = _Tile(2048, _rows_on_cpu, 2**20, _group_on_cpu)
# GPU and TPU, not measured: 16 MB, so that a tile is some 10^9 operations at D = 128, tens of
# microseconds, against a launch's few.
_TILE = _Tile(2048, lambda codes, _: 2**22 // codes, 2**22)


@automatic(lambda z, *_: rows_spec(z))
def nearest_codes(
    z: jax.Array, codebook: jax.Array, metric: str = 'euclidean', precision: str = 'highest'
) -> jax.Array:
    """Index of the codebook row nearest to each vector; ties go to the lowest index.

    On CUDA the environment variable `VQJAX_FUSED_SEARCH=1`, read when the call is traced, chooses
    the fused kernel of `nearest_pallas` instead of tiles; everywhere else it changes nothing.

    Args:
      z: [..., D] any float dtype.
      codebook: [K, D] any float dtype.
      metric: 'euclidean' (smallest distance), 'cosine' (largest cosine) or 'dot' (largest product).
      precision: of the product z.c; sums and comparisons are float32 always. 'highest': float32,
        so a choice differs from the exact one only within float32 rounding. 'default': the
        platform's fast product (float32 on CPU, TF32 on GPU, bfloat16 on TPU). 'bfloat16': both
        factors rounded to it first.

    Returns:
      int32 [...]; -1 for a vector that is not finite, or one of whose products with a code
      overflows. A code that is not finite is never chosen.

    Raises:
      ValueError: for an unknown metric or precision or shapes that do not fit, at trace time.
    """
    if metric not in METRICS:
        raise ValueError(f'metric must be one of {METRICS}, got {metric!r}')
    if precision not in PRECISIONS:
        raise ValueError(f'precision must be one of {PRECISIONS}, got {precision!r}')
    if codebook.ndim != 2 or not codebook.size or z.shape[-1:] != codebook.shape[1:]:
        raise ValueError(
            'z [..., D] and codebook [K, D] must agree in D, at least 1, and have a code, '
            f'got {z.shape} and {codebook.shape}'
        )
    z, codebook = jnp.asarray(z), jnp.asarray(codebook)
    rows = lax.stop_gradient(z).reshape(-1, z.shape[-1])
    if not export.is_symbolic_dim(rows.size) and not rows.size:
        return jnp.zeros(z.shape[:-1], jnp.int32)
    fused = os.environ.get('VQJAX_FUSED_SEARCH') == '1'
    codes = _searcher(metric, precision, fused)(rows, lax.stop_gradient(codebook))
    return codes.reshape(z.shape[:-1])


@functools.cache
def _searcher(metric, precision, fused):
    """The search of each platform, compiled once a shape: [N, D], [K, D] -> int32 [N]."""

    def tiled(way, tile):
        return lambda rows, codes: _search(rows, codes, metric, precision, way, tile)

    default = tiled(_APART, _TILE)
    # Folded, the bias would be rounded to bfloat16 with the rest.
    way = _APART if precision == 'bfloat16' else _FOLDED
    branches = {'cpu': tiled(way, _TILE_CPU)}

    @custom_vmap
    def search(rows, codebook):
        # The compiler cannot partition a kernel: over several devices it runs inside shard_map.
        kernel = {}
        if fused and mesh_size(rows, codebook) in (None, 1):
            # Not at the top of the file: Pallas takes longer to import than all of vqjax.
            from vqjax.ops.nearest_pallas import fused_search

            kernel['cuda'] = lambda rows, codes: fused_search(rows, codes, metric, precision)
        rows, codebook = whole_features(rows), whole_features(codebook)
        return lax.platform_dependent(rows, codebook, default=default, **branches, **kernel)

    @search.def_vmap
    def batched_search(size, batched, rows, codebook):
        if not batched[1]:
            if mesh_size(rows, codebook) in (None, 1):
                codes = search(rows.reshape(-1, rows.shape[-1]), codebook)
                return codes.reshape(size, -1), True
            # Rows first, in whose sharding the compiler can merge the two.
            codes = search(jnp.moveaxis(rows, 0, 1).reshape(-1, rows.shape[-1]), codebook)
            return codes.reshape(-1, size).T, True
        # One codebook after the other: a batched product is half as fast on CPU, and its tiles
        # would multiply the memory.
        rows_at = (lambda i: rows[i]) if batched[0] else (lambda i: rows)
        return lax.map(lambda i: search(rows_at(i), codebook[i]), jnp.arange(size)), True

    return jax.jit(search)


def _search(rows, codebook, metric, precision, way, tile):
    """Tiles of rows against tiles of codes: [N, D], [K, D] -> int32 [N].

    Both are cut into lanes, so that each device searches its own rows among its own codes; the
    least score of each lane of codes is joined last, one collective where they are sharded.
    """
    bias, codebook = bias_and_codes(codebook, metric)
    n: Any = rows.shape[0]
    num_codes: Any = codebook.shape[0]
    parts = code_lanes(num_codes, rows, codebook)
    group = 1
    if parts == 1 and not export.is_symbolic_dim(num_codes):
        group = tile.group(num_codes)
        if filling := -num_codes % group:  # with codes that are never chosen
            codebook = jnp.pad(codebook, ((0, filling), (0, 0)))
            bias = jnp.pad(bias, (0, filling), constant_values=jnp.inf)
            num_codes += filling
    lanes, whole = row_lanes(n, rows, codebook)
    few_codes = not export.is_symbolic_dim(num_codes) and num_codes < tile.codes
    size = num_codes if few_codes else tile.codes
    most = max(tile.rows(size, n // whole) * whole // lanes, _LEAST_ROWS)
    row_size, row_starts = starts(n // lanes, most)
    once = False
    if not export.is_symbolic_dim(n):  # few rows: longer tiles of codes instead
        # A multiple of 128, and so of a group: else no minimum would be of groups.
        size = max(tile.scores * whole // (row_size * lanes * 128) * 128, size)
        small = not export.is_symbolic_dim(num_codes) and codebook.size <= 2**21
        once = small and len(row_starts) > 3
    code_size, code_starts = starts(num_codes // parts, size // parts)
    rows = in_lanes(rows, lanes)

    def factors(codes, bias):
        return way.codes(usable_codes(bias[..., 0], codes), bias)

    codes = (in_lanes(codebook, parts), in_lanes(bias[:, None], parts))
    # A copy of a small codebook, once, is cheaper than one of each tile for each tile of rows.
    before, within = (factors, _same) if once else (_same, factors)
    codes = before(*codes)
    part_starts = jnp.arange(parts, dtype=jnp.int32)[:, None] * (num_codes // parts)

    def row_tile(row_start):
        some = cut(rows, row_start, row_size).astype(jnp.float32)
        some = way.rows(normalize(some) if metric == 'cosine' else some)

        def code_tile(code_start):
            # Codes first: the minimum then runs over rows of the matrix, which vectorises.
            against = within(*[cut(x, code_start, code_size) for x in codes])
            score = way.scores(*against, some, precision)
            if parts == 1:
                best, first = _least(score, group)
                return best, code_start + first
            best, first = jax.vmap(_least)(in_lanes(score, parts))
            return best, part_starts + code_start + first

        best, first = lax.map(code_tile, code_starts)
        axes = tuple(range(best.ndim - 1))
        least = jnp.min(best, axis=axes)
        last: Any = num_codes
        code = jnp.min(jnp.where(best == least, first, last), axis=axes)
        return in_lanes(jnp.where(jnp.isfinite(least), code, -1), lanes)

    return join_tiles(lax.map(row_tile, row_starts), n)


def _least(score, group=1):
    """Of scores [k, n] the least of each column and its first row: float32 [n], int32 [n].

    With groups of codes it takes a fifth to two thirds of the time on a CPU. There XLA vectorises a
    minimum over rows, but not a comparison in front of it. So the minimum of each group comes
    first, and only the group that has the least is compared.
    """
    k, n = score.shape
    if group == 1 or export.is_symbolic_dim(k) or k % group:
        best = jnp.min(score, axis=0)
        return best, _first(score, best)
    groups = score.reshape(k // group, group, n)
    # Without a barrier the two minima and the comparison become one loop again.
    least = lax.optimization_barrier(jnp.min(groups, axis=1))
    best = jnp.min(least, axis=0)
    # No group holds a least that is NaN: any will do.
    which = jnp.minimum(_first(least, best), k // group - 1)
    within = jnp.take_along_axis(groups, which[None, None], axis=0, mode='promise_in_bounds')[0]
    return best, which * group + _first(within, best)


def _first(score, best):
    """The first row of each column of [k, n] that is `best` [n], k where none is: int32 [n]."""
    # Exact as float32 (a tile has fewer than 2^24 codes), whose minimum is the faster one on CPU.
    index = jnp.arange(score.shape[0], dtype=jnp.float32)[:, None]
    # A minimum and a comparison: XLA's argmin is a slow two-operand reduction on CPU.
    return jnp.min(jnp.where(score == best, index, score.shape[0]), axis=0).astype(jnp.int32)


def _scores(codes, bias, rows, precision):
    """[k, D], [k, 1], [n, D] -> float32 [k, n]: bias - codes.rows."""
    if precision == 'bfloat16':
        codes, rows = codes.astype(jnp.bfloat16), rows.astype(jnp.bfloat16)
    return bias - _dots(codes, rows, precision)


def _same(*arrays):
    return arrays


class _Way(NamedTuple):
    """How a platform computes a tile of scores and the least of each row."""

    codes: Callable  # of codes [..., D] and bias [..., 1]: what is multiplied, arrays
    rows: Callable  # of rows [n, D]: what they are multiplied with
    scores: Callable  # of a tile of those arrays, such rows and a precision: float32 [k, n]


_APART = _Way(_same, lambda rows: rows, _scores)
# On CPU the bias is one more feature, once for all tiles: that saves a pass over each. On GPU and
# TPU the odd number of features would cost more than it saves.
_FOLDED = _Way(
    lambda codes, bias: (jnp.concatenate([-codes, bias], axis=-1),),
    lambda rows: jnp.concatenate([rows, jnp.ones_like(rows[:, :1])], axis=1),
    lambda codes, rows, precision: _dots(codes, rows, precision),
)


def _dots(a, b, precision):
    """[n, D], [m, D] -> float32 [n, m]."""
    return lax.dot_general(
        a,
        b,
        (((1,), (1,)), ((), ())),
        precision=lax.Precision.HIGHEST if precision == 'highest' else lax.Precision.DEFAULT,
        preferred_element_type=jnp.float32,
    )
