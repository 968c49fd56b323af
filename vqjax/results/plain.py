"""Plain data, as JSON holds it, checked part by part while it is read."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

from vqjax.atomic import read_json
from vqjax.metrics import Interval

T = TypeVar('T')
_KINDS: dict[type, str] = {
    dict: 'mapping', list: 'list', str: 'text', int: 'whole number', float: 'number', bool: 'bool',
}  # fmt: skip


def load(path: str | os.PathLike[str], read: Callable[[Mapping[str, Any]], T], remedy: str) -> T:
    """What `read` makes of the mapping in a file of JSON.

    Raises:
      ValueError: the file cannot be read, or `read` refuses its content; names the file, what is
        wrong and the remedy.
    """
    content = read_json(path, remedy)
    try:
        return read(content)
    except ValueError as error:
        raise ValueError(f'{path} is damaged ({error}): {remedy}') from error


@contextlib.contextmanager
def within(name: str) -> Iterator[None]:
    """Puts the name of what is being read before the message of a ValueError."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f'{name}: {error}') from error


def part(plain: Mapping[str, Any], name: str, kind: type[T]) -> T:
    """An entry of a mapping, of a kind that JSON knows; a whole number is a float too.

    Raises:
      ValueError: it is missing or of another kind.
    """
    value = plain.get(name)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return value  # type: ignore[return-value]
    if value is None:
        raise ValueError(f'it has no {name}')
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise ValueError(f'{name} is {value!r:.40}, not a {_KINDS[kind]}')
    return value


def optional(plain: Mapping[str, Any], name: str, kind: type[T]) -> T | None:
    """The same, or None where it is missing or null."""
    return None if plain.get(name) is None else part(plain, name, kind)


def sequence(plain: Mapping[str, Any], name: str) -> list[Any]:
    """A list in a mapping; a tuple, which JSON writes as one, is a list too.

    Raises:
      ValueError: it is missing, or something else.
    """
    value = plain.get(name)
    return list(value) if isinstance(value, tuple) else part(plain, name, list)


def numbers(plain: Mapping[str, Any], name: str) -> tuple[float, ...]:
    """A list of numbers in a mapping.

    Raises:
      ValueError: it is missing, or holds something else.
    """
    values = sequence(plain, name)
    for value in values:
        if not is_number(value):
            raise ValueError(f'{name} holds {value!r:.40}, which is no number')
    return tuple(values)


def mappings(plain: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    """A list of mappings in a mapping.

    Raises:
      ValueError: it is missing, or holds something else.
    """
    values = sequence(plain, name)
    for value in values:
        if not isinstance(value, dict):
            raise ValueError(f'{name} holds {value!r:.40}, which is no mapping')
    return values


def is_number(value: Any) -> bool:
    """Whether a value of plain data is a number; True and False are none."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def read_interval(plain: Mapping[str, Any], name: str) -> Interval:
    """An interval, of {'mean', 'low', 'high'} under that name.

    Raises:
      ValueError: it is none.
    """
    found = part(plain, name, dict)
    with within(name):
        return Interval(*(part(found, end, float) for end in Interval._fields))
