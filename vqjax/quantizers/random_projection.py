"""Random-projection quantization: fixed targets for self-supervised learning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from vqjax import ops
from vqjax.ops import AxisName
from vqjax.ops.serialization import exported
from vqjax.quantizers.base import Base, Quantized, array_shape, check_count, checked, hide, look_up
from vqjax.quantizers.protocol import PyTree


@exported
class RandomProjectionState(NamedTuple):
    """Frozen projection float32 [D, dim] and unit codes float32 [K, dim]."""

    projection: jax.Array
    codes: jax.Array


@dataclass(frozen=True, repr=False)
class RandomProjection(Base):
    """BEST-RQ's quantizer (arXiv:2202.01855 eq. 1): nearest of random unit codes to a random
    projection of z, both of unit length. Nothing is ever learned.

    Targets only: z_q lives in the projected space [..., dim] and carries no gradient. Normalize z
    to zero mean and unit variance before it, or most codes go unused.

    Fields:
      num_codes: K.
      dim: features after the projection.

    Params (), state `RandomProjectionState`. Raises ValueError for a field below 1.
    """

    num_codes: int
    dim: int

    targets_only = True

    def __post_init__(self) -> None:
        check_count('num_codes', self.num_codes)
        check_count('dim', self.dim)

    def shapes(self, dim: int) -> tuple[tuple[()], RandomProjectionState]:
        """() and what is frozen."""
        projection, codes = array_shape(dim, self.dim), array_shape(self.num_codes, self.dim)
        return (), RandomProjectionState(projection, codes)

    @checked
    def init(
        self,
        key: jax.Array,
        z: jax.Array,
        mask: jax.Array | None = None,
        axis_name: AxisName = None,
    ) -> tuple[PyTree, PyTree]:
        """() and Xavier projection and normal codes; of z [..., D] only D is read."""
        del mask, axis_name
        first, second = jax.random.split(key)
        bound = np.sqrt(6 / (z.shape[-1] + self.dim))
        shape = z.shape[-1], self.dim
        projection = jax.random.uniform(first, shape, jnp.float32, minval=-bound, maxval=bound)
        codes = jax.random.normal(second, (self.num_codes, self.dim), jnp.float32)
        codes = ops.normalize(codes)
        return (), RandomProjectionState(projection, codes)

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
        """Codes of z [..., D] and their vectors [..., dim], without gradient."""
        del params, key, axis_name
        x = lax.stop_gradient(z.astype(jnp.float32))
        projected = jnp.matmul(x, state.projection, precision=lax.Precision.HIGHEST)
        codes = hide(ops.nearest_codes(projected, state.codes, 'cosine'), mask)
        z_q = lax.stop_gradient(look_up(state.codes, codes)).astype(z.dtype)
        return Quantized(z_q, codes, jnp.zeros((), jnp.float32), {})

    @checked
    def decode(self, params: PyTree, state: PyTree, codes: jax.Array) -> jax.Array:
        """Unit codes float32 [..., dim] of codes [...]; zeros for -1."""
        del params
        return look_up(state.codes, codes)
