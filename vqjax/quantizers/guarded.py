"""A codebook that repairs itself: re-fitted by k-means when it collapses."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from vqjax import ops
from vqjax.ops import AxisName
from vqjax.ops.serialization import exported
from vqjax.quantizers.banked import Banked
from vqjax.quantizers.base import (
    STEP,
    PyTree,
    Quantizer,
    array_shape,
    check,
    check_count,
    checked,
    is_number,
)
from vqjax.quantizers.codebook import Wrapped
from vqjax.quantizers.vq import VQ, VQState
from vqjax.quantizers.vq_ema import VQEMA


@exported
class GuardedState(NamedTuple):
    """The inner quantizer's state, and what the guard knows.

    use float32 [K], uses of each code over about the last `WINDOW` steps; step int32 [], training
    steps; last int32 [], the step of the last re-fit; refits int32 [], how many there were.
    """

    inner: Any
    use: jax.Array
    step: jax.Array
    last: jax.Array
    refits: jax.Array


WINDOW = 10
_GUARDED = (VQEMA, VQ, Banked)


@dataclass(frozen=True, repr=False)
class Guarded(Wrapped):
    """VQEMA or VQ with a codebook that is re-fitted by k-means on the batch when it collapses.

    Collapsed means that the perplexity of the recent codes is below `least` (C classes need about
    C codes, I(Z; Y) <= log C) or, where few tokens or codes leave no room for that, below half of
    what a uniform source would show. All of it happens inside `update`: the same on every replica,
    nothing waits for the host, and the k-means is only run when it is due.

    Fields:
      inner: VQEMA, VQ, or one of them in a Banked.
      least: perplexity below which the codebook counts as collapsed.
      cooldown: steps from the start, and from a re-fit, to the next one at the earliest.

    Params the inner's, state `GuardedState`. Raises ValueError for a field out of range or another
    inner quantizer: put the guard inside Residual, Product or Projected, around their codebooks.
    """

    inner: VQEMA | VQ | Banked
    least: float = 10.0
    cooldown: int = 50

    def __post_init__(self) -> None:
        need = 'a VQEMA or VQ (of a combinator, guard the inner quantizer)'
        check(isinstance(self.inner, _GUARDED), 'inner', self.inner, need)
        ok = is_number(self.least) and self.least >= 1
        check(ok, 'least', self.least, 'a perplexity, at least 1')
        check_count('cooldown', self.cooldown)

    def shapes(self, dim: int) -> tuple[PyTree, GuardedState]:
        """The inner's, and what the guard knows."""
        params, inner = self.inner.shapes(dim)
        return params, GuardedState(inner, array_shape(self.num_codes), STEP, STEP, STEP)

    @checked
    def init(
        self,
        key: jax.Array,
        z: jax.Array,
        mask: jax.Array | None = None,
        axis_name: AxisName = None,
    ) -> tuple[PyTree, PyTree]:
        """(params, GuardedState) from the inner's start on z [..., D]."""
        params, inner = self.inner.init(key, z, mask, axis_name)
        zero = jnp.zeros((), jnp.int32)
        return params, GuardedState(inner, jnp.zeros(self.num_codes, jnp.float32), zero, zero, zero)

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
    ) -> GuardedState:
        """The inner's update; then, if the recent codes say so, the re-fit on z [..., D]."""
        refit_key = jax.random.key(0) if key is None else key
        refit_key = jax.random.fold_in(refit_key, state.step)
        moved = self.inner.update(params, state.inner, z, codes, key, mask, axis_name, weights)
        rows, valid = ops.flat_rows(self.inner.prepare(z), mask)
        counts = ops.code_counts(
            jnp.where(valid, codes.reshape(-1), -1), self.num_codes, None, axis_name, weights
        )
        # Padding alone is no step of the window.
        held = jnp.sum(counts) > 0
        use = jnp.where(held, state.use * (1 - 1 / WINDOW) + counts, state.use)
        step = state.step + 1
        due = (step - state.last >= self.cooldown) & self._collapsed(use) & held

        def refit():
            return _refit(self.inner, params, moved, rows, valid, refit_key, axis_name)

        inner = lax.cond(due, refit, lambda: moved)
        return GuardedState(
            inner,
            jnp.where(due, 0.0, use),
            step,
            jnp.where(due, step, state.last),
            state.refits + due,
        )

    def _collapsed(self, use):
        """Whether the perplexity of use [K] is below the bound, bool []."""
        tokens = jnp.sum(use)
        perplexity = jnp.exp(ops.entropy(use / jnp.maximum(tokens, 1e-30)))
        chance = -self.num_codes * jnp.expm1(tokens * jnp.log1p(-1 / max(self.num_codes, 2)))
        return perplexity < jnp.minimum(self.least, 0.5 * chance)


def _refit(quantizer, params, state, rows, valid, key, axis_name):
    """The quantizer's state with a codebook of k-means centroids of rows [N, D]."""
    if isinstance(quantizer, Banked):
        inner = _refit(quantizer.inner, params, state.inner, rows, valid, key, axis_name)
        return state._replace(inner=inner)
    fitted = dataclasses.replace(quantizer, init=ops.kmeans)
    fresh_params, fresh = fitted.init(key, rows, valid, axis_name)
    if isinstance(quantizer, VQEMA):
        return fresh._replace(step=state.step)
    # What the optimizer holds stays: the shift takes the codebook to the centroids.
    centroids = fresh_params.codebook if quantizer.affine else fresh_params
    return VQState(quantizer.shift_to(params, centroids), fresh.counts, state.step)


def guard_codebooks(quantizer: Quantizer, least: float = 10.0, cooldown: int = 50) -> Quantizer:
    """The quantizer with a guard around each VQEMA and VQ in it; others are left as they are."""
    if isinstance(quantizer, _GUARDED):
        return Guarded(quantizer, least, cooldown)
    inner: Any = getattr(quantizer, 'inner', None)
    if inner is None or isinstance(quantizer, Guarded):
        return quantizer
    guarded: Any
    if isinstance(inner, tuple):
        guarded = tuple(guard_codebooks(part, least, cooldown) for part in inner)
    else:
        guarded = guard_codebooks(inner, least, cooldown)
    changed: Any = quantizer
    return dataclasses.replace(changed, inner=guarded)


def count_refits(state: Any) -> jax.Array:
    """Re-fits so far in a state, or in any tree of states: int32 [], 0 without a guard."""
    found = jax.tree.leaves(state, is_leaf=lambda x: isinstance(x, GuardedState))
    refits = [jnp.sum(x.refits) for x in found if isinstance(x, GuardedState)]
    return sum(refits, jnp.zeros((), jnp.int32))
