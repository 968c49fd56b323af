"""k-means under jit, with masks and shards, and the other ways to start a codebook."""

from __future__ import annotations

import functools
import math
import os
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import export, lax
from jax.sharding import PartitionSpec as P

from vqjax.ops.fields import check_count
from vqjax.ops.meshes import automatic
from vqjax.ops.nearest import nearest_codes
from vqjax.ops.rows import flat_rows, gumbel_rows, row_places, top_rows, uniform_rows
from vqjax.ops.scores import normalize
from vqjax.ops.serialization import exported
from vqjax.ops.statistics import AxisName, code_counts, code_sums, psum

# Largest absolute value of a batch: sums of 10^6 squares, and reciprocals of such, fit float32.
LARGEST = 1e16
# Seeding draws this many times; with more centroids a draw takes several rows at once.
_SEED_ROUNDS = 64
# Seeds are drawn from a sample of at most so many rows, or so many for each centroid.
_SAMPLE, _SAMPLE_EACH = 2**14, 32


@exported
class KMeans(NamedTuple):
    """Centroids float32 [K, D], vectors of each float32 [K], sum of squared distances []."""

    centroids: jax.Array
    counts: jax.Array
    inertia: jax.Array


@exported
class Start(NamedTuple):
    """A codebook to start from: vectors float32 [K, D] and a weight for each, float32 [K]."""

    centroids: jax.Array
    counts: jax.Array


def check_distinct(z: jax.Array, mask: jax.Array | None = None) -> None:
    """Raise where a batch cannot start a codebook. Needs concrete arrays: call it outside jit.

    Args:
      z: [..., D].
      mask: bool [...], True = real.

    Raises:
      ValueError: for a batch without real vectors, with a non-finite one, of identical ones, or
        of values whose squares float32 cannot hold.
    """
    rows = np.asarray(z, np.float32).reshape(-1, z.shape[-1])
    if mask is not None:
        rows = rows[np.asarray(mask).reshape(-1)]
    advice = 'start the codebook from a batch of real encoder outputs'
    if not len(rows):
        raise ValueError(f'the init batch z of shape {z.shape} has no real vectors; {advice}')
    if not np.isfinite(rows).all():
        bad = int((~np.isfinite(rows).all(axis=-1)).sum())
        raise ValueError(
            f'the init batch z has {bad} of {len(rows)} vectors that are not finite; {advice}'
        )
    largest = np.abs(rows).max(initial=0)
    if largest and not 1 / LARGEST <= largest <= LARGEST:
        raise ValueError(
            f'the init batch z has values up to {largest:g}, whose squares float32 cannot hold: '
            f'scale z, so that they lie between {1 / LARGEST:g} and {LARGEST:g}'
        )
    if len(rows) > 1 and (rows == rows[0]).all():
        raise ValueError(
            f'all {len(rows)} vectors of the init batch z are identical '
            f'(first value {rows[0, 0]:g}); {advice}'
        )


def check_room(k: int, dim: int) -> None:
    """Raise ValueError where [k, dim] float32 are more than all devices of this run can hold.

    An allocation would fail with a traceback, or have the process killed.
    """
    memory = (jax.local_devices()[0].memory_stats() or {}).get('bytes_limit')
    if memory is None and hasattr(os, 'sysconf'):
        memory = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
    # The devices of a CPU share its memory; the bound is then a generous one.
    room = jax.device_count() * (memory or math.inf)
    if 4 * k * dim > room:
        raise ValueError(
            f'{k} codes of {dim} features take {4 * k * dim / 1e9:,.1f} GB, and the devices of '
            f'this run hold {room / 1e9:,.1f}: give fewer codes or features'
        )


