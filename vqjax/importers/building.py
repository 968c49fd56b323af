"""What layouts have in common: quantizers with their params and state, put together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vqjax.importers.arrays import Book
from vqjax.importers.entries import Entries
from vqjax.quantizers import (
    VQ,
    VQEMA,
    Product,
    Projected,
    ProjectedParams,
    Quantizer,
    Residual,
    VQState,
)

Imported = tuple[Quantizer, Any, Any]


def averages(book: Book, **fields: Any) -> Imported:
    """A VQEMA with the averages of a book, which has as many axes as a codebook."""
    fields = {'revival': None} | fields
    return VQEMA(book.counts.shape[-1], **fields), (), book.state()


def learned(name: str, rows: np.ndarray, counts=None, **fields: Any) -> Imported:
    """A VQ with this codebook [K, D] as its params; counts [K] are ones where not given."""
    check_codebook(name, rows)
    params = jnp.asarray(rows)
    counts = jnp.ones(len(rows), jnp.float32) if counts is None else jnp.asarray(counts)
    fields = {'revival': None} | fields
    state = VQState(jnp.zeros_like(params), counts, jnp.zeros((), jnp.int32))
    return VQ(len(rows), **fields), params, state


def check_codebook(name: str, codebook: np.ndarray) -> None:
    """Raise ValueError unless this is [K, D] with at least one code."""
    if codebook.ndim != 2 or not codebook.size:
        raise ValueError(f'{name} must be a codebook [K, D], got shape {codebook.shape}')


def stacked(parts: Sequence[Imported]) -> tuple[Any, Any]:
    """(params, state) of parts of one kind, with a leading axis."""
    trees = [(params, state) for _, params, state in parts]
    return jax.tree.map(lambda *x: jnp.stack(x), *trees)


def residual(parts: Sequence[Imported], share: bool = False, **fields: Any) -> Imported:
    """A Residual of these stages: a tuple where they differ in kind or shape.

    share: whether stages with one and the same codebook are one that they share.
    """
    if _alike(parts):
        inner = parts[0][0]
        leaves = [jax.tree.leaves(part[1:]) for part in parts]
        if share and len(parts) > 1 and leaves[0] and all(map(_equal, leaves[1:], leaves)):
            return Residual(inner, len(parts), shared=True, **fields), *parts[0][1:]
        return Residual(inner, len(parts), **fields), *stacked(parts)
    quantizer = Residual(tuple(part[0] for part in parts), **fields)
    return quantizer, tuple(part[1] for part in parts), tuple(part[2] for part in parts)


def product(parts: Sequence[Imported]) -> Imported:
    """A Product of these groups, which must be of one kind and shape."""
    if not _alike(parts):
        shapes = [[x.shape for x in jax.tree.leaves(part[1:])] for part in parts]
        raise ValueError(f'groups must be alike, got arrays of shapes {shapes}')
    return Product(parts[0][0], len(parts)), *stacked(parts)


def _alike(parts):
    shapes = [(part[0], *[x.shape for x in jax.tree.leaves(part[1:])]) for part in parts]
    return all(shape == shapes[0] for shape in shapes)


def _equal(one, other):
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def first_stages(whole: Imported, num: int | None) -> Imported:
    """The first `num` stages, all of them where None is told."""
    quantizer, params, state = whole
    if num is None or quantizer.code_shape[-1:] == (num,):
        return whole
    try:
        return quantizer.first_stages(num, params, state)
    except ValueError as error:
        raise ValueError(f'num_quantizers does not fit this state dict: {error}') from None


def projected(
    inner: Imported, entries: Entries, way_in='project_in', way_out='project_out'
) -> Imported:
    """`inner` between the two linear maps of these names, where there are any.

    A map is torch's Linear, or a convolution of size 1. A LayerNorm may follow the first: the
    names are then `way_in`.0 and `way_in`.1.
    """
    quantizer, params, state = inner
    norm = (f'{way_in}.1.weight', f'{way_in}.1.bias')
    layer_norm = norm[0] in entries
    first = f'{way_in}.0' if f'{way_in}.0.weight' in entries else way_in
    names = [f'{first}.weight', f'{way_out}.weight']
    if not any(name in entries for name in names):
        return inner
    kernel_in, kernel_out = (_kernel(entries, name) for name in names)
    shapes = kernel_in.T.shape, kernel_out.T.shape
    if kernel_in.ndim != 2 or kernel_out.shape != kernel_in.shape[::-1]:
        raise ValueError(
            f'{entries.key(names[0])} and {entries.key(names[1])} do not fit together: '
            f'{shapes[0]} and {shapes[1]}, need [dim, D] and [D, dim]'
        )
    dim = kernel_in.shape[1]
    needed = features(inner)
    if dim != needed:
        raise ValueError(
            f'{entries.key(names[0])} {shapes[0]} projects to {dim} features, but the codes '
            f'between the projections have {needed}'
        )
    sizes = kernel_in.shape[::-1]
    biases = [_vector(entries, f'{stem}.bias', n) for stem, n in zip((first, way_out), sizes)]  # noqa: B905
    found = [bias for bias in biases if bias is not None]
    # One alone, all zeros, adds nothing and learned nothing.
    bias = len(found) == 2 or any(np.any(b) for b in found)
    if bias:
        biases = [jnp.zeros(n, jnp.float32) if b is None else b for b, n in zip(biases, sizes)]  # noqa: B905
    scales = [_vector(entries, name, dim) if layer_norm else () for name in norm]
    quantizer = Projected(quantizer, dim, bias=bias, layer_norm=layer_norm)
    kernels = jnp.asarray(kernel_in), jnp.asarray(kernel_out)
    maps = ProjectedParams(*kernels, params, *(biases if bias else ((), ())), *scales)
    return quantizer, maps, state


def projection_names(entries: Entries, way_in='project_in', way_out='project_out') -> list[str]:
    """The names that `projected` reads where they are there."""
    stems = (way_in, f'{way_in}.0', f'{way_in}.1', way_out)
    names = [f'{stem}.{part}' for stem in stems for part in ('weight', 'bias')]
    return [name for name in names if name in entries]


def features(whole: Imported) -> int:
    """D of the vectors that codes decode to."""
    quantizer, params, state = whole
    codes = jnp.zeros(quantizer.code_shape, jnp.int32)
    return jax.eval_shape(quantizer.decode, params, state, codes).shape[-1]


def _kernel(entries, name):
    """A linear map [in, out], which torch keeps as [out, in] with axes of size 1 behind."""
    weight = entries[name]
    return weight.reshape(weight.shape[:2]).T if all(n == 1 for n in weight.shape[2:]) else weight


def _vector(entries, name, size):
    if name not in entries:
        return None
    vector = entries[name]
    if vector.shape != (size,):
        raise ValueError(f'{entries.key(name)} must have shape ({size},), got {vector.shape}')
    return jnp.asarray(vector)
