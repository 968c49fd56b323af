"""haiku's quantizers, from the state (and params) of a transformed function."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from vqjax.importers.arrays import Book
from vqjax.importers.building import Imported, averages, learned
from vqjax.importers.entries import Entries

_PARTS = ('counter', 'hidden', 'average')
_AVERAGES = [f'{ema}/{part}' for ema in ('ema_cluster_size', 'ema_dw') for part in _PARTS]


def haiku(
    entries: Entries,
    *,
    decay: float = 0.99,
    eps: float = 1e-5,
    commitment: float = 0.25,
    **leaf,
) -> Imported:
    """haiku's VectorQuantizerEMA as VQEMA, its VectorQuantizer as VQ.

    Its averages keep a `hidden` value, the plain moving average, and an `average` with the bias of
    starting at zero removed. Both give the same codebook; the hidden ones are imported, because
    they are what moves as counts and sums do here, and the counter as the step.
    """
    entries = by_path(entries)
    if entries.names == ['embeddings']:
        name = entries.key('embeddings')
        return learned(name, _codes_first(entries), commitment=commitment, decay=decay, **leaf)
    entries.expect(['embeddings', *_AVERAGES])
    counter = entries.raw('ema_cluster_size/counter')
    if counter.shape or not np.isfinite(counter) or not counter < 2**31:
        raise ValueError(f'{entries.key("ema_cluster_size/counter")} must be a number of steps')
    step = int(counter)
    if step < 1:
        raise ValueError(f'{entries.prefix} was never trained: its counter is {step}')
    arrays = {
        entries.key('ema_cluster_size/hidden'): entries['ema_cluster_size/hidden'],
        entries.key('embeddings'): entries['embeddings'].T,
        entries.key('ema_dw/hidden'): entries['ema_dw/hidden'].T,
    }
    book = Book.checked(arrays, 'euclidean', eps)
    _codes_first(entries)
    quantizer, params, state = averages(book, decay=decay, commitment=commitment, eps=eps, **leaf)
    return quantizer, params, state._replace(step=jnp.asarray(step, jnp.int32))


def _codes_first(entries):
    """The codebook [K, D], which haiku keeps as [D, K]."""
    embeddings = entries['embeddings']
    if embeddings.ndim != 2:
        raise ValueError(f'{entries.key("embeddings")} must be [D, K], got {embeddings.shape}')
    return embeddings.T


def by_path(entries: Entries) -> Entries:
    """The entries by path below the module: without the '~' of modules made in a constructor."""
    found = Entries({}, entries.prefix.removesuffix('.').removesuffix('/') + '/')
    found._arrays = {
        name.replace('/~/', '/').replace('~/', '').replace('.', '/').strip('/'): entries.raw(name)
        for name in entries.names
    }
    return found
