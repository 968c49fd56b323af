"""Quantizers: frozen dataclasses of pure functions under one protocol (see `base`)."""

from vqjax.quantizers import registry
from vqjax.quantizers.banked import BankedState
from vqjax.quantizers.base import Quantized, Quantizer, stages
from vqjax.quantizers.binary_mapper import BinaryMapperParams
from vqjax.quantizers.bridged import BridgedParams
from vqjax.quantizers.checking import checked, restore
from vqjax.quantizers.codebook import Codebook
from vqjax.quantizers.conditioned import ConditionedParams, ConditionedState
from vqjax.quantizers.guarded import GuardedState, count_refits, guard_codebooks
from vqjax.quantizers.gumbel import GumbelParams, GumbelState
from vqjax.quantizers.multi_scale import MultiScaleParams
from vqjax.quantizers.placement import device_mesh, shardings
from vqjax.quantizers.projected import ProjectedParams
from vqjax.quantizers.qinco import QINCoBiasedParams, QINCoParams
from vqjax.quantizers.random_projection import RandomProjectionState
from vqjax.quantizers.registry import *  # noqa: F403 - the quantizers
from vqjax.quantizers.rotated import RotatedState
from vqjax.quantizers.specs import make, to_spec
from vqjax.quantizers.turbo_quant import TurboQuantState
from vqjax.quantizers.variable_rate import VariableRateParams
from vqjax.quantizers.vq import Affine, VQState
from vqjax.quantizers.vq_ema import VQEMAState, blend_codes

# The name of a quantizer in a spec is that of its file. One of your own, outside this package, is
# added to these before `make`, `to_spec` or `Codec.load` are to know it.
REGISTRY: dict[str, type] = {
    kind.__module__.rpartition('.')[-1]: kind
    for kind in vars(registry).values()
    if isinstance(kind, type)
}

__all__ = [
    'REGISTRY',
    'Affine',
    'BankedState',
    'BinaryMapperParams',
    'BridgedParams',
    'Codebook',
    'ConditionedParams',
    'ConditionedState',
    'GuardedState',
    'GumbelParams',
    'GumbelState',
    'MultiScaleParams',
    'ProjectedParams',
    'QINCoBiasedParams',
    'QINCoParams',
    'Quantized',
    'Quantizer',
    'RandomProjectionState',
    'RotatedState',
    'TurboQuantState',
    'VQEMAState',
    'VariableRateParams',
    'VQState',
    'blend_codes',
    'checked',
    'count_refits',
    'device_mesh',
    'guard_codebooks',
    'make',
    'restore',
    'shardings',
    'stages',
    'to_spec',
]
__all__ += [kind.__name__ for kind in REGISTRY.values()]
