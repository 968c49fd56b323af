"""What a search minimises, whichever program runs it."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

DISTANCES = ('euclidean', 'cosine')
METRICS = (*DISTANCES, 'dot')


def normalize(x: jax.Array) -> jax.Array:
    """Scale vectors to unit length; vectors shorter than 1e-12 keep a finite gradient.

    x [..., D] float -> float [..., D], NaN where the square of the length is beyond float32.
    """
    square = jnp.sum(x * x, axis=-1, keepdims=True)
    # Through the reciprocal root of infinity it would be the zero vector, which has a code.
    scale = jnp.where(square < jnp.inf, lax.rsqrt(jnp.maximum(square, 1e-24)), jnp.nan)
    return x * scale


def bias_and_codes(codebook: jax.Array, metric: str) -> tuple[jax.Array, jax.Array]:
    """What a search minimises is bias - z.c: codebook [K, D] -> float32 [K], float32 [K, D].

    The bias of a code that is not finite, or whose norm overflows, is infinite.
    """
    codebook = codebook.astype(jnp.float32)
    square = jnp.sum(codebook * codebook, axis=-1)
    usable = jnp.isfinite(square)
    if metric == 'cosine':
        return jnp.where(usable, 0.0, jnp.inf), normalize(codebook)
    if metric == 'dot':
        return jnp.where(usable, 0.0, jnp.inf), codebook
    # argmin |z - c|^2 = argmin |c|^2 / 2 - z.c: the norm of z changes no order.
    return jnp.where(usable, 0.5 * square, jnp.inf), codebook


def usable_codes(bias: jax.Array, codes: jax.Array) -> jax.Array:
    """Codes [..., D], zeros where the bias [...] is infinite: inf - NaN would spoil the others."""
    return jnp.where(jnp.isfinite(bias)[..., None], codes, 0.0)
