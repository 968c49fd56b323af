"""What params and state of a quantizer look like: their names, shapes and dtypes."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vqjax.quantizers import Quantizer
from vqjax.quantizers.checking import describe


def structure(quantizer: Quantizer, dim: int) -> tuple[Any, Any]:
    """Shapes and dtypes of (params, state) for vectors of `dim` features; computes nothing."""
    z = jax.ShapeDtypeStruct((1, *quantizer.grid, dim), jnp.float32)
    return jax.eval_shape(lambda z: quantizer.init(jax.random.key(0), z), z)


def leaves(params: Any, state: Any) -> dict[str, Any]:
    """Arrays of both trees by name, such as 'state.counts'."""
    return {
        name + ''.join(jax.tree_util.keystr((part,), simple=False) for part in path): leaf
        for name, tree in (('params', params), ('state', state))
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def check_like(params: Any, state: Any, like: tuple[Any, Any]) -> None:
    """Raise ValueError unless both trees have the names, shapes and dtypes of `like`."""
    given, expected = (
        {k: describe(x) for k, x in leaves(*t).items()} for t in ((params, state), like)
    )
    if given != expected:
        wrong = sorted(name for name in given | expected if given.get(name) != expected.get(name))
        raise ValueError(
            'params and state do not fit the quantizer: '
            + '; '.join(
                f'{name} is {given.get(name, "missing")}, needs {expected.get(name, "nothing")}'
                for name in wrong[:4]
            )
        )


def check_values(params: Any, state: Any) -> None:
    """Raise ValueError for values that no training leaves: not finite, or counts below 0."""
    for name, leaf in leaves(params, state).items():
        value = np.asarray(leaf)
        if not np.isfinite(value).all():
            raise ValueError(
                f'{name} holds values that are not finite: the training it comes from diverged'
            )
        if name.rsplit('.')[-1] in ('counts', 'use', 'step', 'seen') and (value < 0).any():
            raise ValueError(f'{name} holds {value.min()}: it counts, and is never below 0')
