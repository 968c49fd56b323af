"""Softer choices than the nearest code: several nearest, a sampled one, the mean assignment."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from vqjax.ops.scores import normalize
from vqjax.ops.rows import flat_rows, row_noise, row_places
from vqjax.ops.statistics import AxisName, pmean

_TILE_ROWS = 1024


def _tiles(function, *arrays):
    """`function` over tiles of at most 1,024 leading rows, so that no N x K array is held."""
    n = arrays[0].shape[0]
    if n <= _TILE_ROWS:
        return function(*arrays)
    return lax.map(lambda row: function(*[r[None] for r in row])[0], arrays, batch_size=_TILE_ROWS)


def _squared_distances(rows, codebook, metric):
    """[n, D], [K, D] -> [n, K]: squared distance, for cosine that of the unit vectors."""
    if metric == 'cosine':
        rows, codebook = normalize(rows), normalize(codebook)
    dots = jnp.matmul(rows, codebook.T, precision=lax.Precision.HIGHEST)
    norms = jnp.sum(rows * rows, axis=-1)[:, None] + jnp.sum(codebook * codebook, axis=-1)
    return norms - 2 * dots


def nearest_candidates(
    z: jax.Array, codebook: jax.Array, num: int, metric: str = 'euclidean'
) -> jax.Array:
    """The `num` nearest codes of each vector, nearest first, ties to the lowest index.

    z [..., D], codebook [K, D] -> int32 [..., num]; num must not exceed K.
    """
    rows, _ = flat_rows(z)

    def tile(rows):
        return lax.top_k(-_squared_distances(rows, codebook, metric), num)[1].astype(jnp.int32)

    return _tiles(tile, rows).reshape(*z.shape[:-1], num)


def sample_codes(
    key: jax.Array,
    z: jax.Array,
    codebook: jax.Array,
    temperature: float,
    metric: str = 'euclidean',
    mask: jax.Array | None = None,
    axis_name: AxisName = None,
) -> jax.Array:
    """A code for each vector, drawn with probability softmax(-squared distance / temperature).

    Replicas that hold the same key draw what one device draws for the whole batch.
    z [..., D], codebook [K, D], mask bool [...] -> int32 [...]; -1 where masked or not finite.
    """
    rows, valid = flat_rows(z, mask)
    places = row_places(valid, axis_name)

    def tile(rows, places):
        logits = -_squared_distances(rows, codebook, metric) / temperature
        noise = row_noise(jax.random.gumbel, key, places, codebook.shape[0])
        return jnp.argmax(logits + noise, axis=-1).astype(jnp.int32)

    codes = _tiles(tile, rows, places)
    return jnp.where(valid, codes, -1).reshape(z.shape[:-1])


def mean_assignment(
    z: jax.Array,
    codebook: jax.Array,
    temperature: float = 1.0,
    metric: str = 'euclidean',
    mask: jax.Array | None = None,
    axis_name: AxisName = None,
) -> jax.Array:
    """Mean over real vectors of softmax(-squared distance / temperature): differentiable usage.

    z [..., D], codebook [K, D], mask bool [...] -> float32 [K], gradients to both. The tiles are
    recomputed in the backward pass, so memory stays O(N + K N / 1024).
    """
    rows = z.astype(jnp.float32).reshape(-1, z.shape[-1])
    weights = jnp.ones(rows.shape[:1]) if mask is None else mask.reshape(-1).astype(jnp.float32)
    n = rows.shape[0]
    tile_rows = min(n, _TILE_ROWS)
    padding = -n % tile_rows
    rows = jnp.pad(rows, ((0, padding), (0, 0))).reshape(-1, tile_rows, rows.shape[-1])
    tiled = jnp.pad(weights, (0, padding)).reshape(-1, tile_rows)

    @jax.checkpoint
    def tile(inputs):
        rows, weights = inputs
        probabilities = jax.nn.softmax(-_squared_distances(rows, codebook, metric) / temperature)
        return jnp.sum(jnp.where(weights[:, None] > 0, probabilities, 0.0), axis=0)

    total = jnp.sum(lax.map(tile, (rows, tiled)), axis=0)
    number = pmean(jnp.sum(weights), axis_name)
    return pmean(total, axis_name) / jnp.maximum(number, 1e-30)
