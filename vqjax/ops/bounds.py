"""Functions that take any number into (-1, 1), for quantizers whose grid has a fixed size.

Each is 2 F(x) - 1 of a distribution function F, whose distribution it makes uniform.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from vqjax.ops.compiling import compiled_once

# A bound of the user's own is inverted by halving an interval of this reach, so many times.
_REACH, _HALVINGS = 1e4, 60


def tanh(x: jax.Array) -> jax.Array:
    """tanh x, FSQ's own bound (arXiv:2309.15505)."""
    return jnp.tanh(x)


def ifsq(x: jax.Array) -> jax.Array:
    """2 sigmoid(1.6 x) - 1 (iFSQ, arXiv:2601.17124), which is tanh(0.8 x).

    Standard normal x come out nearly uniform: the distribution functions differ by 0.018 at most,
    those of tanh, which crowds at both ends, by 0.045.
    """
    return jnp.tanh(0.8 * x)


def clamp(x: jax.Array) -> jax.Array:
    """x cut off at -1 and 1, beyond which it has no gradient: for features bounded already."""
    return jnp.clip(x, -1.0, 1.0)


def short_tanh(x: jax.Array) -> jax.Array:
    """tanh x times 0.999 / 1.001: plain FSQ with three levels rounds 0.999 tanh x (CosyVoice 2)."""
    return _SHORT * jnp.tanh(x)


def sigmoid(x: jax.Array) -> jax.Array:
    """2 sigmoid(x) - 1, which makes the logistic distribution uniform."""
    return jnp.tanh(0.5 * x)


def erf(x: jax.Array) -> jax.Array:
    """erf(x / sqrt 2), which makes the standard normal distribution uniform."""
    return lax.erf(x * np.float32(math.sqrt(0.5)))


def laplace(x: jax.Array) -> jax.Array:
    """sign(x) (1 - exp(-|x|)), which makes the Laplace distribution uniform."""
    # Both sides of 0 by themselves, so that the slope at 0 is 1 and no exponential overflows.
    below, above = jnp.where(x < 0, x, 0.0), jnp.where(x < 0, 0.0, x)
    return jnp.where(x < 0, jnp.expm1(below), -jnp.expm1(-above))


def cauchy(x: jax.Array) -> jax.Array:
    """2 / pi arctan x, which makes the Cauchy distribution uniform."""
    return np.float32(2 / math.pi) * jnp.arctan(x)


# The float32 that CosyVoice multiplies by, and FSQ's own margin taken off.
_SHORT = 0.9990000128746033 / 1.001
# What a spec may name.
BOUNDS = {f.__name__: f for f in (tanh, ifsq, clamp, short_tanh, sigmoid, erf, laplace, cauchy)}
# Variance and excess kurtosis of the distribution that a bound makes uniform, where it has them.
MOMENTS: dict[Callable[..., Any], tuple[float, float]] = {
    tanh: (math.pi**2 / 12, 1.2),
    ifsq: (math.pi**2 / 12 / 0.8**2, 1.2),
    clamp: (1 / 3, -1.2),
    sigmoid: (math.pi**2 / 3, 1.2),
    erf: (1.0, 0.0),
    laplace: (2.0, 3.0),
}
_INVERSES: dict[Callable[..., Any], Callable[..., Any]] = {
    tanh: lambda y: _arctanh(y),
    ifsq: lambda y: _arctanh(y) / 0.8,
    clamp: lambda y: y,
    # Of what it reaches: a value beyond comes from far out.
    short_tanh: lambda y: _arctanh((y / _SHORT).clip(-0.9999, 0.9999)),
    sigmoid: lambda y: 2 * _arctanh(y),
    erf: lambda y: lax.erf_inv(jnp.asarray(y, jnp.float32)) * np.float32(math.sqrt(2)),
    laplace: lambda y: -jnp.sign(y) * jnp.log1p(-jnp.abs(y)),
    cauchy: lambda y: jnp.tan(np.float32(math.pi / 2) * y),
}


def _arctanh(y):
    # Of constants in float64.
    return (np if isinstance(y, np.ndarray) else jnp).arctanh(y)


@compiled_once
def inverse_bound(bound: Callable[[jax.Array], jax.Array], y: jax.Array) -> jax.Array:
    """x with bound(x) = y: in closed form for those here, by halving for any rising function.

    y [...], within what the bound reaches -> [...]; no gradient for a function of your own.
    """
    if bound in _INVERSES:
        return _INVERSES[bound](y)
    y = lax.stop_gradient(jnp.asarray(y, jnp.float32))

    def halve(_, ends):
        low, high = ends
        middle = (low + high) / 2
        above = bound(middle) < y
        return jnp.where(above, middle, low), jnp.where(above, high, middle)

    # Ends that vary over a mapped axis as y does.
    ends = jnp.where(True, -_REACH, y), jnp.where(True, _REACH, y)
    low, high = lax.fori_loop(0, _HALVINGS, halve, ends)
    return (low + high) / 2


def check_bound(field: str, bound: Callable[[jax.Array], jax.Array]) -> None:
    """Raise ValueError unless the function rises from -1 to 1, as far as a few values tell."""
    with jax.ensure_compile_time_eval():
        x = jnp.array([-_REACH, -1.0, -0.1, 0.0, 0.1, 1.0, _REACH])
        y = np.asarray(bound(x), np.float64)
    ok = y.shape == x.shape and np.all(np.diff(y) > 0) and np.all(np.abs(y) <= 1)
    if not ok or y[0] > -0.99 or y[-1] < 0.99:
        raise ValueError(
            f'{field} must rise from -1 to 1 and keep the shape of its argument, got {bound!r}, '
            f'which makes {np.asarray(x).tolist()} into {y.tolist()}'
        )
