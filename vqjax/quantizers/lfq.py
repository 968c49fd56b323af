"""Lookup-free quantization: one bit a feature."""

from __future__ import annotations

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from vqjax import ops
from vqjax.ops import AxisName
from vqjax.quantizers.base import (
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
    is_number,
    only_codes,
)
from vqjax.quantizers.protocol import PyTree

# The joint entropy of this many bits is exact: 2^18 products of two halves, a slice at a time.
# More bits are taken in blocks, whose entropies add up to an upper bound of the joint one.
_BLOCK_BITS = 18
# Largest slice of the mean distribution held at once.
_SLICE = 4096


def _products(p):
    """Probabilities of all words of a few bits: [N, b] -> [N, 2^b], first bit most significant."""
    words = jnp.ones((p.shape[0], 1), jnp.float32)
    for bit in range(p.shape[1]):
        pair = jnp.stack([1 - p[:, bit], p[:, bit]], axis=-1)
        words = (words[:, :, None] * pair[:, None, :]).reshape(p.shape[0], -1)
    return words


def _joint_entropy(p, weights, number, axis_name):
    """Entropy of the mean over rows of independent bits: p [N, b], weights [N] -> [].

    The mean distribution of 2^b words is a product of halves, L^T R: slices of it are made and
    reduced one after the other, again in the backward pass.
    """
    half = p.shape[1] // 2
    left = _products(p[:, :half]) * weights[:, None]
    right = _products(p[:, half:])
    width = max(1, min(left.shape[1], _SLICE // right.shape[1]))

    @jax.checkpoint
    def part(columns):
        mean = jnp.matmul(columns, right, precision=lax.Precision.HIGHEST)
        return jnp.sum(ops.entropy(ops.pmean(mean, axis_name) / number))

    return jnp.sum(lax.map(part, left.T.reshape(-1, width, left.shape[0])))


@dataclass(frozen=True, repr=False)
class LFQ(Base):
    """LFQ (MAGVIT-2, arXiv:2310.05737 eq. 4): the sign of each feature.

    loss = entropy (E[H(p)] - gamma H(E[p])) + commitment |z - sg(z_q)|^2, where p is
    softmax(-inv_temperature |z - c|^2) over all 2^num_bits codes c. Given z its bits are
    independent, so E[H(p)] is a sum over bits; H(E[p]) is exact up to 18 bits without any array
    of 2^num_bits, and beyond that the sum over blocks of 18.

    Fields:
      num_bits: features of z, at most 30.
      entropy: weight of the two entropy terms.
      commitment: weight of the commitment loss.
      gamma: weight of the batch entropy against that of single vectors.
      inv_temperature: 1 / tau of p.
      spherical: z and codes of unit length, as in BSQ (arXiv:2406.07548).
      first_bit: what the first feature is in the code, its 'most' or its 'least' significant bit.

    Params (), state (). Raises ValueError for a field out of range.
    """

    num_bits: int
    entropy: float = 0.1
    commitment: float = 0.25
    gamma: float = 1.0
    inv_temperature: float = 100.0
    spherical: bool = False
    first_bit: str = 'most'

    stage_scale = 0.5

    def __post_init__(self) -> None:
        check_count('num_bits', self.num_bits, 1, 30)
        for name in ('entropy', 'commitment', 'gamma'):
            check_weight(name, getattr(self, name))
        # Beyond it the gradient of the entropies, and its square in an optimizer, leave float32.
        known = is_number(self.inv_temperature) and 0 < self.inv_temperature <= 1e6
        check(known, 'inv_temperature', self.inv_temperature, 'above 0 and at most 1e6')
        check_flag('spherical', self.spherical)
        check(self.first_bit in ('most', 'least'), 'first_bit', self.first_bit, "'most' or 'least'")

    @property
    def num_codes(self) -> int:  # type: ignore[override]
        """2^num_bits."""
        return 2**self.num_bits

    @property
    def _places(self) -> np.ndarray:
        """The place of each feature's bit in the code, int32 [num_bits]."""
        places = np.arange(self.num_bits, dtype=np.int32)
        return places if self.first_bit == 'least' else places[::-1]

    @property
    def _scale(self) -> np.float32:
        return np.float32(1 / math.sqrt(self.num_bits) if self.spherical else 1.0)

    def shapes(self, dim: int) -> tuple[tuple, tuple]:
        """() and ()."""
        return (), ()

    @checked
    def init(
        self,
        key: jax.Array,
        z: jax.Array,
        mask: jax.Array | None = None,
        axis_name: AxisName = None,
    ) -> tuple[tuple, tuple]:
        """() and (): nothing is learned. z [..., num_bits]."""
        del key, mask, axis_name
        check_features(z, self.num_bits, f'num_bits={self.num_bits}')
        return (), ()

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
        """Signs of z [..., num_bits] (0 counts as negative), and the entropy losses."""
        del params, state, key
        check_features(z, self.num_bits, f'num_bits={self.num_bits}')
        x = z.astype(jnp.float32)
        if self.spherical:
            x = ops.normalize(x)
        codes = jnp.sum(jnp.where(x > 0, 1 << self._places, 0), axis=-1, dtype=jnp.int32)
        codes = jnp.where(jnp.all(jnp.isfinite(x), axis=-1), codes, -1)
        vectors = jnp.where(x > 0, self._scale, -self._scale)
        losses = {'commitment': ops.squared_error(x, vectors, mask, axis_name)}
        loss = self.commitment * losses['commitment']
        if self.entropy:
            losses |= self._entropies(x, mask, axis_name)
            loss += self.entropy * (
                losses['per_sample_entropy'] - self.gamma * losses['batch_entropy']
            )
        codes = hide(codes, mask)
        z_q = blank(ops.straight_through(x, vectors), codes).astype(z.dtype)
        return Quantized(z_q, codes, loss, losses)

    def _entropies(self, x, mask, axis_name):
        # Of softmax(2 z.c / tau) one bit has the log odds 4 z s / tau, s the value of a set bit.
        logits = 4 * self.inv_temperature * self._scale * x.reshape(-1, self.num_bits)
        real = None if mask is None else mask.reshape(-1)
        single = ops.masked_mean(jnp.sum(ops.bit_entropy(logits), axis=-1), real, axis_name)
        # The mean of all would be lost with one vector that is not finite.
        counted = jnp.all(jnp.isfinite(logits), axis=-1)
        weights = (counted if real is None else counted & real).astype(jnp.float32)
        number = jnp.maximum(ops.pmean(jnp.sum(weights), axis_name), 1e-30)
        p = jax.nn.sigmoid(jnp.where(weights[:, None] > 0, logits, 0.0))
        batch = sum(
            _joint_entropy(p[:, first : first + _BLOCK_BITS], weights, number, axis_name)
            for first in range(0, self.num_bits, _BLOCK_BITS)
        )
        return {'per_sample_entropy': single, 'batch_entropy': batch}

    @checked
    def decode(self, params: PyTree, state: PyTree, codes: jax.Array) -> jax.Array:
        """Signs float32 [..., num_bits] of codes [...]; zeros for -1."""
        del params, state
        bits = jnp.maximum(codes, 0)[..., None] >> self._places & 1
        vectors = jnp.where(bits == 1, self._scale, -self._scale)
        return blank(vectors, only_codes(codes, self.num_codes))
