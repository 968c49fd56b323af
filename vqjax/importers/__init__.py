"""Checkpoints of other libraries as quantizers of this one: same codes, same vectors.

Arrays by name in, (quantizer, params, state) out; torch and haiku are not needed, and pickles are
never opened. `read` recognises the layout; its table is in `vqjax.importers.layouts`.

Imported quantizers have `revival=None` and train on as they did where they came from;
`dataclasses.replace(quantizer, revival=vqjax.ops.Revival())` turns revival on.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from vqjax.importers import codecs, haiku
from vqjax.importers import vector_quantize_pytorch as lucidrains
from vqjax.importers.arrays import listed
from vqjax.importers.building import Imported
from vqjax.importers.entries import Entries
from vqjax.importers.files import load
from vqjax.importers.layouts import LAYOUTS, Found, named, nearest, recognise, told_names


def read(
    state_dict: Mapping[str, Any] | str | os.PathLike[str],
    *,
    layout: str | None = None,
    prefix: str | None = None,
    **told: Any,
) -> Imported:
    """The quantizer in a state dict, whatever library wrote it.

    The layout and what stands before its names are recognised, also in the state dict of a whole
    model and in what a training script wraps around one. Weight normalisation is folded. Arrays may
    be of any float dtype.

    Args:
      state_dict: arrays by name (NumPy's, JAX's or torch's), or the path of a safetensors or npz
        file.
      layout: the name of a layout, for those without names of their own ('FSQ', 'ResidualFSQ',
        'IBQ', 'SNAC', 'SpeechTokenizer') and where two of them fit. See `layouts()`.
      prefix: what stands before the quantizer's names, or before the model that it is in; needed
        where a state dict has several quantizers.
      **told: what the layout does not hold, such as metric, decay, commitment, levels, heads,
        learnable, num_quantizers (of which the first are read), strides, scales; and any field of
        the quantizer that it becomes. Left out, they are the defaults of the library that wrote it.

    Returns:
      (quantizer, params, state): codes and vectors as there; a codebook of averages to the last
      place (cosine: to the last few), counts of 0 as eps.

    Raises:
      ValueError: for an unknown layout, naming the nearest and the first names that differ; for
        missing or unknown names, shapes that do not fit together, a codebook never initialised or
        not finite, several quantizers and no prefix, what cannot be told; for a pickle.
    """
    entries = load(state_dict)
    if prefix is not None:
        entries = under(entries, prefix)
    found = _found(entries, layout, told)
    return _build(entries, found, prefix or '', told)


def layouts() -> dict[str, list[str]]:
    """What may be told to each layout that `read` knows, by its name."""
    return {layout.name: told_names(layout.build) for layout in LAYOUTS}


def under(entries: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """The entries whose names begin with `prefix`, by the rest of the name."""
    found = {k.removeprefix(prefix): v for k, v in entries.items() if k.startswith(prefix)}
    if prefix and not found:
        raise ValueError(f'no key starts with {prefix!r}: found {listed(entries)}')
    return found


def _found(entries, layout, told) -> Found:
    """The one layout and prefix that these entries have."""
    if layout is not None:
        chosen = named(layout)
        return Found(chosen, _prefix_of(entries, chosen))
    found = recognise(entries)
    if told.get('levels') is not None:  # of what has levels, whatever else a model holds
        found = [f for f in found if 'levels' in told_names(f.layout.build)]
    if len(found) > 1:
        places = [f'{f.prefix!r} ({f.layout.name})' for f in found]
        raise ValueError(f'there are several quantizers, at {listed(places)}: tell prefix')
    if found:
        return found[0]
    if told.get('levels') is not None:
        chosen = named('FSQ' if told.get('num_quantizers') is None else 'ResidualFSQ')
        if told.get('groups') is not None:
            chosen = named('GroupedResidualFSQ')
        return Found(chosen, _prefix_of(entries, chosen))
    if not entries:
        raise ValueError(
            'an empty state dict says nothing: tell levels (of an FSQ), and num_quantizers too (of '
            'a ResidualFSQ), or layout'
        )
    raise ValueError(
        f'no known layout: {nearest(entries)}; tell layout, one of '
        f'{[layout.name for layout in LAYOUTS]}, if it is one of these'
    )


def _prefix_of(entries, layout):
    """The prefix of a layout that was told, by its own anchor or that of one with its names."""
    alike = [row for row in LAYOUTS if row.anchor and row.roots == layout.roots]
    rows = (layout,) if layout.anchor else tuple(alike)
    prefixes = list(dict.fromkeys(found.prefix for found in recognise(entries, rows)))
    alone = (lucidrains.fsq, lucidrains.fsp, lucidrains.residual_fsq, lucidrains.lfq)
    if not prefixes and layout.build in alone:
        ends = ('project_in.weight', 'project_in.0.weight')
        prefixes = [k.removesuffix(end) for k in entries for end in ends if k.endswith(end)]
    if len(prefixes) > 1:
        raise ValueError(f'there are several quantizers, at {listed(prefixes)}: tell prefix')
    return prefixes[0] if prefixes else ''


def _build(entries, found, before, told) -> Imported:
    layout, prefix = found
    within = Entries(_as_told(entries, before), before + prefix, layout.roots)
    try:
        return layout.build(within, **told)
    except TypeError as error:
        if 'unexpected keyword argument' not in str(error):
            raise
        raise ValueError(
            f'layout {layout.name!r}: {str(error).split("() ")[-1]}; what can be told is '
            f'{told_names(layout.build)}, and fields of the quantizer'
        ) from None


def _as_told(entries, before):
    """The entries under the names of the state dict, for messages to name."""
    return {before + key: value for key, value in entries.items()} if before else entries


def from_vector_quantize_pytorch(
    state_dict: Mapping[str, np.ndarray],
    *,
    metric: str = 'euclidean',
    decay: float = 0.8,
    eps: float = 1e-5,
    commitment: float = 1.0,
    heads: int = 1,
    levels: Iterable[int] | None = None,
    symmetric: bool = False,
    prefix: str = '',
    learnable: bool | None = None,
    num_quantizers: int | None = None,
) -> Imported:
    """A `VectorQuantize`, `ResidualVQ`, `FSQ` or `ResidualFSQ` of that library; see also `read`.

    What a state dict does not hold is given beside it; defaults are that library's. Several heads
    become a Product, layers that hold one shared codebook a shared Residual, and projections a
    Projected. No other names may stand under the prefix.

    Args:
      state_dict: arrays by name.
      metric: 'cosine' for its use_cosine_sim.
      decay, eps, commitment: its decay, eps and commitment_weight.
      heads: its heads.
      levels: of an FSQ, whose state dict holds projections at most.
      symmetric: its preserve_symmetry.
      prefix: what stands before the keys in the state dict of a larger model, such as 'vq.'; keys
        without it are passed over.
      learnable: whether gradients moved the codebook (its learnable_codebook=True,
        ema_update=False), which is then a VQ; None: by its averages, where they tell.
      num_quantizers: how many stages a `ResidualFSQ` has; None: the levels are those of an `FSQ`.

    Returns:
      (quantizer, params, state): the codebook as imported, to the last place (cosine: to the last
      few); counts as imported, 0 as eps; sums that give that codebook.

    Raises:
      ValueError: for unknown or missing keys (listing both), shapes that do not fit together, a
        codebook not initialised or not finite, averages that do not tell whether the codebook was
        learned.
    """
    entries = Entries(_under(state_dict, prefix), prefix)
    if levels is not None:
        if num_quantizers is not None:
            return lucidrains.residual_fsq(entries, levels=levels, num_quantizers=num_quantizers)
        return lucidrains.fsq(entries, levels=levels, symmetric=symmetric)
    told = {'metric': metric, 'decay': decay, 'eps': eps, 'commitment': commitment}
    told['learnable'] = learnable
    if entries.stems(r'layers\.(\d+)\.'):
        return lucidrains.residual_vq(entries, num_quantizers=num_quantizers, **told)
    lucidrains.check_count('heads', heads)
    return lucidrains.vector_quantize(entries, heads=heads, **told)


def from_encodec(
    state_dict: Mapping[str, np.ndarray],
    *,
    decay: float = 0.99,
    eps: float = 1e-5,
    commitment: float = 1.0,
    prefix: str = 'quantizer.vq.',
) -> Imported:
    """encodec's residual quantizer, from the state dict of its model or of the quantizer.

    Its codes are [S, B, T], those of Residual [B, T, S]; at a lower bandwidth it uses the first
    stages only, which here are the first codes of each vector, and `decode` takes them alone.

    Args:
      state_dict: arrays by name, among them `prefix`layers.N._codebook.embed and its companions.
      decay, eps, commitment: its decay, epsilon and commitment_weight.
      prefix: what stands before `layers.`; keys without it are passed over.

    Returns:
      (Residual, (), state) as `from_vector_quantize_pytorch` does.

    Raises:
      ValueError: for unknown or missing keys (listing both), shapes that do not fit together, or a
        codebook not initialised or not finite.
    """
    entries = Entries(_under(state_dict, prefix), prefix)
    return codecs.encodec(entries, decay=decay, eps=eps, commitment=commitment)


def _under(state_dict, prefix):
    """The entries of a flat state dict whose names begin with `prefix`."""
    if not isinstance(state_dict, Mapping):
        raise ValueError(f'state_dict must be a mapping of arrays, got {type(state_dict).__name__}')
    for key in state_dict:
        if not isinstance(key, str):
            raise ValueError(f'state_dict must have names as keys, got {key!r}')
    under(state_dict, prefix)
    return {key: value for key, value in state_dict.items() if key.startswith(prefix)}


def from_haiku(
    state: Mapping[str, Mapping[str, np.ndarray]],
    *,
    decay: float = 0.99,
    eps: float = 1e-5,
    commitment: float = 0.25,
    module: str | None = None,
) -> Imported:
    """haiku's `VectorQuantizerEMA`, from the state of its transformed function (it has no params).

    Args:
      state: module name -> variable name -> array.
      decay, eps, commitment: its decay, epsilon and commitment_cost.
      module: name of the quantizer's module; by default the only one with embeddings.

    Returns:
      (VQEMA, (), state): the codebook as imported, to the last place.

    Raises:
      ValueError: for missing or unknown names (listing both), several quantizers and no `module`,
        or one never trained.
    """
    if not isinstance(state, Mapping):
        raise ValueError(f'state must be a mapping of modules, got {type(state).__name__}')
    for name, variables in state.items():
        if not isinstance(name, str) or not isinstance(variables, Mapping):
            raise ValueError(f'state must map names of modules to variables by name, see {name!r}')
    if module is None:
        found = [name for name in state if 'embeddings' in state[name]]
        if len(found) != 1:
            raise ValueError(
                f"module must be given unless one of {sorted(state)} alone has 'embeddings', "
                f'which {found} have'
            )
        module = found[0]
    entries = Entries(load(state), module, ('.', '/'))
    return haiku.haiku(entries, decay=decay, eps=eps, commitment=commitment)


__all__ = ['from_encodec', 'from_haiku', 'from_vector_quantize_pytorch', 'layouts', 'read']
