"""Choosing rows of a batch so that any number of replicas chooses the same ones."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import export, lax

from vqjax.ops.statistics import AxisName, psum


def flat_rows(z: jax.Array, mask: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
    """Rows as float32 [N, D] and which of them count: real and finite, bool [N].

    z [..., D], mask bool [...]. Rows that do not count are set to zero, so that no NaN spreads.
    """
    rows = lax.stop_gradient(z).astype(jnp.float32).reshape(-1, z.shape[-1])
    valid = jnp.all(jnp.isfinite(rows), axis=-1)
    if mask is not None:
        valid &= mask.reshape(-1)
    return jnp.where(valid[:, None], rows, 0.0), valid


def row_places(valid: jax.Array, axis_name: AxisName = None) -> jax.Array:
    """The place of each row among the valid rows of all replicas, in order.

    Randomness tied to it is the same for a batch whole, with padding rows masked, or split over
    replicas. valid bool [N] -> int32 [N]; rows that are not valid share a neighbour's place.
    """
    local = jnp.maximum(jnp.cumsum(valid, dtype=jnp.int32) - 1, 0)
    if axis_name is None:
        return local
    held = lax.all_gather(jnp.sum(valid, dtype=jnp.int32), axis_name)
    earlier = jnp.arange(held.shape[0]) < lax.axis_index(axis_name)
    return local + jnp.sum(jnp.where(earlier, held, 0))


def uniform_rows(key: jax.Array, valid: jax.Array, axis_name: AxisName = None) -> jax.Array:
    """A uniform number in (0, 1) for each row, by its place: the same however rows are spread.

    Needs `jax_threefry_partitionable` (the default), under which a shorter draw is a prefix of a
    longer one. Replicas must hold the same key. valid bool [N] -> float32 [N].
    """
    replicas = 1 if axis_name is None else lax.axis_size(axis_name)
    numbers = jax.random.uniform(
        key, (replicas * valid.shape[0],), jnp.float32, minval=jnp.finfo(jnp.float32).tiny
    )
    return numbers[row_places(valid, axis_name)]


def gumbel_rows(key: jax.Array, valid: jax.Array, axis_name: AxisName = None) -> jax.Array:
    """Gumbel noise for each row: log weights plus this, sorted, draw rows without replacement."""
    return -jnp.log(-jnp.log(uniform_rows(key, valid, axis_name)))


def _row_bits(key, places, num):
    """Random bits for each row and each of `num` entries, uint32 [N, num].

    A counter-based generator: threefry makes two words of the key and the row's place, and of
    those and the entry's number a mixer of 32 bits makes the bits (three multiplications with
    shifts between them, C. Wellons' triple32; the second word enters after the first of them, so
    that rows whose first words are close share no numbers). That is a tenth of what threefry costs
    an entry, and nothing of it depends on how rows are spread over devices or cut into tiles.
    """
    words = jax.random.key_data(jax.vmap(lambda place: jax.random.fold_in(key, place))(places))
    entry = lax.broadcasted_iota(jnp.uint32, (places.shape[0], num), 1)
    x = words[:, :1] + entry * jnp.uint32(0x9E3779B9)
    x = (x ^ (x >> 17)) * jnp.uint32(0xED5AD4BB)
    x = x ^ (x >> 11) ^ words[:, -1:]
    x *= jnp.uint32(0xAC4C1B51)
    x = (x ^ (x >> 15)) * jnp.uint32(0x31848BAB)
    return x ^ (x >> 14)


def uniform_noise(key: jax.Array, places: jax.Array, num: int) -> jax.Array:
    """A uniform number for each row and each of `num` entries, by the row's place.

    One of 2^23 numbers, evenly spaced and symmetric within (0, 1); see `row_places` for what the
    place is for. key, int32 [N] -> float32 [N, num].
    """
    # The bits as the mantissa of a number in [1, 2), moved by half a spacing.
    floats = lax.bitcast_convert_type(
        (_row_bits(key, places, num) >> 9) | jnp.uint32(0x3F800000), jnp.float32
    )
    return floats - (1 - 2**-24)


def gumbel_noise(key: jax.Array, places: jax.Array, num: int) -> jax.Array:
    """Gumbel noise for each row and each of `num` entries: logits plus this, the largest is drawn.

    key, int32 [N] -> float32 [N, num], between -2.9 and 16.7.
    """
    return -jnp.log(-jnp.log(uniform_noise(key, places, num)))


def normal_noise(key: jax.Array, places: jax.Array, num: int) -> jax.Array:
    """A standard normal number for each row and each of `num` entries, by the row's place.

    key, int32 [N] -> float32 [N, num], between -5.3 and 5.3.
    """
    return jax.scipy.special.ndtri(uniform_noise(key, places, num))


def top_rows(
    rows: jax.Array, priority: jax.Array, num: int, axis_name: AxisName = None
) -> tuple[jax.Array, jax.Array]:
    """The `num` rows of highest priority over all replicas, best first, ties to the lowest index.

    Args:
      rows: float32 [N, D].
      priority: float32 [N]; -inf = never.
      num: how many rows.
      axis_name: mapped axis or axes; the rows of replica 0 come first in index order.

    Returns:
      float32 [num, D] (zeros where there was no row left) and bool [num], True = a row.
      Memory beyond that: the num priorities of each replica.
    """
    n = rows.shape[0]
    if export.is_symbolic_dim(n):  # of any number of rows: as many more that are never taken
        priority = jnp.pad(priority, (0, num), constant_values=-jnp.inf)
        best, index = lax.top_k(priority, num)
    else:
        best, index = lax.top_k(priority, min(num, n))
    if axis_name is None:
        chosen = rows[index]
    else:
        gathered = lax.all_gather(best, axis_name)
        per_replica = gathered.shape[1]
        best, place = lax.top_k(gathered.reshape(-1), min(num, gathered.size))
        # The same everywhere already; pmax makes that known to shard_map's replication check.
        best = lax.pmax(best, axis_name)
        mine = place // per_replica == lax.axis_index(axis_name)
        # One owner a row, zeros from the others: the sum is the row, to the bit.
        chosen = psum(jnp.where(mine[:, None], rows[index[place % per_replica]], 0.0), axis_name)
    missing = num - best.shape[0]
    best = jnp.pad(best, (0, missing), constant_values=-jnp.inf)
    ok = best > -jnp.inf
    return jnp.where(ok[:, None], jnp.pad(chosen, ((0, missing), (0, 0))), 0.0), ok
