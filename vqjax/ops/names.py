"""Functions by name, so that a configuration can be plain data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

Function = Callable[..., Any]


def named_function(field: str, value: Function | str, known: Mapping[str, Function]) -> Function:
    """`value` itself if it is a function, the one of that name if it is a string.

    Raises:
      ValueError: for a name that is not known, or something else.
    """
    if isinstance(value, str) and value in known:
        return known[value]
    if not callable(value):
        raise ValueError(f'{field} must be one of {sorted(known)} or a function, got {value!r}')
    return value


def function_name(field: str, value: Function, known: Mapping[str, Function]) -> str:
    """The name that `named_function` turns back into `value`.

    Raises:
      ValueError: for a function of your own, which plain data cannot hold.
    """
    name = str(getattr(value, '__name__', None))
    if known.get(name) is not value:
        raise ValueError(f'{field}={value!r} is not one of {sorted(known)}: it has no spec')
    return name
