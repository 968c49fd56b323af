"""Layouts of vector-quantize-pytorch (release 1.32): one function for each of its classes.

Keywords are what a state dict does not hold; their defaults are that library's.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import jax.numpy as jnp
import numpy as np

from vqjax import ops
from vqjax.importers.arrays import Book, check_shapes
from vqjax.importers.building import (
    Imported,
    averages,
    features,
    first_stages,
    learned,
    product,
    projected,
    projection_names,
    residual,
)
from vqjax.importers.entries import Entries
from vqjax.ops.fields import check_count
from vqjax.quantizers import (
    FSP,
    FSQ,
    LFQ,
    Clamped,
    LatentQuantization,
    Product,
    QINCo,
    QINCoBiasedParams,
    RandomProjection,
    RandomProjectionState,
    Residual,
    Rotated,
    RotatedState,
    SimVQ,
)

_BUFFERS = ('cluster_size', 'embed', 'embed_avg')
_NAMES = [f'_codebook.{name}' for name in ('initted', *_BUFFERS)]
_AFFINE = [
    f'_codebook.{name}'
    for name in (
        'batch_mean',
        'batch_variance',
        'codebook_mean',
        'codebook_variance',
        'codebook_mean_needs_init',
        'codebook_variance_needs_init',
    )
]


def vector_quantize(
    entries: Entries,
    *,
    metric: str = 'euclidean',
    decay: float = 0.8,
    eps: float = 1e-5,
    commitment: float = 1.0,
    heads: int | None = None,
    learnable: bool | None = None,
    **leaf: Any,
) -> Imported:
    """`VectorQuantize`: a VQEMA, or a VQ where its codebook was learned by gradients.

    Several heads are a Product, `codebook_dim` a Projected. With `affine_param` the codebook is
    read as it stands, and its running means and variances do not follow any further.
    """
    entries.expect(_NAMES, [*_AFFINE, *projection_names(entries)])
    fields = {'metric': metric, 'decay': decay, 'commitment': commitment, **leaf}
    check_shapes(
        {entries.key(f'_codebook.{name}'): entries[f'_codebook.{name}'] for name in _BUFFERS}
    )
    shape = entries['_codebook.embed'].shape
    check_heads(entries, shape, heads)
    if heads is None:
        way_in = next(
            (k for k in ('project_in.weight', 'project_in.0.weight') if k in entries), None
        )
        rows = entries[way_in].shape[0] if way_in else 0
        heads = rows // shape[2] if shape[0] == 1 and rows and rows % shape[2] == 0 else shape[0]
    if shape[0] not in (1, heads):
        check_heads(entries, shape, None if heads == shape[0] else heads)
    books = [_codebook(entries, head, eps, learnable, fields) for head in range(shape[0])]
    if heads == 1:
        whole = books[0]
    elif shape[0] == 1:
        whole = Product(books[0][0], heads, shared=True), *books[0][1:]
    else:
        whole = product(books)
    return projected(whole, entries)


def check_heads(entries: Entries, shape: tuple[int, ...], heads: int | None) -> None:
    """Raise ValueError unless a codebook of this shape is of so many heads, or shared by them."""
    if heads is not None:
        check_count('heads', heads)
    if len(shape) != 3 or (heads is not None and shape[0] not in (1, heads)):
        raise ValueError(
            f'{entries.key("_codebook.embed")} has shape {shape}: need [heads, K, D] with '
            f'heads={heads or 1}, or 1 for shared codes; give heads'
        )


def _codebook(entries, head, eps, learnable, fields) -> Imported:
    """The codebook of one head, [heads, K, d] in the state dict."""
    if not np.all(entries.raw('_codebook.initted')):
        raise ValueError(
            f'{entries.key("_codebook.initted")} is false: the codebook was never initialised'
        )
    arrays = {name: entries[f'_codebook.{name}'] for name in _BUFFERS}
    if _was_learned(entries, arrays, learnable, eps):
        fields = {'codebook': fields['commitment']} | fields
        counts = arrays['cluster_size'][head]
        return learned(entries.key('_codebook.embed'), arrays['embed'][head], counts, **fields)
    if any(name in entries for name in _AFFINE):
        arrays['embed'] = arrays['embed_avg'] = _affine(entries, arrays['embed'])
    keyed = {entries.key(f'_codebook.{name}'): array for name, array in arrays.items()}
    book = Book.checked(keyed, fields['metric'], eps)
    return averages(book.each(head), eps=eps, **fields)


def _agree(codebook, sums, counts, eps):
    """Whether the averages give this codebook, but for an optimizer's step."""
    total = counts.sum(-1, keepdims=True)
    smoothed = (counts + eps) / (total + counts.shape[-1] * eps) * total
    found = sums / np.maximum(smoothed, 1e-30)[..., None]
    return np.linalg.norm(found - codebook) < 0.02 * np.linalg.norm(codebook)


