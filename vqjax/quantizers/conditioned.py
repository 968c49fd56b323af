"""A quantizer of standardised vectors: what keeps the stages of a residual grid in its range."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from vqjax import ops
from vqjax.ops import AxisName
from vqjax.ops.serialization import exported
from vqjax.quantizers.base import (
    PyTree,
    Quantized,
    Quantizer,
    array_shape,
    check,
    check_inner,
    check_start,
    checked,
    is_number,
)
from vqjax.quantizers.inner_quantizers import Around

# Variances below it are taken as it: of vectors below 1e-15, whose squares leave float32.
_LEAST = 1e-30


@exported
class ConditionedParams(NamedTuple):
    """Log of a scale float32 [D], an offset [D], and the inner quantizer's params."""

    log_scale: jax.Array
    offset: jax.Array
    inner: PyTree


@exported
class ConditionedState(NamedTuple):
    """Running mean and variance float32 [D], () without them, and the inner quantizer's state."""

    mean: jax.Array | tuple[()]
    variance: jax.Array | tuple[()]
    inner: PyTree


@dataclass(frozen=True, repr=False)
class Conditioned(Around):
    """A quantizer between an invertible normalisation and its inverse (RFSQ, arXiv:2508.15860).

    The inner quantizer sees (z - mean) / deviation * scale + offset, and its vectors are taken
    back. As the inner quantizer of `Residual` every stage has its own, so that a grid of fixed size
    fits what the stages before it left. Mean and deviation of each feature are running ones, and
    scale and offset are learned: the decoder knows all four.

    Fields:
      inner: the quantizer of the normalised vectors.
      decay: of the running mean and variance (the paper's invertible layer norm); None for scale
        and offset alone (its learned scaling), where the scale starts at the size of the first
        batch.

    Params `ConditionedParams`, state `ConditionedState`. Raises ValueError for a field out of
    range.
    """

    inner: Quantizer
    decay: float | None = 0.99

    def __post_init__(self) -> None:
        check_inner(type(self).__name__, self.inner)
        ok = self.decay is None or (is_number(self.decay) and 0 <= self.decay < 1)
        check(ok, 'decay', self.decay, 'in [0, 1), or None for no statistics')

    @property
    def starts_from_data(self) -> bool:  # type: ignore[override]
        """Always: init reads mean and variance."""
        return True

    def first_stages(
        self, num: int, params: PyTree, state: PyTree
    ) -> tuple[Quantizer, PyTree, PyTree]:
        """The inner's first stages behind the same normalisation, see `Base.first_stages`."""
        inner, within, held = self.inner.first_stages(num, params.inner, state.inner)
        changed = dataclasses.replace(self, inner=inner)
        return changed, params._replace(inner=within), state._replace(inner=held)

    def shapes(self, dim: int) -> tuple[ConditionedParams, ConditionedState]:
        """Scale, offset and statistics, and the inner's."""
        params, state = self.inner.shapes(dim)
        feature = array_shape(dim)
        held: Any = () if self.decay is None else feature
        return ConditionedParams(feature, feature, params), ConditionedState(held, held, state)

    @checked
    def init(
        self,
        key: jax.Array,
        z: jax.Array,
        mask: jax.Array | None = None,
        axis_name: AxisName = None,
    ) -> tuple[PyTree, PyTree]:
        """(ConditionedParams, ConditionedState); of z [..., D] mean and variance are read.

        Raises:
          ValueError: for a batch of identical, zero or non-finite vectors (outside jit).
        """
        check_start(self, z, mask)
        rows, valid = ops.flat_rows(z, mask)
        mean, variance, _ = _moments(rows, valid.astype(jnp.float32), axis_name)
        log_scale, offset = jnp.zeros_like(mean), jnp.zeros_like(mean)
        state = ConditionedState(mean, variance, ())
        if self.decay is None:
            log_scale = -0.5 * jnp.log(jnp.maximum(variance + mean**2, _LEAST))
            state = ConditionedState((), (), ())
        params = ConditionedParams(log_scale, offset, ())
        x = self._normalised(params, state, z)
        within, held = self.inner.init(key, x, mask, axis_name)
        return params._replace(inner=within), state._replace(inner=held)

    def _factor(self, params, state):
        """What the inner's vectors are multiplied by, float32 [D]."""
        factor = jnp.exp(-params.log_scale)
        if self.decay is None:
            return factor
        variance = lax.stop_gradient(state.variance)
        return factor * jnp.sqrt(jnp.maximum(variance, _LEAST))

    def _normalised(self, params, state, z):
        x = z.astype(jnp.float32)
        finite = jnp.all(jnp.isfinite(x), axis=-1, keepdims=True)
        # Out of the product, whose gradient to the scale it would spoil, and bad again behind it.
        x = jnp.where(finite, x, 0.0)
        if self.decay is not None:
            x = x - _along(lax.stop_gradient(state.mean), x)
        x = x / _along(self._factor(params, state), x) + _along(params.offset, x)
        return jnp.where(finite, x, jnp.nan)

    def _back(self, params, state, vectors, codes):
        x = vectors.astype(jnp.float32) - _along(params.offset, vectors)
        x = ops.rounded(x * _along(self._factor(params, state), vectors))
        if self.decay is not None:
            x = x + _along(lax.stop_gradient(state.mean), vectors)
        return jnp.where(self.inner.coded(codes)[..., None], x, 0.0)

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
        """The inner's codes of the normalised z [..., D], and its vectors taken back."""
        x = self._normalised(params, state, z)
        out = self.inner.quantize(params.inner, state.inner, x, key, mask, axis_name)
        return out._replace(z_q=self._back(params, state, out.z_q, out.codes).astype(z.dtype))

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
        """The inner's state, and statistics moved towards those of the z [..., D] with a code."""
        x = self._normalised(params, state, lax.stop_gradient(z))
        inner = self.inner.update(
            params.inner, state.inner, x, codes, key, mask, axis_name, weights
        )
        if self.decay is None:
            return state._replace(inner=inner)
        rows, valid = ops.flat_rows(z, mask)
        # A stage that is dropped for some vectors does not see what is left of them.
        counted = valid & self.inner.coded(codes).reshape(-1)
        weight = counted.astype(jnp.float32)
        if weights is not None:
            weight = jnp.where(counted, weights.reshape(-1), 0.0)
        mean, variance, number = _moments(rows, weight, axis_name)
        keep = jnp.where(number > 0, self.decay, 1.0)
        return ConditionedState(
            keep * state.mean + (1 - keep) * mean,
            keep * state.variance + (1 - keep) * variance,
            inner,
        )

    @checked
    def decode(self, params: PyTree, state: PyTree, codes: jax.Array) -> jax.Array:
        """The inner's vectors of codes, taken back: float32 [..., D]; zeros for -1."""
        vectors = self.inner.decode(params.inner, state.inner, codes)
        return self._back(params, state, vectors, codes)


def _along(feature, x):
    """[D] with as many axes as x [..., D]."""
    return feature.reshape(*[1] * (x.ndim - 1), -1)


def _moments(rows, weight, axis_name):
    """Mean [D], variance [D] and total weight [] of rows [N, D] with a weight [N] each."""
    number = ops.psum(jnp.sum(weight), axis_name)
    divisor = jnp.maximum(number, 1e-30)
    mean = ops.psum(jnp.sum(weight[:, None] * rows, axis=0), axis_name) / divisor
    square = weight[:, None] * (rows - mean[None]) ** 2
    return mean, ops.psum(jnp.sum(square, axis=0), axis_name) / divisor, number
