"""Which code a quantizer claims to choose, and what comes back. See `claims`."""

from __future__ import annotations

import functools
import math
import statistics

import jax.numpy as jnp
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
from vqjax.quantizers.turbo_quant import TurboQuant, lloyd_max
from vqjax.quantizers.variable_rate import VariableRate
from vqjax.testing.parts import Leaf, codebook_of, leaf_vectors, shown_places, unit

_NORMAL = statistics.NormalDist()


@functools.singledispatch
def regret(q: Quantizer, leaf: Leaf) -> np.ndarray | None:
    """How much worse than the best each chosen code is, without a key: float64 [n], 0 at best.

    In the units of what is minimised, relative to its typical size.
    """
    return None


@regret.register
def _(q: Codebook, leaf: Leaf):
    if q.metric == 'dot':
        products = leaf.z @ codebook_of(leaf).T
        return _excess(-products, leaf.codes) / np.max(np.abs(products))
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
def _(q: BinaryMapper, leaf: Leaf):
    scores = logits(leaf)
    bits = leaf.codes[:, None] >> np.arange(q.num_bits) & 1
    return np.max(np.where(bits == (scores > 0), 0, np.abs(scores)), axis=-1)


@regret.register
def _(q: GumbelSoftmax, leaf: Leaf):
    scores = logits(leaf)
    return _excess(-scores, leaf.codes) / np.max(np.abs(scores))


@regret.register
def _(q: LFQ, leaf: Leaf):
    wrong = np.sign(leaf_vectors(leaf)) != np.where(leaf.z > 0, 1, -1)
    return np.max(np.where(wrong, np.abs(leaf.z), 0), axis=-1)


@regret.register
def _(q: FSQ, leaf: Leaf):
    if q.bound not in BOUNDS:
        return None
    bounded, _, spacing = grid(q, leaf.z)
    off = np.abs(leaf_vectors(leaf) - bounded) / spacing
    # At the ends the bound stands a little beyond the last level.
    return np.max(np.maximum(off - 0.5, 0), axis=-1)


@regret.register
def _(q: FSP, leaf: Leaf):
    if q.bound not in BOUNDS:
        return None
    bound = BOUNDS[q.bound][0]
    vectors = leaf_vectors(leaf)
    middle = bound(vectors)[0] if q.inverse else vectors / np.sqrt(3)
    off = np.abs(middle - bound(leaf.z)[0]) * np.asarray(q.levels, np.float64) / 2
    return np.max(np.maximum(off - 0.5, 0), axis=-1)


@regret.register
def _(q: LatentQuantization, leaf: Leaf):
    values = np.asarray(leaf.params, np.float64)
    columns = [
        _excess(np.abs(leaf.z[:, d, None] - values[d, :level]), leaf.codes[:, d])
        for d, level in enumerate(q.levels)
    ]
    return np.max(columns, axis=0) / np.max(np.abs(values))


@regret.register
def _(q: SphericalLattice, leaf: Leaf):
    return _excess(-unit(leaf.z) @ codebook_of(leaf).T, leaf.codes)


@regret.register
def _(q: TurboQuant, leaf: Leaf):
    levels = lloyd_max(q.num_bits - q.residual) / np.sqrt(q.dim)
    x = unit(leaf.z) @ np.asarray(leaf.state.rotation, np.float64)
    index = leaf.codes[:, -q.dim :] >> q.residual
    return np.max(_excess(np.abs(x.reshape(-1, 1) - levels), index.reshape(-1)).reshape(x.shape), 1)


@regret.register
def _(q: QINCo, leaf: Leaf):
    if q.candidates is not None:
        return None
    # Every code of a stage after the codes that the stages before it took.
    worst = np.zeros(len(leaf.z))
    for stage in range(q.num_stages):
        tried = np.where(np.arange(q.num_stages) < stage, leaf.codes, -1)
        tried = np.repeat(tried[:, None], q.num_codes, axis=1)
        tried[..., stage] = np.arange(q.num_codes)
        sums = np.asarray(q.decode(leaf.params, leaf.state, jnp.asarray(tried)), np.float64)
        squared = np.sum((leaf.z[:, None] - sums) ** 2, axis=-1)
        size = np.sum(leaf.z**2, axis=-1) + np.max(np.sum(sums**2, axis=-1), axis=-1)
        worst = np.maximum(worst, _excess(squared, leaf.codes[:, stage]) / size)
    return worst


