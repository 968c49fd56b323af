"""Dropping the last stages, or scales, of a residual quantizer while it trains."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from vqjax.ops.fields import check, check_count, is_number, make_plain
from vqjax.ops.rows import uniform_rows
from vqjax.ops.statistics import AxisName

UNITS = ('sample', 'batch')


def draw_entries(
    key: jax.Array,
    shape: tuple[int, ...],
    mask: jax.Array | None = None,
    axis_name: AxisName = None,
) -> jax.Array:
    """A uniform number in (0, 1) for each entry of the first axis, which others of it share.

    The same however entries are spread over replicas, see `uniform_rows`. shape is that of the mask
    bool [*shape]; -> float32 [shape[0], 1, ...], or [] for a single vector.
    """
    if not shape:
        return jax.random.uniform(key, dtype=jnp.float32)
    real = jnp.ones(shape, bool) if mask is None else mask
    real = jnp.any(real.reshape(shape[0], -1), axis=-1)
    return uniform_rows(key, real, axis_name).reshape(-1, *[1] * (len(shape) - 1))


@dataclass(frozen=True)
class StageDropout:
    """How many stages of a `Residual` (scales of a `MultiScale`) it uses with a key: the first n.

    n is drawn uniformly from the multiples of `multiple` that are at least `least`, up to all
    stages: SoundStream's U{1..S} (arXiv:2107.03312 section III-C) by default. Codes then serve at
    each of these rates.

    Fields:
      by: 'sample' draws n for each entry of z's first axis, 'batch' once.
      least: stages that are always used.
      multiple: of which n is one; it must divide the number of stages.
      share: of the draws that drop anything (DAC, arXiv:2306.06546: 0.5); the others use all.

    Raises ValueError for a field out of range; the quantizer for one that its stages do not fit.
    """

    by: str = 'sample'
    least: int = 1
    multiple: int = 1
    share: float = 1.0

    def __post_init__(self) -> None:
        make_plain(self)
        check(self.by in UNITS, 'by', self.by, f'one of {UNITS}')
        check_count('least', self.least)
        check_count('multiple', self.multiple)
        ok = is_number(self.share) and 0 < self.share <= 1
        check(ok, 'share', self.share, 'above 0 and at most 1')

    def depths(self, num_stages: int) -> tuple[int, ...]:
        """The numbers of stages that are drawn from.

        Raises:
          ValueError: where `multiple` does not divide the number of stages, or `least` exceeds it.
        """
        if num_stages % self.multiple:
            raise ValueError(
                f'multiple={self.multiple} must divide num_stages={num_stages}, so that all stages '
                '(scales) are one of the choices'
            )
        if self.least > num_stages:
            raise ValueError(f'least={self.least} exceeds num_stages={num_stages}')
        return tuple(n for n in range(self.least, num_stages + 1) if n % self.multiple == 0)

    def used(
        self,
        key: jax.Array,
        shape: tuple[int, ...],
        num_stages: int,
        mask: jax.Array | None = None,
        axis_name: AxisName = None,
    ) -> jax.Array:
        """Which stages are used: bool [S, *shape] for vectors [*shape, D] and their mask."""
        if self.by == 'batch':
            draw = jax.random.uniform(key, dtype=jnp.float32)
        else:
            draw = draw_entries(key, shape, mask, axis_name)
        depths = np.array(self.depths(num_stages), np.int32)
        place = jnp.floor(draw / self.share * len(depths)).astype(jnp.int32)
        # Past the end of the list are the draws that drop nothing, and what rounding put there.
        depth = jnp.asarray(depths)[jnp.minimum(place, len(depths) - 1)]
        used = jnp.stack([jnp.broadcast_to(s < depth, shape) for s in range(num_stages)])
        return used if mask is None else used & mask
