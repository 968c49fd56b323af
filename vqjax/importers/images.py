"""Layouts of image tokenizers: VQGAN, LlamaGen, IBQ, VAR, VQ-VAE-2, and VQ-VAE's notebook.

Keywords are what a state dict does not hold; their defaults are those of the authors' code.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from vqjax.importers.arrays import Book
from vqjax.importers.building import (
    Imported,
    averages,
    check_codebook,
    learned,
    projected,
    projection_names,
)
from vqjax.importers.codecs import levels_of
from vqjax.importers.entries import Entries
from vqjax.quantizers import IBQ, LFQ, MultiScale, MultiScaleParams

_CONVOLUTIONS = ('quant_conv', 'post_quant_conv')
_COUNTERS = ('codebook_used', 'ema_vocab_hit_SV', 'used')


def _book_of(entries: Entries) -> str:
    """How the codebook's names begin: 'quantize.embedding.' of a model, 'embedding.' alone."""
    found = [name for name in entries.names if name.endswith('embedding.weight')]
    if len(found) != 1:
        raise ValueError(
            f'{entries.prefix}quantize.embedding.weight must be there once, found {found}'
        )
    return found[0].removesuffix('weight')


def _expect(entries, book, *others):
    stem = book.removesuffix('embedding.')
    counters = [stem + name for name in _COUNTERS]
    averaged = [book + name for name in ('cluster_size', 'embed_avg', 'initted')]
    ends = projection_names(entries, *_CONVOLUTIONS)
    entries.expect([f'{book}weight'], [*counters, *averaged, *ends, *others])


def vqgan(
    entries: Entries,
    *,
    metric: str = 'euclidean',
    beta: float = 0.25,
    legacy: bool = True,
    decay: float = 0.99,
    eps: float = 1e-5,
    **leaf: Any,
) -> Imported:
    """VQGAN (taming-transformers, diffusers): a VQ between its 1 x 1 convolutions.

    legacy: beta weighs the codebook loss, as in the released code; False: the commitment loss.
    Where the codebook has averages beside it, it is a VQEMA.
    """
    if metric == 'dot':
        return ibq(entries, metric=metric)
    book = _book_of(entries)
    _expect(entries, book)
    codebook = entries[f'{book}weight']
    if f'{book}cluster_size' in entries:
        names = ('cluster_size', 'weight', 'embed_avg')
        arrays = {entries.key(book + name): entries[book + name] for name in names}
        fields = {'decay': decay, 'commitment': beta} | leaf
        found = Book.checked(arrays, metric, eps)
        whole = averages(found, eps=eps, metric=metric, **fields)
    else:
        weights = {'commitment': 1.0, 'codebook': beta} if legacy else {'commitment': beta}
        fields = {'metric': metric, 'decay': decay} | weights | leaf
        whole = learned(entries.key(f'{book}weight'), codebook, **fields)
    return projected(whole, entries, *_CONVOLUTIONS)


def llama_gen(
    entries: Entries, *, metric: str = 'cosine', beta: float = 0.25, **leaf: Any
) -> Imported:
    """LlamaGen: a VQ on the unit sphere between 1 x 1 convolutions."""
    return vqgan(entries, metric=metric, beta=beta, legacy=False, **leaf)


def ibq(
    entries: Entries,
    *,
    metric: str = 'dot',
    beta: float = 0.25,
    entropy: float = 0.0,
    **leaf: Any,
) -> Imported:
    """IBQ (SEED-Voken): the code of the largest product, between 1 x 1 convolutions."""
    book = _book_of(entries)
    _expect(entries, book)
    codebook = entries[f'{book}weight']
    check_codebook(entries.key(f'{book}weight'), codebook)
    quantizer = IBQ(len(codebook), codebook=beta, entropy=entropy, metric=metric, **leaf)
    return projected((quantizer, jnp.asarray(codebook), ()), entries, *_CONVOLUTIONS)


def open_magvit2(
    entries: Entries,
    *,
    num_bits: int = 18,
    entropy: float = 0.1,
    commitment: float = 0.25,
    **leaf: Any,
) -> Imported:
    """Open-MAGVIT2's LFQ, which has no arrays: the first feature is the least significant bit."""
    entries.expect(())
    return LFQ(num_bits, entropy, commitment, first_bit='least', **leaf), (), ()


# FoundationVision/VAR's v_patch_nums of 256 x 256 images.
_VAR_SCALES = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)


