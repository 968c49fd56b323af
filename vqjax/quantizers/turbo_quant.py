"""TurboQuant: a random rotation, and fixed levels for each coordinate."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from scipy import special

from vqjax import ops
from vqjax.ops import AxisName
from vqjax.ops.serialization import exported
from vqjax.quantizers.base import (
    Base,
    Quantized,
    array_shape,
    check_count,
    check_features,
    check_flag,
    checked,
    hide,
)
from vqjax.quantizers.protocol import PyTree

# A length as the upper half of a float32 that is not negative.
_LENGTH_BITS = 15


@exported
class TurboQuantState(NamedTuple):
    """Frozen: a rotation float32 [D, D], and with `residual` a normal matrix [D, D]."""

    rotation: jax.Array
    sketch: jax.Array | tuple[()] = ()


@functools.cache
def lloyd_max(num_bits: int) -> np.ndarray:
    """The 2^num_bits levels with the least squared error for N(0, 1), ascending, float64.

    The fixed point of Lloyd (1982, doi:10.1109/TIT.1982.1056489) and Max (1960,
    doi:10.1109/TIT.1960.1057548): each level is the mean of the interval that is nearest to it.
    """
    number = 2**num_bits
    levels = special.ndtri((np.arange(number) + 0.5) / number)
    for _ in range(100 * number):
        ends = np.concatenate([[-np.inf], (levels[1:] + levels[:-1]) / 2, [np.inf]])
        density = np.exp(-(ends**2) / 2) / math.sqrt(2 * math.pi)
        moved = (density[:-1] - density[1:]) / np.diff(special.ndtr(ends))
        before, levels = levels, (moved - moved[::-1]) / 2  # symmetric to the bit
        if np.abs(levels - before).max() < 1e-12:
            break
    return levels


@dataclass(frozen=True, repr=False)
class TurboQuant(Base):
    """TurboQuant (arXiv:2504.19874 algorithms 1 and 2): rotated coordinates on fixed levels.

    z is brought to unit length and rotated at random. Each coordinate is then about N(0, 1 / D)
    whatever the data are, and takes the nearest of the levels that are best for that. Nothing is
    fitted or learned: for embeddings and caches of keys and values. The squared error of a unit
    vector is about .36, .117, .035 and .009 for 1 to 4 bits.

    With `residual` one of the bits is the sign of a random product with the error of the others
    (QJL): products of z_q with any vector are then right on average, at a larger squared error.

    The first code is the length of z, with `residual` the second one that of the error, each the
    upper half of a float32 (15 bits, a relative error of at most 2^-9); then a code a coordinate.

    Fields:
      dim: D.
      num_bits: bits a coordinate, at most 8.
      residual: whether one of them is spent on unbiased products.

    Params (), state `TurboQuantState`. Codes get a trailing axis [D + 1], or [D + 2]. The gradient
    is straight-through. Raises ValueError for a field out of range.
    """

    dim: int
    num_bits: int = 2
    residual: bool = False

    def __post_init__(self) -> None:
        check_count('dim', self.dim)
        check_count('num_bits', self.num_bits, 1, 8)
        check_flag('residual', self.residual)

    @property
    def _lengths(self) -> int:
        return 2 if self.residual else 1

    @property
    def num_codes(self) -> int:  # type: ignore[override]
        """2^15, those of a length: the largest number."""
        return 2**_LENGTH_BITS

    @property
    def code_shape(self) -> tuple[int, ...]:  # type: ignore[override]
        """The lengths, and one code a coordinate."""
        return (self._lengths + self.dim,)

    @property
    def code_sizes(self) -> np.ndarray:
        """2^15 for a length, 2^num_bits for a coordinate."""
        sizes = [self.num_codes] * self._lengths + [2**self.num_bits] * self.dim
        return np.asarray(sizes, np.int32)

    @property
    def bits(self) -> float:
        """15 for each length, num_bits for each coordinate."""
        return float(_LENGTH_BITS * self._lengths + self.num_bits * self.dim)

    @property
    def _levels(self) -> np.ndarray:
        """The levels of a coordinate of a unit vector, float32."""
        levels = lloyd_max(self.num_bits - self.residual) / math.sqrt(self.dim)
        return levels.astype(np.float32)

    def shapes(self, dim: int) -> tuple[tuple[()], TurboQuantState]:
        """() and what is frozen."""
        square = array_shape(self.dim, self.dim)
        return (), TurboQuantState(square, square if self.residual else ())

    @checked
    def init(
        self,
        key: jax.Array,
        z: jax.Array,
        mask: jax.Array | None = None,
        axis_name: AxisName = None,
    ) -> tuple[PyTree, PyTree]:
        """() and a uniformly random rotation; of z [..., D] only D is read."""
        del mask, axis_name
        check_features(z, self.dim, f'dim={self.dim}')
        first, second = jax.random.split(key)
        shape = self.dim, self.dim
        rotation = jax.nn.initializers.orthogonal()(first, shape, jnp.float32)
        sketch = jax.random.normal(second, shape, jnp.float32) if self.residual else ()
        return (), TurboQuantState(rotation, sketch)

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
        """Codes [..., D + 1] of z [..., D] and their vectors."""
        del params, key, axis_name
        check_features(z, self.dim, f'dim={self.dim}')
        state = lax.stop_gradient(state)
        x = z.astype(jnp.float32)
        fixed = lax.stop_gradient(x)
        length = _length(fixed)
        finite = jnp.isfinite(length)
        unit = jnp.where(finite, fixed, 0.0) / jnp.where(finite & (length > 0), length, 1.0)
        levels = self._levels
        index = jnp.searchsorted(
            jnp.asarray((levels[1:] + levels[:-1]) / 2), _times(unit, state.rotation)
        ).astype(jnp.int32)
        codes = [_length_code(length)]
        if self.residual:
            error = unit - _times(jnp.asarray(levels)[index], state.rotation.T)
            sign = _times(error, state.sketch) > 0
            codes.append(_length_code(_length(error)))
            index = 2 * index + sign
        whole = jnp.concatenate([*codes, index], axis=-1)
        whole = hide(jnp.where(finite, whole, -1), mask)
        vectors = self._vectors(state, whole)
        z_q = jnp.where(self.coded(whole)[..., None], ops.straight_through(x, vectors), 0.0)
        return Quantized(z_q.astype(z.dtype), whole, jnp.zeros((), jnp.float32), {})

    def _vectors(self, state, codes):
        """Vectors float32 [..., D] of codes; zeros where one is none."""
        real = jnp.all((codes >= 0) & (codes < self.code_sizes), axis=-1, keepdims=True)
        codes = jnp.where(real, codes, 0)
        index = codes[..., self._lengths :]
        levels = jnp.asarray(self._levels)
        vectors = _times(levels[index >> self.residual], state.rotation.T)
        if self.residual:
            signs = (2 * (index & 1) - 1).astype(jnp.float32)
            scale = _length_of(codes[..., 1:2]) * np.float32(math.sqrt(math.pi / 2) / self.dim)
            vectors = vectors + ops.rounded(scale * _times(signs, state.sketch.T))
        return jnp.where(real, _length_of(codes[..., :1]) * vectors, 0.0)

    @checked
    def decode(self, params: PyTree, state: PyTree, codes: jax.Array) -> jax.Array:
        """Vectors float32 [..., D] of codes [..., D + 1]; zeros where one of them is none."""
        del params
        return self._vectors(state, codes)


def _times(x, matrix):
    return jnp.matmul(x, matrix, precision=lax.Precision.HIGHEST)


def _length(x):
    """[..., D] -> [..., 1]."""
    return jnp.sqrt(jnp.sum(x * x, axis=-1, keepdims=True))


def _length_code(length):
    """The upper half of the nearest float32 that has no lower one, int32 of the same shape."""
    half = lax.bitcast_convert_type(length.astype(jnp.bfloat16), jnp.uint16)
    return jnp.where(jnp.isfinite(length), half, 0).astype(jnp.int32)


def _length_of(code):
    """What such a code stands for, float32 of the same shape."""
    return lax.bitcast_convert_type(code << 16, jnp.float32)
