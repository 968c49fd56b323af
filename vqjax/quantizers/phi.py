"""The convolutions phi of `MultiScale`, which follow a grid made larger (VAR, arXiv:2404.02905)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vqjax import ops
from vqjax.quantizers.base import check


def ratios_of(phi: Sequence[float], num_scales: int) -> tuple[float, ...]:
    """The field `phi`.

    Raises:
      ValueError: for what is no tuple of ratios, or one with more of them than scales.
    """
    check(isinstance(phi, tuple | list), 'phi', phi, 'a tuple')
    check(len(phi) <= num_scales, 'phi', phi, f'at most one ratio a scale ({num_scales})')
    for ratio in phi:
        number = isinstance(ratio, int | float) and not isinstance(ratio, bool)
        check(number and 0 < ratio <= 1, 'phi', phi, 'ratios in (0, 1]; () for none')
    return tuple(phi)


def start(number: int, axes: int, features: int) -> tuple[jax.Array, jax.Array]:
    """Kernels float32 [number, 3, ..., D, D] and biases [number, D] that change nothing.

    A kernel has a 3 for each of the grid's axes.
    """
    identity = jnp.zeros((*(3,) * axes, features, features), jnp.float32)
    identity = identity.at[(1,) * axes].set(jnp.eye(features, dtype=jnp.float32))
    return jnp.stack([identity] * number), jnp.zeros((number, features), jnp.float32)


def at_scale(k: int, num_scales: int, number: int) -> int:
    """Which of the convolutions scale k has, as in FoundationVision/VAR: the nearest in 0..1.

    The scales lie evenly from 0 to 1, the convolutions within, a margin from the ends.
    """
    margin = 1 / (3 if number == 4 else 2) / number
    places = np.linspace(margin, 1 - margin, number)
    return int(np.argmin(np.abs(places - k / max(num_scales - 1, 1))))


def mixed(
    kernels: jax.Array, biases: jax.Array, ratios: Sequence[float]
) -> tuple[jax.Array, jax.Array]:
    """Kernels and biases of (1 - ratio) h + ratio (h * kernel + bias), a convolution itself.

    kernels float32 [P, 3, ..., D, D], biases [P, D] -> the same shapes, and the same bits in any
    program.
    """
    axes = kernels.ndim - 3
    share: Any = np.asarray(ratios, np.float32).reshape(-1, *(1,) * (axes + 2))
    identity = jnp.eye(kernels.shape[-1], dtype=jnp.float32)
    same = jnp.pad(identity[(None,) * axes], [(1, 1)] * axes + [(0, 0)] * 2)
    return ops.rounded(share * kernels) + (1 - share) * same, share.reshape(-1, 1) * biases