def var(
    entries: Entries,
    *,
    scales: Sequence[Any] | None = None,
    ratio: float = 0.5,
    metric: str = 'euclidean',
    beta: float = 0.25,
    **leaf: Any,
) -> Imported:
    """VAR's VectorQuantizer2: MultiScale with VAR's loss; its 3 x 3 convolutions stay outside.

    scales: v_patch_nums; told unless they are those of the released 256 x 256 model. ratio:
    quant_resi. metric: 'cosine' for using_znorm, whose vectors keep their length.
    """
    book = _book_of(entries)
    stem = book.removesuffix('embedding.')
    phi = entries.under(f'{stem}quant_resi.')
    stems = phi.stems(r'(?:qresi_ls\.)?(\d+)\.') or (['qresi.'] if 'qresi.weight' in phi else [])
    outside = [name for name in entries.names if name.startswith(_CONVOLUTIONS)]
    _expect(entries, book, *outside, *[f'{stem}quant_resi.{name}' for name in phi.names])
    phi.expect([end + part for end in stems for part in ('weight', 'bias')])
    codebook = entries[f'{book}weight']
    fields = {'commitment': 0.0, 'codebook': 0.0, 'metric': metric} | leaf
    if metric == 'cosine':
        fields = {'unit_values': False} | fields
    inner = learned(entries.key(f'{book}weight'), codebook, **fields)
    scales = tuple(_VAR_SCALES if scales is None else scales)
    hits = f'{stem}ema_vocab_hit_SV'
    if hits in entries and len(entries.raw(hits)) != len(scales):
        raise ValueError(
            f'{entries.key(hits)} counts {len(entries.raw(hits))} scales, not {len(scales)}: tell '
            'scales, the v_patch_nums of the model'
        )
    quantizer = MultiScale(inner[0], scales, (ratio,) * len(stems), commitment=beta)
    if not stems:
        return quantizer, *inner[1:]
    dim = codebook.shape[1]
    kernels = [phi[f'{end}weight'] for end in stems]
    for kernel, end in zip(kernels, stems, strict=True):
        if kernel.shape != (dim, dim, 3, 3):
            raise ValueError(
                f'{phi.key(f"{end}weight")} must be {(dim, dim, 3, 3)}, got {kernel.shape}'
            )
    kernels = jnp.asarray(np.stack(kernels).transpose(0, 3, 4, 2, 1))  # torch's are out, in, y, x
    biases = jnp.asarray(np.stack([phi[f'{end}bias'] for end in stems]))
    return quantizer, MultiScaleParams(kernels, biases, inner[1]), inner[2]


def vq_vae_2(
    entries: Entries,
    *,
    level: int | None = None,
    sizes: Sequence[int] | None = None,
    decay: float = 0.99,
    eps: float = 1e-5,
    commitment: float = 0.25,
    **leaf: Any,
) -> Imported:
    """VQ-VAE-2 (rosinality): the top and the bottom VQEMA as Levels, or one Quantize alone.

    level: 0 reads the top alone, 1 the bottom. sizes: vectors of the top and of the bottom in one
    array z; (1, 4) where not told, the proportion of the two.
    """
    stems = [stem for stem in ('quantize_t.', 'quantize_b.', '') if f'{stem}embed' in entries]
    names = ('cluster_size', 'embed', 'embed_avg')
    entries.expect([stem + name for stem in stems for name in names])
    parts = []
    for stem in stems:
        block = entries.under(stem)
        # Its codebooks are [D, K].
        arrays = {block.key(name): block[name].T for name in names}
        book = Book.checked(arrays, 'euclidean', eps)
        parts.append(averages(book, eps=eps, decay=decay, commitment=commitment, **leaf))
    return levels_of(parts, level, sizes, (1, 4) if len(parts) == 2 else None)


def vq_vae(
    entries: Entries,
    *,
    decay: float = 0.99,
    eps: float = 1e-5,
    commitment: float = 0.25,
    **leaf: Any,
) -> Imported:
    """The widespread notebook's VectorQuantizerEMA as VQEMA, its VectorQuantizer as VQ."""
    entries.expect(['_embedding.weight'], ['_ema_w', '_ema_cluster_size'])
    codebook = entries['_embedding.weight']
    if '_ema_w' not in entries and '_ema_cluster_size' not in entries:
        fields = {'commitment': commitment, 'decay': decay} | leaf
        return learned(entries.key('_embedding.weight'), codebook, **fields)
    names = ('_ema_cluster_size', '_embedding.weight', '_ema_w')
    arrays = {entries.key(name): entries[name] for name in names}
    book = Book.checked(arrays, 'euclidean', eps)
    return averages(book, eps=eps, decay=decay, commitment=commitment, **leaf)
