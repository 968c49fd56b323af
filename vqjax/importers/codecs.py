"""Layouts of audio codecs: EnCodec and its relatives, DAC, SNAC, Mimi, CosyVoice, Jukebox.

Keywords are what a state dict does not hold; their defaults are those of the codec's training.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from vqjax.importers.arrays import Book
from vqjax.importers.building import (
    Imported,
    averages,
    features,
    first_stages,
    learned,
    projected,
    projection_names,
    residual,
)
from vqjax.importers.entries import Entries
from vqjax.quantizers import FSQ, Levels, Parallel, Strided

_ENCODEC = ('cluster_size', 'embed', 'embed_avg')
# A layer: its codebook's name in the codec's own code, and in transformers.
_LAYER = r'(?:vq\.)?layers\.(\d+)\.'


def encodec(
    entries: Entries,
    *,
    metric: str = 'euclidean',
    decay: float = 0.99,
    eps: float = 1e-5,
    commitment: float = 1.0,
    num_quantizers: int | None = None,
    dropout: Any = None,
    **leaf: Any,
) -> Imported:
    """EnCodec, in its own layout and transformers'; SpeechTokenizer and others have the former.

    A Residual of VQEMA. Codes [S, B, T] there are [B, T, S] here.
    """
    stems = entries.stems(_LAYER)
    own = any('._codebook.' in name for name in entries.names) or not stems
    stems = stems or ['layers.0.']
    book = '_codebook.' if own else 'codebook.'
    names = [f'{book}{name}' for name in ('inited', *_ENCODEC)]
    projections = [stem + name for stem in stems for name in projection_names(entries.under(stem))]
    entries.expect([stem + name for stem in stems for name in names], projections)
    fields = {'metric': metric, 'decay': decay, 'commitment': commitment, **leaf}
    parts = []
    for stem in stems:
        layer = entries.under(stem)
        check_started(layer, f'{book}inited')
        arrays = {layer.key(book + name): layer[book + name] for name in _ENCODEC}
        found = averages(Book.checked(arrays, metric, eps), eps=eps, **fields)
        parts.append(projected(found, layer))
    return first_stages(residual(parts, dropout=dropout), num_quantizers)


def check_started(entries: Entries, name: str) -> None:
    """Raise ValueError where the codebook was never initialised."""
    if not np.all(entries.raw(name)):
        raise ValueError(f'{entries.key(name)} is false: the codebook was never initialised')


# (first, rest) of Mimi's two residual quantizers: in moshi, and in transformers.
_MIMI = (
    ('rvq_first.', 'rvq_rest.'),
    ('semantic_residual_vector_quantizer.', 'acoustic_residual_vector_quantizer.'),
)
_MIMI_NAMES = {
    'started': ('_initialized', 'initialized', 'inited'),
    'counts': ('cluster_usage', 'cluster_size'),
    'sums': ('embedding_sum', 'embed_sum', 'embed_avg'),
}


def mimi(
    entries: Entries,
    *,
    decay: float = 0.99,
    eps: float = 1e-5,
    commitment: float = 1.0,
    num_quantizers: int | None = None,
    dropout: Any = None,
    **leaf: Any,
) -> Imported:
    """Mimi, in moshi's layout and transformers': a Parallel of a semantic and an acoustic Residual.

    Its codebook is sum / max(usage, eps), without smoothing: a VQEMA with eps=0.
    """
    first, rest = _MIMI[any(name.startswith(_MIMI[1][0]) for name in entries.names)]
    fields = {'decay': decay, 'commitment': commitment, **leaf}
    parts, known = [], []
    for stem in (first, rest):
        part = entries.under(stem)
        if part.names or stem == first:
            parts.append(_mimi_part(part, eps, dropout, fields))
            known += [stem + name for name in part.names]
    entries.expect((), known)
    if len(parts) == 1:
        return first_stages(parts[0], num_quantizers)
    quantizers, params, state = zip(*parts, strict=True)
    return first_stages((Parallel(quantizers), params, state), num_quantizers)


def _mimi_part(entries, eps, dropout, fields) -> Imported:
    stems = entries.stems(_LAYER)
    stages, known = [], []
    for stem in stems or ['layers.0.']:
        layer = entries.under(stem)
        book = '_codebook.' if any(n.startswith('_codebook.') for n in layer.names) else 'codebook.'
        found = [
            next((book + name for name in names if book + name in layer), book + names[0])
            for names in _MIMI_NAMES.values()
        ]
        layer.expect(found, [f'{book}embed', *projection_names(layer)])
        known += [stem + name for name in layer.names]
        check_started(layer, found[0])
        counts, sums = (layer[name] for name in found[1:])
        usage = np.maximum(counts, np.float32(eps))
        fits = sums.ndim == 2 and counts.shape == sums.shape[:1]
        codebook = sums / usage[:, None] if fits else sums
        arrays = {found[1]: np.maximum(counts, 0), found[2]: codebook, f'{found[2]} again': sums}
        keyed = {layer.key(name): array for name, array in arrays.items()}
        stage = averages(Book.checked(keyed, 'euclidean', 0.0, eps), eps=0.0, **fields)
        stages.append(projected(stage, layer))
    ends = ('input_proj', 'output_proj')
    entries.expect(known, projection_names(entries, *ends))
    return projected(residual(stages, dropout=dropout), entries, *ends)


_DAC = ('in_proj.weight', 'in_proj.bias', 'out_proj.weight', 'out_proj.bias', 'codebook.weight')


def dac(
    entries: Entries,
    *,
    strides: Sequence[int] | None = None,
    metric: str = 'cosine',
    commitment: float = 0.25,
    codebook: float = 1.0,
    num_quantizers: int | None = None,
    dropout: Any = None,
    **leaf: Any,
) -> Imported:
    """DAC, in its own layout and transformers': a Residual whose stages have projections each.

    Codes are searched by their direction, and their vectors keep their length. With `strides` the
    stages are SNAC's.
    """
    stems = entries.stems(r'quantizers\.(\d+)\.')
    parts = []
    for stem in stems:
        stage = entries.under(stem)
        biases = [name for name in _DAC if name.endswith('.bias')]
        ends = [name for name in _DAC if 'proj.weight' in name]
        optional = [*biases, *(ends if not any(name in stage for name in ends) else ())]
        stage.expect([name for name in _DAC if name not in optional], optional)
        fields = {'metric': metric, 'commitment': commitment, 'codebook': codebook}
        fields |= {'unit_values': metric != 'cosine'} | leaf
        name = stage.key('codebook.weight')
        found = learned(name, stage['codebook.weight'], **fields)
        parts.append(projected(found, stage, 'in_proj', 'out_proj'))
    if strides is None and _is_snac(entries):
        strides = _SNAC_STRIDES[-len(parts) :]
    if strides is None or not any(int(stride) != 1 for stride in strides):
        return first_stages(residual(parts, dropout=dropout), num_quantizers)
    strides = tuple(int(stride) for stride in strides)
    if len(strides) != len(parts):
        raise ValueError(
            f'strides={strides} must be one for each stage: {entries.key("quantizers.")} has '
            f'{len(parts)}'
        )
    quantizers, params, state = zip(*parts, strict=True)
    return Strided(quantizers, strides), params, state


# Of the released models with four stages; those with three begin with the second.
_SNAC_STRIDES = (8, 4, 2, 1)


def snac(entries: Entries, *, strides: Sequence[int] | None = None, **told: Any) -> Imported:
    """SNAC: DAC's stages at strides along time (8, 4, 2, 1; with three stages 4, 2, 1)."""
    number = len(entries.stems(r'quantizers\.(\d+)\.'))
    if strides is None and number > len(_SNAC_STRIDES):
        raise ValueError(f'strides must be told: there are {number} stages')
    return dac(entries, strides=_SNAC_STRIDES[-number:] if strides is None else strides, **told)


