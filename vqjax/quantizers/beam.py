"""Beam search over the stages of a residual quantizer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from vqjax import ops

# Vectors searched together: each holds beam^2 candidate residuals.
_ROWS = 256


def beam_codes(
    run_stages: Callable[..., Any], z: jax.Array, num_stages: int, beam: int
) -> jax.Array:
    """Codes whose summed vectors come nearest to z among `beam` partial sums.

    Every partial sum is extended by its nearest codes and the best of all extensions are kept, by
    the squared length of what is left (not by the sum of the stages' errors, which counts the
    early stages again at every step).

    Args:
      run_stages: (body, carry, *xs) -> (carry, outputs), with body(inner, carry, params, state,
        *x) run over the stages.
      z: float32 [..., D].
      num_stages: S.
      beam: partial sums kept.

    Returns:
      int32 [..., S]; -1 for vectors that are not finite. Memory: 256 beam^2 D floats.
    """

    def expand(inner, carry, params, state, s):
        residual, codes, score = carry  # [n, B, D], [n, B, S], [n, B]
        n = residual.shape[0]
        num = min(beam, inner.num_codes)
        found = inner.candidates(params, state, residual, num)
        left = residual[:, :, None] - inner.decode(params, state, found)
        # Partial sums that do not exist (all but one at first) stay infinitely far.
        missing = jnp.where(jnp.isinf(score), score, 0.0)[..., None]
        square = jnp.sum(left * left, axis=-1) + missing
        best, place = ops.smallest(square.reshape(n, -1), beam)
        codes = jnp.take_along_axis(codes, (place // num)[..., None], axis=1)
        taken = jnp.take_along_axis(found.reshape(n, -1), place, axis=1)
        codes = jnp.where(jnp.arange(num_stages) == s, taken[..., None], codes)
        left = jnp.take_along_axis(left.reshape(n, -1, left.shape[-1]), place[..., None], axis=1)
        return (left, codes, best), None

    def search(rows):
        n = rows.shape[0]
        residual = jnp.broadcast_to(rows[:, None], (n, beam, rows.shape[1]))
        # Zeros that vary over a mapped axis as the rows do, which scan's carry must.
        zeros = jnp.where(False, residual[..., 0], 0.0)
        codes = zeros[..., None].astype(jnp.int32) + jnp.zeros(num_stages, jnp.int32)
        score = zeros + jnp.where(jnp.arange(beam) == 0, 0.0, jnp.inf)
        (_, codes, _), _ = run_stages(expand, (residual, codes, score), jnp.arange(num_stages))
        return codes[:, 0]

    rows, valid = ops.flat_rows(z)
    codes = ops.map_tiles(search, [rows], _ROWS)
    return jnp.where(valid[:, None], codes, -1).reshape(*z.shape[:-1], num_stages)
