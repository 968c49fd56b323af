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
from vqjax.ops.serialization import exported
from vqjax.quantizers.base import (
    STEP,
    Base,
    Quantized,
    array_shape,
    blank,
    check,
    check_count,
    check_flag,
    check_start,
    check_weight,
    checked,
    hide,
    is_number,
    look_up,
)
from vqjax.quantizers.protocol import PyTree


@exported
class GumbelParams(NamedTuple):
    """Logits z kernel + bias, float32 [D, K] and [K]; codebook float32 [K, D]."""

    kernel: jax.Array
    bias: jax.Array
    codebook: jax.Array


@exported
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

    Params `GumbelParams`, state `GumbelState`. Beyond N + K a step needs some tiles of the logits,
    which the backward pass computes a second time. Raises ValueError for a field out of range.
    """

    num_codes: int
    temperature: float | Schedule | Callable[..., jax.Array] = 1.0
    hard: bool = True
    diversity: float = 0.0

    starts_from_data = True

    def __post_init__(self) -> None:
        check_count('num_codes', self.num_codes)
        check_weight('diversity', self.diversity)
        check_flag('hard', self.hard)
        temperature = self.temperature
        if isinstance(temperature, Schedule):
            ok = temperature.least() >= 0
        else:
            ok = callable(temperature) or (is_number(temperature) and temperature > 0)
        check(ok, 'temperature', temperature, 'above 0, or a schedule that never goes below 0')

    @property
    def coded_in_training(self) -> bool:  # type: ignore[override]
        """Whether `hard`."""
        return self.hard

    def shapes(self, dim: int) -> tuple[GumbelParams, GumbelState]:
        """Kernel, bias and codebook, and the step."""
        kernel, bias = array_shape(dim, self.num_codes), array_shape(self.num_codes)
        return GumbelParams(kernel, bias, array_shape(self.num_codes, dim)), GumbelState(STEP)

    @checked
    def init(
        self,
        key: jax.Array,
        z: jax.Array,
        mask: jax.Array | None = None,
        axis_name: AxisName = None,
    ) -> tuple[PyTree, PyTree]:
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

    @checked
    def logits(self, params: PyTree, state: PyTree, z: jax.Array) -> jax.Array:
        """What codes of z [..., D] are sampled from by softmax, float32 [..., K]."""
        del state
        x = z.astype(jnp.float32)
        return jnp.matmul(x, params.kernel, precision=lax.Precision.HIGHEST) + params.bias

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
        """Sampled (with a key) or likeliest codes of z [..., D]."""
        valid = ops.flat_rows(z, mask)[1]
        noise = None if key is None else (key, ops.row_places(valid, axis_name))
        # Zeros for what does not count: NaN times zero would spoil the gradient of all logits.
        x = jnp.where(valid[:, None], z.astype(jnp.float32).reshape(-1, z.shape[-1]), 0.0)
        soft = key is not None and not self.hard
        vectors, codes, total = ops.choose_by_logits(
            x,
            params.kernel,
            params.bias,
            params.codebook,
            valid,
            self._temperature(state),
            noise,
            soft,
            bool(self.diversity),
        )
        codes = hide(codes, valid).reshape(z.shape[:-1])
        losses, loss = {}, jnp.zeros((), jnp.float32)
        if self.diversity:
            number = ops.pmean(jnp.sum(valid, dtype=jnp.float32), axis_name)
            mean = ops.pmean(total, axis_name) / jnp.maximum(number, 1e-30)
            losses['diversity'] = ops.imbalance(mean)
            loss = self.diversity * losses['diversity']
        z_q = blank(vectors.reshape(z.shape), codes)
        return Quantized(z_q.astype(z.dtype), codes, loss, losses)

    def _temperature(self, state):
        return self.temperature(state.step) if callable(self.temperature) else self.temperature

    @checked
    def update(
        self,
        params: PyTree,
        state: PyTree,
        z: jax.Array,
        codes: jax.Array,
        key: jax.Array | None = None,
        mask: jax.Array | None = None,
        axis_name: AxisName = None,
        weights: jax.Array | None = None,
    ) -> GumbelState:
        """The next step of the temperature's schedule."""
        del params, z, codes, key, mask, axis_name, weights
        return GumbelState(state.step + 1)

    @checked
    def decode(self, params: PyTree, state: PyTree, codes: jax.Array) -> jax.Array:
        """Codebook rows float32 [..., D] of codes [...]; zeros for -1."""
        del state
        return look_up(params.codebook, codes)
