"""What a quantizer's loss is made of, and what its terms train. See `claims`."""

from __future__ import annotations

import functools
from typing import Any

import jax
import numpy as np

from vqjax import ops
from vqjax.quantizers.base import Quantizer
from vqjax.quantizers.binary_mapper import BinaryMapper, BinaryMapperParams
from vqjax.quantizers.bridged import Bridged, BridgedCodebook
from vqjax.quantizers.clamped import Clamped
from vqjax.quantizers.codebook import Wrapped
from vqjax.quantizers.conditioned import Conditioned, ConditionedParams
from vqjax.quantizers.fsp import FSP
from vqjax.quantizers.fsq import FSQ
from vqjax.quantizers.gumbel import GumbelParams, GumbelSoftmax
from vqjax.quantizers.ibq import IBQ
from vqjax.quantizers.latent_quantization import LatentQuantization
from vqjax.quantizers.levels import Levels
from vqjax.quantizers.lfq import LFQ
from vqjax.quantizers.multi_scale import MultiScale, MultiScaleParams
from vqjax.quantizers.parallel import Parallel
from vqjax.quantizers.product import Product
from vqjax.quantizers.projected import Projected, ProjectedParams
from vqjax.quantizers.qinco import QINCo
from vqjax.quantizers.random_projection import RandomProjection
from vqjax.quantizers.residual import Residual
from vqjax.quantizers.rotated import Rotated
from vqjax.quantizers.sim_vq import SimVQ
from vqjax.quantizers.space_filling import SpaceFilling
from vqjax.quantizers.spherical_lattice import SphericalLattice
from vqjax.quantizers.strided import Strided
from vqjax.quantizers.turbo_quant import TurboQuant
from vqjax.quantizers.variable_rate import VariableRate, VariableRateParams
from vqjax.quantizers.vq import VQ
from vqjax.quantizers.vq_ema import VQEMA
from vqjax.testing.parts import Leaf, leaf_vectors, unit


@functools.singledispatch
def weights(q: Quantizer) -> dict[str, float] | None:
    """The weight of each term in a leaf's loss."""
    return None


@weights.register
def _(q: VQEMA):
    names = ('balance', 'diversity', 'cross_entropy')
    return {'commitment': q.commitment} | {name: w for name in names if (w := getattr(q, name))}


@weights.register
def _(q: VQ):
    names = ('commitment', 'codebook', 'orthogonality', 'active_orthogonality', 'diversity')
    names += ('balance', 'cross_entropy', 'wasserstein')
    always = ('commitment', 'codebook')
    return {name: w for name in names if (w := getattr(q, name)) or name in always}


@weights.register
def _(q: QINCo):
    return {'commitment': q.commitment, 'partial_sums': q.partial_sums}


@weights.register(BridgedCodebook)
@weights.register(LatentQuantization)
def _(q):
    return {'commitment': q.commitment, 'codebook': q.codebook}


@weights.register
def _(q: IBQ):
    entropies = {'per_sample_entropy': q.entropy, 'batch_entropy': -q.gamma * q.entropy}
    errors = {name: getattr(q, name) for name in ('index', 'commitment', 'codebook')}
    return errors | (entropies if q.entropy else {})


@weights.register
def _(q: LFQ):
    entropies = {'per_sample_entropy': q.entropy, 'batch_entropy': -q.gamma * q.entropy}
    return {'commitment': q.commitment} | (entropies if q.entropy else {})


@weights.register
def _(q: BinaryMapper):
    return {'kl': q.kl}


@weights.register
def _(q: GumbelSoftmax):
    return {'diversity': q.diversity} if q.diversity else {}


@weights.register
def _(q: FSP):
    names = ('mean', 'variance', 'skewness', 'kurtosis')
    return {name: w for name in names if (w := getattr(q, name))}


@weights.register(FSQ)
@weights.register(RandomProjection)
@weights.register(SpaceFilling)
@weights.register(SphericalLattice)
@weights.register(TurboQuant)
def _(q):
    return {}


@functools.singledispatch
def own_terms(q: Quantizer) -> dict[str, float]:
    """Terms that a combinator adds to its inner's: the weight of the mean of their entries."""
    return {}


@own_terms.register
def _(q: Projected):
    return own_terms(q.inner)


@own_terms.register
def _(q: Residual):
    # The loss takes their sum.
    return {'similarity': q.similarity * q.num_stages} if q.similarity else {}


@own_terms.register
def _(q: MultiScale):
    terms = {'phi': 1.0} if q.phi or q.commitment else {}
    return terms | ({'sum_commitment': q.commitment} if q.commitment else {})


@own_terms.register
def _(q: VariableRate):
    return own_terms(q.inner) | {'rate': q.rate}


@own_terms.register(Clamped)
@own_terms.register(Rotated)
@own_terms.register(Conditioned)
def _(q):
    return own_terms(q.inner)


def squared_errors(leaf: Leaf) -> dict[str, float]:
    """What the terms that are squared errors must be: the mean over features and real vectors."""
    names = {'commitment', 'codebook', 'index'} & (weights(leaf.q) or {}).keys()
    x = unit(leaf.z) if getattr(leaf.q, 'unit_length', False) else leaf.z
    if getattr(leaf.q, 'spherical', False):
        x = leaf.q.scale * unit(leaf.z)
    real = np.any(leaf.codes.reshape(len(x), -1) >= 0, axis=-1)
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