def _squared_distances(rows, centroids):
    """[N, D], [m, D] -> [N], to the nearest of the m, with exact zeros for equal rows."""
    dots = jnp.matmul(rows, centroids.T, precision=lax.Precision.HIGHEST)
    norms = jnp.sum(rows * rows, axis=-1)[:, None] + jnp.sum(centroids * centroids, axis=-1)
    squared = norms - 2 * dots
    # The expansion cancels: what is below rounding of the norms is a copy of the centroid.
    return jnp.min(jnp.where(squared > 1e-6 * norms, squared, 0.0), axis=-1)


def _sample(key, rows, valid, k, axis_name):
    """Of many valid rows one of every few, drawn: rows [m, D] and which are real, bool [m].

    One at random of each block of places, and not every n-th row, which of feature maps could be
    those of one column. The same rows however they are masked, or spread over replicas; all of them
    in a program exported for any number of rows.
    """
    n, most = rows.shape[0], max(_SAMPLE, _SAMPLE_EACH * k)
    if export.is_symbolic_dim(n):
        return rows, valid
    total = n * (1 if axis_name is None else lax.axis_size(axis_name))
    if total <= most:
        return rows, valid
    every = jnp.maximum(-(-psum(jnp.sum(valid, dtype=jnp.int32), axis_name) // most), 1)
    # Of each block one place. The key is none that seeds are drawn with.
    key = jax.random.fold_in(key, 2 * _SEED_ROUNDS)
    chosen = jax.random.randint(key, (total,), 0, every, jnp.int32)
    places = row_places(valid, axis_name)
    drawn = valid & (places % every == chosen[places // every])
    at = jnp.nonzero(drawn, size=min(n, most), fill_value=n)[0]
    return rows.at[at].get(mode='fill', fill_value=0.0), at < n


def _seed(key, rows, valid, k, axis_name):
    """k-means++ (Arthur and Vassilvitskii 2007): rows drawn by squared distance to the drawn.

    Up to 64 centroids one at a time; beyond, several a draw without replacement (as k-means||).
    """
    rows, valid = _sample(key, rows, valid, k, axis_name)
    each = math.ceil(k / _SEED_ROUNDS)
    rounds = math.ceil((k - 1) / each)

    def draw(step, carry):
        centroids, squared = carry
        noise = gumbel_rows(jax.random.fold_in(key, step), valid, axis_name)
        priority = jnp.where(valid & (squared > 0), jnp.log(squared) + noise, -jnp.inf)
        drawn, ok = top_rows(rows, priority, each, axis_name)
        # Fewer distinct rows than centroids: the rest are copies and stay empty.
        drawn = jnp.where(ok[:, None], drawn, centroids[0])
        centroids = lax.dynamic_update_slice(centroids, drawn, (1 + step * each, 0))
        return centroids, jnp.minimum(squared, _squared_distances(rows, drawn))

    noise = gumbel_rows(jax.random.fold_in(key, rounds), valid, axis_name)
    first, _ = top_rows(rows, jnp.where(valid, noise, -jnp.inf), 1, axis_name)
    centroids = jnp.broadcast_to(first, (1 + rounds * each, rows.shape[1]))
    carry = (centroids, _squared_distances(rows, first))
    return lax.fori_loop(0, rounds, draw, carry)[0][:k]


@automatic(P())
def kmeans(
    key: jax.Array,
    z: jax.Array,
    k: int,
    iters: int = 10,
    mask: jax.Array | None = None,
    axis_name: AxisName = None,
) -> KMeans:
    """Lloyd's k-means from k-means++ seeds; centroids left empty move to the worst-served vectors.

    With more than 16,384 vectors, and 32 for each centroid, the seeds are drawn from a random
    sample, half of that number at least, in which clusters of a few vectors may be missing. The
    iterations run over all.

    Args:
      key: random key, the same on every replica.
      z: [..., D]; rows that are not finite count nowhere.
      k: number of centroids. With fewer distinct vectors the spare centroids repeat one of them,
        with count 0.
      iters: Lloyd iterations after seeding.
      mask: bool [...], True = real.
      axis_name: mapped axis or axes: replicas give what one device gives for the whole batch.

    Returns:
      KMeans. The inertia never rises with iters (to rounding). Memory beyond the inputs: O(N + KD).

    Raises:
      ValueError: for a k that is no integer from 1, or iters that are none from 0.
    """
    check_count('k', k)
    check_count('iters', iters, 0)
    check_room(k, z.shape[-1])
    return _kmeans(key, *flat_rows(z, mask), k, iters, axis_name)


# Compiled once for a shape: outside jit, its loops would be compiled anew at every call.
@functools.partial(jax.jit, static_argnums=(3, 5), inline=True)
def _kmeans(key, rows, valid, k, iters, axis_name):
    def assign(centroids):
        return jnp.where(valid, nearest_codes(rows, centroids), -1)

    def error(centroids, codes):
        return jnp.where(valid, jnp.sum((rows - centroids[codes]) ** 2, axis=-1), 0.0)

    def step(_, old):
        codes = assign(old)
        counts = code_counts(codes, k, None, axis_name)
        sums = code_sums(rows, codes, k, None, axis_name)
        empty = counts == 0
        centroids = jnp.where(empty[:, None], old, sums / jnp.maximum(counts, 1)[:, None])

        # The errors are computed here: only where a centroid is empty are they needed.
        def relocate(centroids):
            errors = error(old, codes)
            worst, ok = top_rows(rows, jnp.where(errors > 0, errors, -jnp.inf), k, axis_name)
            rank = jnp.maximum(jnp.cumsum(empty) - 1, 0)
            move = empty & ok[rank]
            return jnp.where(move[:, None], worst[rank], centroids)

        return lax.cond(jnp.any(empty), relocate, lambda c: c, centroids)

    centroids = _seed(key, rows, valid, k, axis_name)
    centroids = lax.fori_loop(0, iters, step, centroids)
    codes = assign(centroids)
    return KMeans(
        centroids,
        code_counts(codes, k, None, axis_name),
        psum(jnp.sum(error(centroids, codes)), axis_name),
    )


def normal(
    key: jax.Array, z: jax.Array, k: int, mask: jax.Array | None = None, axis_name: AxisName = None
) -> Start:
    """Standard normal vectors, whatever the data: the usual start, and a frequent collapse.

    z [..., D] (only its D is read) -> Start.
    """
    del mask, axis_name
    check_room(k, z.shape[-1])
    return Start(jax.random.normal(key, (k, z.shape[-1]), jnp.float32), jnp.ones(k, jnp.float32))


def unit_sphere(
    key: jax.Array, z: jax.Array, k: int, mask: jax.Array | None = None, axis_name: AxisName = None
) -> Start:
    """Uniform directions of length sqrt(D): a normal start with its lengths made equal.

    z [..., D] (only its D is read) -> Start.
    """
    start = normal(key, z, k, mask, axis_name)
    return start._replace(centroids=normalize(start.centroids) * math.sqrt(z.shape[-1]))


@automatic(P())
def batch_rows(
    key: jax.Array, z: jax.Array, k: int, mask: jax.Array | None = None, axis_name: AxisName = None
) -> Start:
    """Vectors of the batch drawn without replacement, and again from the first when they run out.

    z [..., D] -> Start.
    """
    check_room(k, z.shape[-1])
    rows, valid = flat_rows(z, mask)
    priority = jnp.where(valid, uniform_rows(key, valid, axis_name), -jnp.inf)
    chosen, ok = top_rows(rows, priority, k, axis_name)
    number = jnp.maximum(jnp.sum(ok), 1)
    return Start(chosen[jnp.arange(k) % number], jnp.ones(k, jnp.float32))


# What a spec may name, and those that read the data rather than only its size.
STARTS = {f.__name__: f for f in (kmeans, normal, unit_sphere, batch_rows)}
BLIND_STARTS = (normal, unit_sphere)
