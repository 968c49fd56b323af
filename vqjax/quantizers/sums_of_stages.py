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
    carrier: the same sum with the gradient that their vectors hand to params (see `vectors_of`).
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

    def z_q(
        self,
        x: jax.Array,
        estimator: ops.Estimator,
        key: jax.Array | None = None,
        mask: jax.Array | None = None,
        axis_name: ops.AxisName = None,
    ) -> Any:
        """The total, with the estimator's gradient to z = x and that of the carrier to params.

        One that trains codes hands them all the direction of the whole error (arXiv:2509.26469).
        """
        total = lax.stop_gradient(self.total)
        if self.carrier is not None and ops.trains_codes(estimator):
            total = self.carrier
        to_z = ops.estimated(estimator, x, total, key, mask, axis_name)
        if self.carrier is not None and not ops.trains_codes(estimator):
            to_z += self.carrier
        return ops.graft(self.total, to_z)

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


def estimator_of(inner: Any) -> Any:
    """The estimator that stands around a sum of stages: the first one's, else straight-through."""
    return getattr(inner, 'gradient', ops.straight_through)


def vectors_of(estimator: ops.Estimator, inner: Any, params: Any, state: Any, out: Any) -> Any:
    """What a stage adds: its z_q, or what its codes stand for where the estimator trains codes.

    That estimator stands around the sum: a stage's own would turn each gradient a second time.
    """
    if not ops.trains_codes(estimator) or not jax.tree.leaves(params):
        return out.z_q
    return inner.decode(params, state, out.codes)


def noise_key(key: jax.Array | None, num_stages: int) -> Any:
    """The key of the noise around a sum of stages, which none of them has."""
    return None if key is None else jax.random.fold_in(key, num_stages + 1)
