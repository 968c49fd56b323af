"""Gradient estimators: the forward value is z_q to the bit, the gradient is another function's."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

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


def directional(z: jax.Array, z_q: jax.Array) -> jax.Array:
    """DiVeQ: z_q = z + |z_q - z| times a constant direction (arXiv:2509.26469), without its noise.

    The gradient follows the length of the quantization error into z and, unlike the other two,
    into z_q, so a gradient-trained codebook learns from the task loss.

    z, z_q [..., D] of one dtype -> [..., D], z_q to the bit.
    """
    difference = z_q - z
    length = _norm(difference)
    direction = lax.stop_gradient(difference / length)
    return graft(lax.stop_gradient(z_q), z + length * direction)


# What a spec may name.
ESTIMATORS = {f.__name__: f for f in (straight_through, rotate, directional)}
