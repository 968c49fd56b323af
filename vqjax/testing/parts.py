"""A quantizer taken apart: what each of its leaves saw and gave, computed anew in float64.

Combinators are taken apart by their definitions, not by their code: a Residual's stage sees z less
what the codes of the stages before it stand for, a Product's group its own features.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vqjax import ops
from vqjax.quantizers.base import Quantizer
from vqjax.quantizers.clamped import Clamped
from vqjax.quantizers.codebook import Wrapped
from vqjax.quantizers.conditioned import Conditioned
from vqjax.quantizers.levels import Levels
from vqjax.quantizers.multi_scale import MultiScale
from vqjax.quantizers.parallel import Parallel
from vqjax.quantizers.product import Product
from vqjax.quantizers.projected import Projected
from vqjax.quantizers.residual import Residual
from vqjax.quantizers.rotated import Rotated
from vqjax.quantizers.strided import Strided
from vqjax.quantizers.variable_rate import VariableRate

# Above so many codes a leaf's vectors are decoded one by one and not from a table of all.
_MOST_ROWS = 2**17


class Leaf(NamedTuple):
    """A leaf quantizer in its place.

    q; its params and state; z float64 [n, d], codes int [n] (or [n, *code_shape] of a leaf that
    has several) and key as it was given them; share, the weight of its loss in the whole; place,
    which state it keeps (shared ones have the same); greedy, whether it chose its codes itself (a
    beam chooses for all stages).
    """

    q: Quantizer
    params: Any
    state: Any
    z: np.ndarray
    codes: np.ndarray
    key: jax.Array | None
    share: float
    place: tuple
    greedy: bool


def leaf_vectors(leaf: Leaf) -> np.ndarray:
    """Vectors float64 [n, d] of the leaf's codes; zeros for -1."""
    if leaf.q.code_shape:  # codes of features, none of which stands for a vector
        codes = jnp.asarray(leaf.codes)
        return np.asarray(leaf.q.decode(leaf.params, leaf.state, codes), np.float64)
    if leaf.q.num_codes <= _MOST_ROWS:
        vectors = codebook_of(leaf)[np.maximum(leaf.codes, 0)]
    else:
        vectors = np.asarray(leaf.q.decode(leaf.params, leaf.state, jnp.asarray(leaf.codes)))
    return np.where((leaf.codes >= 0)[:, None], vectors, 0).astype(np.float64)


def codebook_of(leaf: Leaf) -> np.ndarray:
    """What each code of the leaf decodes to, float64 [K, d]."""
    every = jnp.arange(leaf.q.num_codes, dtype=jnp.int32)
    return np.asarray(leaf.q.decode(leaf.params, leaf.state, every), np.float64)


def take_apart(
    q: Quantizer, params: Any, state: Any, z: np.ndarray, codes: np.ndarray, key=None
) -> tuple[list[Leaf], np.ndarray]:
    """The leaves of q, in the order of the losses' entries, and the vectors of all together.

    Args:
      q, params, state: a quantizer.
      z: [n, D], or [n, *grid, D] of a quantizer of grids.
      codes: int [n, *code_shape], as q gave them to z.
      key: as q was given it.

    Returns:
      Leaves, and float64 [n, D'], what decode must give.
    """
    whole = Leaf(q, params, state, np.asarray(z, np.float64), np.asarray(codes), key, 1.0, (), True)
    return parts(q, whole)


@functools.singledispatch
def parts(q: Quantizer, whole: Leaf) -> tuple[list[Leaf], np.ndarray]:
    """`take_apart` of one kind of quantizer. Register here what a combinator of your own does."""
    del q
    return [whole], leaf_vectors(whole)


@parts.register
def _(q: Wrapped, whole: Leaf):
    inner = whole._replace(q=q.inner, state=whole.state.inner)
    return parts(q.inner, inner)


@parts.register
def _(q: Projected, whole: Leaf):
    key = whole.key
    if key is not None and q.dropout:
        key = jax.random.split(key)[0]
    inner = whole._replace(q=q.inner, params=whole.params.inner, z=projected(q, whole)[-1], key=key)
    leaves, vectors = parts(q.inner, inner)
    vectors = vectors @ np.asarray(whole.params.kernel_out, np.float64)
    if q.bias:
        some = np.asarray(q.inner.coded(jnp.asarray(whole.codes)))[..., None]
        vectors = some * (vectors + np.asarray(whole.params.bias_out, np.float64))
    return leaves, vectors


