"""Beam search over the stages of a residual quantizer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from vqjax import ops

# Vectors searched together: each holds beam^2 candidate residuals.
_ROWS = 256


def beam_size(beam: int | ops.Beam) -> int:
    """Partial sums that the field `beam` keeps."""
    return beam.size if isinstance(beam, ops.Beam) else beam


def beam_codes(
    run_stages: Callable[..., Any], z: jax.Array, scales: Any, beam: int | ops.Beam
) -> jax.Array:
    """Codes whose summed vectors come nearest to z among `beam` partial sums.

    Every partial sum is extended by its nearest codes and the best of all extensions are kept, by
    the squared length of what is left (not by the sum of the stages' errors, which counts the
    early stages again at every step). With an `ops.Beam` by the weighted sum of those lengths.

    Args:
      run_stages: (body, carry, *xs) -> (carry, outputs), with body(inner, carry, params, state,
        *x) run over the stages.
      z: float32 [..., D].
      scales: what each stage's vectors are multiplied by, float32 [S] or [S, D].
      beam: partial sums kept, and weights of the stages.

    Returns:
      int32 [..., S]; -1 for vectors that are not finite. Memory: 256 beam^2 D floats.
    """

    num_stages, size = len(scales), beam_size(beam)
    cumulative = isinstance(beam, ops.Beam)
    given = beam.weights if isinstance(beam, ops.Beam) else (1.0,) * num_stages
    weights = jnp.array(given, jnp.float32)

    def expand(inner, carry, params, state, s, scale, weight):
        residual, codes, score = carry  # [n, B, D], [n, B, S], [n, B]
        n = residual.shape[0]
        num = min(size, inner.num_codes)
        found = inner.candidates(params, state, residual / scale, num)
        left = residual[:, :, None] - inner.decode(params, state, found) * scale
        # Partial sums that do not exist (all but one at first) stay infinitely far.
        before = score if cumulative else jnp.where(jnp.isinf(score), score, 0.0)
        total = before[..., None] + weight * jnp.sum(left * left, axis=-1)
        best, place = ops.smallest(total.reshape(n, -1), size)
        codes = jnp.take_along_axis(codes, (place // num)[..., None], axis=1)
        taken = jnp.take_along_axis(found.reshape(n, -1), place, axis=1)
        codes = jnp.where(jnp.arange(num_stages) == s, taken[..., None], codes)
        left = jnp.take_along_axis(left.reshape(n, -1, left.shape[-1]), place[..., None], axis=1)
        return (left, codes, best), None

    def search(rows):
        n = rows.shape[0]
        residual = jnp.broadcast_to(rows[:, None], (n, size, rows.shape[1]))
        # Zeros that vary over a mapped axis as the rows do, which scan's carry must.
        zeros = jnp.where(False, residual[..., 0], 0.0)
        codes = zeros[..., None].astype(jnp.int32) + jnp.zeros(num_stages, jnp.int32)
        score = zeros + jnp.where(jnp.arange(size) == 0, 0.0, jnp.inf)
        (_, codes, _), _ = run_stages(expand, (residual, codes, score), *stages)
        return codes[:, 0]

    stages = jnp.arange(num_stages), jnp.asarray(scales), weights
    rows, valid = ops.flat_rows(z)
    codes = ops.map_tiles(search, [rows], _ROWS)
    return jnp.where(valid[:, None], codes, -1).reshape(*z.shape[:-1], num_stages)
