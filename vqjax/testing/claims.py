"""What each kind of quantizer claims of its own, in float64 and by its formula.

One `functools.singledispatch` function a claim: a quantizer of your own makes the claims of the
kind it is derived from, and others by `claim.register(MyQuantizer)`. One that returns None is none.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import numpy as np

from vqjax import ops
from vqjax.quantizers.base import Quantizer
from vqjax.quantizers.codebook import Codebook, Wrapped
from vqjax.quantizers.fsq import FSQ
from vqjax.quantizers.gumbel import GumbelParams, GumbelSoftmax
from vqjax.quantizers.lfq import LFQ
from vqjax.quantizers.product import Product
from vqjax.quantizers.projected import Projected, ProjectedParams
from vqjax.quantizers.random_projection import RandomProjection
from vqjax.quantizers.residual import Residual
from vqjax.quantizers.sim_vq import SimVQ
from vqjax.quantizers.vq import VQ
from vqjax.quantizers.vq_ema import VQEMA
from vqjax.testing.parts import Leaf, codebook_of, leaf_vectors, take_apart, unit

# --- which code is chosen


@functools.singledispatch
def regret(q: Quantizer, leaf: Leaf) -> np.ndarray | None:
    """How much worse than the best each chosen code is, without a key: float64 [n], 0 at best.

    In the units of what is minimised, relative to its typical size.
    """
    return None


@regret.register
def _(q: Codebook, leaf: Leaf):
    cosine = q.metric == 'cosine'
    x, codebook = (unit(v) if cosine else v for v in (leaf.z, codebook_of(leaf)))
    squared = np.sum((x[:, None] - codebook) ** 2, axis=-1)
    size = np.sum(x**2, axis=-1) + np.max(np.sum(codebook**2, axis=-1))
    return _excess(squared, leaf.codes) / size


@regret.register
def _(q: RandomProjection, leaf: Leaf):
    x = unit(leaf.z @ np.asarray(leaf.state.projection, np.float64))
    return _excess(-x @ codebook_of(leaf).T, leaf.codes)


@regret.register
def _(q: GumbelSoftmax, leaf: Leaf):
    logits = _logits(leaf)
    return _excess(-logits, leaf.codes) / np.max(np.abs(logits))


@regret.register
def _(q: LFQ, leaf: Leaf):
    wrong = np.sign(leaf_vectors(leaf)) != np.where(leaf.z > 0, 1, -1)
    return np.max(np.where(wrong, np.abs(leaf.z), 0), axis=-1)


@regret.register
def _(q: FSQ, leaf: Leaf):
    bounded, _, spacing = _grid(q, leaf.z)
    off = np.abs(leaf_vectors(leaf) - bounded) / spacing
    # At the ends the bound stands a little beyond the last level.
    return np.max(np.maximum(off - 0.5, 0), axis=-1)


def _excess(scores, codes):
    """Scores [n, K] of the chosen less the smallest; 0 where nothing was chosen."""
    chosen = np.take_along_axis(scores, np.maximum(codes, 0)[:, None], axis=-1)[:, 0]
    return np.where(codes >= 0, chosen - np.min(scores, axis=-1), 0)


def _logits(leaf):
    kernel, bias = (np.asarray(x, np.float64) for x in leaf.params[:2])
    return leaf.z @ kernel + bias


def _grid(q, z):
    """(bounded value, its slope, distance of neighbouring values) of FSQ's z [n, D]."""
    levels = np.asarray(q.levels, np.float64)
    if q.symmetric:
        return np.tanh(z), 1 - np.tanh(z) ** 2, 2 / (levels - 1)
    half, offset = (levels - 1) * (1 + 1e-3) / 2, np.where(levels % 2 == 0, 0.5, 0.0)
    moved = np.tanh(z + np.arctanh(offset / half))
    width = levels // 2
    return (half * moved - offset) / width, half * (1 - moved**2) / width, 1 / width


@functools.singledispatch
def comes_back(q: Quantizer, vectors: np.ndarray) -> np.ndarray | None:
    """What to quantize to get back the codes that decode to `vectors` [..., D]; None for no claim.

    No claim for Residual (another sum may come nearer to what codes add up to), for Projected (the
    kernels are learned apart, and out then in is no identity), for GumbelSoftmax (logits and
    codebook are learned apart), and for RandomProjection (it decodes into another space).
    """
    return None


@comes_back.register(Codebook)
@comes_back.register(LFQ)
def _(q, vectors):
    return vectors


@comes_back.register
def _(q: FSQ, vectors):
    # The values are those of the bounded z.
    return q.unbound(vectors)


@comes_back.register
def _(q: Product, vectors):
    parts = [comes_back(q.inner, part) for part in np.split(vectors, q.num_groups, axis=-1)]
    return None if parts[0] is None else np.concatenate(parts, axis=-1)


