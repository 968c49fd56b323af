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
    Quantized,
    blank,
    check,
    check_flag,
    check_weight,
    checked,
    hide,
    only_codes,
)
from vqjax.quantizers.protocol import PyTree
from vqjax.quantizers.scalar_grid import ScalarGrid


@dataclass(frozen=True, repr=False)
class FSQ(ScalarGrid):
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
        bounded already; any other of `ops.BOUNDS`, or a function of your own.
      perturbed: with a key, the share of features that are not rounded: z_q has their bounded
        value, moved by uniform noise of one level and kept in range, and is no `decode(codes)`
        (arXiv:2411.19842 section 3.2, whose code draws for whole samples and with a chance of a
        half). Codes are the same. Not with `noise`.

    Params (), state (). Raises ValueError for a field out of range.
    """

    levels: tuple[int, ...]
    symmetric: bool = False
    noise: float = 0.0
    bound: Callable[[jax.Array], jax.Array] = ops.tanh
    perturbed: float = 0.0

    def __post_init__(self) -> None:
        check_flag('symmetric', self.symmetric)
        # With two levels the plain form's offset o / h reaches 1, and atanh has no value.
        self._check_grid(2 if self.symmetric else 3)
        check_weight('noise', self.noise)
        alone = self.noise == 0 or self.perturbed == 0
        check(alone, 'noise', self.noise, f'0 where perturbed={self.perturbed} is not')
        bound = ops.named_function('bound', self.bound, ops.BOUNDS)
        object.__setattr__(self, 'bound', bound)
        if bound not in ops.BOUNDS.values():
            ops.check_bound('bound', bound)

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
        self._check_features(z)
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
        self._check_features(z)
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
        codes = hide(jnp.where(finite, self._to_codes(index), -1), mask)
        values = self._values(index)
        found = self._perturbation(key, z, mask, axis_name)
        if found is not None:
            moved = jnp.clip(bounded + found[0], lowest, lowest + levels - 1)
            moved = 2 * moved / (levels - 1) - 1 if self.symmetric else moved / (levels // 2)
            values = jnp.where(found[1], lax.stop_gradient(moved), values)
        z_q = ops.graft(values, carrier)
        return Quantized(
            blank(z_q, codes).astype(z.dtype),
            codes,
            jnp.zeros((), jnp.float32),
            {},
        )

    @checked
    def decode(self, params: PyTree, state: PyTree, codes: jax.Array) -> jax.Array:
        """Grid values float32 [..., len(levels)] of codes [...]; zeros for -1."""
        del params, state
        index = self._to_index(codes)
        return blank(self._values(index), only_codes(codes, self.num_codes))
