"""The binary mapper: sampled bits, one vector for every word of them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from vqjax import ops
from vqjax.ops import AxisName
from vqjax.ops.serialization import exported
from vqjax.quantizers.base import (
    Base,
    Quantized,
    array_shape,
    blank,
    check_count,
    check_weight,
    checked,
    hide,
    look_up,
)
from vqjax.quantizers.protocol import PyTree


@exported
class BinaryMapperParams(NamedTuple):
    """Logits of bits z kernel + bias, float32 [D, H] and [H]; codebook float32 [2^H, D]."""

    kernel: jax.Array
    bias: jax.Array
    codebook: jax.Array


@dataclass(frozen=True, repr=False)
class BinaryMapper(Base):
    """The Free Transformer's binary mapper (arXiv:2510.17558), between two linear maps.

    Each of H bits is drawn by itself with probability sigmoid(logit), and their word of 2^H chooses
    a vector; without a key a bit is 1 where its logit is above 0. The gradient to z is that of the
    mean vector over all words, the gradient to the codebook that of the chosen one. loss = kl
    mean max(0, H log 2 - H(bits) - free_bits log 2): what a vector's bits tell beyond what is free.

    Fields:
      num_bits: H, from 1 to 20; the first is the least significant bit of the code.
      kl: weight of the loss.
      free_bits: bits a vector that cost nothing.

    Params `BinaryMapperParams`, state (). The kernel starts orthonormal and the codebook as its
    transpose times the signs of the bits, which approximate z of unit scale. Raises ValueError for
    a field out of range.
    """

    num_bits: int
    kl: float = 1.0
    free_bits: float = 1.0

    def __post_init__(self) -> None:
        check_count('num_bits', self.num_bits, 1, 20)
        check_weight('kl', self.kl)
        check_weight('free_bits', self.free_bits)

    @property
    def num_codes(self) -> int:  # type: ignore[override]
        """2^num_bits."""
        return 2**self.num_bits

    def shapes(self, dim: int) -> tuple[BinaryMapperParams, tuple[()]]:
        """Kernel, bias and codebook."""
        kernel, bias = array_shape(dim, self.num_bits), array_shape(self.num_bits)
        return BinaryMapperParams(kernel, bias, array_shape(self.num_codes, dim)), ()

    def _words(self):
        """The bits of every code, float32 [2^H, H]."""
        codes = lax.broadcasted_iota(jnp.int32, (self.num_codes, self.num_bits), 0)
        places = lax.broadcasted_iota(jnp.int32, (self.num_codes, self.num_bits), 1)
        return (codes >> places & 1).astype(jnp.float32)

    @checked
    def init(
        self,
        key: jax.Array,
        z: jax.Array,
        mask: jax.Array | None = None,
        axis_name: AxisName = None,
    ) -> tuple[PyTree, PyTree]:
        """(BinaryMapperParams, ()); of z [..., D] only D is read."""
        del mask, axis_name
        shape = z.shape[-1], self.num_bits
        kernel = jax.nn.initializers.orthogonal()(key, shape, jnp.float32)
        signs = 2 * self._words() - 1
        codebook = jnp.matmul(signs, kernel.T, precision=lax.Precision.HIGHEST)
        return BinaryMapperParams(kernel, jnp.zeros(self.num_bits, jnp.float32), codebook), ()

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
        del state
        valid = ops.flat_rows(z, mask)[1]
        # Zeros for what does not count: NaN times zero would spoil the gradient of the kernel.
        x = jnp.where(valid[:, None], z.astype(jnp.float32).reshape(-1, z.shape[-1]), 0.0)
        logits = jnp.matmul(x, params.kernel, precision=lax.Precision.HIGHEST) + params.bias
        if key is None:
            bits = logits > 0
        else:
            places = ops.row_places(valid, axis_name)
            bits = ops.uniform_noise(key, places, self.num_bits) < jax.nn.sigmoid(logits)
        powers = 1 << jnp.arange(self.num_bits, dtype=jnp.int32)
        codes = hide(jnp.sum(jnp.where(bits, powers, 0), axis=-1, dtype=jnp.int32), valid)
        vectors = look_up(params.codebook, codes)
        # A word's log probability is, but for what all share, the sum of the logits of its ones.
        mean = ops.choose_by_logits(
            logits,
            self._words().T,
            jnp.zeros(self.num_codes, jnp.float32),
            lax.stop_gradient(params.codebook),
            valid,
            soft=True,
        ).vectors
        told = self.num_bits * math.log(2) - jnp.sum(ops.bit_entropy(logits), axis=-1)
        excess = jax.nn.relu(told - self.free_bits * math.log(2))
        losses = {'kl': ops.masked_mean(excess, valid, axis_name)}
        z_q = blank(ops.graft(lax.stop_gradient(vectors), vectors + mean), codes)
        codes = codes.reshape(z.shape[:-1])
        return Quantized(
            z_q.reshape(z.shape).astype(z.dtype), codes, self.kl * losses['kl'], losses
        )

    @checked
    def decode(self, params: PyTree, state: PyTree, codes: jax.Array) -> jax.Array:
        """Codebook rows float32 [..., D] of codes [...]; zeros for -1."""
        del state
        return look_up(params.codebook, codes)
