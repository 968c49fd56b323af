"""What the task's gradient passes through, by each kind's formula. See `claims`."""

from __future__ import annotations

import functools

import jax
import numpy as np

from vqjax import ops
from vqjax.quantizers.base import Quantizer
from vqjax.quantizers.binary_mapper import BinaryMapper
from vqjax.quantizers.clamped import Clamped
from vqjax.quantizers.codebook import Codebook, Wrapped
from vqjax.quantizers.conditioned import Conditioned
from vqjax.quantizers.fsp import FSP
from vqjax.quantizers.fsq import FSQ
from vqjax.quantizers.gumbel import GumbelSoftmax
from vqjax.quantizers.ibq import IBQ
from vqjax.quantizers.latent_quantization import LatentQuantization
from vqjax.quantizers.levels import Levels
from vqjax.quantizers.lfq import LFQ
from vqjax.quantizers.multi_scale import MultiScale
from vqjax.quantizers.parallel import Parallel
from vqjax.quantizers.product import Product
from vqjax.quantizers.projected import Projected
from vqjax.quantizers.qinco import QINCo
from vqjax.quantizers.random_projection import RandomProjection
from vqjax.quantizers.residual import Residual
from vqjax.quantizers.rotated import Rotated
from vqjax.quantizers.space_filling import SpaceFilling
from vqjax.quantizers.spherical_lattice import SphericalLattice
from vqjax.quantizers.strided import Strided
from vqjax.quantizers.turbo_quant import TurboQuant
from vqjax.testing.choices import BOUNDS, grid, logits
from vqjax.testing.parts import (
    Leaf,
    branches_of,
    codebook_of,
    conditions,
    hidden,
    levels_of,
    parts,
    projected,
    real_by_codes,
    real_in_windows,
    take_apart,
    unit,
)


@functools.singledispatch
def jacobian(q: Quantizer, leaf: Leaf) -> np.ndarray | None:
    """What dz_q/dz passes for, of the whole quantizer: float64 [n, D', D], n vectors.

    Of a quantizer of grids they are the vectors of all grids, none of which reaches another's z_q.
    """
    return None


@jacobian.register
def _(q: Codebook, leaf: Leaf):
    return _estimated(q.gradient, q.unit_length, leaf)


