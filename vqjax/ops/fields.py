"""What fields of a configuration may hold: plain Python values, refused by name where they do not
make sense. Every comparison is written so that NaN fails it.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import core

MAX_CODES = 2**31 - 1


def check(ok: Any, field: str, value: Any, need: str) -> None:
    """Raise ValueError naming the field and its value where `ok` is false."""
    if not ok:
        raise ValueError(f'{field} must be {need}, got {value!r}')


def check_count(field: str, value: Any, least: int = 1, most: int = MAX_CODES) -> None:
    """Raise ValueError unless `value` is an integer within [least, most]; a bool is none."""
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    check(whole and least <= value <= most, field, value, f'an integer from {least} to {most}')


def is_number(value: Any) -> bool:
    """Whether `value` is a finite real number; a bool is none, nor is text."""
    number = isinstance(value, int | float | np.integer | np.floating)
    return number and not isinstance(value, bool) and math.isfinite(value)


def check_weight(field: str, value: Any) -> None:
    """Raise ValueError unless `value` is a finite number, not negative."""
    check(is_number(value) and value >= 0, field, value, 'finite and not negative')


def check_positive(field: str, value: Any) -> None:
    """Raise ValueError unless `value` is a finite number above 0."""
    check(is_number(value) and value > 0, field, value, 'finite and above 0')


def check_flag(field: str, value: Any) -> None:
    """Raise ValueError unless `value` is True or False: the text 'false' would count as true."""
    check(isinstance(value, bool), field, value, 'True or False')


def plain(value: Any) -> Any:
    """Scalars of NumPy and JAX as Python ones, so that they compare, hash and print as such.

    Lists and arrays become tuples; anything else, a traced array too, stays as it is.
    """
    if isinstance(value, np.generic | np.ndarray | jax.Array):
        return value if isinstance(value, core.Tracer) else plain(value.tolist())
    if type(value) in (list, tuple):
        return tuple(map(plain, value))
    return value


def make_plain(instance: Any) -> None:
    """`plain` for every field of a (frozen) dataclass instance."""
    for field in dataclasses.fields(instance):
        if field.name in vars(instance):
            value = vars(instance)[field.name]
            changed = plain(value)
            if changed is not value:
                object.__setattr__(instance, field.name, changed)


def check_key(key: Any) -> None:
    """Raise ValueError for what is not one random key."""
    dtype = getattr(key, 'dtype', None)
    typed = dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key)
    if not (typed and key.shape == () or dtype == jnp.uint32 and len(key.shape) == 1):
        raise ValueError(f'key must be one random key, such as jax.random.key(0), got {key!r:.100}')
