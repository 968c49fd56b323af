"""Codes that lie on a curve through learned points."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from vqjax import ops
from vqjax.ops import AxisName
from vqjax.quantizers.arguments import argument, frozen
from vqjax.quantizers.base import (
    Quantized,
    array_shape,
    blank,
    check,
    check_count,
    check_start,
    check_weight,
    checked,
    look_up,
)
from vqjax.quantizers.codebook import Codebook, given_start
from vqjax.quantizers.protocol import PyTree


@frozen
class SpaceFilling(Codebook):
    """SF-DiVeQ: codes on the segments between consecutive learned points (arXiv:2509.26469).

    The curve is V - 1 segments between V learned points, each segment with `points` codes evenly
    along it, the m-th at the share (m + 1/2) / `points`: K = (V - 1) `points`. With a key each
    segment offers one of its codes, drawn evenly (the paper's dither), and a vector takes the
    nearest of those; without one it takes the nearest of all K. The gradient is that of `ops.DiVeQ`
    to the two ends of the code's segment, by their shares. It trains z and both points, so every
    point stays near the vectors, and there is no other loss and no revival.

    The paper's position along a segment is any number, at inference too, which no finite code
    holds; here it is one of `points`. The points start as the centroids of `init` in the order of a
    walk from each to the nearest one left, so that the curve stays among the vectors.

    Fields:
      num_codes: K, a multiple of `points`.
      points: codes on each segment.
      variance: of the noise, see `ops.DiVeQ`.
      init: start of the points, (key, z, k, mask, axis_name) -> centroids and counts.

    Params the points float32 [V, D], state (). Raises ValueError for a field out of range.
    """

    num_codes: int
    points: int = 4
    variance: float = 1e-3
    start: Any = argument(default=ops.kmeans, alias='init')

    def __post_init__(self, init: Any = None) -> None:
        check_count('num_codes', self.num_codes)
        check_count('points', self.points)
        need = f'a multiple of points={self.points}, the codes on each segment'
        check(self.num_codes % self.points == 0, 'num_codes', self.num_codes, need)
        check_weight('variance', self.variance)
        object.__setattr__(self, 'start', given_start(self, init))

    @property
    def segments(self) -> int:
        """V - 1, the segments of the curve."""
        return self.num_codes // self.points

    @property
    def gradient(self) -> ops.DiVeQ:
        """The estimator."""
        return ops.DiVeQ(self.variance)

    def shapes(self, dim: int) -> tuple[jax.ShapeDtypeStruct, tuple[()]]:
        """The points and ()."""
        return array_shape(self.segments + 1, dim), ()

    @checked
    def init(
        self,
        key: jax.Array,
        z: jax.Array,
        mask: jax.Array | None = None,
        axis_name: AxisName = None,
    ) -> tuple[PyTree, PyTree]:
        """(points, ()) from what `start` makes of z [..., D].

        Raises:
          ValueError: for a batch of identical, zero or non-finite vectors (outside jit).
        """
        check_start(self, z, mask)
        x, number = self.prepare(z), self.segments + 1
        return _walk(self.start(key, x, number, mask=mask, axis_name=axis_name)[0]), ()

    def _shares(self):
        """How far along its segment each of `points` codes lies, float32 [points, 1]."""
        return (jnp.arange(self.points, dtype=jnp.float32)[:, None] + 0.5) / self.points

    def read_codebook(self, params: PyTree, state: PyTree) -> jax.Array:
        """The codes along the curve, float32 [K, D], differentiable in params."""
        del state
        share = self._shares()
        first, second = ops.rounded((1 - share) * params[:-1, None]), share * params[1:, None]
        return (first + ops.rounded(second)).reshape(self.num_codes, -1)

    def choose(
        self,
        codebook: jax.Array,
        z: jax.Array,
        key: jax.Array | None,
        mask: jax.Array | None = None,
        axis_name: AxisName = None,
    ) -> jax.Array:
        """The nearest code of z [..., D], with a key among one of each segment, int32 [...]."""
        del mask, axis_name
        if key is None:
            return ops.nearest_codes(z, codebook)
        offered = jax.random.randint(key, (self.segments,), 0, self.points, jnp.int32)
        offered += jnp.arange(self.segments, dtype=jnp.int32) * self.points
        segments = ops.nearest_codes(z, codebook[offered])
        return jnp.where(segments >= 0, offered[jnp.maximum(segments, 0)], -1)

    def read(
        self,
        params: PyTree,
        state: PyTree,
        z: jax.Array,
        codes: jax.Array,
        mask: jax.Array | None = None,
        axis_name: AxisName = None,
        key: jax.Array | None = None,
    ) -> Quantized:
        """z_q of z [..., D] for chosen codes [...]; the loss is 0."""
        x = self.prepare(z)
        vectors = look_up(self.read_codebook(params, state), codes)
        segment, place = jnp.divmod(jnp.maximum(codes, 0), self.points)
        share = self._shares()[place]
        ends = []
        for end, weight in enumerate((1 - share, share)):
            own = None if key is None else jax.random.fold_in(key, end + 1)
            vertex = blank(params[segment + end], codes)
            ends.append(weight * self.gradient(x, vertex, own, mask, axis_name))
        z_q = ops.graft(lax.stop_gradient(vectors), ends[0] + ends[1])
        nothing = jnp.zeros((), jnp.float32)
        return Quantized(blank(z_q, codes).astype(z.dtype), codes, nothing, {})


def _walk(points):
    """Points [V, D] in the order of a walk: from the one farthest from the mean to the nearest."""
    places = jnp.arange(points.shape[0])

    def step(carry, _):
        at, left = carry
        left &= places != at
        distance = jnp.sum((points - points[at]) ** 2, axis=-1)
        return (jnp.argmin(jnp.where(left, distance, jnp.inf)), left), at

    far = jnp.argmax(jnp.sum((points - jnp.mean(points, axis=0)) ** 2, axis=-1))
    _, order = lax.scan(step, (far, jnp.ones(points.shape[0], bool)), length=points.shape[0])
    return points[order]
