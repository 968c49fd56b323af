"""vqjax: vector quantization for JAX. Pure-functional quantizers, and why codebooks collapse."""

import importlib

from vqjax import health, metrics, nn, ops, quantizers
from vqjax.quantizers import REGISTRY as _REGISTRY
from vqjax.quantizers import Quantized, Quantizer, make, to_spec
from vqjax.quantizers.kinds import *  # noqa: F403 - the quantizers

__version__ = '0.2.0'  # the only place that holds it; see docs/releasing.md

__all__ = [
    'Quantized',
    'Quantizer',
    'health',
    'make',
    'metrics',
    'nn',
    'ops',
    'quantizers',
    'to_spec',
]
# Imported when first asked for.
_LATER = ('calibration', 'codec', 'hsmm', 'importers', 'intervals', 'nnx', 'testing')
__all__ += [*_LATER, *(kind.__name__ for kind in _REGISTRY.values())]


def __getattr__(name: str):
    """`vqjax.calibration`, `codec`, `hsmm`, `importers`, `intervals`, `nnx` and `testing`."""
    if name in _LATER:
        return importlib.import_module(f'vqjax.{name}')
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
