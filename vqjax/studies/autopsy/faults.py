"""The faults behind collapsed codebooks, one small subclass of a healthy part each.

For the autopsy (`configs/autopsy.py`) and the tests of `vqjax.health`, never for use: each
overrides one method with what a real implementation got wrong.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from vqjax import nn, ops, quantizers
from vqjax.ops import AxisName, Revival
from vqjax.quantizers import FSQ, VQ, VQEMA, Product, Quantized, Quantizer, VQEMAState
from vqjax.trainer.config.settings import Parts


class StoredState(NamedTuple):
    """Averages, and beside them the codebook float32 [K, D] they should agree with."""

    averages: VQEMAState
    codebook: jax.Array


@dataclass(frozen=True, repr=False)
class StoredVQEMA(VQEMA):
    """VQEMA that keeps its codebook beside the averages, as most implementations do: healthy.

    What makes the faults below possible: VQEMA itself derives the codebook, so that a code cannot
    disagree with its statistics.
    """

    @property
    def averaging(self) -> VQEMA:
        """The quantizer that moves the averages."""
        names = [f.name for f in dataclasses.fields(VQEMA) if f.init]
        return VQEMA(**{n: getattr(self, n) for n in names if n != 'init'}, init=self.start)

    def init(self, key, z, mask=None, axis_name: AxisName = None):
        """() and what VQEMA starts from, with its codebook."""
        params, averages = self.averaging.init(key, z, mask, axis_name)
        return params, StoredState(averages, self.averaging.read_codebook(params, averages))

    def read_codebook(self, params, state) -> jax.Array:
        """The stored codebook, float32 [K, D]."""
        del params
        return lax.stop_gradient(state.codebook)

    def update(
        self, params, state, z, codes, key=None, mask=None, axis_name: AxisName = None, weights=None
    ):
        """VQEMA's step, and the codebook that follows from it."""
        averages = self.averaging.update(
            params, state.averages, z, codes, key, mask, axis_name, weights
        )
        return StoredState(averages, self.averaging.read_codebook(params, averages))


# Faults of the averages.


@dataclass(frozen=True, repr=False)
class MissingTotal(VQEMA):
    """The smoothed counts lack their factor n = sum N: every live code is inflated n times."""

    def read_codebook(self, params, state) -> jax.Array:
        """sums / ((N + eps) / (n + K eps)), float32 [K, D]."""
        total = jnp.sum(state.counts) + self.num_codes * self.eps
        return lax.stop_gradient(state.sums / ((state.counts + self.eps) / total)[:, None])


@dataclass(frozen=True, repr=False)
class DiscardedInit(StoredVQEMA):
    """The codebook starts from the data, its sums from zero: the first update erases it."""

    def init(self, key, z, mask=None, axis_name: AxisName = None):
        """A k-means codebook with counts of one and sums of zero."""
        params, state = super().init(key, z, mask, axis_name)
        counts, sums = jnp.ones_like(state.averages.counts), jnp.zeros_like(state.averages.sums)
        return params, state._replace(averages=state.averages._replace(counts=counts, sums=sums))


@dataclass(frozen=True, repr=False)
class ZeroCounts(StoredVQEMA):
    """Counts start at 0 with the sums at the codebook: an unused code is inflated 1e5 times."""

    def init(self, key, z, mask=None, axis_name: AxisName = None):
        """A k-means codebook with counts of zero and sums equal to it."""
        params, state = super().init(key, z, mask, axis_name)
        counts, sums = jnp.zeros_like(state.averages.counts), state.codebook
        return params, state._replace(averages=state.averages._replace(counts=counts, sums=sums))


@dataclass(frozen=True, repr=False)
class StaleRevival(StoredVQEMA):
    """A revived code is written, its count and sum are not: the next update takes it back."""

    def update(
        self, params, state, z, codes, key=None, mask=None, axis_name: AxisName = None, weights=None
    ):
        """The averages of an update without revival beside the codebook of one with it."""
        revived = super().update(params, state, z, codes, key, mask, axis_name, weights)
        silent = dataclasses.replace(self.averaging, revival=None)
        averages = silent.update(params, state.averages, z, codes, key, mask, axis_name, weights)
        return StoredState(averages, revived.codebook)


