"""Counts and sums of the vectors assigned to each code, without a one-hot matrix."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec as P

from vqjax.ops.meshes import automatic, partly_manual
from vqjax.ops.tiles import in_lanes, row_lanes

# The name of a mapped axis, several of them, or None for a single device.
AxisName = Hashable | tuple[Hashable, ...] | None


def psum(x: Any, axis_name: AxisName) -> Any:
    """`lax.psum`, or x itself without an axis."""
    return x if axis_name is None else lax.psum(x, axis_name)


def pmax(x: Any, axis_name: AxisName) -> Any:
    """`lax.pmax`, or x itself without an axis."""
    return x if axis_name is None else lax.pmax(x, axis_name)


def pmean(x: Any, axis_name: AxisName) -> Any:
    """`lax.pmean`, or x itself without an axis."""
    return x if axis_name is None else lax.pmean(x, axis_name)


def _slots(codes, num_codes, mask):
    keep = (codes >= 0) & (codes < num_codes)
    if mask is not None:
        keep &= mask
    # Rejected vectors go past the end and are dropped. (-1 would mean the last one.)
    return jnp.where(keep, codes, num_codes).reshape(-1)


def _add_at(slots, values, num_codes):
    """Sums of values [N, ...] by slot [N], float32 [K, ...]."""

    def add(slots, values):
        return (
            jnp.zeros((num_codes, *values.shape[1:]), values.dtype)
            .at[slots]
            .add(values, mode='drop')
        )

    if not partly_manual(slots, values):
        return add(slots, values)
    # Here the compiler would gather the rows instead of adding up the devices' sums.
    lanes, _ = row_lanes(slots.shape[0], slots, values)
    return jnp.sum(jax.vmap(add)(in_lanes(slots, lanes), in_lanes(values, lanes)), axis=0)


@automatic(P())
def code_counts(
    codes: jax.Array,
    num_codes: int,
    mask: jax.Array | None = None,
    axis_name: AxisName = None,
    weights: jax.Array | None = None,
) -> jax.Array:
    """How many vectors each code was given, over all axes of codes.

    Codes of stages or groups have a codebook each: `quantizer.code_counts(codes)` counts them on
    their own, and the perplexity of each codebook is that of its row.

    Args:
      codes: int32 [...]; entries outside [0, num_codes) (masked, dropped) count nowhere.
      num_codes: K.
      mask: bool [...], True = real.
      axis_name: mapped axis or axes to sum over.
      weights: float [...], what each vector counts for; None = 1.

    Returns:
      float32 [K]; exact below 2^24 vectors a code.
    """
    slots = _slots(codes, num_codes, mask)
    ones = jnp.ones(slots.shape, jnp.float32)
    counts = _add_at(slots, ones if weights is None else ones * weights.reshape(-1), num_codes)
    return psum(counts, axis_name)


@automatic(P())
def code_sums(
    z: jax.Array,
    codes: jax.Array,
    num_codes: int,
    mask: jax.Array | None = None,
    axis_name: AxisName = None,
    weights: jax.Array | None = None,
) -> jax.Array:
    """Sum of the vectors that each code was given.

    Args:
      z: [..., D]; rows without a code may hold anything, NaN included.
      codes: int32 [...]; entries outside [0, num_codes) count nowhere.
      num_codes: K.
      mask: bool [...], True = real.
      axis_name: mapped axis or axes to sum over.
      weights: float [...], what each vector counts for; None = 1.

    Returns:
      float32 [K, D].
    """
    slots = _slots(codes, num_codes, mask)
    rows = z.astype(jnp.float32).reshape(-1, z.shape[-1])
    if weights is not None:
        rows *= weights.astype(jnp.float32).reshape(-1, 1)
    return psum(_add_at(slots, rows, num_codes), axis_name)


def smoothed(counts: jax.Array, eps: float) -> jax.Array:
    """Laplace-smoothed counts with the same total: (N + eps) / (n + K eps) * n, n = sum N.

    The factor n is what the collapsed implementations left out: without it every live code is
    inflated about n times (Sonnet's VectorQuantizerEMA has it). Without any count: all ones.

    counts float32 [K] -> float32 [K], positive.
    """
    # Products with a reciprocal, not quotients: XLA rewrites a division by a broadcast so under
    # jit, and the codebook must be the same to the bit under jit and not.
    total = jnp.sum(counts)
    factor = total / (total + counts.shape[0] * eps)
    return jnp.where(total > 0, (counts + eps) * factor, 1.0)


def rounded(x: jax.Array) -> jax.Array:
    """`x`, rounded to float32 before anything is added to it.

    Compiled code may contract a product and a sum into one operation that rounds once; whether it
    does depends on what it fuses, and then quantize and decode differ in the last bit. A maximum
    with the lowest float changes no value and stands between the two (optimization barriers and
    reduce_precision are gone by then). float32 [...] -> float32 [...].
    """
    return jnp.maximum(x, jnp.finfo(jnp.float32).min)


def unit_rows(codebook: jax.Array) -> jax.Array:
    """Rows scaled to unit length, the same to the bit wherever it is computed.

    codebook float32 [K, D] -> float32 [K, D]. For vectors use `normalize`, which fuses better.
    """
    square = jnp.sum(rounded(codebook * codebook), axis=-1, keepdims=True)
    return rounded(codebook * lax.rsqrt(jnp.maximum(square, 1e-24)))


def masked_mean(
    values: jax.Array, mask: jax.Array | None = None, axis_name: AxisName = None
) -> jax.Array:
    """Mean over real positions: 0 where there are none.

    Under `axis_name` the sum is local and the divisor the mean over replicas, so that the mean of
    the replicas' results is the mean of the whole batch however the mask is spread.

    values float [...], mask bool [...] -> float32 [].
    """
    values = values.astype(jnp.float32)
    if mask is None:
        return jnp.mean(values)
    number = pmean(jnp.sum(mask, dtype=jnp.float32), axis_name)
    total = jnp.sum(jnp.where(mask, values, 0.0))
    return jnp.where(number > 0, total / jnp.maximum(number, 1e-30), 0.0)
