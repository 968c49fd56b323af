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
    check,
    check_count,
    check_features,
    check_flag,
    check_positive,
    check_weight,
    checked,
    hide,
    is_number,
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
      num_bits: features of z.
      entropy: weight of the two entropy terms.
      commitment: weight of the commitment loss.
      gamma: weight of the batch entropy against that of single vectors.
      inv_temperature: 1 / tau of p.
      spherical: z and codes of unit length (times `scale`), as in BSQ (arXiv:2406.07548).
      first_bit: what the first feature is in its code, the 'most' or the 'least' significant bit.
      scale: the magnitude of the signs.
      bits_per_code: how many features one code holds, at most 30; the last code holds the rest.

    Params (), state (). With more features than `bits_per_code` codes get a trailing axis
    [num_bits / bits_per_code, rounded up]: 64 bits (arXiv:2412.04431) are three codes of 30, 30 and
    4 bits, four with bits_per_code=16, and the bits themselves with bits_per_code=1. Raises
    ValueError for a field out of range.
    """

    num_bits: int
    entropy: float = 0.1
    commitment: float = 0.25
    gamma: float = 1.0
    inv_temperature: float = 100.0
    spherical: bool = False
    first_bit: str = 'most'
    scale: float = 1.0
    bits_per_code: int = 30

    stage_scale = 0.5

    def __post_init__(self) -> None:
        check_count('num_bits', self.num_bits)
        check_count('bits_per_code', self.bits_per_code, 1, 30)
        check_positive('scale', self.scale)
        for name in ('entropy', 'commitment', 'gamma'):
            check_weight(name, getattr(self, name))
        # Beyond it the gradient of the entropies, and its square in an optimizer, leave float32.
        known = is_number(self.inv_temperature) and 0 < self.inv_temperature <= 1e6
        check(known, 'inv_temperature', self.inv_temperature, 'above 0 and at most 1e6')
        check_flag('spherical', self.spherical)
        check(self.first_bit in ('most', 'least'), 'first_bit', self.first_bit, "'most' or 'least'")

    @property
    def num_codes(self) -> int:  # type: ignore[override]
        """2^num_bits, or 2^bits_per_code of several codes."""
        return 2 ** min(self.num_bits, self.bits_per_code)

    @property
    def code_shape(self) -> tuple[int, ...]:  # type: ignore[override]
        """() where one code holds all bits, else how many codes do."""
        number = -(-self.num_bits // self.bits_per_code)
        return () if number == 1 else (number,)

    @property
    def code_sizes(self) -> np.ndarray:
        """2 to the number of bits that each code holds."""
        sizes = 2 ** np.bincount(self._owners).astype(np.int32)
        return sizes.reshape(self.code_shape)

    @property
    def bits(self) -> float:
        """num_bits."""
        return float(self.num_bits)

    @property
    def _owners(self) -> np.ndarray:
        """Which code holds each feature's bit, [num_bits]."""
        return np.arange(self.num_bits) // self.bits_per_code

    @property
    def _places(self) -> np.ndarray:
        """The place of each feature's bit in its code, int32 [num_bits]."""
        places = np.arange(self.num_bits) - self._owners * self.bits_per_code
        if self.first_bit == 'most':
            places = np.bincount(self._owners)[self._owners] - 1 - places
        return places.astype(np.int32)

    @property
    def _magnitude(self) -> np.float32:
        """Of each feature of a code's vector."""
        unit = 1 / math.sqrt(self.num_bits) if self.spherical else 1.0
        return np.float32(self.scale * unit)

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
            x = ops.normalize(x) * np.float32(self.scale)
        vectors = jnp.where(x > 0, self._magnitude, -self._magnitude)
        losses = {'commitment': ops.squared_error(x, vectors, mask, axis_name)}
        loss = self.commitment * losses['commitment']
        if self.entropy:
            losses |= self._entropies(x, mask, axis_name)
            loss += self.entropy * (
                losses['per_sample_entropy'] - self.gamma * losses['batch_entropy']
            )
        real = jnp.all(jnp.isfinite(x), axis=-1)
        real = real if mask is None else real & mask
        z_q = jnp.where(real[..., None], ops.straight_through(x, vectors), 0.0)
        return Quantized(z_q.astype(z.dtype), hide(self._to_codes(x > 0), real), loss, losses)

    def _to_codes(self, bits):
        """Codes int32 [..., *code_shape] of bits, bool [..., num_bits]."""
        held = jnp.where(bits, 1 << self._places, 0)
        if not self.code_shape:
            return jnp.sum(held, axis=-1, dtype=jnp.int32)
        missing = -self.num_bits % self.bits_per_code
        held = jnp.pad(held, [(0, 0)] * (bits.ndim - 1) + [(0, missing)])
        held = held.reshape(*bits.shape[:-1], *self.code_shape, self.bits_per_code)
        return jnp.sum(held, axis=-1, dtype=jnp.int32)

    def _entropies(self, x, mask, axis_name):
        # Of softmax(2 z.c / tau) one bit has the log odds 4 z s / tau, s the value of a set bit.
        logits = 4 * self.inv_temperature * self._magnitude * x.reshape(-1, self.num_bits)
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
        """Signs float32 [..., num_bits] of codes; zeros for the features of a code of -1."""
        del params, state
        known = (codes >= 0) & (codes < self.code_sizes)
        if self.code_shape:
            codes, known = codes[..., self._owners], known[..., self._owners]
        else:
            codes, known = codes[..., None], known[..., None]
        bits = jnp.maximum(codes, 0) >> self._places & 1
        vectors = jnp.where(bits == 1, self._magnitude, -self._magnitude)
        return jnp.where(known, vectors, 0.0)
