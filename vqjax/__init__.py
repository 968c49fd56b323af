"""vqjax: vector quantization for JAX. Pure-functional quantizers, and why codebooks collapse."""

import importlib

from vqjax import health, metrics, ops, quantizers
from vqjax import nn as nn
from vqjax.quantizers import REGISTRY as _REGISTRY
from vqjax.quantizers import Quantized, Quantizer, make, to_spec
from vqjax.quantizers.registry import *  # noqa: F403 - the quantizers

__version__ = '0.2.0'  # the only place that holds it; see docs/releasing.md

__all__ = [
    'Quantized',
    'Quantizer',
    'health',
    'make',
    'metrics',
    'ops',
    'quantizers',
    'to_spec',
]
# Imported when first asked for.
_LATER = ('calibration', 'codec', 'hsmm', 'importers', 'intervals', 'nnx', 'testing')
# `nn` and `nnx` are Flax's names as well: `from vqjax import *` leaves those of the user alone.
__all__ += [
    *(name for name in _LATER if name != 'nnx'),
    *(kind.__name__ for kind in _REGISTRY.values()),
]


def __getattr__(name: str):
    """`vqjax.calibration`, `codec`, `hsmm`, `importers`, `intervals`, `nnx` and `testing`."""
    if name in _LATER:
        return importlib.import_module(f'vqjax.{name}')
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
