"""A field whose constructor argument has the name of a method."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple, TypeVar, dataclass_transform

Kind = TypeVar('Kind')


class _Argument(NamedTuple):
    default: Any
    alias: str


def argument(*, default: Any, alias: str) -> Any:
    """A field that the constructor takes by another name, for classes under `frozen`."""
    return _Argument(default, alias)


@dataclass_transform(frozen_default=True, field_specifiers=(dataclasses.field, argument))
def frozen(kind: type[Kind]) -> type[Kind]:
    """`dataclass(frozen=True, repr=False)` with fields that are an `argument` of another name.

    `start: Callable = argument(default=ops.kmeans, alias='init')` is given as `VQEMA(8, init=...)`
    while `q.init` is the method. To `dataclasses` the alias is an `InitVar`, whose default is the
    method and whose value `__post_init__` takes; type checkers read the alias itself.
    """
    fields: dict[str, Any] = {}
    renamed: dict[str, Any] = {}
    for name, kind_of_field in vars(kind)['__annotations__'].items():
        given = vars(kind).get(name)
        if isinstance(given, _Argument):
            fields[given.alias] = dataclasses.InitVar[Any]
            renamed[name] = kind_of_field
            setattr(kind, name, dataclasses.field(init=False, default=given.default))
        else:
            fields[name] = kind_of_field
    kind.__annotations__ = fields | renamed
    return dataclasses.dataclass(frozen=True, repr=False)(kind)
