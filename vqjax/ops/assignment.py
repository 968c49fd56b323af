"""How codes are chosen in training: the nearest one, or such that all are used alike."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from vqjax.ops.candidates import likeliest, pairwise_costs, tile_rows
from vqjax.ops.compiling import compiled_once
from vqjax.ops.fields import check_count, check_positive, make_plain
from vqjax.ops.meshes import automatic, rows_spec, varying_as
from vqjax.ops.nearest import nearest_codes
from vqjax.ops.rows import flat_rows
from vqjax.ops.scores import bias_and_codes, usable_codes
from vqjax.ops.statistics import AxisName, pmax, psum
from vqjax.ops.tiles import in_lanes, map_tiles, row_lanes, row_tiles

_LOWEST = float(np.finfo(np.float32).min)


def nearest_assignment(
    key: jax.Array,
    z: jax.Array,
    codebook: jax.Array,
    metric: str = 'euclidean',
    mask: jax.Array | None = None,
    axis_name: AxisName = None,
) -> jax.Array:
    """The nearest code of each vector, in training as everywhere else.

    z [..., D], codebook [K, D] -> int32 [...]; key, mask and axis_name change nothing.
    """
    del key, mask, axis_name
    return nearest_codes(z, codebook, metric)


@dataclasses.dataclass(frozen=True)
class Sinkhorn:
    """Balanced assignment: the largest entry of an optimal transport plan (arXiv:2412.15195).

    The plan gives every vector the same weight and every code the same share of all vectors, those
    of all replicas; it minimises the mean cost less epsilon times the plan's entropy. The cost is
    the distance divided by the standard deviation of all distances, as its authors' code has it,
    so that epsilon does not depend on the scale of z. Vectors need not be a multiple of codes: the
    shares are fractions. Each vector then takes its largest entry, which is no plan any more, so
    use is even but not equal; equal vectors get equal codes.

    It is computed on logarithms, and in tiles of vectors: iters + 2 passes over the scores, each as
    much work as a search (and an exponential for each score), and never an N x K matrix.

    Fields:
      epsilon: smoothness of the plan, in standard deviations of the distances.
      iters: how often shares of codes and weights of vectors are made right in turn.

    Raises ValueError for an epsilon that is not above 0, or no iteration.
    """

    epsilon: float = 0.1
    iters: int = 5

    def __post_init__(self) -> None:
        make_plain(self)
        check_positive('epsilon', self.epsilon)
        check_count('iters', self.iters)

    def __call__(
        self,
        key: jax.Array,
        z: jax.Array,
        codebook: jax.Array,
        metric: str = 'euclidean',
        mask: jax.Array | None = None,
        axis_name: AxisName = None,
    ) -> jax.Array:
        """Codes of z [..., D] among codebook [K, D], int32 [...]; -1 where masked or not finite.

        mask bool [...]. The key is not read: that there is one says that this is training.
        """
        del key
        return _balanced(self, z, codebook, metric, mask, axis_name)


ASSIGNMENTS = {f.__name__: f for f in (nearest_assignment,)}


@automatic(lambda plan, z, *_: rows_spec(z))
@compiled_once
def _balanced(plan, z, codebook, metric, mask, axis_name):
    rows, valid = flat_rows(z, mask)
    bias, codebook = bias_and_codes(lax.stop_gradient(codebook), metric)
    usable, codebook = jnp.isfinite(bias), usable_codes(bias, codebook)

    def distances(rows):
        costs = pairwise_costs(rows, codebook, metric)
        return costs if metric == 'dot' else jnp.sqrt(jnp.maximum(costs, 0.0))

    lanes, whole = row_lanes(rows.shape[0], rows, codebook)
    most = max(tile_rows(codebook) * whole // lanes, 1)
    tiles = [row_tiles(in_lanes(x, lanes), most) for x in (rows, valid)]

    def fold(function, start):
        """Totals by lane [lanes, ...] over all tiles; on a device its own lanes."""
        start = jax.tree.map(
            lambda x: varying_as(jnp.broadcast_to(x, (lanes, *x.shape)), rows), start
        )
        step = jax.vmap(function, in_axes=(0, 0, 0))
        return lax.scan(lambda totals, tile: (step(totals, *tile), None), start, tiles)[0]

    def add_moments(totals, rows, valid):
        values = jnp.where(valid[:, None] & usable, distances(rows), 0.0)
        return totals + jnp.stack([jnp.sum(values), jnp.sum(values**2)])

    total, squares = psum(jnp.sum(fold(add_moments, jnp.zeros(2, jnp.float32)), axis=0), axis_name)
    number = psum(jnp.sum(valid, dtype=jnp.float32), axis_name) * jnp.sum(usable)
    number = jnp.maximum(number, 1.0)
    variance = squares / number - (total / number) ** 2
    # Where all distances are equal every plan is as good, and the lowest code is taken.
    scale = jnp.where(variance > 0, lax.rsqrt(variance), 0.0) / plan.epsilon

    def scores(rows):
        return jnp.where(usable, -scale * distances(rows), -jnp.inf)

    def column_sums(step, potential):
        """Logarithms of the shares that codes have, once the vectors' weights are right."""

        def add(totals, rows, valid):
            largest, total = totals
            score = scores(rows)
            # The first round starts from the scores themselves.
            weight = jax.nn.logsumexp(score + potential, axis=-1)
            score -= jnp.where(step > 0, weight, 0.0)[:, None]
            score = jnp.where(valid[:, None], score, -jnp.inf)
            larger = jnp.maximum(largest, jnp.max(score, axis=0))
            total = total * jnp.exp(largest - larger) + jnp.sum(jnp.exp(score - larger), axis=0)
            return larger, total

        zeros = jnp.zeros(codebook.shape[0], jnp.float32)
        largest, total = fold(add, (zeros + _LOWEST, zeros))
        joint = pmax(jnp.max(largest, axis=0), axis_name)
        total = psum(jnp.sum(total * jnp.exp(largest - joint), axis=0), axis_name)
        # A code that cannot be read, or no vector at all: nothing to make right.
        return jnp.where(total > 0, joint + jnp.log(jnp.maximum(total, 1e-30)), 0.0)

    potential = lax.fori_loop(
        0,
        plan.iters,
        lambda step, potential: -column_sums(step, potential),
        jnp.zeros(codebook.shape[0], jnp.float32),
    )
    codes = map_tiles(lambda rows: likeliest(scores(rows) + potential), [rows], tile_rows(codebook))
    return jnp.where(valid & jnp.any(usable), codes, -1).reshape(z.shape[:-1])
