"""Latent quantization: a few learned values for each feature."""

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
    array_shape,
    check,
    check_count,
    check_features,
    check_start,
    check_weight,
    checked,
)
from vqjax.quantizers.protocol import PyTree

# Distances held at once: 4 MB of them.
_TILE = 2**20


@dataclass(frozen=True, repr=False)
class LatentQuantization(Base):
    """Latent quantization (QLAE, arXiv:2305.18378 section 3): learned values for each feature.

    Feature d has a codebook of its own, levels[d] numbers, and takes the nearest of them:
    z_q[d] = argmin over v in V[d] of |z[d] - v|, straight-through. loss = codebook |sg(z) - z_q|^2
    + commitment |z - sg(z_q)|^2. Codes stay apart, one a feature, so that each can come to mean
    one thing; the paper also decays all weights of the network strongly (AdamW, 0.1).

    The values start evenly spaced over mean +- sqrt(3) deviations of their feature, the cells of a
    uniform distribution of that width: the paper starts at -1/2 to 1/2 whatever the features are.

    Fields:
      levels: values of each feature, at least 2.
      commitment: weight of |z - sg(z_q)|^2 (the paper's).
      codebook: weight of |sg(z) - z_q|^2, by which the values learn (the paper's).

    Params float32 [D, max(levels)], zeros behind the levels of a feature; state (). Codes get a
    trailing axis [D], each from 0 to levels[d] - 1. Raises ValueError for a field out of range.
    """

    levels: tuple[int, ...]
    commitment: float = 0.01
    codebook: float = 0.01

    starts_from_data = True

    def __post_init__(self) -> None:
        levels = self.levels
        check(isinstance(levels, tuple) and len(levels), 'levels', levels, 'a list of levels')
        for level in levels:
            check_count('levels', level, 2)
        check_weight('commitment', self.commitment)
        check_weight('codebook', self.codebook)

    @property
    def num_codes(self) -> int:  # type: ignore[override]
        """The largest number of levels."""
        return max(self.levels)

    @property
    def code_shape(self) -> tuple[int, ...]:  # type: ignore[override]
        """One code a feature."""
        return (len(self.levels),)

    @property
    def code_sizes(self) -> np.ndarray:
        """The levels."""
        return np.asarray(self.levels, np.int32)

    @property
    def bits(self) -> float:
        """The features' bits together."""
        return sum(map(math.log2, self.levels))

    @property
    def _used(self) -> np.ndarray:
        """Which params are values: bool [D, max(levels)]."""
        return np.arange(self.num_codes) < self.code_sizes[:, None]

    def shapes(self, dim: int) -> tuple[jax.ShapeDtypeStruct, tuple[()]]:
        """The values and ()."""
        return array_shape(len(self.levels), self.num_codes), ()

    @checked
    def init(
        self,
        key: jax.Array,
        z: jax.Array,
        mask: jax.Array | None = None,
        axis_name: AxisName = None,
    ) -> tuple[jax.Array, tuple[()]]:
        """(values, ()); of z [..., D] the mean and deviation of each feature are read.

        Raises:
          ValueError: for a batch of identical, zero or non-finite vectors (outside jit).
        """
        del key
        check_features(z, len(self.levels), f'levels={self.levels}')
        check_start(self, z, mask)
        rows, valid = ops.flat_rows(z, mask)
        number = jnp.maximum(ops.psum(jnp.sum(valid, dtype=jnp.float32), axis_name), 1.0)
        mean = ops.psum(jnp.sum(rows, axis=0), axis_name) / number
        square = jnp.sum(jnp.where(valid[:, None], (rows - mean) ** 2, 0.0), axis=0)
        deviation = jnp.sqrt(ops.psum(square, axis_name) / number)
        deviation = jnp.where(deviation > 0, deviation, 1.0)
        place = (2 * np.arange(self.num_codes) + 1) / self.code_sizes[:, None] - 1
        grid = mean[:, None] + math.sqrt(3) * deviation[:, None] * np.float32(place)
        return jnp.where(self._used, grid, 0.0), ()

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
        """Codes [..., D] and values of z [..., D]."""
        del state, key
        check_features(z, len(self.levels), f'levels={self.levels}')
        x = z.astype(jnp.float32)
        valid = ops.flat_rows(z, mask)[1].reshape(z.shape[:-1])[..., None]
        codes = jnp.where(valid, self._nearest(lax.stop_gradient(params), x), -1)
        vectors = self._look_up(params, codes)
        losses = {
            'commitment': ops.squared_error(x, lax.stop_gradient(vectors), mask, axis_name),
            'codebook': ops.squared_error(lax.stop_gradient(x), vectors, mask, axis_name),
        }
        loss = self.commitment * losses['commitment'] + self.codebook * losses['codebook']
        z_q = jnp.where(valid, ops.straight_through(x, vectors), 0.0)
        return Quantized(z_q.astype(z.dtype), codes, loss, losses)

    def _nearest(self, values, x):
        """The nearest value of each feature, ties to the lowest index: int32 [..., D]."""
        usable = self._used & jnp.isfinite(values)
        index = jnp.arange(self.num_codes, dtype=jnp.int32)

        def tile(rows):
            distance = jnp.where(usable, jnp.abs(rows[..., None] - values), jnp.inf)
            least = jnp.min(distance, axis=-1, keepdims=True)
            code = jnp.min(jnp.where(distance == least, index, self.num_codes), axis=-1)
            return jnp.where(jnp.isfinite(least[..., 0]), code, -1)

        rows = lax.stop_gradient(x).reshape(-1, x.shape[-1])
        return ops.map_tiles(tile, [rows], max(_TILE // values.size, 1)).reshape(x.shape)

    def _look_up(self, values, codes):
        """Values float32 [..., D] of codes [..., D]; zeros for what is no code."""
        first = np.arange(len(self.levels), dtype=np.int32) * self.num_codes
        found = values.reshape(-1)[first + jnp.clip(codes, 0, self.num_codes - 1)]
        return jnp.where((codes >= 0) & (codes < self.code_sizes), found, 0.0)

    @checked
    def decode(self, params: PyTree, state: PyTree, codes: jax.Array) -> jax.Array:
        """Values float32 [..., D] of codes [..., D]; zero for a feature without a code."""
        del state
        return self._look_up(params, codes)
