"""vqjax: vector quantization for JAX. Pure-functional quantizers, and why codebooks collapse."""

import importlib

from vqjax import health, metrics, nn, ops, quantizers
from vqjax.quantizers import (
    FSQ,
    LFQ,
    VQ,
    VQEMA,
    Banked,
    Guarded,
    GumbelSoftmax,
    Product,
    Projected,
    Quantized,
    Quantizer,
    RandomProjection,
    Residual,
    SimVQ,
    make,
    to_spec,
)

__version__ = '0.2.0'  # the only place that holds it; see docs/releasing.md

__all__ = [
    'FSQ',
    'LFQ',
    'VQ',
    'VQEMA',
    'Banked',
    'Guarded',
    'GumbelSoftmax',
    'Product',
    'Projected',
    'Quantized',
    'Quantizer',
    'RandomProjection',
    'Residual',
    'SimVQ',
    'codec',
    'health',
    'importers',
    'make',
    'metrics',
    'nn',
    'nnx',
    'ops',
    'quantizers',
    'testing',
    'to_spec',
]


def __getattr__(name: str):
    """`vqjax.codec`, `importers`, `nnx` and `testing`, imported when first asked for."""
    if name in ('codec', 'importers', 'nnx', 'testing'):
        return importlib.import_module(f'vqjax.{name}')
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
