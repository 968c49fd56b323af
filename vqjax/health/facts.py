"""What a quantizer has and what it lacks, read from itself or from its spec."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any


def parts(quantizer: Any) -> Iterator[Any]:
    """A quantizer and everything inside it, outermost first."""
    yield quantizer
    inner = getattr(quantizer, 'inner', None)
    for part in inner if isinstance(inner, list | tuple) else [] if inner is None else [inner]:
        yield from parts(part)


def leaves(quantizer: Any) -> list[Any]:
    """The innermost quantizers."""
    return [p for p in parts(quantizer) if getattr(p, 'inner', None) is None]


def approximates(quantizer: Any) -> bool:
    """Whether z_q is meant to lie close to z: codebooks compared by distance, in z's own space."""
    own_space = not any(hasattr(p, 'dim') for p in parts(quantizer))
    compared = all(
        hasattr(leaf, 'read_codebook') and getattr(leaf, 'metric', None) == 'euclidean'
        for leaf in leaves(quantizer)
    )
    return own_space and compared and not getattr(quantizer, 'grid', ())


def grid_levels(quantizer: Any) -> tuple[int, ...]:
    """Levels of the one FSQ inside, where there is one code a vector; () of others."""
    (leaf, *others) = leaves(quantizer)
    if others or tuple(quantizer.code_shape) or not hasattr(leaf, 'levels'):
        return ()
    return tuple(leaf.levels)


def complete(spec: Any) -> Any:
    """The quantizer that a spec means; the spec itself where `make` does not know it."""
    if not isinstance(spec, Mapping):
        return spec
    from vqjax import quantizers  # above this package, which it does not need otherwise

    try:
        return quantizers.make(spec)
    except ValueError:
        return spec
