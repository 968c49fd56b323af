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

from vqjax.quantizers.base import Quantizer
from vqjax.quantizers.codebook import Wrapped
from vqjax.quantizers.product import Product
from vqjax.quantizers.projected import Projected
from vqjax.quantizers.residual import Residual

# Above so many codes a leaf's vectors are decoded one by one and not from a table of all.
_MOST_ROWS = 2**17


class Leaf(NamedTuple):
    """A leaf quantizer in its place.

    q; its params and state; z float64 [n, d], codes int [n] and key as it was given them; share,
    the weight of its loss in the whole; place, which state it keeps (shared ones have the same);
    greedy, whether it chose its codes itself (a beam chooses for all stages).
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
      z: [n, D].
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
    x = whole.z @ np.asarray(whole.params.kernel_in, np.float64)
    x = unit(x) if q.normalize else x
    inner = whole._replace(q=q.inner, params=whole.params.inner, z=x)
    leaves, vectors = parts(q.inner, inner)
    return leaves, vectors @ np.asarray(whole.params.kernel_out, np.float64)


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
    inners = q.inner if isinstance(q.inner, tuple) else (q.inner,) * q.num_stages
    keys = [None] * q.num_stages if whole.key is None else jax.random.split(whole.key, q.num_stages)
    found, total, scale = [], 0.0, 1.0
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
        scale = scale * np.asarray(inner.stage_scale, np.float64)
    return found, total


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
