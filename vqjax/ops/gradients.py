"""Gradient estimators: the forward value is z_q to the bit, the gradient is another function's."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from vqjax.ops.fields import check_weight, make_plain
from vqjax.ops.rows import flat_rows, normal_noise, row_places
from vqjax.ops.statistics import AxisName

# Above this ratio |z_q| / |z| the rotation's gradient is worth nothing, and below it in no way
# special: the estimator falls back to the straight-through one.
MAX_GAIN = 100.0


@jax.custom_jvp
def graft(value: jax.Array, carrier: jax.Array) -> jax.Array:
    """`value` in the forward pass to the bit, the gradient of `carrier` in the backward pass.

    `carrier + stop_gradient(value - carrier)` has the same gradient, but differs from `value`
    in about half of all float32 elements, and is NaN where the carrier is.

    Args:
      value, carrier: arrays of one shape and dtype.

    Returns:
      An array of that shape and dtype.
    """
    del carrier
    return value


@graft.defjvp
def _graft_jvp(primals, tangents):
    return primals[0], tangents[1]


def straight_through(z: jax.Array, z_q: jax.Array) -> jax.Array:
    """Straight-through estimator: dz_q/dz = 1 (Bengio et al. 2013, arXiv:1308.3432).

    z, z_q [..., D] of one dtype -> [..., D]: z_q to the bit, its gradient handed to z unchanged.
    """
    return graft(lax.stop_gradient(z_q), z)


def _norm(x):
    return jnp.sqrt(jnp.maximum(jnp.sum(x * x, axis=-1, keepdims=True), 1e-30))


def rotate(z: jax.Array, z_q: jax.Array) -> jax.Array:
    """Rotation trick: the gradient is turned and scaled as z is into z_q (arXiv:2410.06424 eq. 4).

    With u, v the directions of z and z_q and w = (u + v) / |u + v| the carrier is
    |z_q| / |z| (z - 2 (z.w) w + 2 (z.u) v), u, v, w and the ratio constant. Where the ratio
    exceeds 100, either vector is (nearly) zero or the two are opposite, the rotation has no
    bounded value and the straight-through gradient is used.

    z, z_q [..., D] of one dtype -> [..., D], z_q to the bit.
    """
    z_c, q = lax.stop_gradient((z, z_q))
    norm_z, norm_q = _norm(z_c), _norm(q)
    u, v = z_c / norm_z, q / norm_q
    total = _norm(u + v)
    w = (u + v) / total
    gain = norm_q / norm_z

    def dot(a, b):
        return jnp.sum(a * b, axis=-1, keepdims=True)

    usable = (gain < MAX_GAIN) & (norm_z > 1e-12) & (norm_q > 1e-12) & (total > 1e-6)
    # The inner where keeps an infinite gain out of the backward pass too (inf * 0 = NaN).
    gain = jnp.where(usable, gain, 1.0)
    rotated = gain * (z - 2 * dot(z, w) * w + 2 * dot(z, u) * v)
    return graft(q, jnp.where(usable, rotated, z))


def directional(z: jax.Array, z_q: jax.Array, noise: jax.Array | None = None) -> jax.Array:
    """DiVeQ: z_q = z + |z_q - z| times a constant direction (arXiv:2509.26469).

    The direction is that of z_q - z, or of z_q - z + noise, see `DiVeQ`. The gradient follows the
    length of the quantization error into z and, unlike the other two, into z_q, so a
    gradient-trained codebook learns from the task loss.

    z, z_q, noise [..., D] of one dtype -> [..., D], z_q to the bit, with noise too.
    """
    difference = z_q - z
    length = _norm(difference)
    towards = difference if noise is None else difference + noise
    direction = lax.stop_gradient(towards / _norm(towards))
    return graft(lax.stop_gradient(z_q), z + length * direction)


@dataclasses.dataclass(frozen=True)
class DiVeQ:
    """`directional` with noise: the direction is that of z_q - z + v, v ~ N(0, variance I).

    An estimator to give as `gradient` (arXiv:2509.26469). Where a key is given it draws v for each
    vector and feature; without one it is `directional`. The noise acts in the gradient alone: z_q
    stays what decode gives, where the paper hands on z + |z_q - z| v_d / |v_d|, v_d = z_q - z + v,
    which is as far from z as z_q is. The method needs no other loss: `VQ(K, commitment=0,
    codebook=0, gradient=ops.DiVeQ())`.

    Fields:
      variance: of the noise, in the units of z squared. The paper advises less than 0.01.

    Raises ValueError for a variance that is negative or not finite.
    """

    variance: float = 1e-3

    def __post_init__(self) -> None:
        make_plain(self)
        check_weight('variance', self.variance)

    def __call__(
        self,
        z: jax.Array,
        z_q: jax.Array,
        key: jax.Array | None = None,
        mask: jax.Array | None = None,
        axis_name: AxisName = None,
    ) -> jax.Array:
        """z, z_q [..., D] of one dtype, mask bool [...] -> [..., D], z_q to the bit.

        Replicas that hold the same key draw what one device draws for the whole batch.
        """
        if key is None:
            return directional(z, z_q)
        places = row_places(flat_rows(z, mask)[1], axis_name)
        noise = self.variance**0.5 * normal_noise(key, places, z.shape[-1])
        return directional(z, z_q, noise.reshape(z.shape).astype(z.dtype))


Estimator = Callable[[jax.Array, jax.Array], jax.Array]


def estimated(
    estimator: Estimator | DiVeQ,
    z: jax.Array,
    z_q: jax.Array,
    key: jax.Array | None = None,
    mask: jax.Array | None = None,
    axis_name: AxisName = None,
) -> jax.Array:
    """`estimator(z, z_q)`, with key, mask and axis for one that draws noise: [..., D]."""
    if isinstance(estimator, DiVeQ):
        return estimator(z, z_q, key, mask, axis_name)
    return estimator(z, z_q)


def trains_codes(estimator: Estimator | DiVeQ) -> bool:
    """Whether the estimator hands the task's gradient to z_q, and not to z alone."""
    return estimator is directional or isinstance(estimator, DiVeQ)


# What a spec may name.
ESTIMATORS = {f.__name__: f for f in (straight_through, rotate, directional)}