def _was_learned(entries, arrays, learnable, eps):
    """Whether gradients moved the codebook and not the averages beside it."""
    if learnable is not None:
        return learnable
    names = [name for name in entries.names if name in _NAMES]
    # torch lists parameters before buffers; files with sorted names put `cluster_size` first.
    parameter = names[:1] == ['_codebook.embed']
    counts, codebook, sums = (arrays[name] for name in _BUFFERS)
    if (counts == 1).all() and (parameter or not np.array_equal(sums, codebook)):
        return True
    # A regulariser makes a parameter of the codebook too, which the averages then keep in place.
    if parameter and not _agree(codebook, sums, counts, eps):
        raise ValueError(
            f'{entries.key("_codebook.embed")} was a parameter, and its averages moved too: tell '
            'learnable=True if gradients moved the codebook (learnable_codebook=True, '
            'ema_update=False), learnable=False if the averages did'
        )
    return False


def _affine(entries, codebook):
    """The codebook as it is compared: moved to the running mean and deviation of the vectors."""
    missing = [name for name in _AFFINE[:4] if name not in entries]
    if missing or any(np.any(entries.raw(name)) for name in _AFFINE[4:] if name in entries):
        raise ValueError(
            f'the affine statistics at {entries.key("_codebook.batch_mean")} were never set: '
            f'missing {missing}; train for a step before saving'
        )
    mean, variance, codes_mean, codes_variance = (entries[name] for name in _AFFINE[:4])
    deviation, codes_deviation = (
        np.sqrt(np.maximum(v, np.float32(1e-5))) for v in (variance, codes_variance)
    )
    return (codebook - codes_mean) * (deviation / codes_deviation) + mean


def residual_vq(
    entries: Entries,
    *,
    metric: str = 'euclidean',
    decay: float = 0.8,
    eps: float = 1e-5,
    commitment: float = 1.0,
    learnable: bool | None = None,
    shared: bool | None = None,
    num_quantizers: int | None = None,
    dropout: Any = None,
    beam: int = 1,
    **leaf: Any,
) -> Imported:
    """`ResidualVQ`: a Residual, shared where all layers hold one codebook; QINCo with `mlps`."""
    stems = entries.stems(r'layers\.(\d+)\.')
    mlps = [name for name in entries.names if name.startswith('mlps.')]
    layers = [name for name in entries.names if name.startswith('layers.')]
    affine = [stem + name for stem in stems for name in _AFFINE]
    needed = [stem + name for stem in stems for name in _NAMES]
    entries.expect(needed, [*affine, *mlps, *layers[:0], *projection_names(entries)])
    told = {'metric': metric, 'decay': decay, 'eps': eps, 'commitment': commitment, **leaf}
    if mlps:
        whole = _implicit(entries, stems, commitment)
    else:
        parts = [
            vector_quantize(entries.under(stem), heads=1, learnable=learnable, **told)
            for stem in stems
        ]
        share = shared is not False
        whole = residual(parts, share, dropout=dropout, beam=beam)
        if shared and not whole[0].shared:
            raise ValueError('shared=True, but the codebooks of the layers differ')
    return projected(first_stages(whole, num_quantizers), entries)