def projected(q: Projected, whole: Leaf) -> list[np.ndarray]:
    """z after each of a Projected's steps in, float64 [n, ..., dim]: map, layer norm, length 1."""
    x = hidden(q, whole) @ np.asarray(whole.params.kernel_in, np.float64)
    steps = [x + np.asarray(whole.params.bias_in, np.float64) if q.bias else x]
    if q.layer_norm:
        scale, offset = (np.asarray(v, np.float64) for v in whole.params[5:7])
        x = steps[-1]
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
        steps.append(x * scale + offset)
    return [*steps, unit(steps[-1])] if q.normalize else steps


def hidden(q: Projected, whole: Leaf) -> np.ndarray:
    """What a Projected's map in is given, float64 [n, ..., hidden]; z where nothing is hidden."""
    if not q.hidden:
        return whole.z
    kernel, bias = (np.asarray(v, np.float64) for v in whole.params[7:9])
    x = np.maximum(whole.z @ kernel + bias, 0)
    if whole.key is not None and q.dropout:
        rows = jnp.arange(x.size // q.hidden)
        drawn = ops.uniform_noise(jax.random.split(whole.key)[1], rows, q.hidden)
        x = np.where(np.asarray(drawn).reshape(x.shape) < q.dropout, 0, x / (1 - q.dropout))
    return x


@parts.register
def _(q: Product, whole: Leaf):
    found, vectors = [], []
    keys = [None] * q.num_groups if whole.key is None else jax.random.split(whole.key, q.num_groups)
    for group, z in enumerate(np.split(whole.z, q.num_groups, axis=-1)):
        leaves, values = parts(
            q.inner,
            _inner(whole, q.inner, q.shared, group)._replace(
                z=z, key=keys[group], share=whole.share / q.num_groups
            ),
        )
        found += leaves
        vectors.append(values)
    return found, np.concatenate(vectors, axis=-1)


@parts.register
def _(q: Residual, whole: Leaf):
    leaves, sums = _stages(q, whole)
    return leaves, sums[-1]


def _stages(q: Residual, whole: Leaf):
    """The leaves, and the sum after each stage."""
    inners = q.inner if isinstance(q.inner, tuple) else (q.inner,) * q.num_stages
    keys = [None] * q.num_stages if whole.key is None else jax.random.split(whole.key, q.num_stages)
    found, sums, total, scale = [], [], 0.0, 1.0
    for stage, inner in enumerate(inners):
        # A grid's own inverse of its bound, which has no other definition.
        z = np.asarray(inner.unbound(jnp.asarray((whole.z - total) / scale, jnp.float32)))
        part = _inner(whole, inner, q.shared, stage, tuples=isinstance(q.inner, tuple))
        leaves, values = parts(
            inner,
            part._replace(
                z=z.astype(np.float64), key=keys[stage], greedy=whole.greedy and q.beam == 1
            ),
        )
        found += leaves
        total = total + values * scale
        sums.append(total)
        step = inner.stage_scale if q.scale is None else q.scale
        scale = scale * np.asarray(step, np.float64)
    return found, sums


@parts.register
def _(q: Clamped, whole: Leaf):
    limit = np.asarray(q.limit, np.float64)
    return parts(q.inner, whole._replace(q=q.inner, z=limit * np.tanh(whole.z / limit)))


@parts.register
def _(q: Rotated, whole: Leaf):
    rotation = np.asarray(whole.state.rotation, np.float64)
    inner = whole._replace(q=q.inner, state=whole.state.inner, z=whole.z @ rotation)
    leaves, vectors = parts(q.inner, inner)
    return leaves, vectors @ rotation.T


@parts.register
def _(q: Conditioned, whole: Leaf):
    mean, factor, offset = conditions(q, whole)
    inner = whole._replace(
        q=q.inner,
        params=whole.params.inner,
        state=whole.state.inner,
        z=(whole.z - mean) / factor + offset,
    )
    leaves, vectors = parts(q.inner, inner)
    some = np.asarray(q.inner.coded(jnp.asarray(whole.codes)))[..., None]
    return leaves, some * ((vectors - offset) * factor + mean)


def conditions(q: Conditioned, whole: Leaf) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What a Conditioned takes off, divides by and adds: float64 [D] each."""
    factor = np.exp(-np.asarray(whole.params.log_scale, np.float64))
    offset = np.asarray(whole.params.offset, np.float64)
    if q.decay is None:
        return np.zeros_like(factor), factor, offset
    mean, variance = (np.asarray(x, np.float64) for x in whole.state[:2])
    return mean, factor * np.sqrt(variance), offset


@parts.register
def _(q: VariableRate, whole: Leaf):
    return parts(q.inner, whole._replace(q=q.inner, params=whole.params.inner))


@parts.register
def _(q: Parallel, whole: Leaf):
    found = [parts(branch.q, branch) for branch in branches_of(q, whole)]
    return [leaf for leaves, _ in found for leaf in leaves], sum(vectors for _, vectors in found)


def branches_of(q: Parallel, whole: Leaf) -> list[Leaf]:
    """Each branch with its codes."""
    keys = [None] * len(q.inner) if whole.key is None else jax.random.split(whole.key, len(q.inner))
    ends, found = np.cumsum((0, *q.lengths)), []
    for i, inner in enumerate(q.inner):
        codes = whole.codes[..., ends[i] : ends[i + 1]]
        params, state = (
            tree[i] if jax.tree.leaves(tree) else () for tree in (whole.params, whole.state)
        )
        found.append(
            whole._replace(
                q=inner,
                params=params,
                state=state,
                codes=codes if inner.code_shape else codes[..., 0],
                key=keys[i],
                place=(*whole.place, i),
            )
        )
    return found


@parts.register
def _(q: Strided, whole: Leaf):
    leaves, sums = _strides(q, whole)
    return leaves, real_in_windows(q, whole.codes)[..., None] * sums[-1]


def _strides(q: Strided, whole: Leaf):
    """The leaves, and the sum after each stage, of windows z [n, W, D]."""
    keys = [None] * len(q.inner) if whole.key is None else jax.random.split(whole.key, len(q.inner))
    real = real_in_windows(q, whole.codes)
    found, sums, total = [], [], 0.0
    for k, (inner, stride, codes) in enumerate(
        zip(q.inner, q.strides, by_stride(q, whole.codes), strict=True)
    ):
        left = np.where(real[..., None], whole.z - total, 0)
        number = real.reshape(len(real), -1, stride).sum(-1)[..., None]
        means = left.reshape(len(left), -1, stride, left.shape[-1]).sum(-2) / np.maximum(number, 1)
        means = np.asarray(inner.unbound(jnp.asarray(means, jnp.float32)), np.float64)
        params, state = (
            tree[k] if jax.tree.leaves(tree) else () for tree in (whole.params, whole.state)
        )
        part = whole._replace(
            q=inner, params=params, state=state, key=keys[k], place=(*whole.place, k),
            z=means.reshape(-1, means.shape[-1]), codes=codes.reshape(-1),
        )  # fmt: skip
        leaves, values = parts(inner, part)
        found += leaves
        total = total + np.repeat(values.reshape(len(means), -1, values.shape[-1]), stride, axis=1)
        sums.append(total)
    return found, sums


def by_stride(q: Strided, codes: np.ndarray) -> list[np.ndarray]:
    """The codes [..., L] of each stage in a window, [..., W / stride]."""
    return np.split(codes, np.cumsum(q.places)[:-1], axis=-1)


def real_in_windows(q: Strided, codes: np.ndarray) -> np.ndarray:
    """Which vectors are real by the finest stage that has a code: bool [n, W]."""
    real = np.zeros((len(codes), q.strides[0]), bool)
    for stride, part in zip(q.strides, by_stride(q, codes), strict=True):
        some = part >= 0
        real = np.where(some.any(-1, keepdims=True), np.repeat(some, stride, axis=-1), real)
    return real


@parts.register
def _(q: Levels, whole: Leaf):
    found, vectors = [], []
    for size, part in zip(q.sizes, levels_of(q, whole), strict=True):
        leaves, values = parts(part.q, part)
        found += leaves
        vectors.append(values.reshape(len(whole.z), size, -1))
    return found, np.concatenate(vectors, axis=1)


def levels_of(q: Levels, whole: Leaf) -> list[Leaf]:
    """Each level with its part of the vectors, as rows."""
    keys = [None] * len(q.inner) if whole.key is None else jax.random.split(whole.key, len(q.inner))
    ends, found = np.cumsum((0, *q.sizes)), []
    for i, inner in enumerate(q.inner):
        at = slice(ends[i], ends[i + 1])
        params, state = (
            tree[i] if jax.tree.leaves(tree) else () for tree in (whole.params, whole.state)
        )
        part = whole._replace(
            params=params, state=state, key=keys[i], place=(*whole.place, i), q=inner
        )
        found.append(_rows(part, whole.z[:, at], whole.codes[..., at]))
    return found


@parts.register
def _(q: MultiScale, whole: Leaf):
    leaves, sums = _scales(q, whole)
    return leaves, real_by_codes(q, whole.codes)[..., None] * sums[-1]


def _scales(q: MultiScale, whole: Leaf):
    """The leaves, and the sum after each scale."""
    number = len(q.sizes)
    keys = [None] * number if whole.key is None else jax.random.split(whole.key, number)
    real = real_by_codes(q, whole.codes)[..., None].astype(np.float64)
    params = whole.params.inner if q.phi else whole.params
    found, sums, total = [], [], 0.0
    for k, (size, codes) in enumerate(zip(q.sizes, by_scale(q, whole.codes), strict=True)):
        areas = [_areas(*sides) for sides in zip(size, q.grid, strict=True)]
        summed, counted = (_along(areas, x) for x in (real * (whole.z - total), real))
        inner = whole._replace(q=q.inner, params=params, key=keys[k], share=whole.share / number)
        if isinstance(q.inner, tuple):
            trees = [tree[k] if jax.tree.leaves(tree) else () for tree in (params, whole.state)]
            place = (*whole.place, k)
            inner = inner._replace(q=q.inner[k], params=trees[0], state=trees[1], place=place)
        means = np.asarray(
            inner.q.unbound(jnp.asarray(summed / np.maximum(counted, 1), jnp.float32))
        )
        leaves, values = parts(inner.q, _rows(inner, means.astype(np.float64), codes))
        found += leaves
        grown = values.reshape(len(whole.z), *size, -1)
        if size != q.grid:
            weights = _cubic if len(size) == 2 else _linear
            grown = _along([weights(*sides) for sides in zip(size, q.grid, strict=True)], grown)
        if q.phi:
            grown = _phi(q, whole.params, k, grown)
        used = np.any(codes.reshape(len(codes), -1) >= 0, axis=-1)
        total = total + used.reshape(-1, *[1] * (len(size) + 1)) * grown
        sums.append(total)
    return found, sums


def by_scale(q: MultiScale, codes: np.ndarray) -> list[np.ndarray]:
    """The codes [..., L] of each scale, [..., places]."""
    return np.split(codes, np.cumsum([np.prod(size) for size in q.sizes])[:-1], axis=-1)


def real_by_codes(q: MultiScale, codes: np.ndarray) -> np.ndarray:
    """Which vectors are real by the finest scale that has a code: bool [n, *grid]."""
    real = np.zeros((len(codes), *q.grid), bool)
    axes = tuple(range(1, 1 + len(q.grid)))
    for size, part in zip(q.sizes, by_scale(q, codes), strict=True):
        coded = np.any(part.reshape(len(codes), -1, *size) >= 0, axis=1)
        areas = [_areas(*sides).T for sides in zip(size, q.grid, strict=True)]
        cover = _along(areas, coded[..., None])[..., 0] > 0
        real = np.where(coded.any(axes, keepdims=True), cover, real)
    return real


def shown_places(q: MultiScale, mask: np.ndarray) -> list[np.ndarray]:
    """Which places of each scale have a real vector in their area, bool [n, places]."""
    return [
        (
            _along([_areas(*sides) for sides in zip(size, q.grid, strict=True)], mask[..., None])
            > 0
        ).reshape(len(mask), -1)
        for size in q.sizes
    ]


@functools.singledispatch
def prefixes(q: Quantizer, whole: Leaf) -> list[tuple[np.ndarray, np.ndarray]]:
    """Codes cut off after the first stages or scales, and what decode must give: float64 [n, ...].

    None, where a kind has no order in its codes.
    """
    return []


@prefixes.register
def _(q: Residual, whole: Leaf):
    places = np.arange(q.num_stages)
    sums = enumerate(_stages(q, whole)[1], 1)
    return [(np.where(places < n, whole.codes, -1), total) for n, total in sums]


@prefixes.register
def _(q: Parallel, whole: Leaf):
    places = np.arange(q.code_shape[-1])
    cut = [np.where(places <= n, whole.codes, -1) for n in places]
    return [(codes, parts(q, whole._replace(codes=codes))[1]) for codes in cut]


@prefixes.register
def _(q: Strided, whole: Leaf):
    stages = np.repeat(np.arange(len(q.places)), q.places)
    found = []
    for n, total in enumerate(_strides(q, whole)[1], 1):
        cut = np.where(stages < n, whole.codes, -1)
        found.append((cut, real_in_windows(q, cut)[..., None] * total))
    return found


@prefixes.register
def _(q: MultiScale, whole: Leaf):
    scales = np.repeat(np.arange(len(q.sizes)), [np.prod(size) for size in q.sizes])
    found = []
    for n, total in enumerate(_scales(q, whole)[1], 1):
        cut = np.where(scales < n, whole.codes, -1)
        found.append((cut, real_by_codes(q, cut)[..., None] * total))
    return found


def _rows(leaf, z, codes):
    """A leaf of all vectors z [n, ..., D] and codes [n, *code_shape, places], as rows."""
    codes = np.moveaxis(codes, -1, 1).reshape(-1, *leaf.q.code_shape)
    return leaf._replace(z=z.reshape(-1, z.shape[-1]), codes=codes)


def _along(matrices, x):
    """Matrices [h, H], ... of each axis applied to x [n, H, ..., d]."""
    for axis, matrix in enumerate(matrices, start=1):
        x = np.moveaxis(np.tensordot(matrix, x, axes=(1, axis)), 0, axis)
    return x


def _areas(coarse, fine):
    """Which places of a finer axis lie in each of a coarser one, adaptive pooling's windows."""
    places, ends = np.arange(fine), np.arange(coarse + 1) * fine / coarse
    return (places >= np.floor(ends[:-1, None])) & (places < np.ceil(ends[1:, None]))


def _cubic(coarse, fine):
    """Bicubic weights [fine, coarse], a = -0.75, the border repeated."""
    weights = np.zeros((fine, coarse))
    for i, at in enumerate((np.arange(fine) + 0.5) * coarse / fine - 0.5):
        for j in range(int(np.floor(at)) - 1, int(np.floor(at)) + 3):
            t = abs(at - j)
            far = -0.75 * (t**3 - 5 * t**2 + 8 * t - 4)
            weights[i, np.clip(j, 0, coarse - 1)] += far if t > 1 else 1.25 * t**3 - 2.25 * t**2 + 1
    return weights


def _linear(coarse, fine):
    """Linear weights [fine, coarse], the border repeated."""
    weights = np.zeros((fine, coarse))
    for i, at in enumerate((np.arange(fine) + 0.5) * coarse / fine - 0.5):
        first = int(np.floor(at))
        weights[i, np.clip(first, 0, coarse - 1)] += 1 - (at - first)
        weights[i, np.clip(first + 1, 0, coarse - 1)] += at - first
    return weights


def _phi(q, params, k, x):
    """The convolution of scale k, mixed with x [n, *grid, D] itself."""
    margin = (1 / 3 if len(q.phi) == 4 else 1 / 2) / len(q.phi)
    places = np.linspace(margin, 1 - margin, len(q.phi))
    p = np.argmin(np.abs(places - k / max(len(q.sizes) - 1, 1)))
    axes = len(q.grid)
    padded = np.pad(x, ((0, 0), *((1, 1),) * axes, (0, 0)))
    moved = 0.0
    for at in np.ndindex(*(3,) * axes):
        window = tuple(slice(a, a + n) for a, n in zip(at, q.grid, strict=True))
        moved = moved + padded[(slice(None), *window)] @ np.asarray(
            params.kernels[p][at], np.float64
        )
    return (1 - q.phi[p]) * x + q.phi[p] * (moved + np.asarray(params.biases[p], np.float64))


def _inner(whole: Leaf, inner: Quantizer, shared: bool, entry: int, tuples: bool = False) -> Leaf:
    """An entry of the leading axis of everything (of the trailing one of codes)."""
    codes = whole.codes[..., entry]
    if shared:
        return whole._replace(q=inner, codes=codes)

    def take(tree):
        if tuples:
            return tree[entry] if jax.tree.leaves(tree) else ()
        return jax.tree.map(lambda x: x[entry], tree)

    params, state = take(whole.params), take(whole.state)
    place = (*whole.place, entry)
    return whole._replace(q=inner, params=params, state=state, codes=codes, place=place)


def unit(x: np.ndarray) -> np.ndarray:
    """Rows of unit length."""
    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)
