"""Softer choices than the nearest code: several nearest, a sampled one, the mean assignment."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec as P

from vqjax.ops.meshes import automatic, mesh_size, rows_spec
from vqjax.ops.rows import flat_rows, row_noise, row_places
from vqjax.ops.scores import normalize
from vqjax.ops.statistics import AxisName, pmean
from vqjax.ops.tiles import in_lanes, map_tiles, row_lanes

_TILE_ROWS = 1024


def _squared_distances(rows, codebook, metric):
    """[n, D], [K, D] -> [n, K]: squared distance, for cosine that of the unit vectors."""
    if metric == 'cosine':
        rows, codebook = normalize(rows), normalize(codebook)
    dots = jnp.matmul(rows, codebook.T, precision=lax.Precision.HIGHEST)
    norms = jnp.sum(rows * rows, axis=-1)[:, None] + jnp.sum(codebook * codebook, axis=-1)
    return norms - 2 * dots


def smallest(x: jax.Array, num: int) -> tuple[jax.Array, jax.Array]:
    """The `num` smallest entries of each row, smallest first, ties to the lowest index.

    float32 [n, K] without NaN -> float32 [n, num], int32 [n, num].
    """
    if mesh_size(x) in (None, 1):
        values, index = lax.top_k(-x, num)
        return -values, index
    # The compiler does not partition top_k by rows: it would gather all of x.
    place = jnp.arange(x.shape[-1])

    def take(left, _):
        least = jnp.min(left, axis=-1)
        index = jnp.min(jnp.where(left == least[:, None], place, x.shape[-1]), axis=-1)
        return jnp.where(place == index[:, None], jnp.inf, left), (least, index)

    _, (values, index) = lax.scan(take, x, length=num)
    return values.T, index.T


@automatic(lambda z, *_: rows_spec(z, None))
def nearest_candidates(
    z: jax.Array, codebook: jax.Array, num: int, metric: str = 'euclidean'
) -> jax.Array:
    """The `num` nearest codes of each vector, nearest first, ties to the lowest index.

    z [..., D], codebook [K, D] -> int32 [..., num]; num must not exceed K.
    """
    rows, _ = flat_rows(z)

    def tile(rows):
        return smallest(_squared_distances(rows, codebook, metric), num)[1].astype(jnp.int32)

    return map_tiles(tile, [rows], _TILE_ROWS).reshape(*z.shape[:-1], num)


@automatic(lambda key, z, *_: rows_spec(z))
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

    codes = map_tiles(tile, [rows, places], _TILE_ROWS)
    return jnp.where(valid, codes, -1).reshape(z.shape[:-1])


@automatic(P())
def mean_assignment(
    z: jax.Array,
    codebook: jax.Array,
    temperature: float = 1.0,
    metric: str = 'euclidean',
    mask: jax.Array | None = None,
    axis_name: AxisName = None,
) -> jax.Array:
    """Mean over real vectors of softmax(-squared distance / temperature): differentiable usage.

    z [..., D], codebook [K, D], mask bool [...] -> float32 [K], gradients to both. Vectors that
    are not finite count nowhere. The tiles are recomputed in the backward pass, so memory stays
    O(N + K N / 1024).
    """
    valid = flat_rows(z, mask)[1]
    rows = jnp.where(valid[:, None], z.astype(jnp.float32).reshape(-1, z.shape[-1]), 0.0)
    weights = valid.astype(jnp.float32)
    lanes, whole = row_lanes(rows.shape[0], rows, codebook)
    rows, weights = in_lanes(rows, lanes), in_lanes(weights, lanes)
    size = min(max(_TILE_ROWS * whole // lanes, 1), rows.shape[1])

    def tiles(x):
        x = jnp.pad(x, ((0, 0), (0, -x.shape[1] % size), *[(0, 0)] * (x.ndim - 2)))
        return jnp.moveaxis(x.reshape(lanes, -1, size, *x.shape[2:]), 1, 0)

    @jax.checkpoint
    def tile(inputs):
        rows, weights = inputs
        distances = _squared_distances(rows.reshape(-1, rows.shape[-1]), codebook, metric)
        probabilities = jax.nn.softmax(-distances / temperature)
        real = jnp.where(weights.reshape(-1, 1) > 0, probabilities, 0.0)
        # Without the axis of one lane XLA's sum is twice as fast on CPU.
        return jnp.sum(in_lanes(real, lanes), axis=1) if lanes > 1 else jnp.sum(real, 0)[None]

    # Of tiles first, of lanes last: one collective.
    total = jnp.sum(lax.map(tile, (tiles(rows), tiles(weights))), axis=(0, 1))
    number = pmean(jnp.sum(weights), axis_name)
    return pmean(total, axis_name) / jnp.maximum(number, 1e-30)