@functools.singledispatch
def samples(q: Quantizer) -> bool | None:
    """Whether codes depend on the key."""
    return None


@samples.register(Codebook)
@samples.register(FSQ)
@samples.register(LFQ)
@samples.register(RandomProjection)
def _(q):
    return getattr(q, 'temperature', 0) > 0 or getattr(q, 'noise', 0) > 0


@samples.register
def _(q: GumbelSoftmax):
    return True


@samples.register(Product)
@samples.register(Projected)
@samples.register(Wrapped)
def _(q):
    return samples(q.inner)


@samples.register
def _(q: Residual):
    inner = [samples(x) for x in (q.inner if isinstance(q.inner, tuple) else (q.inner,))]
    return None if None in inner else q.dropout is not None or any(inner)


# --- gradients of the task


@functools.singledispatch
def jacobian(q: Quantizer, leaf: Leaf) -> np.ndarray | None:
    """What dz_q/dz passes for, of the whole quantizer: float64 [n, D', D]."""
    return None


@jacobian.register
def _(q: Codebook, leaf: Leaf):
    return _estimated(q.gradient, getattr(q, 'metric', 'euclidean') == 'cosine', leaf)


@jacobian.register
def _(q: Wrapped, leaf: Leaf):
    return jacobian(q.inner, leaf._replace(q=q.inner, state=leaf.state.inner))


@jacobian.register
def _(q: LFQ, leaf: Leaf):
    return _estimated(ops.straight_through, q.spherical, leaf)


@jacobian.register
def _(q: FSQ, leaf: Leaf):
    return _grid(q, leaf.z)[1][..., None] * np.eye(leaf.z.shape[-1])


@jacobian.register
def _(q: RandomProjection, leaf: Leaf):
    return np.zeros((len(leaf.z), q.dim, leaf.z.shape[-1]))


@jacobian.register
def _(q: GumbelSoftmax, leaf: Leaf):
    logits = _logits(leaf)
    if leaf.key is not None:
        places = np.cumsum(leaf.codes >= 0) - 1
        logits = logits + ops.row_noise(jax.random.gumbel, leaf.key, places, q.num_codes)
    temperature = q.temperature(leaf.state.step) if callable(q.temperature) else q.temperature
    p = np.exp((logits - logits.max(-1, keepdims=True)) / float(temperature))
    p /= p.sum(-1, keepdims=True)
    slope = (p[:, :, None] * np.eye(q.num_codes) - p[:, :, None] * p[:, None]) / float(temperature)
    codebook, kernel = (np.asarray(leaf.params[i], np.float64) for i in (2, 0))
    return codebook.T @ slope @ kernel.T


@jacobian.register
def _(q: Residual, leaf: Leaf):
    # One estimator around the whole, the first stage's: 1 and not the number of stages.
    first = q.inner[0] if isinstance(q.inner, tuple) else q.inner
    return _estimated(getattr(first, 'gradient', ops.straight_through), False, leaf)


@jacobian.register
def _(q: Projected, leaf: Leaf):
    before, after = (np.asarray(x, np.float64).T for x in leaf.params[:2])
    x = leaf.z @ before.T
    within = leaf._replace(q=q.inner, params=leaf.params.inner, z=unit(x) if q.normalize else x)
    found = jacobian(q.inner, within)
    if found is None:
        return None
    return after @ found @ (_unit_slope(x) @ before if q.normalize else before)


@jacobian.register
def _(q: Product, leaf: Leaf):
    keys = [None] * q.num_groups if leaf.key is None else jax.random.split(leaf.key, q.num_groups)
    blocks = []
    for group, z in enumerate(np.split(leaf.z, q.num_groups, axis=-1)):
        trees = (leaf.params, leaf.state)
        if not q.shared:
            trees = jax.tree.map(lambda x, g=group: x[g], trees)
        codes = leaf.codes[..., group]
        blocks.append(jacobian(q.inner, Leaf(q.inner, *trees, z, codes, keys[group], 1, (), True)))
        if blocks[-1] is None:
            return None
    rows, columns = blocks[0].shape[1:]
    whole = np.zeros((len(leaf.z), rows * q.num_groups, columns * q.num_groups))
    for group, block in enumerate(blocks):
        at = slice(group * rows, (group + 1) * rows), slice(group * columns, (group + 1) * columns)
        whole[:, *at] = block
    return whole


def _estimated(gradient, normalised, leaf):
    """Of an estimator around z, or around z of unit length; None for a function of your own."""
    x = unit(leaf.z) if normalised else leaf.z
    value = take_apart(*leaf[:6])[1]
    found = _estimator_slope(gradient, x, value)
    if found is None:
        return None
    # A group or row without any code is zero, and so is its gradient.
    alive = np.any(leaf.codes.reshape(len(x), -1) >= 0, axis=-1)
    found = np.where(alive[:, None, None], found, 0)
    return found @ _unit_slope(leaf.z) if normalised else found


