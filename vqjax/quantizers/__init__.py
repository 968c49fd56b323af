"""Quantizers: frozen dataclasses of pure functions under one protocol (see `base`)."""

from vqjax.quantizers.banked import Banked, BankedState
from vqjax.quantizers.base import Quantized, Quantizer, stages
from vqjax.quantizers.codebook import Codebook
from vqjax.quantizers.fsq import FSQ
from vqjax.quantizers.guarded import Guarded, GuardedState, count_refits, guard_codebooks
from vqjax.quantizers.gumbel import GumbelParams, GumbelSoftmax, GumbelState
from vqjax.quantizers.lfq import LFQ
from vqjax.quantizers.placement import device_mesh, shardings
from vqjax.quantizers.product import Product
from vqjax.quantizers.projected import Projected, ProjectedParams
from vqjax.quantizers.random_projection import RandomProjection, RandomProjectionState
from vqjax.quantizers.residual import Residual
from vqjax.quantizers.sim_vq import SimVQ
from vqjax.quantizers.specs import make, to_spec
from vqjax.quantizers.vq import VQ, Affine, VQState
from vqjax.quantizers.vq_ema import VQEMA, VQEMAState

# The name of a quantizer in a spec is that of its file.
REGISTRY = {
    'vq_ema': VQEMA,
    'vq': VQ,
    'sim_vq': SimVQ,
    'fsq': FSQ,
    'lfq': LFQ,
    'gumbel': GumbelSoftmax,
    'random_projection': RandomProjection,
    'residual': Residual,
    'product': Product,
    'projected': Projected,
    'banked': Banked,
    'guarded': Guarded,
}

__all__ = [
    'FSQ',
    'LFQ',
    'REGISTRY',
    'VQ',
    'VQEMA',
    'Affine',
    'Banked',
    'BankedState',
    'Codebook',
    'Guarded',
    'GuardedState',
    'GumbelParams',
    'GumbelSoftmax',
    'GumbelState',
    'Product',
    'Projected',
    'ProjectedParams',
    'Quantized',
    'Quantizer',
    'RandomProjection',
    'RandomProjectionState',
    'Residual',
    'SimVQ',
    'VQEMAState',
    'VQState',
    'count_refits',
    'device_mesh',
    'guard_codebooks',
    'make',
    'shardings',
    'stages',
    'to_spec',
]
