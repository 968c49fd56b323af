"""A fixed random rotation around a quantizer."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from vqjax.ops import AxisName
from vqjax.ops.serialization import exported
from vqjax.quantizers.base import (
    PyTree,
    Quantized,
    Quantizer,
    array_shape,
    check_inner,
    check_start,
    checked,
)
from vqjax.quantizers.inner_quantizers import Around


@exported
class RotatedState(NamedTuple):
    """The rotation float32 [D, D], orthogonal and never learned, and the inner's state."""

    rotation: jax.Array
    inner: PyTree


@dataclass(frozen=True, repr=False)
class Rotated(Around):
    """A quantizer of z R, whose vectors are turned back by R^T; R is random, orthogonal and fixed.

    For grids and signs, which treat each feature by itself: rotated, the features have like
    variances, and one that is far larger than the others is spread over all of them (incoherence
    processing, QuIP, arXiv:2307.13304). Levels should be the same for all features.

    Fields:
      inner: the quantizer of the rotated vectors.

    Params are the inner's, state `RotatedState`. Raises ValueError for an inner whose z_q is not in
    the space of z.
    """

    inner: Quantizer

    def __post_init__(self) -> None:
        check_inner(type(self).__name__, self.inner)

    def first_stages(
        self, num: int, params: PyTree, state: PyTree
    ) -> tuple[Quantizer, PyTree, PyTree]:
        """The inner's first stages in the same rotation, see `Base.first_stages`."""
        inner, params, inner_state = self.inner.first_stages(num, params, state.inner)
        return dataclasses.replace(self, inner=inner), params, state._replace(inner=inner_state)

    def shapes(self, dim: int) -> tuple[PyTree, RotatedState]:
        """The inner's, and the rotation."""
        params, state = self.inner.shapes(dim)
        return params, RotatedState(array_shape(dim, dim), state)

    @checked
    def init(
        self,
        key: jax.Array,
        z: jax.Array,
        mask: jax.Array | None = None,
        axis_name: AxisName = None,
    ) -> tuple[PyTree, RotatedState]:
        """(the inner's params, RotatedState), started from the rotated z [..., D]."""
        check_start(self, z, mask)
        first, second = jax.random.split(key)
        rotation = jax.nn.initializers.orthogonal()(first, (z.shape[-1],) * 2, jnp.float32)
        params, state = self.inner.init(second, _turn(z, rotation), mask, axis_name)
        return params, RotatedState(rotation, state)

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
        """The inner's codes of the rotated z [..., D], and its vectors turned back."""
        rotation = lax.stop_gradient(state.rotation)
        x = _turn(z, rotation)
        out = self.inner.quantize(params, state.inner, x, key, mask, axis_name)
        return out._replace(z_q=_turn(out.z_q, rotation.T).astype(z.dtype))

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
    ) -> RotatedState:
        """The inner's state after the rotated z [..., D]."""
        x = _turn(lax.stop_gradient(z), state.rotation)
        inner = self.inner.update(params, state.inner, x, codes, key, mask, axis_name, weights)
        return state._replace(inner=inner)

    @checked
    def decode(self, params: PyTree, state: PyTree, codes: jax.Array) -> jax.Array:
        """The inner's vectors of codes, turned back: float32 [..., D]."""
        return _turn(self.inner.decode(params, state.inner, codes), state.rotation.T)


def _turn(x, rotation):
    """x [..., D] times a matrix [D, D], float32; a vector that is not finite becomes NaN."""
    return jnp.matmul(x.astype(jnp.float32), rotation, precision=lax.Precision.HIGHEST)
