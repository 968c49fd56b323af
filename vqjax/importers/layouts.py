"""The layouts that `read` knows, one row each, and how a state dict is told to be of one."""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from vqjax.importers import codecs, haiku, images
from vqjax.importers import vector_quantize_pytorch as lucidrains
from vqjax.importers.arrays import listed, numbers
from vqjax.importers.building import Imported


class Layout(NamedTuple):
    """One layout of a state dict.

    name: as `read(..., layout=)` takes it.
    build: makes the quantizer of its entries; its keywords are what may be told.
    anchor: a pattern of the one name by which the layout is recognised; () where it has none.
    roots: how the names of the quantizer begin, behind the prefix.
    example: names of the first stage, to name the nearest layout by where none fits.
    holds: whether the array under the anchor is what it must be.
    beside: names that must stand beside the anchor's.
    """

    name: str
    build: Callable[..., Imported]
    anchor: str
    roots: tuple[str, ...]
    example: tuple[str, ...]
    holds: Callable[[Any], bool] = lambda value: True
    beside: tuple[str, ...] = ()


_PROJECTIONS = ('project_in.', 'project_out.')
_BOOK = tuple(lucidrains._NAMES)


def _first(stem, names=_BOOK):
    return tuple(stem + name for name in names)


def _is_lfq_mask(value):
    """Whether these are the powers of two, the first the largest, and no attention's mask."""
    array = np.asarray(numbers('mask', value))
    if array.ndim != 1 or not 0 < array.size <= 62:
        return False
    return bool((array == 2.0 ** np.arange(array.size - 1, -1, -1)).all())


def _is_codebook(value):
    return np.ndim(value) == 2


_ENCODEC = ('inited', 'cluster_size', 'embed', 'embed_avg')
_MIMI = ('initialized', 'cluster_usage', 'embed_sum')
_QUANTIZE = r'(?:(?:quantize|quantizer|vq|vq_layer)\.)?'
_VQGAN = ('quantize.embedding.weight', 'quant_conv.weight', 'post_quant_conv.weight')
_VQGAN_ROOTS = (
    'quantize.',
    'quantizer.',
    'vq.',
    'vq_layer.',
    'embedding.',
    'quant_conv.',
    'post_quant_conv.',
    'codebook_used',
)

