"""Cross-entropy of soft assignments to chosen codes, in tiles: no N x K array is kept."""

from __future__ import annotations

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


@automatic(P())
@compiled_once
def code_cross_entropy(
    z: jax.Array,
    codebook: jax.Array,
    codes: jax.Array,
    temperature: float = 1.0,
    metric: str = 'euclidean',
    mask: jax.Array | None = None,
    axis_name: AxisName = None,
) -> jax.Array:
    """Mean of -log softmax(-squared distance / temperature) at the given codes, in nats.

    As a commitment loss with the nearest codes it draws a vector to its code and away from the
    others near it (NaturalSpeech 2's CE-RVQ, arXiv:2304.09116, whose scores are distances). Between
    unit vectors ('cosine') at temperature 2 it is that of softmax(cosine). Vectors that are masked,
    not finite or of code -1 count nowhere. The tiles are recomputed in the backward pass, so memory
    stays O(N + K).

    Args:
      z: float [..., D].
      codebook: float [K, D].
      codes: int32 [...], below K.
      temperature: above 0.
      metric: 'euclidean', 'cosine', or 'dot' (softmax(product / temperature)).
      mask: bool [...], True = real.
      axis_name: mapped axis or axes; see `masked_mean` for what it does.

    Returns:
      float32 [], 0 where no vector counts; gradients to z and codebook.
    """
    valid = flat_rows(z, mask)[1] & (codes.reshape(-1) >= 0)
    rows = jnp.where(valid[:, None], z.astype(jnp.float32).reshape(-1, z.shape[-1]), 0.0)
    lanes, whole = row_lanes(rows.shape[0], rows, codebook)
    most = max(tile_rows(codebook) * whole // lanes, 1)

    @jax.checkpoint
    def tile(inputs):
        rows, codes, real = (x.reshape(-1, *x.shape[2:]) for x in inputs)
        log_p = jax.nn.log_softmax(-pairwise_costs(rows, codebook, metric) / temperature)
        chosen = jnp.take_along_axis(log_p, jnp.maximum(codes, 0)[:, None], axis=-1)[:, 0]
        return jnp.sum(in_lanes(jnp.where(real, -chosen, 0.0), lanes), axis=1)

    def add(total, inputs):
        return total + tile(inputs), None

    # Of tiles first, of lanes last: the compiler then joins what devices hold once.
    nothing = varying_as(jnp.zeros(lanes, jnp.float32), rows, codebook)
    tiles = tuple(row_tiles(in_lanes(x, lanes), most) for x in (rows, codes.reshape(-1), valid))
    total = jnp.sum(lax.scan(add, nothing, tiles)[0])
    return total / jnp.maximum(pmean(jnp.sum(valid, dtype=jnp.float32), axis_name), 1e-30)
