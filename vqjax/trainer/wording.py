"""Values and paths as messages name them: in one line, short, and with the nearest spelling."""

import difflib
import os
import pathlib
import reprlib
from collections.abc import Iterable
from typing import Any

import numpy as np

_MOST = 100  # characters of a value in a message

_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = _REPR.maxlong = _MOST
_REPR.maxlist = _REPR.maxtuple = _REPR.maxdict = _REPR.maxset = 6


def shorten(value: Any) -> str:
    """`repr(value)` in one line of at most some 100 characters; of arrays dtype and shape."""
    if isinstance(value, np.ndarray) or hasattr(value, 'dtype') and hasattr(value, 'shape'):
        if np.ndim(value):
            return f'an array {value.dtype} of shape {tuple(value.shape)}'
    text = ' '.join(_REPR.repr(_plain(value)).split())
    return text if len(text) <= _MOST else f'{text[:_MOST]}...'


def _plain(value: Any) -> Any:
    """The value with arrays inside lists and mappings named by dtype and shape."""
    if isinstance(value, np.ndarray):
        return _Said(shorten(value))
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in list(value.items())[:7]}
    if type(value) in (list, tuple):
        return type(value)(_plain(entry) for entry in value[:7])
    return value


class _Said:
    """What repr gives as it is."""

    def __init__(self, text: str):
        self._text = text

    def __repr__(self) -> str:
        return self._text


def nearest(name: str, known: Iterable[str]) -> str:
    """'; did you mean X?' where a known name is like this one, else ''."""
    found = difflib.get_close_matches(name, list(known), 1)
    return f'; did you mean {found[0]!r}?' if found else ''


def nearest_path(path: str | os.PathLike[str]) -> str:
    """'; did you mean PATH?' for a path that does not exist and is like one that does, else ''.

    Follows the path as far as it exists and tries the names there in place of the next one.
    """
    given = pathlib.Path(path).expanduser()
    if given != pathlib.Path(path) and given.exists():
        return f'; did you mean {str(given)!r}?'
    parts = given.parts
    for number in range(len(parts), -1, -1):
        start = pathlib.Path(*parts[:number])
        if not start.is_dir():
            continue
        if number == len(parts):
            return ''
        try:
            names = sorted(os.listdir(start))
        except OSError:
            return ''
        wanted = parts[number]
        lower = {name.lower(): name for name in names}
        found = difflib.get_close_matches(wanted.lower(), lower, 3)
        for name in (lower[x] for x in found):
            there = start.joinpath(name, *parts[number + 1 :])
            if there.exists():
                return f'; did you mean {str(there)!r}?'
        if found:
            return f'; did you mean {str(start / lower[found[0]])!r}?'
        return (
            '' if start == pathlib.Path() else f'; {str(start)!r} is there, and has no {wanted!r}'
        )
    return ''
