"""The arrays of one quantizer in a state dict, by the names that its layout gives them."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import numpy as np

from vqjax.importers.arrays import finite, listed, numbers


class Entries:
    """What stands under a prefix in a state dict, read as float32; weight norms are folded.

    Args:
      entries: a flat state dict.
      prefix: what stands before every name of this quantizer.
      roots: how its names begin; others under the prefix are passed over.
    """

    def __init__(
        self, entries: Mapping[str, Any], prefix: str = '', roots: Collection[str] = ('',)
    ):
        self.prefix = prefix
        self.whole = entries
        names = [key.removeprefix(prefix) for key in entries if key.startswith(prefix)]
        arrays = {
            name: numbers(prefix + name, entries[prefix + name])
            for name in names
            if name.startswith(tuple(roots))
        }
        self._arrays = _without_weight_norm(arrays, prefix)

    def __contains__(self, name: str) -> bool:
        return name in self._arrays

    def __getitem__(self, name: str) -> np.ndarray:
        """The array, float32 and finite."""
        if name not in self._arrays:
            raise ValueError(f'{self.prefix}{name} is missing: found {listed(self.names)}')
        return finite(self.prefix + name, self._arrays[name])

    @property
    def names(self) -> list[str]:
        """The names, in the state dict's order."""
        return list(self._arrays)

    def key(self, name: str) -> str:
        """The name as it stands in the state dict."""
        return self.prefix + name

    def raw(self, name: str) -> np.ndarray:
        """The array as it came."""
        return self._arrays[name]

    def under(self, stem: str) -> Entries:
        """The entries whose names begin with `stem`, by the rest of the name."""
        part = Entries({}, self.prefix + stem)
        part.whole = self.whole
        part._arrays = {
            name.removeprefix(stem): array
            for name, array in self._arrays.items()
            if name.startswith(stem)
        }
        return part

    def without(self, stem: str) -> Entries:
        """The entries whose names do not begin with `stem`."""
        part = Entries({}, self.prefix)
        part.whole = self.whole
        part._arrays = {k: v for k, v in self._arrays.items() if not k.startswith(stem)}
        return part

    def stems(self, *patterns: str) -> list[str]:
        """The beginnings of names that match one of the patterns.

        `stems(r'layers\\.(\\d+)\\.')` is ['layers.0.', 'layers.1.']: as many as there are, numbered
        from 0, so that `expect` names what is missing between them.
        """
        found = {}
        for name in self._arrays:
            for pattern in patterns:
                if match := re.match(pattern, name):
                    before, after = match[0][: match.start(1)], match[0][match.end(1) :]
                    found[int(match[1])] = before, after
        if not found:
            return []
        before, after = found[min(found)]
        return [f'{before}{i}{after}' for i in range(len(found))]

    def expect(self, required: Iterable[str], optional: Iterable[str] = ()) -> None:
        """Raise ValueError, listing both sides, unless these names are there and no others."""
        expected, known = list(required), [*required, *optional]
        missing = [name for name in expected if name not in self]
        unknown = [name for name in self._arrays if name not in known]
        if missing or unknown:
            raise ValueError(
                f'state does not fit (prefix {self.prefix!r}): missing {listed(missing)}; unknown '
                f'{listed(unknown)}; expected {listed(expected)}; found {listed(self.names)}'
            )


# torch's two spellings of weight normalisation: the length and the direction.
_SPELLINGS = (
    ('weight_g', 'weight_v'),
    ('parametrizations.weight.original0', 'parametrizations.weight.original1'),
)


def _without_weight_norm(arrays, prefix):
    """`weight` in the place of a weight norm's two arrays (arXiv:1602.07868 eq. 2)."""
    folded = {}
    for name, array in arrays.items():
        for length, direction in _SPELLINGS:
            if name == length or name.endswith('.' + length):
                stem = name.removesuffix(length)
                if stem + direction in arrays:
                    folded[stem + 'weight'] = _folded(arrays, name, stem + direction, prefix)
                break
            if name == direction or name.endswith('.' + direction):
                if name.removesuffix(direction) + length in arrays:
                    break
        else:
            folded[name] = array
    return folded


def _folded(arrays, length, direction, prefix):
    g = finite(prefix + length, arrays[length]).astype(np.float64)
    v = finite(prefix + direction, arrays[direction]).astype(np.float64)
    if v.ndim < 2 or g.size != v.shape[0]:
        raise ValueError(
            f'{prefix}{length} {g.shape} and {prefix}{direction} {v.shape} do not fit together: '
            'need one length for each entry of the first axis'
        )
    norms = np.sqrt(np.sum(v**2, axis=tuple(range(1, v.ndim)), keepdims=True))
    return (v * (g.reshape(norms.shape) / np.maximum(norms, 1e-30))).astype(np.float32)
