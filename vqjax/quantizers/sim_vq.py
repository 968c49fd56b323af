"""SimVQ: a frozen codebook seen through one learned linear map."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from vqjax import ops
from vqjax.ops import AxisName
from vqjax.quantizers.base import (
    Quantized,
    blank,
    check_count,
    check_start,
    check_weight,
    look_up,
)
from vqjax.quantizers.codebook import Codebook


@dataclass(frozen=True, repr=False)
class SimVQ(Codebook):
    """SimVQ (arXiv:2411.02038): codebook C W with C ~ N(0, 1/D) frozen and only W learned.

    Every step moves all codes, the unused ones too. W starts as a multiple of the identity that
    gives codes the typical length of z.

    Fields:
      num_codes: K.
      commitment: weight of |z - sg(z_q)|^2.
      codebook: weight of |sg(z) - z_q|^2.
      gradient: estimator, (z, z_q) -> z_q with a gradient.

    Params W float32 [D, D], state C float32 [K, D]. Raises ValueError for a field out of range.
    """

    num_codes: int
    commitment: float = 0.25
    codebook: float = 1.0
    gradient: Callable[[jax.Array, jax.Array], jax.Array] = ops.straight_through

    starts_from_data = True

    def __post_init__(self):
        check_count('num_codes', self.num_codes)
        check_weight('commitment', self.commitment)
        check_weight('codebook', self.codebook)
        gradient = ops.named_function('gradient', self.gradient, ops.ESTIMATORS)
        object.__setattr__(self, 'gradient', gradient)

    def init(self, key, z, mask=None, axis_name: AxisName = None):
        """(W, C); of z [..., D] the root mean square is read.

        Raises:
          ValueError: for a batch of identical, zero or non-finite vectors (outside jit).
        """
        check_start(self, z, mask)
        ops.check_room(self.num_codes, z.shape[-1])
        rows, valid = ops.flat_rows(z, mask)
        dim = z.shape[-1]
        power = ops.masked_mean(jnp.sum(rows**2, axis=-1), valid, axis_name)
        scale = jnp.sqrt(ops.pmean(power, axis_name))
        frozen = jax.random.normal(key, (self.num_codes, dim), jnp.float32) / np.sqrt(
            dim, dtype=np.float32
        )
        return jnp.eye(dim, dtype=jnp.float32) * jnp.where(scale > 0, scale, 1.0), frozen

    def read_codebook(self, params, state) -> jax.Array:
        """C W, float32 [K, D]; differentiable in W."""
        return jnp.matmul(lax.stop_gradient(state), params, precision=lax.Precision.HIGHEST)

    def read(self, params, state, z, codes, mask=None, axis_name=None) -> Quantized:
        """z_q, loss and losses of z [..., D] for chosen codes [...]."""
        x = self.prepare(z)
        vectors = look_up(self.read_codebook(params, state), codes)
        losses = {
            'commitment': ops.squared_error(x, lax.stop_gradient(vectors), mask, axis_name),
            'codebook': ops.squared_error(lax.stop_gradient(x), vectors, mask, axis_name),
        }
        loss = self.commitment * losses['commitment'] + self.codebook * losses['codebook']
        z_q = blank(self.gradient(x, vectors), codes).astype(z.dtype)
        return Quantized(z_q, codes, loss, losses)