@jacobian.register
def _(q: SpaceFilling, leaf: Leaf):
    # The two ends of the chosen point's segment, each with noise of its own.
    points, codes = np.asarray(leaf.params, np.float64), np.maximum(leaf.codes, 0)
    share, total = ((codes % q.points + 0.5) / q.points)[:, None, None], 0.0
    for end, weight in enumerate((1 - share, share)):
        key = None if leaf.key is None else jax.random.fold_in(leaf.key, end + 1)
        noise = _noise(q.gradient, key, leaf.codes >= 0, leaf.z)
        value = points[codes // q.points + end]
        total = total + weight * _estimator_slope(q.gradient, leaf.z, value, noise)
    return np.where((leaf.codes >= 0)[:, None, None], total, 0)


@jacobian.register
def _(q: IBQ, leaf: Leaf):
    codebook = codebook_of(leaf)
    scores = leaf.z @ codebook.T
    if q.metric == 'euclidean':
        scores = 2 * scores - np.sum(codebook**2, axis=-1)
    p = _softmax(scores)
    slope = p[:, :, None] * np.eye(q.num_codes) - p[:, :, None] * p[:, None]
    by_z = codebook if q.metric == 'dot' else 2 * codebook
    alive = leaf.codes >= 0
    return np.where(alive[:, None, None], codebook.T @ slope @ by_z, 0)


@jacobian.register
def _(q: Wrapped, leaf: Leaf):
    return jacobian(q.inner, leaf._replace(q=q.inner, state=leaf.state.inner))


@jacobian.register
def _(q: LFQ, leaf: Leaf):
    found = _estimated(ops.straight_through, q.spherical, leaf)
    return None if found is None else found * (q.scale if q.spherical else 1)


@jacobian.register
def _(q: SphericalLattice, leaf: Leaf):
    return _estimated(ops.straight_through, True, leaf)


@jacobian.register
def _(q: FSQ, leaf: Leaf):
    if q.bound not in BOUNDS:
        return None
    return grid(q, leaf.z)[1][..., None] * np.eye(leaf.z.shape[-1])


@jacobian.register
def _(q: FSP, leaf: Leaf):
    one = np.eye(leaf.z.shape[-1])
    if q.inverse:
        return np.broadcast_to(one, (len(leaf.z), *one.shape))
    if q.bound not in BOUNDS:
        return None
    return np.sqrt(3) * BOUNDS[q.bound][0](leaf.z)[1][..., None] * one


@jacobian.register(LatentQuantization)
@jacobian.register(QINCo)
@jacobian.register(TurboQuant)
def _(q, leaf: Leaf):
    return _estimated(ops.straight_through, False, leaf)


@jacobian.register
def _(q: RandomProjection, leaf: Leaf):
    return np.zeros((len(leaf.z), q.dim, leaf.z.shape[-1]))


@jacobian.register
def _(q: GumbelSoftmax, leaf: Leaf):
    scores = logits(leaf)
    if leaf.key is not None:
        places = np.cumsum(leaf.codes >= 0) - 1
        scores = scores + ops.gumbel_noise(leaf.key, places, q.num_codes)
    temperature = q.temperature(leaf.state.step) if callable(q.temperature) else q.temperature
    p = _softmax(scores / float(temperature))
    slope = (p[:, :, None] * np.eye(q.num_codes) - p[:, :, None] * p[:, None]) / float(temperature)
    codebook, kernel = (np.asarray(leaf.params[i], np.float64) for i in (2, 0))
    return codebook.T @ slope @ kernel.T


@jacobian.register
def _(q: BinaryMapper, leaf: Leaf):
    words = np.arange(q.num_codes)[:, None] >> np.arange(q.num_bits) & 1
    scores = logits(leaf)
    p, one = _softmax(scores @ words.T), 1 / (1 + np.exp(-scores))
    slope = p[:, :, None] * (words - one[:, None])
    codebook, kernel = (np.asarray(leaf.params[i], np.float64) for i in (2, 0))
    return codebook.T @ slope @ kernel.T


@jacobian.register
def _(q: Residual, leaf: Leaf):
    # One estimator around the whole, the first stage's: 1 and not the number of stages.
    first = q.inner[0] if isinstance(q.inner, tuple) else q.inner
    gradient = getattr(first, 'gradient', ops.straight_through)
    return _estimated(gradient, False, leaf._replace(key=_key_around(q.num_stages, leaf.key)))


@jacobian.register
def _(q: Projected, leaf: Leaf):
    before, after = (np.asarray(x, np.float64).T for x in leaf.params[:2])
    steps = projected(q, leaf)
    units = hidden(q, leaf).reshape(-1, before.shape[-1])
    found = jacobian(q.inner, leaf._replace(q=q.inner, params=leaf.params.inner, z=steps[-1]))
    if found is None:
        return None
    steps = [x.reshape(-1, x.shape[-1]) for x in steps]
    slope = np.broadcast_to(before, (len(steps[0]), *before.shape))
    if q.hidden:  # of its ReLU 1 where a unit is on, and what stands in for dropped units
        gain = 1.0 if leaf.key is None else 1 / (1 - q.dropout)
        kernel = np.asarray(leaf.params.kernel_hidden, np.float64)
        slope = (gain * before * (units > 0)[:, None]) @ kernel.T
    if q.layer_norm:
        scale = np.asarray(leaf.params.scale, np.float64)
        slope = scale[:, None] * (_standard_slope(steps[0]) @ slope)
    if q.normalize:
        slope = _unit_slope(steps[-2]) @ slope
    return after @ found @ slope


@jacobian.register
def _(q: MultiScale, leaf: Leaf):
    # As of Residual, around the sum of all scales.
    z, vectors = (x.reshape(-1, x.shape[-1]) for x in (leaf.z, parts(q, leaf)[1]))
    first = q.inner[0] if isinstance(q.inner, tuple) else q.inner
    gradient = getattr(first, 'gradient', ops.straight_through)
    return _around_sum(gradient, len(q.scales), leaf, z, vectors, real_by_codes(q, leaf.codes))


def _around_sum(gradient, number, leaf, z, vectors, real):
    """Of the estimator around a sum of so many stages, of vectors [n, D] that are real or not."""
    real = real.reshape(-1)
    noise = _noise(gradient, _key_around(number, leaf.key), real, z)
    slope = _estimator_slope(gradient, z, vectors, noise)
    return None if slope is None else np.where(real[:, None, None], slope, 0)


@jacobian.register
def _(q: Clamped, leaf: Leaf):
    limit = np.asarray(q.limit, np.float64)
    x = np.tanh(leaf.z / limit)
    found = jacobian(q.inner, leaf._replace(q=q.inner, z=limit * x))
    return None if found is None else found * (1 - x**2).reshape(-1, 1, x.shape[-1])


@jacobian.register
def _(q: Rotated, leaf: Leaf):
    rotation = np.asarray(leaf.state.rotation, np.float64)
    inner = leaf._replace(q=q.inner, state=leaf.state.inner, z=leaf.z @ rotation)
    found = jacobian(q.inner, inner)
    return None if found is None else rotation @ found @ rotation.T


@jacobian.register
def _(q: Conditioned, leaf: Leaf):
    mean, factor, offset = conditions(q, leaf)
    inner = leaf._replace(
        q=q.inner,
        params=leaf.params.inner,
        state=leaf.state.inner,
        z=(leaf.z - mean) / factor + offset,
    )
    found = jacobian(q.inner, inner)
    return None if found is None else found * factor[:, None] / factor


@jacobian.register
def _(q: Parallel, leaf: Leaf):
    # Each branch hands on its own.
    found = [jacobian(branch.q, branch) for branch in branches_of(q, leaf)]
    return None if any(part is None for part in found) else sum(found)


@jacobian.register
def _(q: Strided, leaf: Leaf):
    # As of Residual, around the sum of all stages.
    z, vectors = (x.reshape(-1, x.shape[-1]) for x in (leaf.z, parts(q, leaf)[1]))
    gradient = getattr(q.inner[0], 'gradient', ops.straight_through)
    return _around_sum(gradient, len(q.inner), leaf, z, vectors, real_in_windows(q, leaf.codes))


@jacobian.register
def _(q: Levels, leaf: Leaf):
    found = [jacobian(level.q, level) for level in levels_of(q, leaf)]
    if any(part is None for part in found):
        return None
    by_level = [part.reshape(len(leaf.z), -1, *part.shape[1:]) for part in found]
    whole = np.concatenate(by_level, axis=1)
    return whole.reshape(-1, *whole.shape[2:])


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


def _softmax(scores):
    p = np.exp(scores - scores.max(-1, keepdims=True))
    return p / p.sum(-1, keepdims=True)


def _estimated(gradient, normalised, leaf):
    """Of an estimator around z, or around z of unit length; None for a function of your own."""
    x = unit(leaf.z) if normalised else leaf.z
    value = take_apart(*leaf[:6])[1]
    # A group or row without any code is zero, and so is its gradient.
    alive = np.any(leaf.codes.reshape(len(x), -1) >= 0, axis=-1)
    found = _estimator_slope(gradient, x, value, _noise(gradient, leaf.key, alive, x))
    if found is None:
        return None
    found = np.where(alive[:, None, None], found, 0)
    return found @ _unit_slope(leaf.z) if normalised else found


def _noise(gradient, key, real, x):
    """What `ops.DiVeQ` adds to the direction of vectors x [n, D], real [n]: 0 without a key."""
    if not isinstance(gradient, ops.DiVeQ) or key is None:
        return 0.0
    drawn = ops.normal_noise(key, np.maximum(np.cumsum(real) - 1, 0), x.shape[-1])
    return gradient.variance**0.5 * np.asarray(drawn, np.float64)


def _key_around(number, key):
    """The key of the noise around a sum of so many stages."""
    return None if key is None else jax.random.fold_in(key, number + 1)


def _estimator_slope(gradient, x, value, noise=0.0):
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
    if ops.trains_codes(gradient):
        return one - unit(value - x + noise)[:, :, None] * unit(value - x)[:, None]
    return None


def _unit_slope(x):
    """d unit(x) / dx, float64 [n, D, D]."""
    u, length = unit(x), np.linalg.norm(x, axis=-1)[:, None, None]
    return (np.eye(x.shape[-1]) - u[:, :, None] * u[:, None]) / length


def _standard_slope(x):
    """d (x - mean) / sqrt(var + 1e-5) / dx, float64 [n, D, D]."""
    dim = x.shape[-1]
    centred = x - x.mean(-1, keepdims=True)
    width = np.sqrt(x.var(-1) + 1e-5)[:, None, None]
    centre = np.eye(dim) - 1 / dim
    return (centre - centred[:, :, None] * centred[:, None] / (dim * width**2)) / width