def _implicit(entries, stems, commitment) -> Imported:
    """`implicit_neural_codebook`: its network is QINCo's with SiLU and biases in the blocks."""
    codebooks = [entries[f'{stem}_codebook.embed'] for stem in stems]
    if len({codebook.shape for codebook in codebooks}) > 1 or codebooks[0].shape[0] != 1:
        raise ValueError(
            f'{entries.key("mlps.")} need codebooks of one shape in all layers, got '
            f'{[codebook.shape for codebook in codebooks]}: QINCo has no other'
        )
    nets = [entries.under(stem) for stem in entries.stems(r'mlps\.(\d+)\.')]
    blocks = nets[0].stems(r'layers\.(\d+)\.')
    for net in nets:
        ends = [f'{block}{i}.{part}' for block in blocks for i in (0, 2) for part in _LINEAR]
        net.expect([*[f'proj_in.{part}' for part in _LINEAR], *ends])
    if len(nets) != len(stems) - 1:
        raise ValueError(
            f'{entries.key("mlps.")} must be one fewer than the layers: {len(nets)}, {len(stems)}'
        )
    dim = codebooks[0].shape[-1]
    mix = np.stack([net['proj_in.weight'].T for net in nets])  # of [sum so far, code]

    def both(end):
        return np.stack([[net[block + end] for block in blocks] for net in nets])

    down, up = both('0.weight').swapaxes(-1, -2), both('2.weight').swapaxes(-1, -2)
    params = QINCoBiasedParams(
        np.stack([codebook[0] for codebook in codebooks]),
        from_code=mix[:, dim:] - np.eye(dim, dtype=np.float32),
        from_sum=mix[:, :dim],
        bias=np.stack([net['proj_in.bias'] for net in nets]),
        down=down,
        up=up,
        down_bias=both('0.bias'),
        up_bias=both('2.bias'),
    )
    params = params._replace(**{k: jnp.asarray(v) for k, v in params._asdict().items()})
    quantizer = QINCo(
        codebooks[0].shape[1],
        len(stems),
        hidden=down.shape[-1],
        blocks=len(blocks),
        commitment=commitment,
        partial_sums=commitment,
        activation='silu',
        bias=True,
    )
    return quantizer, params, ()


_LINEAR = ('weight', 'bias')


def grouped(layout):
    """The layout of the library's Grouped class: a Product of what `layout` makes of each group."""

    def read(entries: Entries, *, groups: int | None = None, **told: Any) -> Imported:
        stems = entries.stems(r'rvqs\.(\d+)\.')
        if stems:
            parts = [layout(entries.under(stem), **told) for stem in stems]
            check_groups(groups, len(stems))
        else:
            if groups is None:
                raise ValueError('groups must be told: a state dict without weights has no groups')
            check_count('groups', groups)
            parts = [layout(entries, **told)] * groups
        return product(parts)

    read.__doc__ = f'The grouped form of: {layout.__doc__}'
    read.told_by = layout
    return read


def check_groups(told: int | None, found: int) -> None:
    """Raise ValueError where another number of groups was told than found."""
    if told not in (None, found):
        raise ValueError(f'groups={told} does not fit: the state dict has {found} groups')


def fsq(
    entries: Entries,
    *,
    levels: Iterable[int] | None = None,
    symmetric: bool = False,
    num_codebooks: int | None = None,
    bound: Any = 'tanh',
) -> Imported:
    """`FSQ`, whose state dict holds projections at most: the levels are told."""
    levels = check_levels(levels)
    entries.expect((), [*projection_names(entries), 'orthogonal_rot'])
    inner = FSQ(levels, symmetric=symmetric, bound=bound), (), ()
    return _codebooks(entries, inner, num_codebooks)


def fsp(
    entries: Entries,
    *,
    levels: Iterable[int] | None = None,
    bound: Any = 'tanh',
    inverse: bool = False,
    **leaf: Any,
) -> Imported:
    """`FSP`, whose state dict holds projections at most: the levels are told."""
    levels = check_levels(levels)
    entries.expect((), projection_names(entries))
    return projected((FSP(levels, bound, inverse, **leaf), (), ()), entries)