@trains.register
def _(q: Bridged, term, params):
    to_params = ops.trains_codes(q.gradient) if term == 'task' else term == 'codebook'
    if not isinstance(q.bridge, ops.Linear | ops.LowRank | ops.VQBridge):
        return None  # which of the params of your own bridge reach the codebook
    return term in ('task', 'commitment'), _all(params, to_params)


@trains.register
def _(q: SpaceFilling, term, params):
    return True, True  # there is the task alone


@trains.register
def _(q: IBQ, term, params):
    return term != 'codebook', term != 'commitment'


@trains.register(VQ)
@trains.register(SimVQ)
@trains.register(LatentQuantization)
@trains.register(QINCo)
def _(q, term, params):
    if term == 'task':
        # Most estimators hand all of it to z.
        gradient = getattr(q, 'gradient', ops.straight_through)
        learns = ops.trains_codes(gradient) or getattr(q, 'sync_nu', 0) > 0
        return True, _all(params, learns)
    to_z = term in ('commitment', 'diversity', 'balance', 'cross_entropy', 'wasserstein')
    return to_z, _all(params, term != 'commitment')


@trains.register(VQEMA)
@trains.register(LFQ)
@trains.register(FSP)
@trains.register(FSQ)
@trains.register(RandomProjection)
@trains.register(SphericalLattice)
@trains.register(TurboQuant)
def _(q, term, params):
    return not q.targets_only, _all(params, False)


@trains.register
def _(q: BinaryMapper, term, params):
    return True, BinaryMapperParams(kernel=True, bias=True, codebook=term == 'task')


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
    if term == 'similarity' and q.similarity:
        # Straight through every stage, and to what the stages' vectors are made of.
        learns = isinstance(q.inner, VQ | SimVQ | VQEMA)
        return (True, _all(params, True)) if learns else None
    if not isinstance(q.inner, tuple):
        return trains(q.inner, term, params)
    return _by_entry(q, term, params)


@trains.register(Levels)
@trains.register(Parallel)
@trains.register(Strided)
def _(q, term, params):
    return _by_entry(q, term, params)


@trains.register(Clamped)
@trains.register(Rotated)
def _(q, term, params):
    return trains(q.inner, term, params)


@trains.register
def _(q: Conditioned, term, params):
    found = trains(q.inner, term, params.inner)
    # Of a straight-through z_q the offset has no effect: what is added is taken off again.
    if found is None or (term == 'task' and not isinstance(q.inner, FSQ)):
        return None
    return found[0], ConditionedParams(found[0], found[0], found[1])


@trains.register
def _(q: VariableRate, term, params):
    if term == 'rate':
        return True, VariableRateParams(True, True, _all(params.inner, False))
    found = trains(q.inner, term, params.inner)
    if found is None:
        return None
    return found[0], VariableRateParams(term == 'task', term == 'task', found[1])


def _by_entry(q, term, params):
    """Of a tuple of quantizers: one that lacks the term is not trained by it."""
    lacks = [term not in {'task', *_terms(inner)} for inner in q.inner]
    found = [
        (False, _all(part, False)) if lack else trains(inner, term, part)
        for inner, part, lack in zip(q.inner, params, lacks, strict=True)
    ]
    if None in found:
        return None
    return any(to_z for to_z, _ in found), tuple(tree for _, tree in found)


def _terms(q):
    """Names of the terms of one quantizer, or of the one inside it."""
    while weights(q) is None and isinstance(getattr(q, 'inner', None), Quantizer):
        q = q.inner
    return weights(q) or {}


@trains.register
def _(q: MultiScale, term, params):
    inner = params.inner if q.phi else params
    if term == 'phi':
        # |sum so far - sg(z)|^2 trains what the sum is made of, and z not at all.
        found = False, decoded_params(q.inner, inner)
    elif term == 'sum_commitment':
        found = True, _all(inner, False)
    elif isinstance(q.inner, tuple):
        found = _by_entry(q, term, inner)
    else:
        found = trains(q.inner, term, inner)
    if found is None or not q.phi:
        return found
    return found[0], MultiScaleParams(*[term in ('phi', 'task')] * 2, found[1])


def decoded_params(q: Quantizer | tuple[Quantizer, ...], params: Any) -> Any:
    """Which leaves of params the vectors of codes are made of: a tree of bool."""
    if isinstance(q, BinaryMapper | GumbelSoftmax):
        return type(params)(kernel=False, bias=False, codebook=True)
    if isinstance(q, tuple):
        return tuple(decoded_params(*both) for both in zip(q, params, strict=True))
    if isinstance(q, Projected):
        within = decoded_params(q.inner, params.inner)
        biases = (False, True) if q.bias else ((), ())
        norm = (False, False) if q.layer_norm else ((), ())
        layer = (False, False) if q.hidden else ((), ())
        return ProjectedParams(False, True, within, *biases, *norm, *layer)
    inner = getattr(q, 'inner', None)
    return decoded_params(inner, params) if isinstance(inner, Quantizer) else _all(params, True)


@trains.register
def _(q: Projected, term, params):
    found = trains(q.inner, term, params.inner)
    if found is None:
        return None
    # What reaches the projected z reaches what projected it.
    before, after = found[0], term == 'task'
    biases = (before, after) if q.bias else ((), ())
    norm = (before, before) if q.layer_norm else ((), ())
    layer = (before, before) if q.hidden else ((), ())
    return before, ProjectedParams(before, after, found[1], *biases, *norm, *layer)
