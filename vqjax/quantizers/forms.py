"""The form that params and state must have: the one that `init` gives them."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

PyTree = Any

# What init made, or would make: (quantizer, D, whether x64) -> shapes and dtypes of its trees.
_made: dict[Any, PyTree] = {}


def remember(quantizer, dim: int, trees: tuple[PyTree, PyTree]) -> None:
    """Keep the form of the (params, state) that init made of vectors of `dim` features."""
    if len(_made) >= 1024:
        _made.clear()
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tuple(trees))
    _made[quantizer, dim, jax.config.jax_enable_x64] = shapes


def _made_for(quantizer, dim):
    """Shapes and dtypes of the (params, state) for D features; None where they cannot be told.

    Traced once for a quantizer that was not started here, nothing is computed.
    """
    place = quantizer, dim, jax.config.jax_enable_x64
    if place not in _made:
        z = jax.ShapeDtypeStruct((1, *grid_of(quantizer), dim), jnp.float32)
        try:
            made = jax.eval_shape(lambda z: quantizer.init(jax.random.key(0), z), z)
        except jax.errors.JAXTypeError:  # a start of the user's that reads values
            return None
        remember(quantizer, dim, made)
    return _made[place]


def fitting(quantizer, trees, dim):
    """(params, state) as arrays, which must have the form that `init` gives them for D features.

    Params may be kept in any floating dtype, and are computed with in float32. Statistics may not:
    half precision would lose counts. dim: None where z is not at hand.
    """
    trees = jax.tree.map(lambda x: as_array('an array of params and state', x), tuple(trees))
    wrong = None
    for size in [dim] if dim else _possible_dims(quantizer, trees):
        expected = _made_for(quantizer, size)
        if expected is None:
            return trees
        found = _misfits(trees, expected)
        if not found:
            return tuple(map(_as_computed, trees, expected))
        wrong = wrong or found
    if wrong:
        vectors = f' and z of {dim} features' if dim else ''
        more = f', and {len(wrong) - 4} more' if len(wrong) > 4 else ''
        raise ValueError(
            f'params and state do not fit {quantizer!r}{vectors}: '
            f'{"; ".join(wrong[:4])}{more}; both come from its own init'
        )
    return trees


def _possible_dims(quantizer, trees):
    """Numbers of features that params and state may be for, where only codes are known."""
    known = [dim for made, dim, _ in list(_made) if made == quantizer]
    leaves = sorted(jax.tree.leaves(trees), key=lambda x: -x.ndim)
    groups, inner = 1, quantizer
    while inner is not None and not isinstance(inner, tuple):
        groups *= getattr(inner, 'num_groups', 1)
        inner = getattr(inner, 'inner', None)
    sizes = [size for leaf in leaves for size in leaf.shape[::-1]]
    for dim in dict.fromkeys([*known, *(size * groups for size in sizes), *sizes, groups]):
        try:
            _made_for(quantizer, dim)
        except ValueError:  # not divisible by the groups, or not the features of a grid
            continue
        yield dim


def _misfits(trees, expected):
    """What is wrong with the leaves of (params, state), a phrase each; [] where they fit."""
    wrong = []
    for name, tree, like in zip(('params', 'state'), trees, expected, strict=True):
        given, needed = leaves(name, tree), leaves(name, like)
        if not given and not needed:
            continue
        for leaf in needed | given:
            if not _fits(name, given.get(leaf), needed.get(leaf)):
                has, need = (describe(x[leaf]) if leaf in x else 'nothing' for x in (given, needed))
                wrong.append(f'{leaf} is {has} where {need} is needed')
        if not wrong and jax.tree.structure(tree) != jax.tree.structure(like):
            wrong.append(
                f'{name} has the right arrays in other containers: it must be a '
                f'{jax.tree.structure(like)}'
            )
    return wrong


def _fits(name, leaf, like):
    if leaf is None or like is None or leaf.shape != like.shape:
        return False
    kept = name == 'params' and jnp.issubdtype(like.dtype, jnp.floating)
    return leaf.dtype == like.dtype or (kept and jnp.issubdtype(leaf.dtype, jnp.floating))


def _as_computed(tree, like):
    """The tree with dtypes as init makes them; a tree without arrays as it came."""
    if not jax.tree.leaves(tree):
        return tree
    return jax.tree.map(lambda x, y: x if x.dtype == y.dtype else x.astype(y.dtype), tree, like)


def leaves(name, tree):
    """Arrays by name, such as 'state.counts'."""
    return {
        name + ''.join('.' + jax.tree_util.keystr((part,), simple=True) for part in path): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def describe(x):
    """Dtype and shape, such as 'float32[4, 8]'."""
    return 'nothing' if x is None else f'{x.dtype}{list(x.shape)}'


def as_array(name, value):
    """`value` as an array of JAX; NumPy's keep their values whatever their byte order."""
    if isinstance(value, jax.Array):
        return value
    try:
        value = np.asarray(value)
        return jnp.asarray(value.astype(value.dtype.newbyteorder('='), copy=False))
    except (TypeError, ValueError) as error:
        raise ValueError(f'{name} must be an array, got {value!r:.100}: {error}') from None


def grid_of(quantizer):
    """Axes of z that one entry of codes stands for together."""
    return getattr(quantizer, 'grid', ())
