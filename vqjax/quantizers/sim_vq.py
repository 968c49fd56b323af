"""SimVQ: a frozen codebook seen through one learned linear map."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import lax

from vqjax import ops
from vqjax.ops import AxisName
from vqjax.quantizers.base import array_shape, checked
from vqjax.quantizers.bridged import BridgedCodebook
from vqjax.quantizers.protocol import PyTree


@dataclass(frozen=True, repr=False)
class SimVQ(BridgedCodebook):
    """SimVQ (arXiv:2411.02038): codebook C W with C ~ N(0, 1/D) frozen and only W learned.

    Every step moves all codes, the unused ones too. W starts as the identity and C is scaled once,
    as `length` says, so that a step of Adam moves codes alike whatever the scale of z. `Bridged` is
    the same with other maps.

    Fields:
      num_codes: K.
      commitment: weight of |z - sg(z_q)|^2.
      codebook: weight of |sg(z) - z_q|^2.
      gradient: estimator, (z, z_q) -> z_q with a gradient.
      assignment: with a key, how codes are chosen: the nearest, or evenly by `ops.Sinkhorn()`.
      length: typical length of the codes at the start, in that of z; None = that at which the
        nearest of K random ones is nearest, sqrt(2 ln K / D) and 1 at most.

    Params W float32 [D, D], state C float32 [K, D]. Raises ValueError for a field out of range.
    """

    num_codes: int
    commitment: float = 0.25
    codebook: float = 1.0
    gradient: Callable[[jax.Array, jax.Array], jax.Array] = ops.straight_through
    assignment: Callable[..., jax.Array] = ops.nearest_assignment
    length: float | None = None
    bridge = ops.Linear()

    def shapes(self, dim: int) -> tuple[jax.ShapeDtypeStruct, jax.ShapeDtypeStruct]:
        """W and C."""
        return array_shape(dim, dim), array_shape(self.num_codes, dim)

    @checked
    def init(
        self,
        key: jax.Array,
        z: jax.Array,
        mask: jax.Array | None = None,
        axis_name: AxisName = None,
    ) -> tuple[PyTree, PyTree]:
        """(W, C); of z [..., D] the root mean square is read.

        Raises:
          ValueError: for a batch of identical, zero or non-finite vectors (outside jit).
        """
        codes = self._start(key, z, mask, axis_name)
        return jnp.eye(z.shape[-1], dtype=jnp.float32), codes

    def _parts(self, params, state):
        return params, lax.stop_gradient(state)
