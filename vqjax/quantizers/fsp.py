"""Finite scalar perturbation: bins of equal probability, noise in place of rounding."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from vqjax import ops
from vqjax.ops import AxisName
from vqjax.quantizers.base import (
    Quantized,
    blank,
    check_flag,
    check_weight,
    checked,
    hide,
    only_codes,
)
from vqjax.quantizers.protocol import PyTree
from vqjax.quantizers.scalar_grid import ScalarGrid

# Values of a uniform distribution on (-sqrt 3, sqrt 3) have variance 1.
_WIDTH = math.sqrt(3)


@dataclass(frozen=True, repr=False)
class FSP(ScalarGrid):
    """FSP (VP-VAE, arXiv:2602.17133): each feature in one of L bins of equal probability.

    With u = (b(z) + 1) / 2, a distribution function, the level is floor(u L), and its value the
    middle of the bin, scaled to variance 1: sqrt 3 (2 (level + 1/2) / L - 1). With a key, u is not
    rounded but moved by uniform noise as wide as a bin (and stays where that would leave (0, 1)),
    so that the decoder learns with the error that rounding will make and the gradient is exact.
    The loss holds the moments of each feature near those of the distribution of b:
    mean (m - 0)^2 + variance (s^2 - var)^2 + skewness (skew - 0)^2 + kurtosis (kurt - its)^2.

    Fields:
      levels: bins of each feature, at least 2; their product below 2^31.
      bound: b, from any number into (-1, 1), one of `ops.BOUNDS` or a function of your own.
      inverse: values are the b^-1 of the bins' middles, in the space of z, and the gradient is
        straight-through.
      perturbed: with a key, the share of features that are moved and not rounded; z_q is then no
        `decode(codes)`. Codes are the same.
      mean, variance, skewness, kurtosis: weights of the moments. All but that of the mean must be
        0 for a bound that `ops.MOMENTS` does not hold.

    Params (), state (). Raises ValueError for a field out of range.
    """

    levels: tuple[int, ...]
    bound: Callable[[jax.Array], jax.Array] = ops.tanh
    inverse: bool = False
    perturbed: float = 1.0
    mean: float = 0.1
    variance: float = 0.07
    skewness: float = 0.0
    kurtosis: float = 0.0

    def __post_init__(self) -> None:
        self._check_grid(2)
        check_flag('inverse', self.inverse)
        bound = ops.named_function('bound', self.bound, ops.BOUNDS)
        object.__setattr__(self, 'bound', bound)
        if bound not in ops.BOUNDS.values():
            ops.check_bound('bound', bound)
        for name in ('mean', 'variance', 'skewness', 'kurtosis'):
            weight = getattr(self, name)
            check_weight(name, weight)
            if weight and name != 'mean' and bound not in ops.MOMENTS:
                raise ValueError(
                    f'{name} must be 0 with bound={bound.__name__}, whose distribution has no '
                    f'known {name}, got {weight}'
                )

    @property
    def stage_scale(self) -> tuple[float, ...]:  # type: ignore[override]
        """The power of two by which a grid may shrink and still reach all that a bin leaves."""
        return tuple(2.0 ** math.ceil(-math.log2(level)) for level in self.levels)

    def unbound(self, z: jax.Array) -> jax.Array:
        """What has the value z before it is put in the middle of its bin. z [..., len(levels)].

        What is not finite stays so, and has no code.
        """
        self._check_features(z)
        if self.inverse:
            return z
        share = jnp.clip(z / np.float32(_WIDTH), -0.9999, 0.9999)
        return jnp.where(jnp.isfinite(z), ops.inverse_bound(self.bound, share), z)

    def _values(self, index):
        """Values float32 of level indices int32 [..., D], from a table: the same bits anywhere."""
        levels, most = np.asarray(self.levels)[:, None], max(self.levels)
        place = np.arange(most)
        middle: Any = np.where(place < levels, (2 * place + 1) / levels - 1, 0.0)
        with jax.ensure_compile_time_eval():
            table = ops.inverse_bound(self.bound, middle) if self.inverse else _WIDTH * middle
            table = np.asarray(table, np.float32)
        return jnp.asarray(table.ravel())[index + most * np.arange(len(levels), dtype=np.int32)]

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
        """Codes of z [..., len(levels)], and the values of their bins; perturbed with a key."""
        del params, state
        self._check_features(z)
        real = jnp.all(jnp.isfinite(z), axis=-1)
        x = jnp.where(real[..., None], z.astype(jnp.float32), 0.0)
        bounded = self.bound(x)
        levels = np.asarray(self.levels, np.float32)
        index = jnp.floor((bounded + 1) * (levels / 2)).astype(jnp.int32)
        index = jnp.clip(index, 0, np.asarray(self.levels, np.int32) - 1)
        codes = hide(jnp.where(real, self._to_codes(index), -1), mask)
        values = self._values(index)
        found = self._perturbation(key, z, mask, axis_name)
        if found is not None:
            values = jnp.where(found[1], self._moved(bounded, found[0]), values)
        z_q = ops.graft(values, x if self.inverse else np.float32(_WIDTH) * bounded)
        losses = self._moments(x, real if mask is None else real & mask, axis_name)
        loss = jnp.zeros((), jnp.float32)
        for name, term in losses.items():
            loss += getattr(self, name) * term
        return Quantized(blank(z_q, codes).astype(z.dtype), codes, loss, losses)

    def _moved(self, bounded, noise):
        """Values of bounded features moved by noise in (-1/2, 1/2) of a bin, float32 [..., D]."""
        bounded = lax.stop_gradient(bounded)
        moved = bounded + 2 * noise / np.asarray(self.levels, np.float32)
        moved = jnp.where(jnp.abs(moved) < 1, moved, bounded)
        if not self.inverse:
            return np.float32(_WIDTH) * moved
        # Where the bound has reached 1 its inverse is infinite.
        return ops.inverse_bound(self.bound, jnp.clip(moved, -1 + 2**-22, 1 - 2**-22))

    def _moments(self, x, real, axis_name):
        """The terms of the loss by name, each a mean over features: x [..., D], real bool [...]."""
        weights = real[..., None].astype(jnp.float32)
        axes = tuple(range(x.ndim - 1))
        number = ops.psum(jnp.sum(weights), axis_name)

        def total(values):
            return ops.psum(jnp.sum(jnp.where(weights > 0, values, 0.0), axis=axes), axis_name)

        mean = total(x) / jnp.maximum(number, 1.0)
        variance = total((x - mean) ** 2) / jnp.maximum(number - 1, 1.0)
        target, kurtosis = ops.MOMENTS.get(self.bound, (0.0, 0.0))
        found = {'mean': mean, 'variance': variance - np.float32(target)}
        if self.skewness or self.kurtosis:
            # Below 1e-16 a feature is constant, and its shape is nobody's.
            scaled = (x - mean) * lax.rsqrt(jnp.maximum(variance, 1e-16))
            found['skewness'] = total(scaled**3) / jnp.maximum(number, 1.0)
            fourth = total(scaled**4) / jnp.maximum(number, 1.0)
            found['kurtosis'] = fourth - np.float32(3 + kurtosis)
        # A single vector has no variance.
        return {
            name: jnp.where(number > 1, jnp.mean(term**2), 0.0)
            for name, term in found.items()
            if getattr(self, name)
        }

    @checked
    def decode(self, params: PyTree, state: PyTree, codes: jax.Array) -> jax.Array:
        """Values float32 [..., len(levels)] of codes [...]; zeros for -1."""
        del params, state
        return blank(self._values(self._to_index(codes)), only_codes(codes, self.num_codes))
