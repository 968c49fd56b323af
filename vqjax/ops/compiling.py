"""Compilation outside jit: once for each set of shapes, not at every call."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, ParamSpec, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import core

Arguments = ParamSpec('Arguments')
Result = TypeVar('Result')


def compiled_once(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Decorator: outside jit the function is compiled as a whole, once for each set of shapes.

    A loop of JAX is compiled anew wherever its body is a new function, at every call then, and
    every program is kept. Arguments that are no arrays must be hashable, as the static arguments
    of `jax.jit`. Inside a jitted function it is called as it is.
    """
    signature = inspect.signature(function)

    @functools.wraps(function)
    def call(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        given = signature.bind(*args, **kwargs).arguments
        arrays = {k: v for k, v in given.items() if _holds_arrays(v)}
        if is_staged(arrays):
            return function(*args, **kwargs)
        return run_compiled(function, {k: v for k, v in given.items() if k not in arrays}, arrays)

    return call


def run_compiled(
    function: Callable[..., Result], static: Mapping[str, Any], arrays: Mapping[str, Any]
) -> Result:
    """function(**static, **arrays) under jit; `arrays` are trees of them."""
    return compiled(_by_name, (function, tuple(static.items())))(**arrays)


def _by_name(function, static, **arrays):
    return function(**dict(static), **arrays)


@functools.lru_cache(maxsize=4096)
def compiled(function: Callable[..., Result], static: tuple[Any, ...]) -> Callable[..., Result]:
    """function(*static, *arrays) as a jitted function of the arrays, one for equal arguments."""
    return jax.jit(functools.partial(function, *static))


def is_staged(arrays: Any) -> bool:
    """Whether operations on these are recorded for a program, by jit say, rather than run."""
    # Tracers are those of `grad` and `vmap` as well, under which a constant stays an array.
    traced = any(isinstance(leaf, core.Tracer) for leaf in jax.tree.leaves(arrays))
    return traced and isinstance(jnp.zeros(()), core.Tracer)


def _holds_arrays(value) -> bool:
    return isinstance(value, jax.Array | np.ndarray) or (
        isinstance(value, tuple) and any(isinstance(x, jax.Array) for x in value)
    )