def check_levels(levels: Any) -> tuple[int, ...]:
    """The levels as a tuple.

    Raises:
      ValueError: for levels that were not told.
    """
    if levels is None:
        raise ValueError('levels must be told: the state dict of an FSQ does not hold them')
    if not isinstance(levels, Iterable) or isinstance(levels, str):
        raise ValueError(f'levels must be a list of levels, got {levels!r}')
    return tuple(int(n) if isinstance(n, np.integer) else n for n in levels)


def _codebooks(entries, inner, num_codebooks) -> Imported:
    """Several codebooks side by side, a rotation around each, and the projections around all."""
    dim = len_of(inner)
    rows = entries['project_in.weight'].shape[0] if 'project_in.weight' in entries else None
    if num_codebooks is None:
        num_codebooks = 1 if rows is None else max(rows // dim, 1)
    check_count('num_codebooks', num_codebooks)
    rotated = 'orthogonal_rot' in entries
    if rotated:
        turn = entries['orthogonal_rot']
        if turn.shape != (dim, dim):
            raise ValueError(
                f'{entries.key("orthogonal_rot")} must have shape {(dim, dim)}, got {turn.shape}'
            )
        inner = Rotated(inner[0]), inner[1], RotatedState(jnp.asarray(turn), inner[2])
    if num_codebooks > 1:
        # One codebook and one rotation for all.
        inner = Product(inner[0], num_codebooks, shared=True), *inner[1:]
    return projected(inner, entries)


def len_of(inner: Imported) -> int:
    """Features of a quantizer's vectors."""
    return features(inner)


def residual_fsq(
    entries: Entries,
    *,
    levels: Iterable[int] | None = None,
    num_quantizers: int | None = None,
    dropout: Any = None,
) -> Imported:
    """`ResidualFSQ`: stages scaled by 1 / level, hard bounds, and a soft clamp before them.

    As that library has it with `bound_hard_clamp=True`, its default.
    """
    levels = check_levels(levels)
    if num_quantizers is None:
        raise ValueError(
            'num_quantizers must be told: the state dict of a ResidualFSQ does not say how many '
            'stages it has'
        )
    entries.expect((), projection_names(entries))
    stage = FSQ(levels, symmetric=True, bound='clamp')
    scale = tuple(1 / level for level in levels)
    stages = Residual(stage, num_quantizers, scale=scale, dropout=dropout)
    whole = Clamped(stages, tuple(1 + 1 / (level - 1) for level in levels)), (), ()
    return projected(whole, entries)


def lfq(
    entries: Entries,
    *,
    num_codebooks: int | None = None,
    num_bits: int | None = None,
    entropy: float = 0.1,
    commitment: float = 0.0,
    gamma: float = 1.0,
    inv_temperature: float = 100.0,
    spherical: bool = False,
    scale: float = 1.0,
) -> Imported:
    """`LFQ`: the mask says how many bits; several codebooks are a Product."""
    entries.expect(['mask'] if num_bits is None else [], _lfq_names(entries))
    bits = entries['mask'].size if 'mask' in entries else num_bits
    if num_bits not in (None, bits):
        raise ValueError(f'num_bits={num_bits} does not fit: {entries.key("mask")} has {bits}')
    fields = entropy, commitment, gamma, inv_temperature, spherical
    inner = LFQ(bits, *fields, scale=scale), (), ()
    return _codebooks(entries, inner, num_codebooks)


def _lfq_names(entries):
    return [*projection_names(entries), 'mask', 'orthogonal_rot']


def residual_lfq(
    entries: Entries,
    *,
    num_quantizers: int | None = None,
    dropout: Any = None,
    **told: Any,
) -> Imported:
    """`ResidualLFQ`: a Residual whose stages halve."""
    stems = entries.stems(r'layers\.(\d+)\.')
    entries.expect([f'{stem}mask' for stem in stems], projection_names(entries))
    parts = [lfq(entries.under(stem), **told) for stem in stems]
    return projected(first_stages(residual(parts, dropout=dropout), num_quantizers), entries)


def sim_vq(entries: Entries, *, commitment: float = 1.0, **leaf: Any) -> Imported:
    """`SimVQ`: frozen codes and one learned map, whose loss weighs z's part by 0.25."""
    entries.expect(['frozen_codebook', 'code_transform.weight'])
    codes, kernel = entries['frozen_codebook'], entries['code_transform.weight']
    if codes.ndim != 2 or kernel.ndim != 2 or kernel.shape[1] != codes.shape[1]:
        raise ValueError(
            f'{entries.key("frozen_codebook")} {codes.shape} and '
            f'{entries.key("code_transform.weight")} {kernel.shape} do not fit together: need '
            '[K, d] and [D, d]'
        )
    missing = kernel.shape[0] - kernel.shape[1]
    if missing < 0:
        raise ValueError(
            f'{entries.key("frozen_codebook")} has {codes.shape[1]} features, more than the '
            f'{kernel.shape[0]} of z: SimVQ has one square map'
        )
    # Features of zeros, which hand no gradient to the rows of the map beside them.
    codes = np.pad(codes, [(0, 0), (0, missing)])
    kernel = np.pad(kernel.T, [(0, missing), (0, 0)])
    fields = {'commitment': 0.25 * commitment, 'codebook': commitment} | leaf
    return SimVQ(len(codes), **fields), jnp.asarray(kernel), jnp.asarray(codes)


def residual_sim_vq(
    entries: Entries, *, num_quantizers: int | None = None, dropout: Any = None, **told: Any
) -> Imported:
    """`ResidualSimVQ`."""
    parts = [sim_vq(entries.under(stem), **told) for stem in entries.stems(r'layers\.(\d+)\.')]
    return first_stages(residual(parts, dropout=dropout), num_quantizers)


def latent_quantize(
    entries: Entries,
    *,
    levels: Iterable[int] | None = None,
    num_codebooks: int | None = None,
    commitment: float = 0.1,
    codebook: float = 0.1,
) -> Imported:
    """`LatentQuantize`, whose one joint index a vector is one code a feature here."""
    stems = entries.stems(r'values_per_latent\.(\d+)$')
    entries.expect(stems, projection_names(entries))
    if stems:
        values = [entries[stem] for stem in stems]
    else:  # not optimised, and so not in the state dict
        values = [
            np.linspace(-0.5, 0.5, level) if level % 2 else np.arange(level) / level - 0.5
            for level in check_levels(levels)
        ]
    sizes = tuple(len(row) for row in values)
    if levels is not None and check_levels(levels) != sizes:
        raise ValueError(f'levels={levels} do not fit: the values are of levels {sizes}')
    table = np.stack([np.pad(row, (0, max(sizes) - len(row))) for row in values])
    quantizer = LatentQuantization(sizes, commitment, codebook)
    inner = quantizer, jnp.asarray(table, jnp.float32), ()
    return _codebooks(entries, inner, num_codebooks)


def random_projection(entries: Entries, *, norm: bool = True) -> Imported:
    """`RandomProjectionQuantizer` with one codebook; the mean that its norm takes is folded in."""
    names = [f'vq.{name}' for name in _NAMES]
    entries.expect(['rand_projs', *names], projection_names(entries, 'vq.project_in'))
    projections, codes = entries['rand_projs'], entries['vq._codebook.embed']
    if projections.ndim != 3 or codes.ndim != 3 or len(projections) != 1 or len(codes) != 1:
        raise ValueError(
            f'{entries.key("rand_projs")} {projections.shape} must be of one codebook: several '
            'stand behind another map there, with a bias, which RandomProjection does not have'
        )
    projection = projections[0]
    if norm:
        projection = projection - projection.mean(axis=0)
    state = RandomProjectionState(jnp.asarray(projection), ops.normalize(jnp.asarray(codes[0])))
    return RandomProjection(codes.shape[1], projection.shape[1]), (), state


def hierarchical_vq(entries: Entries) -> Imported:
    """`HierarchicalVQ`, which is refused."""
    raise ValueError(
        f'{entries.prefix or "this"} is a HierarchicalVQ: it makes grids larger bilinearly and '
        'rounds to another phi than MultiScale, so the numbers would differ; its codebook alone is '
        'read with the prefix of its vq'
    )
