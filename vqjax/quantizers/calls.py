"""What a call of a quantizer's method is checked for, once for all quantizers, when it is traced.

Shapes and dtypes are known then, values are not: nothing here is part of the compiled program but
the selection that puts zeros where a mask hides z. Calls that quantizers make of each other are not
checked again.
"""

from __future__ import annotations

import functools
import inspect
import threading
from collections.abc import Callable
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vqjax import ops
from vqjax.ops import AxisName
from vqjax.quantizers.forms import as_array, describe, fitting, grid_of, remember


def checked(name: str, method: Callable, specs: Any) -> Callable:
    """A method of the protocol that checks its arguments and runs over any mesh.

    Args:
      name: of the method, 'init', 'quantize', 'update' or 'decode'.
      method: as its class defines it.
      specs: how what it returns is sharded over Explicit axes, see `ops.automatic`.
    """
    if name == 'update' and 'weights' not in inspect.signature(method).parameters:
        method = _without_weights(method)
    signature = inspect.signature(method)
    run = ops.automatic(specs)(method)
    hiding = {'quantize': _without_hidden, 'update': _without_weightless}
    outermost = ops.automatic(specs)(hiding[name](method)) if name in hiding else run

    @functools.wraps(method)
    def call(*args, **kwargs):
        if _inside.call:
            return run(*args, **kwargs)
        bound = signature.bind(*args, **kwargs)
        given = bound.arguments
        quantizer = next(iter(given.values()))
        _check_arguments(quantizer, name, given)
        with _inside.a_call():
            result = outermost(*bound.args, **bound.kwargs)
        if name == 'init':
            remember(quantizer, given['z'].shape[-1], result)
        return result

    return call


class _Inside(threading.local):
    """Whether this thread is within a call, whose own calls need no second check."""

    call = False

    @contextmanager
    def a_call(self):
        before, self.call = self.call, True
        try:
            yield
        finally:
            self.call = before


_inside = _Inside()


def _without_hidden(quantize):
    """Zeros for the vectors that a mask hides: no NaN among them meets a product or a gradient."""
    signature = inspect.signature(quantize)

    @functools.wraps(quantize)
    def call(*args, **kwargs):
        bound = signature.bind(*args, **kwargs)
        mask = bound.arguments.get('mask')
        if mask is not None:
            bound.arguments['z'] = jnp.where(mask[..., None], bound.arguments['z'], 0)
        return quantize(*bound.args, **bound.kwargs)

    return call


def _without_weightless(update):
    """Masks vectors whose weight is not above 0, for all that an update does with vectors."""
    signature = inspect.signature(update)

    @functools.wraps(update)
    def call(*args, **kwargs):
        bound = signature.bind(*args, **kwargs)
        weights, mask = (bound.arguments.get(name) for name in ('weights', 'mask'))
        if weights is not None:
            heavy = (weights > 0) & jnp.isfinite(weights)
            bound.arguments['mask'] = heavy if mask is None else heavy & mask
        return update(*bound.args, **bound.kwargs)

    return call


def _without_weights(update):
    """An update written without the argument `weights`, which refuses it where it is given."""

    def call(self, params, state, z, codes, key=None, mask=None, axis_name=None, weights=None):
        if weights is not None:
            raise ValueError(f'weights must be None: the update of {self!r} takes none')
        return update(self, params, state, z, codes, key, mask, axis_name)

    call.__name__, call.__doc__ = update.__name__, update.__doc__
    return call


