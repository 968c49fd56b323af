"""What the study of behaviours adds to results.json: figures of every fold."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from vqjax.ops.fields import check_count
from vqjax.results.plain import is_number, mappings, optional, part, within
from vqjax.results.records import Results
from vqjax.studies.behaviour.sessions import Sessions
from vqjax.trainer.data.recordings import RecordingSet

Figures = Mapping[str, float]


@dataclasses.dataclass(frozen=True)
class SequenceModels:
    """The fields of the study beside those of a run.

    Fields:
      rounds: how often every recording occurs in the sessions.
      session: recordings of a session.
      states: at most, where their number is found.
      phases, duration_s: of a negative binomial duration, and its expectation in seconds.
      lag_s: seconds after a place from which the filter reads codes.
      tokens: centroids of k-means, where nothing is quantized.
      restarts: starts of a fit with a given number of states.

    Raises:
      ValueError: a count below 1, or seconds that are not above 0.
    """

    rounds: int = 3
    session: int = 8
    states: int = 12
    phases: int = 4
    duration_s: float = 8.0
    lag_s: float = 2.0
    tokens: int = 64
    restarts: int = 8

    def __post_init__(self) -> None:
        for name, value in dataclasses.asdict(self).items():
            if not name.endswith('_s'):
                check_count(name, value)
            elif not is_number(value) or not 0 < value < float('inf'):
                raise ValueError(f'{name} must be seconds above 0, got {value!r}')

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """Of the fields."""
        return tuple(field.name for field in dataclasses.fields(cls))

    @classmethod
    def read(cls, plain: Mapping[str, Any]) -> SequenceModels:
        """Of the entry `sequence_models`.

        Raises:
          ValueError: a field is missing or wrong.
        """
        missing = [name for name in cls.names() if name not in plain]
        if missing:
            raise ValueError(f'it has no {missing[0]}')
        return cls(**{name: plain[name] for name in cls.names()})


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
      own: the fields of the study.
      folds: in order.
    """

    own: SequenceModels
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
        with within('sequence_models'):
            own = SequenceModels.read(part(results.added, 'sequence_models', dict))
        return cls(own, tuple(folds))

    def plain(self) -> dict[str, Any]:
        """As JSON holds it."""
        folds = [fold.plain() for fold in self.folds]
        return {'sequence_models': dataclasses.asdict(self.own), 'folds': folds}


class Picture(NamedTuple):
    """What the picture of a session shows, of the first session.

    found: method -> name of a sequence model or peer -> states int [T].
    """

    session: Sessions
    dataset: RecordingSet
    found: Mapping[str, Mapping[str, np.ndarray]]
