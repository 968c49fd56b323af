"""NamedTuples in programs that `jax.export` writes to a file, as arguments and results."""

from __future__ import annotations

import contextlib
from typing import Any, TypeVar

from jax import export

Kind = TypeVar('Kind', bound=type)


def exported(kind: Kind) -> Kind:
    """Class decorator: a NamedTuple that serialised programs may take and return.

    Its name in a file is that of the class and its package. One of your own that `init` of a
    quantizer returns is registered by that call; a process that only reads a program needs this.
    """
    package = kind.__module__.partition('.')[0]
    name = f'vqjax.{kind.__name__}' if package == 'vqjax' else f'{kind.__module__}.{kind.__name__}'
    # Not twice: where a module is read again, the class that was there first keeps the name.
    with contextlib.suppress(ValueError):
        export.register_namedtuple_serialization(kind, serialized_name=name)
    return kind


def export_all(tree: Any) -> None:
    """`exported` for every NamedTuple in a tree."""
    if isinstance(tree, tuple) and hasattr(tree, '_fields'):
        exported(type(tree))
    inside = tree.values() if isinstance(tree, dict) else tree
    if isinstance(inside, tuple | list) or isinstance(tree, dict):
        for part in inside:
            export_all(part)
