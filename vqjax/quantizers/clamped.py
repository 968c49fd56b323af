"""A soft clamp in front of a quantizer."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from vqjax.ops import AxisName
from vqjax.quantizers.base import (
    PyTree,
    Quantized,
    Quantizer,
    check_features,
    check_inner,
    check_positive,
    check_start,
    checked,
)
from vqjax.quantizers.inner_quantizers import Around


@dataclass(frozen=True, repr=False)
class Clamped(Around):
    """A quantizer of softly bounded vectors, limit tanh(z / limit).

    For fixed grids whose stages must not be handed more than they reach: the residual FSQ of
    arXiv:2411.19842 has one with limit 1 + 1 / (level - 1) before its first stage. z_q is not taken
    back: it stays within the limits.

    Fields:
      inner: the quantizer of the bounded vectors.
      limit: what features are kept below, one number or one a feature.

    Params and state are the inner's. Raises ValueError for a field out of range, and at trace time
    for another number of features.
    """

    inner: Quantizer
    limit: float | tuple[float, ...] = 1.0

    def __post_init__(self):
        check_inner(type(self).__name__, self.inner)
        for number in self.limit if isinstance(self.limit, tuple) else (self.limit,):
            check_positive('limit', number)

    def first_stages(
        self, num: int, params: PyTree, state: PyTree
    ) -> tuple[Quantizer, PyTree, PyTree]:
        """The inner's first stages behind the same clamp, see `Base.first_stages`."""
        inner, params, state = self.inner.first_stages(num, params, state)
        return dataclasses.replace(self, inner=inner), params, state

    def bounded(self, z: jax.Array) -> jax.Array:
        """limit tanh(z / limit), float32 [..., D]; NaN stays."""
        limit = np.asarray(self.limit, np.float32)
        if limit.ndim:
            check_features(z, len(limit), f'limit={self.limit}')
        x = z.astype(jnp.float32)
        # Infinities are no vectors, which tanh would make of them.
        return jnp.where(jnp.isfinite(x), jnp.tanh(x / limit) * limit, jnp.nan)

    def shapes(self, dim: int) -> tuple[PyTree, PyTree]:
        """The inner's."""
        return self.inner.shapes(dim)

    @checked
    def init(
        self,
        key: jax.Array,
        z: jax.Array,
        mask: jax.Array | None = None,
        axis_name: AxisName = None,
    ) -> tuple[PyTree, PyTree]:
        """The inner's (params, state), started from the bounded z [..., D]."""
        check_start(self, z, mask)
        return self.inner.init(key, self.bounded(z), mask, axis_name)

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
        """The inner's codes and vectors of the bounded z [..., D]."""
        out = self.inner.quantize(params, state, self.bounded(z), key, mask, axis_name)
        return out._replace(z_q=out.z_q.astype(z.dtype))

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
        """The inner's state after the bounded z [..., D]."""
        x = self.bounded(lax.stop_gradient(z))
        return self.inner.update(params, state, x, codes, key, mask, axis_name, weights)

    @checked
    def decode(self, params: PyTree, state: PyTree, codes: jax.Array) -> jax.Array:
        """The inner's vectors of codes, float32 [..., D]."""
        return self.inner.decode(params, state, codes)
