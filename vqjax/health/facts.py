"""What a quantizer has and what it lacks, read from itself or from its spec."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

BLIND_STARTS = ('normal', 'unit_sphere')


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


class Facts:
    """What is known of the quantizer of a run.

    Args:
      spec: a quantizer, its spec (see `vqjax.to_spec`) or None.
    """

    def __init__(self, spec: Any):
        self.quantizer = complete(spec)
        known = self.quantizer is not None and not isinstance(self.quantizer, Mapping)
        self.known = known
        self._leaves = leaves(self.quantizer) if known else []

    def has(self, field: str) -> bool:
        """Whether a leaf has this field; True where the quantizer is unknown."""
        return not self.known or any(hasattr(leaf, field) for leaf in self._leaves)

    def get(self, field: str, default: Any = None) -> Any:
        """The field of the first leaf that has it."""
        for leaf in self._leaves:
            if hasattr(leaf, field):
                return getattr(leaf, field)
        return default

    def number(self, field: str) -> float:
        """A field that is a number, else NaN."""
        value = self.get(field)
        plain = isinstance(value, int | float) and not isinstance(value, bool)
        return float(value) if plain else math.nan

    @property
    def is_fsq(self) -> bool:
        """Whether the quantizer is known to be an FSQ."""
        return self.known and self.has('levels') and self.has('bound')

    @property
    def averages(self) -> bool:
        """Whether the codes are moving averages; of a VQ only their use is averaged."""
        return self.has('decay') and not (self.known and self.has('codebook'))

    @property
    def is_grid(self) -> bool:
        """Whether the codes are cells of a fixed grid (FSQ, LFQ): nothing there can die."""
        return self.known and not any(hasattr(leaf, 'read_codebook') for leaf in self._leaves)

    @property
    def start(self) -> str:
        """Name of the function that the codebook starts from, '' where there is none."""
        return getattr(self.get('start'), '__name__', '')

    @property
    def starts_blind(self) -> bool:
        """Whether the codebook starts without a look at the data."""
        return self.start in BLIND_STARTS

    @property
    def approximates(self) -> bool:
        """See `approximates`; True where unknown."""
        return not self.known or approximates(self.quantizer)


def complete(spec: Any) -> Any:
    """The quantizer that a spec means; the spec itself where `make` does not know it."""
    if not isinstance(spec, Mapping):
        return spec
    from vqjax import quantizers  # above this package, which needs it for this alone

    try:
        return quantizers.make(spec)
    except ValueError:
        return spec
