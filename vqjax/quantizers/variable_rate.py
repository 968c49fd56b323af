"""Variable-rate residual quantization: each vector determines how many stages it uses."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
from jax import lax

from vqjax import ops
from vqjax.ops import AxisName
from vqjax.ops.dropping import draw_entries
from vqjax.ops.serialization import exported
from vqjax.quantizers.base import (
    PyTree,
    Quantized,
    Quantizer,
    array_shape,
    check,
    check_positive,
    check_start,
    check_weight,
    checked,
)
from vqjax.quantizers.inner_quantizers import Around
from vqjax.quantizers.residual import Residual

# Importance at the start is sigmoid(2) = .88: nearly all stages are used before it is learned.
_START = 2.0


@exported
class VariableRateParams(NamedTuple):
    """Importance is sigmoid(z . kernel + bias): float32 [D] and []. And the Residual's params."""

    kernel: jax.Array
    bias: jax.Array
    inner: PyTree


@dataclass(frozen=True, repr=False)
class VariableRate(Around):
    """A `Residual` that uses as many stages as a vector is important (VRVQ, arXiv:2410.06016).

    Importance p, between 0 and 1, is a learned function of z. Stage k = 0, 1, ... is used where
    level p >= k; the codes of the others are -1. The gradient of that step is the one of a smooth
    step, log(cosh(a (x + 1/2)) / cosh(a (x - 1/2))) / 2a + 1/2 of x = level p - k, and `rate` is
    the price of importance. The same params serve any level: `dataclasses.replace(q, level=...)`.

    Fields:
      inner: a Residual without dropout.
      level: stages at importance 1 (fewer by their share below that); None: all of them.
      rate: weight of the mean importance, the loss term `rate`.
      drawn: with a key, the level of each entry of z's first axis is drawn between these two,
        evenly in its logarithm, so that one model learns all rates; None: `level` always.
      sharpness: a.

    Params `VariableRateParams`, state the inner's. Raises ValueError for a field out of range.
    """

    inner: Residual
    level: float | None = None
    rate: float = 0.0
    drawn: tuple[float, float] | None = None
    sharpness: float = 2.0

    def __post_init__(self) -> None:
        ok = isinstance(self.inner, Residual) and self.inner.dropout is None
        check(ok, 'inner', self.inner, 'a Residual with dropout=None')
        if self.level is not None:
            check_positive('level', self.level)
        check_weight('rate', self.rate)
        if self.drawn is not None:
            need = 'two levels above 0, the lower one first'
            pair = isinstance(self.drawn, tuple) and len(self.drawn) == 2
            check(pair, 'drawn', self.drawn, need)
            for level in self.drawn:
                check_positive('drawn', level)
            check(self.drawn[0] <= self.drawn[1], 'drawn', self.drawn, need)
        check_positive('sharpness', self.sharpness)

    def first_stages(
        self, num: int, params: PyTree, state: PyTree
    ) -> tuple[Quantizer, PyTree, PyTree]:
        """At most the first `num` stages of each vector, see `Base.first_stages`."""
        inner, within, state = self.inner.first_stages(num, params.inner, state)
        level = self.inner.num_stages if self.level is None else self.level
        changed = dataclasses.replace(self, inner=cast(Residual, inner), level=level)
        return changed, params._replace(inner=within), state

    def shapes(self, dim: int) -> tuple[VariableRateParams, PyTree]:
        """What makes the importance, and the inner's."""
        params, state = self.inner.shapes(dim)
        return VariableRateParams(array_shape(dim), array_shape(), params), state

    @checked
    def init(
        self,
        key: jax.Array,
        z: jax.Array,
        mask: jax.Array | None = None,
        axis_name: AxisName = None,
    ) -> tuple[PyTree, PyTree]:
        """(VariableRateParams, inner state); the inner starts from z [..., D].

        Raises:
          ValueError: for a batch of identical, zero or non-finite vectors (outside jit).
        """
        check_start(self, z, mask)
        params, state = self.inner.init(key, z, mask, axis_name)
        kernel = jnp.zeros(z.shape[-1], jnp.float32)
        return VariableRateParams(kernel, jnp.asarray(_START, jnp.float32), params), state

    def importance(self, params: PyTree, z: jax.Array) -> jax.Array:
        """Of each vector of z [..., D], float32 [...] from 0 to 1; 0 of what is not finite."""
        x = z.astype(jnp.float32)
        finite = jnp.all(jnp.isfinite(x), axis=-1)
        x = jnp.where(finite[..., None], x, 0.0)
        score = jnp.matmul(x, params.kernel, precision=lax.Precision.HIGHEST) + params.bias
        return jnp.where(finite, jax.nn.sigmoid(score), 0.0)

    @checked
    def quantize(
        self,
        params: PyTree,
        state: PyTree,
        z: jax.Array,
        key: jax.Array | None = None,
        mask: jax.Array | None = None,
        axis_name: AxisName = None,
    ) -> Quantized:
        """The inner's codes of z [..., D], -1 in the stages that are not used."""
        x = z.astype(jnp.float32)
        importance = self.importance(params, x)
        level = self._levels(key, x, mask, axis_name)
        stages = range(self.inner.num_stages)
        place = jnp.stack([importance * level - stage for stage in stages])
        used = place >= 0 if mask is None else (place >= 0) & mask[None]
        out = self.inner.quantize_stages(params.inner, state, x, key, used, axis_name)
        # What every stage would add, the unused ones too: by so much would the sum change.
        fixed = lax.stop_gradient((params.inner, state, x))
        codes = self.inner.quantize(*fixed, key, mask, axis_name).codes
        vectors = lax.stop_gradient(self.inner.stage_vectors(*fixed[:2], codes))
        some = jnp.any(used, axis=0)
        steps = jnp.where(some[None], self._smooth(place), 0.0)
        z_q = ops.graft(out.z_q, out.z_q + jnp.sum(steps[..., None] * vectors, axis=0))
        real = jnp.all(jnp.isfinite(x), axis=-1)
        losses = out.losses | {
            'rate': ops.masked_mean(importance, real if mask is None else real & mask, axis_name)
        }
        loss = out.loss + self.rate * losses['rate']
        return Quantized(z_q.astype(z.dtype), out.codes, loss, losses)

    def _levels(self, key, x, mask, axis_name):
        """The level of each vector, or of all."""
        if key is None or self.drawn is None:
            return float(self.inner.num_stages if self.level is None else self.level)
        low, high = map(math.log, self.drawn)
        key = jax.random.fold_in(key, self.inner.num_stages + 1)
        return jnp.exp(low + (high - low) * draw_entries(key, x.shape[:-1], mask, axis_name))

    def _smooth(self, x):
        a = self.sharpness
        above, below = a * (x + 0.5), a * (x - 0.5)
        return (jnp.logaddexp(above, -above) - jnp.logaddexp(below, -below)) / (2 * a) + 0.5

    @checked
    def update(
        self,
        params: PyTree,
        state: PyTree,
        z: jax.Array,
        codes: jax.Array,
        key: jax.Array | None = None,
        mask: jax.Array | None = None,
        axis_name: AxisName = None,
        weights: jax.Array | None = None,
    ) -> PyTree:
        """The inner's: a stage sees the vectors that use it."""
        return self.inner.update(params.inner, state, z, codes, key, mask, axis_name, weights)

    @checked
    def decode(self, params: PyTree, state: PyTree, codes: jax.Array) -> jax.Array:
        """The inner's sum of the stages that have a code, float32 [..., D]."""
        return self.inner.decode(params.inner, state, codes)
