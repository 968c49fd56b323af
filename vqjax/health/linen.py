"""Where a Linen model keeps its quantizer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


def linen_quantizer(variables: Mapping[str, Any], path: str | None = None) -> tuple[Any, Any]:
    """(params, state) of the `vqjax.nn.Quantize` in a model's variables.

    Args:
      variables: with the collections `params` and `codebook_stats`, where there are any.
      path: names of the modules down to the Quantize, joined by '/'; None where there is only one.

    Returns:
      () for either that the quantizer does not have.

    Raises:
      ValueError: for a path without a quantizer, and where there are several and none is named.
    """
    params = dict(_holders(variables.get('params', {}), 'quantizer'))
    states = dict(_holders(variables.get('codebook_stats', {}), 'state'))
    paths = sorted(params.keys() | states.keys())
    if path is None and len(paths) > 1:
        raise ValueError(f'path is None and the variables hold {len(paths)}: give one of {paths}')
    if path is not None and path not in paths:
        raise ValueError(f'path={path!r} holds no quantizer; those with one are {paths}')
    place = paths[0] if path is None and paths else path
    return params.get(place, ()), states.get(place, ())


def _holders(tree: Any, name: str, above: str = '') -> Iterator[tuple[str, Any]]:
    """Paths of the modules that hold an entry of this name, with it."""
    for key, value in tree.items():
        if key == name:
            yield above, value
        elif isinstance(value, Mapping):
            yield from _holders(value, name, f'{above}/{key}' if above else key)
