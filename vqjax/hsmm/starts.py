"""Where EM starts: windows of the sessions clustered by the codes in them."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from vqjax import ops
from vqjax.hsmm.sessions import Sessions

# Counts of K codes are seen through random directions, so that a window takes this many numbers.
_FEATURES = 64
_ITERS = 20


def emission_counts(
    key: jax.Array, sessions: Sessions, sizes: tuple[int, ...], num_states: int, width: int, dtype
) -> tuple[jax.Array, ...]:
    """Counts [L, K] for each axis of codes, a cluster of windows of `width` steps being a state.

    Distances of random projections of the shares of the codes are those of the shares
    (Johnson and Lindenstrauss 1984), so k-means sees a window without its K counts.
    """
    directions, seeds = jax.random.split(key)
    steps, batch, axes = sessions.codes.shape
    codes = jnp.pad(sessions.codes, [(0, -steps % width), (0, 0), (0, 0)], constant_values=-1)
    codes = codes.reshape(-1, width, batch, axes).swapaxes(1, 2).reshape(-1, width, axes)
    seen = codes >= 0
    shares = 0.0
    for axis, size in enumerate(sizes):
        table = jax.random.normal(jax.random.fold_in(directions, axis), (size, _FEATURES))
        rows = jnp.where(seen[..., axis, None], table[jnp.maximum(codes[..., axis], 0)], 0)
        shares += jnp.sum(rows, 1) / jnp.maximum(jnp.sum(seen[..., axis], 1), 1)[:, None]
    real = jnp.any(seen, (1, 2))
    centroids = ops.kmeans(seeds, shares, num_states, _ITERS, real).centroids
    state = ops.nearest_codes(shares, centroids)[:, None]
    return tuple(
        jnp.zeros((num_states, size + 1), dtype)
        .at[state, jnp.where(seen[..., axis], codes[..., axis], size)]
        .add(1)[:, :size]
        for axis, size in enumerate(sizes)
    )
