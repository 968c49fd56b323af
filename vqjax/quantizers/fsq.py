"""Finite scalar quantization: a fixed grid, no codebook."""

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
    MAX_CODES,
    Base,
    Quantized,
    blank,
    check,
    check_count,
    check_features,
    check_flag,
    check_weight,
    checked,
    hide,
    only_codes,
)
from vqjax.quantizers.protocol import PyTree


@dataclass(frozen=True, repr=False)
class FSQ(Base):
    """FSQ (arXiv:2309.15505): each feature bounded by b and rounded to one of L levels.

    Plain form, with h = (L - 1)(1 + 1e-3) / 2 and o = 1/2 for even L: round(b(z + b^-1(o / h)) h
    - o) / floor(L / 2). Symmetric form: 2 / (L - 1) floor((L - 1)(b(z) + 1) / 2 + 1/2) - 1. The
    code is a mixed-radix number, the first level varying fastest, computed in integers. No term
    of the loss, nothing learned, and usage that depends on the scale of z.

    Fields:
      levels: levels of each feature, at least 3 (2 if symmetric); their product below 2^31.
      symmetric: the form whose values lie symmetric about 0.
      noise: with a key, uniform noise of this width in levels is added before rounding; codes
        stay in range.
      bound: b, from any number into (-1, 1): `ops.tanh`, or `ops.ifsq` (arXiv:2601.17124), which
        keeps normal z apart where tanh crowds them at the ends; `ops.clamp` for features that are
        bounded already; `ops.short_tanh`.

    Params (), state (). Raises ValueError for a field out of range.
    """

    levels: tuple[int, ...]
    symmetric: bool = False
    noise: float = 0.0
    bound: Callable[[jax.Array], jax.Array] = ops.tanh

    def __post_init__(self) -> None:
        levels = self.levels
        check(isinstance(levels, tuple) and len(levels), 'levels', levels, 'a list of levels')
        check_flag('symmetric', self.symmetric)
        # With two levels the plain form's offset o / h reaches 1, and atanh has no value.
        for level in levels:
            check_count('levels', level, 2 if self.symmetric else 3)
        if math.prod(levels) > MAX_CODES:
            raise ValueError(
                f'levels must multiply to at most 2^31 - 1 so that int32 holds every code, got '
                f'{tuple(levels)} = {math.prod(levels)}; use Product or Residual of smaller ones'
            )
        check_weight('noise', self.noise)
        bound = ops.named_function('bound', self.bound, ops.BOUNDS)
        object.__setattr__(self, 'bound', bound)
        if bound not in ops.BOUNDS.values():
            ops.check_bound('bound', bound)

    @property
    def num_codes(self) -> int:  # type: ignore[override]
        """The product of the levels."""
        return math.prod(self.levels)

    @property
    def stage_scale(self) -> tuple[float, ...]:  # type: ignore[override]
        """The power of two by which a grid may shrink and still reach all a coarser one leaves."""
        scales = []
        for level in self.levels:
            # In units of the plain grid's spacing: it spans [-L // 2, top], and serves half a
            # spacing beyond. The symmetric grid is the same with top = (L - 1) / 2.
            top = (level - 1) / 2 if self.symmetric else level - 1 - level // 2
            scales.append(2.0 ** math.ceil(math.log2(0.5 / (top + 0.5))))
        return tuple(scales)

    @property
    def _strides(self) -> np.ndarray:
        return np.cumprod((1, *self.levels[:-1]), dtype=np.int64).astype(np.int32)

    def shapes(self, dim: int) -> tuple[tuple[()], tuple[()]]:
        """() and ()."""
        return (), ()

    @checked
    def init(
        self,
        key: jax.Array,
        z: jax.Array,
        mask: jax.Array | None = None,
        axis_name: AxisName = None,
    ) -> tuple[tuple[()], tuple[()]]:
        """() and (): nothing is learned. z [..., len(levels)]."""
        del key, mask, axis_name
        check_features(z, len(self.levels), f'levels={self.levels}')
        return (), ()

    def _plain(self):
        """(half, offset, shift) of the plain form, float32 [D]."""
        levels = np.asarray(self.levels, np.float64)
        half = (levels - 1) * (1 + 1e-3) / 2
        offset = np.where(levels % 2 == 0, 0.5, 0.0)
        ratio: Any = offset / half  # in float64
        shift = ops.inverse_bound(self.bound, ratio)
        return np.float32(half), np.float32(offset), jnp.asarray(shift, jnp.float32)

    def _bounded(self, x):
        """Bounded x in units of levels (centred in the plain form); differentiable."""
        if self.symmetric:
            return (np.asarray(self.levels, np.float32) - 1) * (self.bound(x) + 1) / 2
        half, offset, shift = self._plain()
        return self.bound(x + shift) * half - offset

    def unbound(self, z: jax.Array) -> jax.Array:
        """The inverse of the bound, cut off where it would be infinite. z [..., len(levels)].

        What is not finite stays so, and has no code.
        """
        check_features(z, len(self.levels), f'levels={self.levels}')
        return jnp.where(jnp.isfinite(z), self._unbounded(z), z)

    def _unbounded(self, z):
        if self.symmetric:
            return ops.inverse_bound(self.bound, jnp.clip(z, -0.999, 0.999))
        half, offset, shift = self._plain()
        inner = (z * (np.asarray(self.levels) // 2).astype(np.float32) + offset) / half
        return ops.inverse_bound(self.bound, jnp.clip(inner, -0.9999, 0.9999)) - shift

    def _values(self, index):
        """Values float32 of level indices int32 [..., D]."""
        levels = np.asarray(self.levels, np.int32)
        centre = levels - 1 if self.symmetric else 2 * (levels // 2)
        # Both forms are (2 i - centre) / centre: -1 at i = 0, and integers until the division.
        # A barrier keeps XLA from turning the division into a product with the reciprocal, which
        # rounds otherwise: the same bits under jit and not, and exactly -1 at the first level.
        divisor = lax.optimization_barrier(jnp.asarray(centre, jnp.float32))
        return (2 * index - centre).astype(jnp.float32) / divisor

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
        """Codes and grid values of z [..., len(levels)]; the gradient is that of the bound."""
        del params, state
        check_features(z, len(self.levels), f'levels={self.levels}')
        finite = jnp.all(jnp.isfinite(z), axis=-1)
        bounded = self._bounded(jnp.where(finite[..., None], z.astype(jnp.float32), 0.0))
        noisy = bounded
        if key is not None and self.noise > 0:
            places = ops.row_places(ops.flat_rows(z, mask)[1], axis_name)
            noise = ops.uniform_noise(key, places, z.shape[-1])
            noisy = bounded + self.noise * (noise.reshape(z.shape) - 0.5)
        levels = np.asarray(self.levels, np.int32)
        if self.symmetric:
            rounded, lowest = jnp.floor(noisy + 0.5), 0 * levels
            carrier = 2 * bounded / (levels - 1) - 1
        else:
            rounded, lowest = jnp.round(noisy), -(levels // 2)
            carrier = bounded / (levels // 2)
        index = jnp.clip(rounded.astype(jnp.int32) - lowest, 0, levels - 1)
        codes = hide(jnp.where(finite, jnp.sum(index * self._strides, axis=-1), -1), mask)
        z_q = ops.graft(self._values(index), carrier)
        return Quantized(
            blank(z_q, codes).astype(z.dtype),
            codes.astype(jnp.int32),
            jnp.zeros((), jnp.float32),
            {},
        )

    @checked
    def decode(self, params: PyTree, state: PyTree, codes: jax.Array) -> jax.Array:
        """Grid values float32 [..., len(levels)] of codes [...]; zeros for -1."""
        del params, state
        index = (
            jnp.maximum(codes, 0)[..., None] // self._strides % np.asarray(self.levels, np.int32)
        )
        return blank(self._values(index), only_codes(codes, self.num_codes))