def _is_snac(entries):
    """Whether the model around the quantizer is SNAC: convolutions by depth, and local attention.

    A state dict does not hold the strides, and DAC's quantizer has the same names.
    """
    model = entries.prefix.removesuffix('quantizer.')
    for key, value in entries.whole.items():
        if not key.startswith((f'{model}encoder.', f'{model}decoder.')):
            continue
        if key.endswith('.to_qkv.weight'):
            return True
        direction = re.search(r'block\.\d+\.(parametrizations\.weight\.original1|weight_v)$', key)
        if direction and np.ndim(value) == 3 and np.shape(value)[1] == 1 < np.shape(value)[0]:
            # A depthwise kernel; the first one, of sound with one channel, has another place.
            if not re.search(r'encoder\.block\.0\.(parametrizations|weight_v)', key):
                return True
    return False


def cosy_voice(entries: Entries, *, levels: Sequence[int] | None = None) -> Imported:
    """CosyVoice 2's and 3's FSQ: a map down to 8 features of 3 levels.

    It has no way back to z: here that is the pseudo-inverse of the map, so that z_q is the shortest
    vector which the map takes to the code's levels.
    """
    down = '_codebook.project_down'
    entries.expect([f'{down}.weight'], [f'{down}.bias'])
    weight = entries[f'{down}.weight']
    if weight.ndim != 2:
        raise ValueError(f'{entries.key(f"{down}.weight")} must be [d, D], got {weight.shape}')
    levels = (3,) * len(weight) if levels is None else tuple(levels)
    back = np.linalg.pinv(weight.astype(np.float64))
    bias = entries[f'{down}.bias'] if f'{down}.bias' in entries else np.zeros(len(weight))
    maps = {
        'project_in.weight': weight,
        'project_in.bias': bias,
        'project_out.weight': back.astype(np.float32),
        'project_out.bias': (-back @ bias).astype(np.float32),
    }
    inner = FSQ(levels, bound='short_tanh'), (), ()
    return projected(inner, Entries(maps, ''))


