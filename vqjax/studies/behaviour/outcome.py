"""What the study of behaviours adds to results.json: figures of every fold."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from vqjax.results.plain import is_number, mappings, optional, part, within
from vqjax.results.records import Results
from vqjax.studies.behaviour.sessions import Sessions
from vqjax.trainer.data.recordings import RecordingSet

Figures = Mapping[str, float]


def _figures(plain: Mapping[str, Any], name: str) -> dict[str, Figures]:
    """{name: {figure: number}} under a name of plain data."""
    found = part(plain, name, dict)
    for key in found:
        for figure, value in part(found, key, dict).items():
            if not is_number(value):
                raise ValueError(f'{name}: {key}: {figure} is {value!r:.40}, which is no number')
    return found


@dataclasses.dataclass(frozen=True)
class CodedRun:
    """What one run shows on the recordings that were held out.

    Fields:
      figures: of its windows: accuracy, ece and, with a quantizer, perplexity.
      models: sequence model -> its figures on the codes.
    """

    figures: Figures
    models: Mapping[str, Figures]

    @classmethod
    def read(cls, plain: Mapping[str, Any]) -> CodedRun:
        """Of an entry of `seeds` of a method of a fold.

        Raises:
          ValueError: a part is missing or damaged.
        """
        figures = {name: part(plain, name, float) for name in plain if name != 'models'}
        return cls(figures, _figures(plain, 'models'))

    def plain(self) -> dict[str, Any]:
        """As JSON holds it."""
        return {**self.figures, 'models': dict(self.models)}


@dataclasses.dataclass(frozen=True)
class FoldMethod:
    """A method on one fold; runs: its seeds; spec, bits: as in results.json."""

    runs: tuple[CodedRun, ...]
    spec: Mapping[str, Any] | None
    bits: float

    @classmethod
    def read(cls, plain: Mapping[str, Any]) -> FoldMethod:
        """Of an entry of `methods` of a fold.

        Raises:
          ValueError: a part is missing or damaged.
        """
        runs = tuple(map(CodedRun.read, mappings(plain, 'seeds')))
        return cls(runs, optional(plain, 'spec', dict), part(plain, 'bits', float))

    def plain(self) -> dict[str, Any]:
        """As JSON holds it."""
        return {'seeds': [run.plain() for run in self.runs], 'spec': self.spec, 'bits': self.bits}


@dataclasses.dataclass(frozen=True)
class FoldResult:
    """One fold.

    Fields:
      methods: by name.
      peers: seed -> peer -> its figures; without those that were not installed.
      recordings: split -> how many it has of what.
    """

    methods: Mapping[str, FoldMethod]
    peers: Mapping[int, Mapping[str, Figures]]
    recordings: Mapping[str, Any]

    @classmethod
    def read(cls, plain: Mapping[str, Any]) -> FoldResult:
        """Of an entry of `folds`.

        Raises:
          ValueError: a part is missing or damaged.
        """
        methods = {}
        found, peers = part(plain, 'methods', dict), part(plain, 'peers', dict)
        for name in found:
            with within(f'method {name}'):
                methods[name] = FoldMethod.read(part(found, name, dict))
        with within('peers'):
            return cls(
                methods=methods,
                peers={int(seed): _figures(peers, seed) for seed in peers},
                recordings=part(plain, 'recordings', dict),
            )

    def plain(self) -> dict[str, Any]:
        """As JSON holds it."""
        return {
            'methods': {name: method.plain() for name, method in self.methods.items()},
            'peers': {str(seed): dict(figures) for seed, figures in self.peers.items()},
            'recordings': self.recordings,
        }


@dataclasses.dataclass(frozen=True)
class Behaviours:
    """What the study adds.

    Fields:
      own: the fields of the sequence models, `study.OWN`.
      folds: in order.
    """

    own: Mapping[str, Any]
    folds: tuple[FoldResult, ...]

    @classmethod
    def of(cls, results: Results) -> Behaviours:
        """Of results of the study.

        Raises:
          ValueError: a part is missing or damaged, or there is no fold.
        """
        folds = []
        for i, fold in enumerate(mappings(results.added, 'folds')):
            with within(f'fold {i}'):
                folds.append(FoldResult.read(fold))
        if not folds:
            raise ValueError('folds is empty')
        return cls(part(results.added, 'sequence_models', dict), tuple(folds))

    def plain(self) -> dict[str, Any]:
        """As JSON holds it."""
        folds = [fold.plain() for fold in self.folds]
        return {'sequence_models': dict(self.own), 'folds': folds}


class Picture(NamedTuple):
    """What the picture of a session shows, of the first session.

    found: method -> name of a sequence model or peer -> states int [T].
    """

    session: Sessions
    dataset: RecordingSet
    found: Mapping[str, Mapping[str, np.ndarray]]