# A row that claims the names of one below it comes first.
LAYOUTS: tuple[Layout, ...] = (
    Layout(
        'GroupedResidualVQ',
        lucidrains.grouped(lucidrains.residual_vq),
        r'rvqs\.0\.layers\.0\._codebook\.initted',
        ('rvqs.',),
        _first('rvqs.0.layers.0.'),
    ),
    Layout(
        'GroupedResidualLFQ',
        lucidrains.grouped(lucidrains.residual_lfq),
        r'rvqs\.0\.layers\.0\.mask',
        ('rvqs.',),
        ('rvqs.0.layers.0.mask',),
        _is_lfq_mask,
    ),
    Layout(
        'GroupedResidualFSQ',
        lucidrains.grouped(lucidrains.residual_fsq),
        r'rvqs\.0\.project_in\.weight',
        ('rvqs.',),
        ('rvqs.0.project_in.weight', 'rvqs.0.project_out.weight'),
    ),
    Layout(
        'HierarchicalVQ',
        lucidrains.hierarchical_vq,
        r'phi_(?:shared|levels\.0)\..*weight',
        ('vq.', 'vqs.', 'phi_'),
        ('vq._codebook.embed', 'phi_shared.conv.weight'),
    ),
    Layout(
        'RandomProjectionQuantizer',
        lucidrains.random_projection,
        'rand_projs',
        ('rand_projs', 'vq.'),
        ('rand_projs', *_first('vq.')),
    ),
    Layout(
        'ResidualVQ',
        lucidrains.residual_vq,
        r'layers\.0\._codebook\.initted',
        ('layers.', 'mlps.', *_PROJECTIONS),
        _first('layers.0.'),
    ),
    Layout(
        'VectorQuantize',
        lucidrains.vector_quantize,
        r'_codebook\.initted',
        ('_codebook.', *_PROJECTIONS),
        _BOOK,
    ),
    Layout(
        'ResidualLFQ',
        lucidrains.residual_lfq,
        r'layers\.0\.mask',
        ('layers.', *_PROJECTIONS),
        ('layers.0.mask',),
        _is_lfq_mask,
    ),
    Layout(
        'LFQ',
        lucidrains.lfq,
        'mask',
        ('mask', 'orthogonal_rot', *_PROJECTIONS),
        ('mask',),
        _is_lfq_mask,
    ),
    Layout(
        'ResidualSimVQ',
        lucidrains.residual_sim_vq,
        r'layers\.0\.frozen_codebook',
        ('layers.',),
        ('layers.0.frozen_codebook', 'layers.0.code_transform.weight'),
    ),
    Layout(
        'SimVQ',
        lucidrains.sim_vq,
        'frozen_codebook',
        ('frozen_codebook', 'code_transform.'),
        ('frozen_codebook', 'code_transform.weight'),
    ),
    Layout(
        'LatentQuantize',
        lucidrains.latent_quantize,
        r'values_per_latent\.0',
        ('values_per_latent.', *_PROJECTIONS),
        ('values_per_latent.0',),
    ),
    Layout('ResidualFSQ', lucidrains.residual_fsq, '', _PROJECTIONS, ('project_in.weight',)),
    Layout('FSP', lucidrains.fsp, '', _PROJECTIONS, ('project_in.weight',)),
    Layout('FSQ', lucidrains.fsq, '', ('orthogonal_rot', *_PROJECTIONS), ('project_in.weight',)),
    Layout(
        'Mimi',
        codecs.mimi,
        r'(?:rvq_first|semantic_residual_vector_quantizer)\.(?:vq\.)?layers\.0\.'
        r'_?codebook\.(?:_?initialized|inited)',
        ('rvq_', 'semantic_residual', 'acoustic_residual'),
        _first('semantic_residual_vector_quantizer.layers.0.codebook.', _MIMI),
    ),
    Layout(
        'EnCodec',
        codecs.encodec,
        r'(?:vq\.)?layers\.0\._?codebook\.inited',
        ('layers.', 'vq.'),
        _first('layers.0._codebook.', _ENCODEC),
    ),
    Layout(
        'SpeechTokenizer',
        codecs.encodec,
        '',
        ('layers.', 'vq.'),
        _first('quantizer.vq.layers.0._codebook.', _ENCODEC),
    ),  # fmt: skip
    Layout(
        'DAC',
        codecs.dac,
        r'quantizers\.0\.codebook\.weight',
        ('quantizers.',),
        _first('quantizers.0.', codecs._DAC),
    ),
    Layout('SNAC', codecs.snac, '', ('quantizers.',), _first('quantizers.0.', codecs._DAC)),
    Layout(
        'CosyVoice',
        codecs.cosy_voice,
        r'_codebook\.project_down\.weight',
        ('_codebook.project_down.',),
        ('_codebook.project_down.weight', '_codebook.project_down.bias'),
    ),
    Layout(
        'Jukebox',
        codecs.jukebox,
        r'level_blocks\.0\.k',
        ('level_blocks.',),
        ('level_blocks.0.k', 'level_blocks.0.k_sum', 'level_blocks.0.k_elem'),
    ),
    Layout(
        'VAR',
        images.var,
        _QUANTIZE + r'(?:ema_vocab_hit_SV|quant_resi\.(?:qresi_ls\.0\.|qresi\.|0\.)weight)',
        (*_VQGAN_ROOTS, 'ema_vocab_hit_SV', 'quant_resi.'),
        ('quantize.embedding.weight', 'quantize.quant_resi.qresi_ls.0.weight'),
    ),
    Layout(
        'LlamaGen',
        images.llama_gen,
        _QUANTIZE + 'codebook_used',
        _VQGAN_ROOTS,
        ('quantize.embedding.weight', 'quantize.codebook_used'),
    ),
    Layout(
        'VQ-VAE-2',
        images.vq_vae_2,
        r'(?<!codebook\.)(?:quantize_t\.)?embed',
        ('quantize_t.', 'quantize_b.', 'embed', 'cluster_size'),
        _first('quantize_t.', ('embed', 'cluster_size', 'embed_avg')),
        _is_codebook,
        ('embed_avg', 'cluster_size'),
    ),
    Layout(
        'VQ-VAE',
        images.vq_vae,
        r'_embedding\.weight',
        ('_embedding.weight', '_ema_w', '_ema_cluster_size'),
        ('_embedding.weight', '_ema_w', '_ema_cluster_size'),
    ),
    Layout(
        'VQGAN',
        images.vqgan,
        r'(?:quantize|quantizer|vq|vq_layer)\.embedding\.weight|^embedding\.weight',
        _VQGAN_ROOTS,
        _VQGAN,
    ),
    Layout('IBQ', images.ibq, '', _VQGAN_ROOTS, _VQGAN),
    Layout('Open-MAGVIT2', images.open_magvit2, '', ('quantize.mask',), ('quantize.mask',)),
    Layout('haiku', haiku.haiku, r'(?:).*(?=\.embeddings)', ('.embeddings', '/'), ('embeddings',)),
)


