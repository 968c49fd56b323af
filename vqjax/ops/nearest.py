"""Nearest-code search that never holds the N x K distance matrix."""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax import export, lax
from jax.custom_batching import custom_vmap

from vqjax.ops.meshes import automatic, mesh_size, rows_spec, whole_features
from vqjax.ops.scores import METRICS, bias_and_codes, normalize, usable_codes
from vqjax.ops.tiles import code_lanes, cut, in_lanes, join_tiles, row_lanes, starts

PRECISIONS = ('highest', 'default', 'bfloat16')

# A tile: at most so many codes, rows and scores. CPU, measured on idle cores: four times the
# second-level cache. AMD EPYC (1 MB): 1,024 codes x 1,024 rows; 512 x 2,048 costs up to a tenth
# more, half or twice the scores up to a tenth, whole rows of 8,192 scores a third, and with 16
# codes 65,536 rows three times 8,192. Intel Xeon with AMX (2 MB): 1,024 x 2,048 is a tenth faster
# than 1,024 x 1,024. GPU and TPU, not measured: 16 MB, so that a tile is some 10^9 operations at
# D = 128, tens of microseconds, against a launch's few.
_TILE_CPU = (1024, 2**13)
_SECOND_LEVEL_CACHE = Path('/sys/devices/system/cpu/cpu0/cache/index2/size')
_TILE = (2048, 2**22, 2**22)
_LEAST_ROWS = 128


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
      int32 [...]; -1 for a vector that is not finite, or whose every score overflows. A code that
      is not finite is never chosen.

    Raises:
      ValueError: for an unknown metric or precision or shapes that do not fit, at trace time.
    """
    if metric not in METRICS:
        raise ValueError(f'metric must be one of {METRICS}, got {metric!r}')
    if precision not in PRECISIONS:
        raise ValueError(f'precision must be one of {PRECISIONS}, got {precision!r}')
    if codebook.ndim != 2 or not codebook.shape[0] or z.shape[-1:] != codebook.shape[1:]:
        raise ValueError(
            'z [..., D] and codebook [K, D] must agree in D and have a code, '
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

    def tiled(scores, sizes):
        return lambda rows, codes: _search(rows, codes, metric, precision, scores, sizes)

    default = tiled(_scores, _TILE)
    # Folded, the bias would be rounded to bfloat16 with the rest.
    scores = _scores if precision == 'bfloat16' else _folded_scores
    branches = {'cpu': tiled(scores, (*_TILE_CPU, _scores_on_cpu(_SECOND_LEVEL_CACHE)))}

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


def _scores_on_cpu(cache: Path) -> int:
    """Float32 scores of a tile: 4 or 8 MB by the size that `cache` holds ('2048K'), else 4."""
    try:
        kilobytes = int(cache.read_text().strip().removesuffix('K'))
    except (OSError, ValueError):
        return 2**20
    return 2**21 if kilobytes >= 2048 else 2**20


def _search(rows, codebook, metric, precision, scores, sizes):
    """Tiles of rows against tiles of codes: [N, D], [K, D] -> int32 [N].

    Both are cut into lanes, so that each device searches its own rows among its own codes; the
    least score of each lane of codes is joined last, one collective where they are sharded.
    """
    bias, codebook = bias_and_codes(codebook, metric)
    n: Any = rows.shape[0]
    num_codes: Any = codebook.shape[0]
    most_codes, most_rows, most_scores = sizes
    lanes, whole = row_lanes(n, rows, codebook)
    parts = code_lanes(num_codes, rows, codebook)
    few_codes = not export.is_symbolic_dim(num_codes) and num_codes < most_codes
    size = num_codes if few_codes else most_codes
    most = max(min(most_scores // size, most_rows) * whole // lanes, _LEAST_ROWS)
    row_size, row_starts = starts(n // lanes, most)
    if not export.is_symbolic_dim(n):  # few rows: longer tiles of codes instead
        size = max(most_scores * whole // (row_size * lanes), size)
    code_size, code_starts = starts(num_codes // parts, size // parts)
    rows, codebook, bias = in_lanes(rows, lanes), in_lanes(codebook, parts), in_lanes(bias, parts)
    part_starts = jnp.arange(parts, dtype=jnp.int32)[:, None] * (num_codes // parts)

    def row_tile(row_start):
        tile = cut(rows, row_start, row_size).astype(jnp.float32)
        if metric == 'cosine':
            tile = normalize(tile)

        def code_tile(code_start):
            codes = cut(codebook, code_start, code_size)
            offset = cut(bias, code_start, code_size)
            # Codes first: the minimum then runs over rows of the matrix, which vectorises.
            score = scores(usable_codes(offset, codes), offset[:, None], tile, precision)
            if parts == 1:
                best, first = _least(score)
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


def _least(score):
    """Of scores [k, n] the least of each column and its first row: float32 [n], int32 [n]."""
    # Exact as float32 (a tile has fewer than 2^24 codes), whose minimum is the faster one on CPU.
    index = jnp.arange(score.shape[0], dtype=jnp.float32)[:, None]
    best = jnp.min(score, axis=0)
    # A minimum and a comparison: XLA's argmin is a slow two-operand reduction on CPU.
    first = jnp.min(jnp.where(score == best, index, score.shape[0]), axis=0)
    return best, first.astype(jnp.int32)


def _scores(codes, bias, rows, precision):
    """[k, D], [k, 1], [n, D] -> float32 [k, n]: bias - codes.rows."""
    if precision == 'bfloat16':
        codes, rows = codes.astype(jnp.bfloat16), rows.astype(jnp.bfloat16)
    return bias - _dots(codes, rows, precision)


def _folded_scores(codes, bias, rows, precision):
    """`_scores` with the bias as one more feature: on CPU that saves a pass over the tile.

    On GPU and TPU the odd number of features would cost more than it saves.
    """
    codes = jnp.concatenate([-codes, bias], axis=1)
    rows = jnp.concatenate([rows, jnp.ones_like(rows[:, :1])], axis=1)
    return _dots(codes, rows, precision)


def _dots(a, b, precision):
    """[n, D], [m, D] -> float32 [n, m]."""
    return lax.dot_general(
        a,
        b,
        (((1,), (1,)), ((), ())),
        precision=lax.Precision.HIGHEST if precision == 'highest' else lax.Precision.DEFAULT,
        preferred_element_type=jnp.float32,
    )