def jukebox(
    entries: Entries,
    *,
    level: int | None = None,
    sizes: Sequence[int] | None = None,
    decay: float = 0.99,
    commitment: float = 0.02,
    **leaf: Any,
) -> Imported:
    """Jukebox's bottleneck: a VQEMA without smoothing a level, several of them as Levels.

    level: the one to read. sizes: vectors of each level in one array z, 1 each where not told.
    """
    stems = entries.stems(r'level_blocks\.(\d+)\.')
    names = [stem + name for stem in stems for name in ('k', 'k_sum', 'k_elem')]
    entries.expect(names)
    parts = []
    for stem in stems:
        block = entries.under(stem)
        arrays = {block.key(name): block[name] for name in ('k_elem', 'k', 'k_sum')}
        book = Book.checked(arrays, 'euclidean', 0.0, 1e-5)
        parts.append(averages(book, eps=0.0, decay=decay, commitment=commitment, **leaf))
    return levels_of(parts, level, sizes)


def levels_of(
    parts: Sequence[Imported],
    level: int | None,
    sizes: Sequence[int] | None,
    ratios: Sequence[int] | None = None,
) -> Imported:
    """One of several levels, or all of them as Levels of these sizes."""
    if level is not None:
        if isinstance(level, bool) or not isinstance(level, int) or not 0 <= level < len(parts):
            raise ValueError(f'level must be from 0 to {len(parts) - 1}, got {level!r}')
        return parts[level]
    if len(parts) == 1 and sizes is None:
        return parts[0]
    dims = {features(part) for part in parts}
    if len(dims) > 1:
        raise ValueError(f'levels have different numbers of features, {sorted(dims)}: tell level')
    quantizers, params, state = zip(*parts, strict=True)
    sizes = sizes or ratios or (1,) * len(parts)
    return Levels(quantizers, tuple(int(size) for size in sizes)), params, state