class Found(NamedTuple):
    """A layout, and the prefix under which it was recognised."""

    layout: Layout
    prefix: str


def named(name: str) -> Layout:
    """The layout of that name; case and what is neither letter nor digit do not count.

    Raises:
      ValueError: for no such layout.
    """
    plain = {_plain(layout.name): layout for layout in LAYOUTS}
    if not isinstance(name, str) or _plain(name) not in plain:
        names = [layout.name for layout in LAYOUTS]
        raise ValueError(f'layout must be one of {names}, got {name!r}')
    return plain[_plain(name)]


def _plain(name):
    return re.sub(r'[^a-z0-9]', '', name.lower())


def recognise(entries: Mapping[str, Any], among: tuple[Layout, ...] = LAYOUTS) -> list[Found]:
    """The quantizers in a flat state dict, each once, in the order of the table."""
    found: list[Found] = []
    for layout in among:
        if not layout.anchor:
            continue
        if layout.name == 'haiku':
            pattern = re.compile(r'^(?P<prefix>.*)\.embeddings$')
        else:
            pattern = re.compile(rf'^(?P<prefix>(?:.*?\.)??)(?:{layout.anchor})$')
        for key, value in entries.items():
            match = pattern.match(key)
            if match is None or not layout.holds(value) or _claimed(key, found):
                continue
            stem = key[: key.rfind('.') + 1]
            if any(stem + name not in entries for name in layout.beside):
                continue
            candidate = Found(layout, match['prefix'])
            if candidate not in found:
                found.append(candidate)
    return found


def _claimed(key, found):
    """Whether a layout found before this one has that name among its own."""
    return any(
        key.startswith(prefix) and key.removeprefix(prefix).startswith(layout.roots)
        for layout, prefix in found
    )


def nearest(entries: Mapping[str, Any]) -> str:
    """A sentence on the layout that comes nearest, and the first names that differ."""
    keys = [key for key in entries if isinstance(key, str)]
    tails = {re.sub(r'\d+', '0', key) for key in keys}

    def likeness(name):
        return max((_ratio(name, key) for key in tails), default=0.0)

    def score(layout):
        # What a module calls its arrays says more than what a model calls its modules.
        ends = ['.'.join(name.split('.')[-2:]) for name in layout.example]
        found = [any(('.' + key).endswith('.' + end) for key in tails) for end in ends]
        alike = [likeness(name) for name in layout.example]
        return sum(found) / len(found), sum(alike) / len(alike)

    best = max((layout for layout in LAYOUTS if layout.anchor), key=score)
    whole = {'.' + key for key in tails}
    missing = [n for n in best.example if not any(key.endswith('.' + n) for key in whole)]
    missing = sorted(missing or best.example, key=likeness, reverse=True)
    near = difflib.get_close_matches(missing[0], keys, 3, 0.0)
    return (
        f'the nearest known layout is {best.name!r}, which has {listed(missing[:3])} where this '
        f'one has {listed(near)}'
    )


def _ratio(name, key):
    """How alike a name and the end of a key are, from 0 to 1."""
    return difflib.SequenceMatcher(None, name, key[-len(name) :]).ratio()


def told_names(build: Callable[..., Imported] | None) -> list[str]:
    """What may be told to a layout, beside fields of the quantizer that it becomes."""
    names: list[str] = []
    while build is not None:
        parameters = inspect.signature(build).parameters.values()
        names += [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
        build = getattr(build, 'told_by', None)
    return names
