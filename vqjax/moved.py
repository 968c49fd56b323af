"""Modules that were moved, under the names that they had."""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import sys
import types
import warnings
from collections.abc import Mapping, Sequence
from typing import Any


class _Forwarding(types.ModuleType):
    """An old name: its attributes are those of the modules that its content went to."""

    def __getattr__(self, name: str) -> Any:
        if not name.startswith('__'):
            for new in self.__dict__['__moved__']:
                module = importlib.import_module(new)
                if hasattr(module, name):
                    return getattr(module, name)
        raise AttributeError(f'module {self.__name__!r} has no attribute {name!r}')


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def __init__(self, package: str, table: Mapping[str, Sequence[str]]):
        self.names = {
            f'{package}.{old}': tuple(f'{package}.{new}' for new in news)
            for old, news in table.items()
        }

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> Any:
        if fullname in self.names:
            return importlib.machinery.ModuleSpec(fullname, self)
        return None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        news = self.names[spec.name]
        warnings.warn(f'{spec.name} is now {" and ".join(news)}', DeprecationWarning, stacklevel=2)
        module = _Forwarding(spec.name)
        module.__dict__['__moved__'] = news
        return module

    def exec_module(self, module: types.ModuleType) -> None:
        pass


def forward(package: str, table: Mapping[str, Sequence[str]]) -> None:
    """Lets modules of a package be imported under the names that they had.

    Args:
      package: dotted name.
      table: old name -> where its content is now, in the order in which a name is looked for; both
        below the package.
    """
    sys.meta_path.append(_Finder(package, table))
