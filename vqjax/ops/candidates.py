"""Softer choices than the nearest code: several nearest, a sampled one, the mean assignment."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec as P

from vqjax.ops.compiling import compiled_once
from vqjax.ops.losses import entropy
from vqjax.ops.meshes import automatic, mesh_size, rows_spec, varying_as
from vqjax.ops.rows import flat_rows, gumbel_noise, row_places
from vqjax.ops.scores import normalize
from vqjax.ops.serialization import exported
from vqjax.ops.statistics import AxisName, pmean
from vqjax.ops.tiles import in_lanes, map_tiles, row_lanes, row_tiles

# A tile: at most so many rows, and scores (16 MB) unless that leaves fewer than 8 rows.
_ROWS, _SCORES = 1024, 2**22


def tile_rows(codebook: jax.Array) -> int:
    """Rows of a tile that holds the scores of all codes [K, D]."""
    return max(min(_ROWS, _SCORES // codebook.shape[0]), 8)


def pairwise_costs(rows: jax.Array, codebook: jax.Array, metric: str) -> jax.Array:
    """[n, D], [K, D] -> [n, K]: squared distance, of the unit vectors for 'cosine'.

    For 'dot' the product's negative.
    """
    if metric == 'cosine':
        rows, codebook = normalize(rows), normalize(codebook)
    dots = jnp.matmul(rows, codebook.T, precision=lax.Precision.HIGHEST)
    if metric == 'dot':
        return -dots
    norms = jnp.sum(rows * rows, axis=-1)[:, None] + jnp.sum(codebook * codebook, axis=-1)
    return norms - 2 * dots


@automatic(lambda z, *_: rows_spec(z, None))
def code_logits(z: jax.Array, codebook: jax.Array, metric: str = 'euclidean') -> jax.Array:
    """Minus the squared distance of each vector to each code (of unit vectors; 'dot': the product).

    softmax(logits / temperature) is what `sample_codes` draws from. Differentiable in both.
    z [..., D], codebook [K, D] -> float32 [..., K], which is all N x K of them.
    """
    rows = z.astype(jnp.float32).reshape(-1, z.shape[-1])
    costs = pairwise_costs(rows, codebook.astype(jnp.float32), metric)
    return -costs.reshape(*z.shape[:-1], codebook.shape[0])


def likeliest(logits: jax.Array) -> jax.Array:
    """The code of the largest logit, ties to the lowest: float32 [n, K] -> int32 [n]."""
    # A maximum and a comparison: XLA's argmax is a slow two-operand reduction on CPU.
    code, last = jnp.arange(logits.shape[-1], dtype=jnp.int32), logits.shape[-1] - 1
    largest = jnp.max(logits, axis=-1, keepdims=True)
    return jnp.min(jnp.where(logits >= largest, code, last), axis=-1)


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
@compiled_once
def nearest_candidates(
    z: jax.Array, codebook: jax.Array, num: int, metric: str = 'euclidean'
) -> jax.Array:
    """The `num` nearest codes of each vector, nearest first, ties to the lowest index.

    z [..., D], codebook [K, D] -> int32 [..., num]; num must not exceed K.
    """
    rows, _ = flat_rows(z)

    def tile(rows):
        return smallest(pairwise_costs(rows, codebook, metric), num)[1].astype(jnp.int32)

    return map_tiles(tile, [rows], tile_rows(codebook)).reshape(*z.shape[:-1], num)


@automatic(lambda key, z, *_: rows_spec(z))
@compiled_once
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
        logits = -pairwise_costs(rows, codebook, metric) / temperature
        noise = gumbel_noise(key, places, codebook.shape[0])
        return likeliest(logits + noise)

    codes = map_tiles(tile, [rows, places], tile_rows(codebook))
    return jnp.where(valid, codes, -1).reshape(z.shape[:-1])


@exported
class Assignments(NamedTuple):
    """Soft assignments of a batch: their mean float32 [K], the mean entropy [] in nats."""

    mean: jax.Array
    entropy: jax.Array


@automatic(P())
@compiled_once
def soft_assignments(
    z: jax.Array,
    codebook: jax.Array,
    temperature: float = 1.0,
    metric: str = 'euclidean',
    mask: jax.Array | None = None,
    axis_name: AxisName = None,
) -> Assignments:
    """What softmax(-squared distance / temperature) is on average: differentiable usage.

    ('dot': softmax(product / temperature).) Under `axis_name` the mean over the vectors of all
    replicas, the same on each. z [..., D], codebook [K, D], mask bool [...] -> `Assignments`,
    gradients to both. Vectors that are not finite count nowhere. The tiles are recomputed in the
    backward pass, so memory stays O(N + K).
    """
    valid = flat_rows(z, mask)[1]
    rows = jnp.where(valid[:, None], z.astype(jnp.float32).reshape(-1, z.shape[-1]), 0.0)
    weights = valid.astype(jnp.float32)
    lanes, whole = row_lanes(rows.shape[0], rows, codebook)
    rows, weights = in_lanes(rows, lanes), in_lanes(weights, lanes)
    most = max(tile_rows(codebook) * whole // lanes, 1)

    @jax.checkpoint
    def tile(inputs):
        rows, weights = inputs
        costs = pairwise_costs(rows.reshape(-1, rows.shape[-1]), codebook, metric)
        probabilities = jax.nn.softmax(-costs / temperature)
        real = weights.reshape(-1, 1) > 0
        entropies = in_lanes(jnp.where(real[:, 0], entropy(probabilities), 0.0), lanes)
        probabilities = jnp.where(real, probabilities, 0.0)
        # Without the axis of one lane XLA's sum is twice as fast on CPU.
        total = (
            jnp.sum(in_lanes(probabilities, lanes), axis=1)
            if lanes > 1
            else jnp.sum(probabilities, axis=0)[None]
        )
        return total, jnp.sum(entropies, axis=1)

    def add(totals, inputs):
        return jax.tree.map(jnp.add, totals, tile(inputs)), None

    # Of tiles first, of lanes last: one collective.
    zeros = varying_as(jnp.zeros((lanes, codebook.shape[0]), jnp.float32), rows, codebook)
    tiles = (row_tiles(rows, most), row_tiles(weights, most))
    totals, _ = lax.scan(add, (zeros, zeros[:, 0]), tiles)
    number = jnp.maximum(pmean(jnp.sum(weights), axis_name), 1e-30)
    return Assignments(*(pmean(jnp.sum(x, axis=0), axis_name) / number for x in totals))


def mean_assignment(
    z: jax.Array,
    codebook: jax.Array,
    temperature: float = 1.0,
    metric: str = 'euclidean',
    mask: jax.Array | None = None,
    axis_name: AxisName = None,
) -> jax.Array:
    """`soft_assignments` without the entropies: float32 [K]."""
    return soft_assignments(z, codebook, temperature, metric, mask, axis_name).mean