# Faults of the gradient.


@dataclass(frozen=True, repr=False)
class NoStraightThrough(VQEMA):
    """z_q passes no gradient on: the task never reaches the encoder."""

    def read(self, params, state, z, codes, mask=None, axis_name=None, key=None) -> Quantized:
        """VQEMA's result with z_q cut off."""
        out = super().read(params, state, z, codes, mask, axis_name, key)
        return out._replace(z_q=lax.stop_gradient(out.z_q))


@dataclass(frozen=True, repr=False)
class DetachedCommitment(VQEMA):
    """The commitment term compares a detached z with a buffer: a number without a gradient."""

    def read(self, params, state, z, codes, mask=None, axis_name=None, key=None) -> Quantized:
        """VQEMA's result with a loss of the same value and no gradient."""
        out = super().read(params, state, z, codes, mask, axis_name, key)
        return out._replace(loss=lax.stop_gradient(out.loss))


@dataclass(frozen=True, repr=False)
class ClampedLoss(MissingTotal):
    """The exploded loss of `MissingTotal` clamped at 100: where it is clamped, it has no gradient.

    The one fault on top of another: a healthy loss never reaches the clamp.
    """

    def read(self, params, state, z, codes, mask=None, axis_name=None, key=None) -> Quantized:
        """The result with min(loss, 100)."""
        out = super().read(params, state, z, codes, mask, axis_name, key)
        return out._replace(loss=jnp.minimum(out.loss, 100.0))


@dataclass(frozen=True, repr=False)
class SwappedCoefficients(VQ):
    """The codebook loss gets the weight of the commitment and the other way round."""

    def read(self, params, state, z, codes, mask=None, axis_name=None, key=None) -> Quantized:
        """VQ's result with the two weights exchanged."""
        out = super().read(params, state, z, codes, mask, axis_name, key)
        terms = out.losses
        loss = self.commitment * terms['codebook'] + self.codebook * terms['commitment']
        return out._replace(loss=loss)


@dataclass(frozen=True, repr=False)
class WeightedVQEMA(VQEMA):
    """VQEMA with a codebook loss added: the codebook is a buffer, so its weight does nothing."""

    codebook: float = 1.0

    def read(self, params, state, z, codes, mask=None, axis_name=None, key=None) -> Quantized:
        """VQEMA's result with codebook |sg(z) - z_q|^2 added to the loss."""
        out = super().read(params, state, z, codes, mask, axis_name, key)
        error = lax.stop_gradient(out.losses['commitment'])
        return out._replace(loss=out.loss + self.codebook * error)


# Faults of the revival.


@dataclass(frozen=True)
class AbsoluteThreshold(Revival):
    """A code is dead below 2 vectors a step or below a share of .01, whatever K and the batch."""

    least: float = 2.0
    of_total: bool = False

    def __call__(self, key, batch, codebook, counts, step, axis_name: AxisName = None):
        """Revive what the absolute threshold calls dead."""
        use = counts / jnp.sum(counts) if self.of_total else counts
        dead = (use < self.least) & (step % self.every == 0)
        return self.source(key, batch, codebook, counts, dead, axis_name)


@dataclass(frozen=True)
class EveryStep(Revival):
    """A code that this one batch did not use is replaced at once, at every step."""

    def __call__(self, key, batch, codebook, counts, step, axis_name: AxisName = None):
        """Revive what this batch did not use."""
        del step
        dead = ops.code_counts(batch.codes, counts.shape[0], None, axis_name) == 0
        return self.source(key, batch, codebook, counts, dead, axis_name)


# Faults around the quantizer.


@dataclass(frozen=True, repr=False)
class EvalUpdated(VQEMA):
    """A sound quantizer inside the faulty bridge `EvalUpdates`."""


class EvalUpdates(nn.Quantize):
    """The 'fixed' evaluation mode: the quantizer stays in training and learns from test data."""

    def __call__(self, z, train: bool, mask: Any = None, weights: Any = None) -> Quantized:
        """Quantize and always update."""
        del train
        return super().__call__(z, True, mask, weights)


