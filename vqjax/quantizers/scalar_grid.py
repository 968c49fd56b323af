"""What grids of scalars share: the levels of each feature, codes in mixed radix, noise in cells."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np

from vqjax import ops
from vqjax.ops import AxisName
from vqjax.quantizers.base import (
    MAX_CODES,
    Base,
    check,
    check_count,
    check_features,
    checked,
    is_number,
)


class ScalarGrid(Base):
    """A quantizer that gives each feature one of a few fixed levels, and learns nothing.

    The code is a mixed-radix number, the first level varying fastest, computed in integers.
    """

    levels: tuple[int, ...]
    perturbed: float

    def _check_grid(self, least: int) -> None:
        """Raise ValueError for a level below `least`, too many codes, or `perturbed` no share."""
        levels = self.levels
        check(isinstance(levels, tuple) and len(levels), 'levels', levels, 'a list of levels')
        for level in levels:
            check_count('levels', level, least)
        if math.prod(levels) > MAX_CODES:
            raise ValueError(
                f'levels must multiply to at most 2^31 - 1 so that int32 holds every code, got '
                f'{tuple(levels)} = {math.prod(levels)}; use Product or Residual of smaller ones'
            )
        share = is_number(self.perturbed) and 0 <= self.perturbed <= 1
        check(share, 'perturbed', self.perturbed, 'a share from 0 to 1')

    @property
    def num_codes(self) -> int:  # type: ignore[override]
        """The product of the levels."""
        return math.prod(self.levels)

    @property
    def coded_in_training(self) -> bool:  # type: ignore[override]
        """Whether no feature is perturbed."""
        return self.perturbed == 0

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
        self._check_features(z)
        return (), ()

    def _check_features(self, z):
        check_features(z, len(self.levels), f'levels={self.levels}')

    def _to_codes(self, index):
        """Codes int32 [...] of level indices int32 [..., D]."""
        return jnp.sum(index * self._strides, axis=-1, dtype=jnp.int32)

    def _to_index(self, codes):
        """Level indices int32 [..., D] of codes [...]; those of -1 are as of 0."""
        levels = np.asarray(self.levels, np.int32)
        return jnp.maximum(codes, 0)[..., None] // self._strides % levels

    def _perturbation(self, key, z, mask, axis_name):
        """Noise in (-1/2, 1/2) float32 [..., D], and which features it is for, bool [..., D].

        None without a key and where no feature is perturbed.
        """
        if key is None or self.perturbed == 0:
            return None
        places = ops.row_places(ops.flat_rows(z, mask)[1], axis_name)
        dim = z.shape[-1]
        numbers = ops.uniform_noise(key, places, 2 * dim).reshape(*z.shape[:-1], 2 * dim)
        return numbers[..., :dim] - 0.5, numbers[..., dim:] < self.perturbed
