"""vqjax: vector quantization for JAX. Pure-functional quantizers, and why codebooks collapse."""

from vqjax import metrics, nn, ops, quantizers
from vqjax.quantizers import (
    FSQ,
    LFQ,
    VQ,
    VQEMA,
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

__version__ = '0.1.0'

__all__ = [
    'FSQ',
    'LFQ',
    'VQ',
    'VQEMA',
    'Guarded',
    'GumbelSoftmax',
    'Product',
    'Projected',
    'Quantized',
    'Quantizer',
    'RandomProjection',
    'Residual',
    'SimVQ',
    'make',
    'metrics',
    'nn',
    'ops',
    'quantizers',
    'to_spec',
]