@dataclass(frozen=True, repr=False)
class ReshapedFeatures(Product):
    """128 features viewed as [64, 2]: two unlike halves share one codebook as if alike."""

    def _grouped(self, z):
        return jnp.swapaxes(z.reshape(*z.shape[:-1], -1, self.num_groups), -1, -2)


@dataclass(frozen=True, repr=False)
class UnscaledFSQ(FSQ):
    """FSQ on features of a thousandth of its grid: all of them round to the same level."""

    def _bounded(self, x):
        return super()._bounded(1e-3 * x)


# Names in a configuration.

KINDS: dict[str, type] = {
    'missing_total': MissingTotal,
    'discarded_init': DiscardedInit,
    'zero_counts': ZeroCounts,
    'stale_revival': StaleRevival,
    'no_straight_through': NoStraightThrough,
    'detached_commitment': DetachedCommitment,
    'clamped_loss': ClampedLoss,
    'swapped_coefficients': SwappedCoefficients,
    'weighted_vq_ema': WeightedVQEMA,
    'eval_updates': EvalUpdated,
    'reshaped_features': ReshapedFeatures,
    'unscaled_fsq': UnscaledFSQ,
}
REVIVALS: dict[str, type] = {'absolute_threshold': AbsoluteThreshold, 'every_step': EveryStep}


def make(spec: Mapping[str, Any]) -> Quantizer:
    """`quantizers.make` that knows the faults: a name of KINDS, a `revival` named in REVIVALS.

    Raises:
      ValueError: as `quantizers.make` does.
    """
    fields = dict(spec)
    kind = KINDS.get(fields.get('name', ''))
    extra = {}
    if kind is not None:
        healthy = _healthy(kind)
        fields['name'] = {k: n for n, k in quantizers.REGISTRY.items()}[healthy]
        own = {f.name for f in dataclasses.fields(kind)}
        own -= {f.name for f in dataclasses.fields(healthy)}
        extra = {name: fields.pop(name) for name in own & fields.keys()}
    replaced = {}
    if isinstance(fields.get('revival'), Mapping) and 'name' in fields['revival']:
        given = dict(fields.pop('revival'))
        replaced['revival'] = REVIVALS[given.pop('name')](**given)
    if isinstance(fields.get('inner'), Mapping):
        replaced['inner'] = make(fields['inner'])
        # Stands in until the faulty one is put in its place.
        fields['inner'] = quantizers.to_spec(_cured(replaced['inner']))
    made = quantizers.make(fields)
    return (kind or type(made))(**(_fields(made) | replaced | extra))


def spec(quantizer: Quantizer) -> dict[str, Any]:
    """The spec of the healthy quantizer that a faulty one stands in for."""
    return quantizers.to_spec(_cured(quantizer))


def _healthy(kind: type) -> type:
    return next(c for c in kind.__mro__ if c in quantizers.REGISTRY.values())


def _fields(quantizer):
    """What a quantizer is made with."""
    found = {f.name: getattr(quantizer, f.name) for f in dataclasses.fields(quantizer) if f.init}
    return found | ({'init': quantizer.start} if hasattr(quantizer, 'start') else {})


def _cured(quantizer):
    """The healthy quantizer with the fields that it shares with a faulty one."""
    kind = _healthy(type(quantizer))
    names = {f.name for f in dataclasses.fields(kind)} | {'init'}
    fields = {name: value for name, value in _fields(quantizer).items() if name in names}
    if isinstance(fields.get('inner'), Quantizer):
        fields['inner'] = _cured(fields['inner'])
    if isinstance(fields.get('revival'), AbsoluteThreshold | EveryStep):
        fields['revival'] = Revival()
    return kind(**fields)


def bridge(quantizer: Quantizer) -> type[nn.Quantize]:
    """The Linen module around a quantizer."""
    return EvalUpdates if isinstance(quantizer, EvalUpdated) else nn.Quantize


PARTS = Parts(make, spec, bridge)