def _check_arguments(quantizer, name, given):
    """Check what a method is given, by name, and put arrays in the place of what can be one."""
    check_axis(given.get('axis_name'))
    shape = None
    if 'z' in given:
        z = given['z'] = as_array('z', given['z'])
        _check_vectors(z)
        shape = z.shape[:-1]
    if given.get('mask') is not None:
        mask = given['mask'] = as_array('mask', given['mask'])
        if mask.dtype != bool or mask.shape != shape:
            raise ValueError(
                f'mask must be bool of shape {shape}, one entry for each vector of z '
                f'{z.shape}, got {describe(mask)}'
            )
    if 'codes' in given:
        # What is quantized grid by grid has codes of a grid, not of a vector.
        rows = None if shape is None else shape[: len(shape) - len(grid_of(quantizer))]
        codes = _within_int32(given['codes'])
        if name == 'decode' and isinstance(codes, jax.Array | np.ndarray):
            codes = quantizer.completed(codes)
        given['codes'] = _codes(codes, rows, quantizer.code_shape_of(codes))
    if given.get('weights') is not None:
        given['weights'] = _weights(given['weights'], shape)
    if given.get('key') is not None:
        _check_key(given['key'])
    if 'params' in given and 'state' in given:
        trees = given['params'], given['state']
        dim = given['z'].shape[-1] if 'z' in given else None
        given['params'], given['state'] = fitting(quantizer, trees, dim)


def check_axis(axis_name: AxisName) -> None:
    """Raise ValueError where `axis_name` is not a mapped axis."""
    try:
        if axis_name is not None:
            jax.lax.axis_size(axis_name)
    except NameError:
        raise ValueError(
            f'axis_name={axis_name!r} is no mapped axis here: give it to pmap, vmap or shard_map '
            'around this call, or leave it None under jit over sharded arrays'
        ) from None


def _check_vectors(z):
    if not jnp.issubdtype(z.dtype, jnp.floating):
        raise ValueError(
            f'z must be real floating point vectors, got dtype {z.dtype}; convert it, '
            'z.astype(jnp.float32), or give real and imaginary parts as features'
        )
    if z.ndim < 1 or 0 in z.shape:
        raise ValueError(
            f'z must be [..., D] with at least one vector of at least one feature, got z of shape '
            f'{z.shape}'
        )


def _codes(codes, shape, code_shape):
    """Codes int32; where int32 cannot hold one, it is no code and stays none."""
    codes = as_array('codes', codes)
    if not jnp.issubdtype(codes.dtype, jnp.integer):
        raise ValueError(f'codes must be integers, got dtype {codes.dtype}')
    first = codes.ndim - len(code_shape)
    trailing = first >= 0 and codes.shape[first:] == code_shape
    if not trailing or shape not in (None, codes.shape[:first]):
        need = '[..., ' + ', '.join(map(str, code_shape)) + ']' if code_shape else '[...]'
        need = need if shape is None else str(tuple(shape) + code_shape)
        raise ValueError(
            f'codes must have shape {need}, the leading axes of z and code_shape={code_shape}, '
            f'got {codes.shape}'
        )
    if codes.dtype == jnp.int32:
        return codes
    if codes.dtype.itemsize >= 4:
        codes = jnp.minimum(codes, np.iinfo(np.int32).max)
    if codes.dtype == jnp.int64:
        codes = jnp.maximum(codes, -1)
    return codes.astype(jnp.int32)


def _within_int32(codes):
    """NumPy's integers as int32, before JAX takes the lower half of 64 bits."""
    if isinstance(codes, np.ndarray) and codes.dtype.kind in 'iu':
        return np.clip(codes, -1, np.iinfo(np.int32).max).astype(np.int32)
    return codes


def _weights(weights, shape):
    if not isinstance(weights, jax.Array):  # values are known here
        weights = np.asarray(weights)
        if weights.dtype.kind == 'f' and not (np.isfinite(weights) & (weights >= 0)).all():
            raise ValueError(f'weights must be finite and not negative, got {weights!r:.200}')
    weights = as_array('weights', weights)
    if not jnp.issubdtype(weights.dtype, jnp.floating) or weights.shape != shape:
        raise ValueError(
            f'weights must be floating point of shape {shape}, one for each vector of z, got '
            f'{describe(weights)}'
        )
    return weights.astype(jnp.float32)


def _check_key(key):
    dtype = getattr(key, 'dtype', None)
    typed = dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key)
    if not (typed and key.shape == () or dtype == jnp.uint32 and len(key.shape) == 1):
        raise ValueError(f'key must be one random key, such as jax.random.key(0), got {key!r:.100}')
