"""What stages hand on to each other: their vectors summed, and the gradients around the sum."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from vqjax import ops


class Sums(NamedTuple):
    """What goes from stage to stage, float32 [..., D]; None where it would have no gradient.

    residual: what the stages so far left of z; through it their losses reach z.
    total: the sum of their vectors, without gradient.
    carrier: the same sum with the gradient that their vectors hand to params.
    slope: the gradient of their losses to z.
    """

    residual: jax.Array
    total: jax.Array
    carrier: jax.Array | None
    slope: jax.Array | None

    @classmethod
    def nothing(cls, x: jax.Array, learns: bool, ahead: bool) -> Any:
        """Before the first stage."""
        # Zeros that vary over a mapped axis as x does, which scan's carry must.
        zero = jnp.where(False, x, 0.0)
        return cls(x, zero, zero if learns else None, zero if ahead else None)

    def with_stage(self, vectors: jax.Array, slope: Any) -> Any:
        """After a stage that gave these vectors, and whose loss has this slope."""
        value = lax.stop_gradient(vectors)
        carrier = None if self.carrier is None else self.carrier + vectors
        slope = None if self.slope is None else self.slope + slope
        return Sums(self.residual - value, self.total + value, carrier, slope)

    def z_q(self, x: jax.Array, estimator: Callable[..., Any]) -> Any:
        """The total, with the estimator's gradient to z = x and that of the carrier to params."""
        to_z = estimator(x, lax.stop_gradient(self.total))
        return ops.graft(self.total, to_z if self.carrier is None else to_z + self.carrier)

    def loss(self, x: jax.Array, loss: Any) -> Any:
        """The loss [] with its gradient to z = x, where that was summed on the way."""
        if self.slope is None:
            return loss
        return ops.graft(loss, jnp.vdot(lax.stop_gradient(self.slope), x))


def with_slope(quantize: Callable[..., Any], residual: jax.Array) -> Any:
    """(Quantized, the gradient of its loss to the residual)."""

    def loss(residual):
        out = quantize(residual)
        return out.loss, out

    slope, out = jax.grad(loss, has_aux=True)(residual)
    return out, lax.stop_gradient(slope)


def without_slope(quantize: Callable[..., Any], residual: jax.Array) -> Any:
    """(Quantized, None)."""
    return quantize(residual), None