def _estimator_slope(gradient, x, value):
    one = np.broadcast_to(np.eye(x.shape[-1]), (*x.shape, x.shape[-1]))
    if gradient is ops.straight_through:
        return one
    if gradient is ops.rotate:
        # The rotation that takes u to v, both of unit length, times |z_q| / |z|.
        u, v, w = unit(x), unit(value), unit(unit(x) + unit(value))
        turn = one - 2 * w[:, :, None] * w[:, None] + 2 * v[:, :, None] * u[:, None]
        gain = np.linalg.norm(value, axis=-1) / np.linalg.norm(x, axis=-1)
        usable = (gain < ops.gradients.MAX_GAIN) & (gain > 1e-12)
        return np.where(usable[:, None, None], gain[:, None, None] * turn, one)
    if gradient is ops.directional:
        d = unit(value - x)
        return one - d[:, :, None] * d[:, None]
    return None


def _unit_slope(x):
    """d unit(x) / dx, float64 [n, D, D]."""
    u, length = unit(x), np.linalg.norm(x, axis=-1)[:, None, None]
    return (np.eye(x.shape[-1]) - u[:, :, None] * u[:, None]) / length


# --- the loss


@functools.singledispatch
def weights(q: Quantizer) -> dict[str, float] | None:
    """The weight of each term in a leaf's loss."""
    return None


@weights.register
def _(q: VQEMA):
    return {'commitment': q.commitment}


@weights.register
def _(q: VQ):
    names = ('commitment', 'codebook', 'orthogonality', 'diversity')
    always = ('commitment', 'codebook')
    return {name: w for name in names if (w := getattr(q, name)) or name in always}


@weights.register
def _(q: SimVQ):
    return {'commitment': q.commitment, 'codebook': q.codebook}


@weights.register
def _(q: LFQ):
    entropies = {'per_sample_entropy': q.entropy, 'batch_entropy': -q.gamma * q.entropy}
    return {'commitment': q.commitment} | (entropies if q.entropy else {})


@weights.register
def _(q: GumbelSoftmax):
    return {'diversity': q.diversity} if q.diversity else {}


@weights.register(FSQ)
@weights.register(RandomProjection)
def _(q):
    return {}


def squared_errors(leaf: Leaf) -> dict[str, float]:
    """What the terms that are squared errors must be: the mean over features and real vectors."""
    names = {'commitment', 'codebook'} & (weights(leaf.q) or {}).keys()
    normalised = getattr(leaf.q, 'metric', '') == 'cosine' or getattr(leaf.q, 'spherical', False)
    x, real = unit(leaf.z) if normalised else leaf.z, leaf.codes >= 0
    if not names:
        return {}
    error = np.mean((x - leaf_vectors(leaf))[real] ** 2) if real.any() else 0.0
    return dict.fromkeys(names, error)


@functools.singledispatch
def trains(q: Quantizer, term: str, params: Any) -> tuple[bool, Any] | None:
    """Whether a term's gradient reaches z, and which leaves of params: (bool, tree of bool).

    'task' is the gradient that comes in through z_q.
    """
    return None


def _all(params, value):
    return jax.tree.map(lambda _: value, params)


@trains.register(VQ)
@trains.register(SimVQ)
def _(q, term, params):
    if term == 'task':
        # Most estimators hand all of it to z.
        return True, _all(params, q.gradient is ops.directional or getattr(q, 'sync_nu', 0) > 0)
    return term in ('commitment', 'diversity'), _all(params, term != 'commitment')


@trains.register(VQEMA)
@trains.register(LFQ)
@trains.register(FSQ)
@trains.register(RandomProjection)
def _(q, term, params):
    return not q.targets_only, _all(params, False)


@trains.register
def _(q: GumbelSoftmax, term, params):
    return True, GumbelParams(kernel=True, bias=True, codebook=term == 'task')


@trains.register
def _(q: Wrapped, term, params):
    return trains(q.inner, term, params)


@trains.register
def _(q: Product, term, params):
    return trains(q.inner, term, params)


@trains.register
def _(q: Residual, term, params):
    if not isinstance(q.inner, tuple):
        return trains(q.inner, term, params)
    # A stage that lacks the term is not trained by it.
    lacks = [term != 'task' and term not in (weights(inner) or {}) for inner in q.inner]
    found = [
        (False, _all(part, False)) if lack else trains(inner, term, part)
        for inner, part, lack in zip(q.inner, params, lacks, strict=True)
    ]
    if None in found:
        return None
    return any(to_z for to_z, _ in found), tuple(tree for _, tree in found)


@trains.register
def _(q: Projected, term, params):
    found = trains(q.inner, term, params.inner)
    if found is None:
        return None
    # What reaches the projected z reaches what projected it.
    return found[0], ProjectedParams(found[0], term == 'task', found[1])