def _excess(scores, codes):
    """Scores [n, K] of the chosen less the smallest; 0 where nothing was chosen."""
    chosen = np.take_along_axis(scores, np.maximum(codes, 0)[:, None], axis=-1)[:, 0]
    return np.where(codes >= 0, chosen - np.min(scores, axis=-1), 0)


def logits(leaf: Leaf) -> np.ndarray:
    """Of a GumbelSoftmax, float64 [n, K], and of a BinaryMapper's bits [n, H]."""
    kernel, bias = (np.asarray(x, np.float64) for x in leaf.params[:2])
    return leaf.z @ kernel + bias


def grid(q: FSQ, z: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(bounded value, its slope, distance of neighbouring values) of FSQ's z [n, D]."""
    levels = np.asarray(q.levels, np.float64)
    bound, inverse = BOUNDS[q.bound]
    if q.symmetric:
        bounded, slope = bound(z)
        return bounded, slope, 2 / (levels - 1)
    half, offset = (levels - 1) * (1 + 1e-3) / 2, np.where(levels % 2 == 0, 0.5, 0.0)
    moved, slope = bound(z + inverse(offset / half))
    width = levels // 2
    return (half * moved - offset) / width, half * slope / width, 1 / width


def _logistic(steepness, factor=1.0):
    """factor (2 sigmoid(a z) - 1) and its slope; and its inverse."""

    def bound(z):
        share = 1 / (1 + np.exp(-steepness * z))
        return factor * (2 * share - 1), factor * 2 * steepness * share * (1 - share)

    return bound, lambda y: 2 / steepness * np.arctanh(y / factor)


def _clamp(z):
    return np.clip(z, -1, 1), np.where(np.abs(z) < 1, 1.0, 0.0)


def _laplace(z):
    share = np.exp(-np.abs(z))
    return np.sign(z) * (1 - share), share


def _erf(z):
    value = np.vectorize(math.erf)(z / math.sqrt(2))
    return value, math.sqrt(2 / math.pi) * np.exp(-(z**2) / 2)


def _cauchy(z):
    return 2 / math.pi * np.arctan(z), 2 / math.pi / (1 + z**2)


# FSQ's bounds: (value, slope) of z, and the inverse.
BOUNDS = {
    ops.tanh: _logistic(2.0),
    ops.ifsq: _logistic(1.6),
    ops.clamp: (_clamp, lambda y: y),
    ops.short_tanh: _logistic(2.0, 0.9990000128746033 / 1.001),
    ops.sigmoid: _logistic(1.0),
    ops.laplace: (_laplace, lambda y: -np.sign(y) * np.log1p(-np.abs(y))),
    ops.erf: (_erf, np.vectorize(lambda y: math.sqrt(2) * _NORMAL.inv_cdf((1 + y) / 2))),
    ops.cauchy: (_cauchy, lambda y: np.tan(math.pi / 2 * y)),
}


@functools.singledispatch
def comes_back(q: Quantizer, vectors: np.ndarray) -> np.ndarray | None:
    """What to quantize to get back the codes that decode to `vectors` [..., D]; None for no claim.

    No claim for Residual (another sum may come nearer to what codes add up to), for Projected (the
    kernels are learned apart, and out then in is no identity) and Rotated (which is one to rounding
    only), for GumbelSoftmax (logits and
    codebook are learned apart), for RandomProjection (it decodes into another space), and where
    the largest product is chosen (a longer code may have a larger one).
    """
    return None


@comes_back.register(Codebook)
@comes_back.register(SphericalLattice)
def _(q, vectors):
    return vectors


@comes_back.register
def _(q: LFQ, vectors):
    # With fewer bits in the last code not every tuple of codes stands for something.
    return vectors if np.ptp(q.code_sizes) == 0 else None


@comes_back.register
def _(q: IBQ, vectors):
    return None if q.metric == 'dot' else vectors


@comes_back.register(FSP)
@comes_back.register(FSQ)
def _(q, vectors):
    # The values are those of the bounded z.
    return q.unbound(vectors)


@comes_back.register
def _(q: Product, vectors):
    parts = [comes_back(q.inner, part) for part in np.split(vectors, q.num_groups, axis=-1)]
    return None if parts[0] is None else np.concatenate(parts, axis=-1)


@comes_back.register
def _(q: LatentQuantization, vectors):
    # With fewer levels in some features not every tuple of codes stands for something.
    return vectors if len(set(q.levels)) == 1 else None


@comes_back.register
def _(q: Levels, vectors):
    grids = vectors.reshape(*vectors.shape[:-2], -1, *q.grid, vectors.shape[-1])
    levels = np.split(grids, np.cumsum(q.sizes)[:-1], axis=-2)
    found = [comes_back(inner, level) for inner, level in zip(q.inner, levels, strict=True)]
    if any(level is None for level in found):
        return None
    return np.concatenate(found, axis=-2).reshape(vectors.shape)


@functools.singledispatch
def places(q: Quantizer, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which places have a code under a mask [n, *grid]: (all that may, those that must).

    Bool [n] of vectors, [n, L] of grids: a place has one if any of its codes is not -1.
    """
    return mask, mask


@places.register
def _(q: Strided, mask):
    windows = [mask.reshape(len(mask), -1, stride).any(-1) for stride in q.strides]
    shown = np.concatenate(windows, axis=-1)
    return shown, shown


@places.register(Clamped)
@places.register(Projected)
@places.register(Rotated)
@places.register(Wrapped)
def _(q, mask):
    return places(q.inner, mask)


@places.register
def _(q: MultiScale, mask):
    scales = shown_places(q, mask)
    always = len(scales) if q.dropout is None else q.dropout.depths(len(scales))[0]
    needed = [shown & (k < always) for k, shown in enumerate(scales)]
    return np.concatenate(scales, axis=-1), np.concatenate(needed, axis=-1)


@functools.singledispatch
def samples(q: Quantizer) -> bool | None:
    """Whether codes depend on the key, or on there being one."""
    return None


@samples.register(Codebook)
@samples.register(FSP)
@samples.register(FSQ)
@samples.register(LFQ)
@samples.register(LatentQuantization)
@samples.register(QINCo)
@samples.register(RandomProjection)
@samples.register(SphericalLattice)
@samples.register(TurboQuant)
def _(q):
    chosen = getattr(q, 'assignment', ops.nearest_assignment)
    if chosen is not ops.nearest_assignment:
        return True if isinstance(chosen, ops.Sinkhorn) else None
    return getattr(q, 'temperature', 0) > 0 or getattr(q, 'noise', 0) > 0


@samples.register(BinaryMapper)
@samples.register(GumbelSoftmax)
def _(q):
    return True


@samples.register
def _(q: SpaceFilling):
    return q.points > 1  # else every segment has one point to draw


@samples.register(Clamped)
@samples.register(Conditioned)
@samples.register(Product)
@samples.register(Rotated)
@samples.register(Wrapped)
def _(q):
    return samples(q.inner)


@samples.register
def _(q: VariableRate):
    return True if q.drawn is not None else samples(q.inner)


@samples.register
def _(q: Projected):
    inner = samples(q.inner)
    return None if inner is None else inner or q.dropout > 0


@samples.register(Levels)
@samples.register(MultiScale)
@samples.register(Parallel)
@samples.register(Residual)
@samples.register(Strided)
def _(q):
    inner = [samples(x) for x in (q.inner if isinstance(q.inner, tuple) else (q.inner,))]
    if getattr(q, 'beam', 1) != 1 and None not in inner:
        inner = [False]  # it chooses for them
    return None if None in inner else getattr(q, 'dropout', None) is not None or any(inner)
