"""A codebook whose dead codes are revived from a bank of recent vectors, not from one batch."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp

from vqjax import ops
from vqjax.ops import AxisName
from vqjax.ops.revival import revive
from vqjax.ops.serialization import exported
from vqjax.quantizers.base import STEP, PyTree, array_shape, check, check_count, checked, look_up
from vqjax.quantizers.codebook import Wrapped
from vqjax.quantizers.vq import VQ
from vqjax.quantizers.vq_ema import VQEMA


@exported
class BankedState(NamedTuple):
    """The inner quantizer's state and the bank, the same on every replica.

    bank float32 [size, D], a ring of vectors as they are compared; seen int32 [], how many came
    in: below `size` while the ring fills, then the next place is `seen % size`.
    """

    inner: Any
    bank: jax.Array
    seen: jax.Array


class _FromBank(ops.Revival):
    """A Revival whose source holds this step's bank: nothing compiled may be kept by it."""

    def __call__(self, key, batch, codebook, counts, step, axis_name: AxisName = None):
        """As Revival, but without its cache of programs, which would keep the bank alive."""
        return revive(self, key, batch, codebook, counts, step, axis_name)


@dataclass(frozen=True, repr=False)
class Banked(Wrapped):
    """VQEMA or VQ whose revival reads a bank of recent vectors instead of the step's batch.

    A batch smaller than the codebook cannot seed it; a bank of many steps can. Any source of
    revival may draw from it; k-means over it, as over the reservoir of Lancucki et al. 2020
    (arXiv:2005.08520), is `Banked(VQEMA(1024, revival=Revival(source=ops.kmeans_rows)))`.

    Fields:
      inner: VQEMA or VQ, with a revival.
      size: vectors in the bank; the newest replace the oldest.
      fresh: vectors that enter it a step, so that it spans about size / fresh steps: random ones
        of the batch of all replicas; without a key, those with the largest error.

    Params the inner's, state `BankedState`. Memory: size x D. Raises ValueError for a field out of
    range, another inner quantizer or one without revival.
    """

    inner: VQEMA | VQ
    size: int = 8192
    fresh: int = 512

    def __post_init__(self) -> None:
        need = 'a VQEMA or VQ (of a combinator, put the bank around the inner quantizer)'
        check(isinstance(self.inner, VQEMA | VQ), 'inner', self.inner, need)
        need = 'of a quantizer that revives; without, a bank is of no use'
        check(self.inner.revival is not None, 'revival', self.inner.revival, need)
        check_count('size', self.size)
        check_count('fresh', self.fresh)
        check(self.fresh <= self.size, 'fresh', self.fresh, f'at most size, {self.size}')

    def shapes(self, dim: int) -> tuple[PyTree, BankedState]:
        """The inner's, and the bank."""
        params, inner = self.inner.shapes(dim)
        return params, BankedState(inner, array_shape(self.size, dim), STEP)

    @checked
    def init(
        self,
        key: jax.Array,
        z: jax.Array,
        mask: jax.Array | None = None,
        axis_name: AxisName = None,
    ) -> tuple[PyTree, PyTree]:
        """(params, BankedState) from the inner's start on z [..., D]; the bank is empty."""
        params, inner = self.inner.init(key, z, mask, axis_name)
        bank = jnp.zeros((self.size, z.shape[-1]), jnp.float32)
        return params, BankedState(inner, bank, jnp.zeros((), jnp.int32))

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
    ) -> BankedState:
        """Vectors of z [..., D] enter the bank; then the inner's update, which revives from it."""
        bank, seen = self._remember(params, state, z, codes, key, mask, axis_name)
        held = jnp.arange(self.size) < seen
        given = cast(ops.Revival, self.inner.revival)

        # Called by the inner's revival, only when it is due: most steps do not search the bank.
        def source(key, batch, codebook, counts, dead, axis_name):
            del batch, axis_name  # every replica holds the same bank
            chosen = jnp.where(held, ops.nearest_codes(bank, codebook, self.metric), -1)
            remembered = ops.Batch(bank, chosen, held, codebook)
            return given.source(key, remembered, codebook, counts, dead, None)

        revival = _FromBank(given.below, given.every, source)
        inner = dataclasses.replace(self.inner, revival=revival)
        moved = inner.update(params, state.inner, z, codes, key, mask, axis_name, weights)
        return BankedState(moved, bank, seen)

    def _remember(self, params, state, z, codes, key, mask, axis_name):
        """(bank, seen) with up to `fresh` vectors of z [..., D] put over the oldest."""
        rows, valid = ops.flat_rows(self.prepare(z), mask)
        if key is None:
            assigned = look_up(self.read_codebook(params, state), codes.reshape(-1))
            priority = jnp.sum((rows - assigned) ** 2, axis=-1)
        else:
            # Not the draw that the inner's revival makes with the same key.
            key = jax.random.fold_in(key, self.size)
            priority = ops.uniform_rows(key, valid, axis_name)
        priority = jnp.where(valid, priority, -jnp.inf)
        chosen, ok = ops.top_rows(rows, priority, self.fresh, axis_name)
        place = (state.seen + jnp.arange(self.fresh)) % self.size
        bank = state.bank.at[jnp.where(ok, place, self.size)].set(chosen, mode='drop')
        seen = state.seen + jnp.sum(ok, dtype=jnp.int32)
        # Between size and twice that once the ring is full: the count never overflows.
        return bank, jnp.where(seen >= 2 * self.size, seen - self.size, seen)
