"""Gumbel-Softmax: codes by logits, sampled with a temperature."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from vqjax import ops
from vqjax.ops import AxisName, Schedule
from vqjax.quantizers.base import (
    Base,
    Quantized,
    blank,
    check,
    check_count,
    check_flag,
    check_start,
    check_weight,
    hide,
    is_number,
    look_up,
)


class GumbelParams(NamedTuple):
    """Logits z kernel + bias, float32 [D, K] and [K]; codebook float32 [K, D]."""

    kernel: jax.Array
    bias: jax.Array
    codebook: jax.Array


class GumbelState(NamedTuple):
    """Training steps int32 []: where the temperature's schedule stands."""

    step: jax.Array


@dataclass(frozen=True, repr=False)
class GumbelSoftmax(Base):
    """Gumbel-Softmax quantization (arXiv:1611.01144; vq-wav2vec, arXiv:1910.05453).

    With a key, codes are sampled from softmax(logits) and the gradient is that of
    softmax((logits + Gumbel noise) / temperature) codebook; without one the likeliest code is
    taken. Logits start as those of the nearest k-means centroid, so it starts as VQ does.

    Fields:
      num_codes: K.
      temperature: a number, or a function of the step: an `ops.Schedule`, or any of optax's.
      hard: forward value one code; False mixes codes when a key is given, and z_q is then no
        longer decode(codes).
      diversity: weight of `ops.diversity` of softmax(logits) (wav2vec 2.0: 0.1), over vectors
        that are finite.

    Params `GumbelParams`, state `GumbelState`. The logits are an N x K array. Raises ValueError
    for a field out of range.
    """

    num_codes: int
    temperature: float | Schedule | Callable = 1.0
    hard: bool = True
    diversity: float = 0.0

    starts_from_data = True

    def __post_init__(self):
        check_count('num_codes', self.num_codes)
        check_weight('diversity', self.diversity)
        check_flag('hard', self.hard)
        temperature = self.temperature
        if isinstance(temperature, Schedule):
            ok = temperature.least() >= 0
        else:
            ok = callable(temperature) or (is_number(temperature) and temperature > 0)
        check(ok, 'temperature', temperature, 'above 0, or a schedule that never goes below 0')

    def init(self, key, z, mask=None, axis_name: AxisName = None):
        """(GumbelParams, GumbelState): k-means centroids of z [..., D] and their logits.

        Raises:
          ValueError: for a batch of identical, zero or non-finite vectors (outside jit).
        """
        check_start(self, z, mask)
        start = ops.kmeans(key, z, self.num_codes, mask=mask, axis_name=axis_name)
        centroids = start.centroids
        # The likeliest code of a mixture of equal spherical Gaussians: z.c / s^2 - |c|^2 / 2 s^2.
        number = jnp.maximum(jnp.sum(start.counts), 1.0)
        variance = start.inertia / (number * z.shape[-1])
        variance = jnp.where(variance > 0, variance, 1.0)
        bias = -0.5 * jnp.sum(centroids**2, axis=-1) / variance
        params = GumbelParams(centroids.T / variance, bias, centroids)
        return params, GumbelState(jnp.zeros((), jnp.int32))

    def logits(self, params, state, z) -> jax.Array:
        """What codes of z [..., D] are sampled from by softmax, float32 [..., K]."""
        del state
        x = z.astype(jnp.float32)
        return jnp.matmul(x, params.kernel, precision=lax.Precision.HIGHEST) + params.bias

    def quantize(
        self, params, state, z, key=None, mask=None, axis_name: AxisName = None
    ) -> Quantized:
        """Sampled (with a key) or likeliest codes of z [..., D]."""
        valid = ops.flat_rows(z, mask)[1].reshape(z.shape[:-1])
        # Zeros for what does not count: NaN times zero would spoil the gradient of all logits.
        x = jnp.where(valid[..., None], z.astype(jnp.float32), 0.0)
        logits = self.logits(params, state, x)
        noisy, temperature = logits, self._temperature(state)
        if key is not None:
            places = ops.row_places(valid.reshape(-1), axis_name)
            noise = ops.gumbel_noise(key, places, self.num_codes)
            noisy += noise.reshape(logits.shape)
        codes = jnp.argmax(lax.stop_gradient(noisy), axis=-1).astype(jnp.int32)
        codes = hide(codes, valid)
        # Of differences to the largest, which no small temperature takes beyond float32.
        noisy -= lax.stop_gradient(jnp.max(noisy, axis=-1, keepdims=True))
        weights = jax.nn.softmax(noisy / jnp.maximum(temperature, jnp.finfo(jnp.float32).tiny))
        soft = jnp.matmul(weights, params.codebook, precision=lax.Precision.HIGHEST)
        vectors = look_up(params.codebook, codes)
        z_q = soft if key is not None and not self.hard else ops.graft(vectors, soft)
        losses, loss = {}, jnp.zeros((), jnp.float32)
        if self.diversity:
            losses['diversity'] = ops.diversity(jax.nn.softmax(logits), valid, axis_name)
            loss = self.diversity * losses['diversity']
        return Quantized(blank(z_q, codes).astype(z.dtype), codes, loss, losses)

    def _temperature(self, state):
        return self.temperature(state.step) if callable(self.temperature) else self.temperature

    def update(
        self, params, state, z, codes, key=None, mask=None, axis_name: AxisName = None, weights=None
    ) -> GumbelState:
        """The next step of the temperature's schedule."""
        del params, z, codes, key, mask, axis_name, weights
        return GumbelState(state.step + 1)

    def decode(self, params, state, codes) -> jax.Array:
        """Codebook rows float32 [..., D] of codes [...]; zeros for -1."""
        del state
        return look_up(params.codebook, codes)
