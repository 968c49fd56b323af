"""How evenly codes are used, for codes too that no vector is near."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec as P

from vqjax.ops.candidates import pairwise_costs, tile_rows
from vqjax.ops.compiling import compiled_once
from vqjax.ops.meshes import automatic, varying_as
from vqjax.ops.rows import flat_rows
from vqjax.ops.statistics import AxisName, pmean
from vqjax.ops.tiles import in_lanes, row_lanes, row_tiles

# The logarithm of nothing: finite, so that its gradient is no NaN.
_NONE = -1e30


@automatic(P())
@compiled_once
def log_mean_assignment(
    z: jax.Array,
    codebook: jax.Array,
    temperature: float = 1.0,
    metric: str = 'euclidean',
    mask: jax.Array | None = None,
    axis_name: AxisName = None,
) -> jax.Array:
    """log `mean_assignment`, of codes too that are so far from all vectors that it is 0 in float32.

    Their gradient does not vanish: it pulls a code to the vectors nearest to it. -1e30 or so for
    all codes where no vector counts. Arguments, shape and memory as there.
    """
    valid = flat_rows(z, mask)[1]
    rows = jnp.where(valid[:, None], z.astype(jnp.float32).reshape(-1, z.shape[-1]), 0.0)
    lanes, whole = row_lanes(rows.shape[0], rows, codebook)
    most = max(tile_rows(codebook) * whole // lanes, 1)

    @jax.checkpoint
    def tile(rows, real):
        costs = pairwise_costs(rows.reshape(-1, rows.shape[-1]), codebook, metric)
        log_p = jax.nn.log_softmax(-costs / temperature)
        log_p = jnp.where(real.reshape(-1, 1), log_p, _NONE)
        return jax.nn.logsumexp(in_lanes(log_p, lanes), axis=1)

    def add(total, inputs):
        return jnp.logaddexp(total, tile(*inputs)), None

    # Of tiles first, of lanes last: the compiler then joins what devices hold once.
    nothing = jnp.full((lanes, codebook.shape[0]), _NONE, jnp.float32)
    tiles = (row_tiles(in_lanes(rows, lanes), most), row_tiles(in_lanes(valid, lanes), most))
    total, _ = lax.scan(add, varying_as(nothing, rows, codebook), tiles)
    total = jax.nn.logsumexp(total, axis=0)
    number = pmean(jnp.sum(valid, dtype=jnp.float32), axis_name)
    if axis_name is not None:
        # The largest summand of all replicas is 1.
        largest = lax.pmax(lax.stop_gradient(total), axis_name)
        total = largest + jnp.log(pmean(jnp.exp(total - largest), axis_name))
    return total - jnp.log(jnp.maximum(number, 1e-30))


def code_balance(
    z: jax.Array,
    codebook: jax.Array,
    temperature: float = 1.0,
    metric: str = 'euclidean',
    mask: jax.Array | None = None,
    axis_name: AxisName = None,
) -> jax.Array:
    """KL(uniform || p) = -mean_k log(K p_k), p the `mean_assignment` of z to the codes.

    0 where codes are used alike. Where `diversity` has no gradient for a code that is far from
    everything, this one pulls it to the vectors nearest to it, as hard as any other code. ERVQ's
    code balancing loss (arXiv:2410.12359) in purpose; the divergence and the estimate of p by a
    softmax are this library's, the paper's formula was not at hand.

    z [..., D], codebook [K, D], mask bool [...] -> float32 [], gradients to both; 0 where no
    vector counts.
    """
    log_p = log_mean_assignment(z, codebook, temperature, metric, mask, axis_name)
    divergence = -jnp.mean(log_p) - math.log(codebook.shape[0])
    return jnp.where(jnp.max(log_p) > 0.1 * _NONE, divergence, 0.0)
