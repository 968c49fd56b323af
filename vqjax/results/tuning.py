"""How a search chose settings: the entry `tuning` of results.json."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from vqjax.results.plain import is_number, mappings, optional, part, sequence, within

Scores = tuple[float | None, ...]


@dataclasses.dataclass(frozen=True)
class TrialScores:
    """The settings of a trial by path, and validation scores by seed, None where it diverged."""

    settings: Mapping[str, Any]
    accuracy: Scores
    nll: Scores

    @classmethod
    def read(cls, plain: Mapping[str, Any]) -> TrialScores:
        """Of an entry of `trials` of a method.

        Raises:
          ValueError: a part is missing or damaged.
        """
        accuracy, nll = (_scores(plain, name) for name in ('accuracy', 'nll'))
        return cls(part(plain, 'settings', dict), accuracy, nll)

    def plain(self) -> dict[str, Any]:
        """As JSON holds it."""
        return {
            'settings': dict(self.settings),
            'accuracy': list(self.accuracy),
            'nll': list(self.nll),
        }


def _scores(plain: Mapping[str, Any], name: str) -> Scores:
    for value in (found := sequence(plain, name)):
        if value is not None and not is_number(value):
            raise ValueError(f'{name} holds {value!r:.40}, which is no number')
    return tuple(found)


@dataclasses.dataclass(frozen=True)
class MethodTuning:
    """The trials of a method, and which of them were chosen.

    Fields:
      trials: all of them.
      chosen: index of the trial that each seed of the final runs takes.
      together: index of the one that is best on average; None where all diverged on some fold.
    """

    trials: tuple[TrialScores, ...]
    chosen: tuple[int, ...]
    together: int | None = None

    @classmethod
    def read(cls, plain: Mapping[str, Any]) -> MethodTuning:
        """Of an entry of `methods` of the tuning.

        Raises:
          ValueError: a part is missing or damaged, or a trial is chosen that there is not.
        """
        trials = tuple(map(TrialScores.read, mappings(plain, 'trials')))
        chosen, together = sequence(plain, 'chosen'), optional(plain, 'together', int)
        for index in (*chosen, *([] if together is None else [together])):
            if not isinstance(index, int) or not 0 <= index < len(trials):
                raise ValueError(f'trial {index!r:.40} is chosen, and there are {len(trials)}')
        return cls(trials, tuple(chosen), together)

    def plain(self) -> dict[str, Any]:
        """As JSON holds it."""
        return {
            'trials': [trial.plain() for trial in self.trials],
            'chosen': list(self.chosen),
            'together': self.together,
        }


@dataclasses.dataclass(frozen=True)
class Tuning:
    """A search of settings.

    Fields:
      trials: how many a method.
      seeds: that each trial was run with.
      nested: whether every fold chose for itself.
      space: that trials were drawn from, plain data.
      methods: by name.
      test_opened: when the test split was opened, in ISO 8601; None before that.
    """

    trials: int
    seeds: int
    nested: bool
    space: Mapping[str, Any]
    methods: Mapping[str, MethodTuning]
    test_opened: str | None = None

    @classmethod
    def read(cls, plain: Mapping[str, Any]) -> Tuning:
        """Of the entry `tuning`.

        Raises:
          ValueError: a part is missing or damaged.
        """
        methods, found = {}, part(plain, 'methods', dict)
        for name in found:
            with within(f'method {name}'):
                methods[name] = MethodTuning.read(part(found, name, dict))
        return cls(
            trials=part(plain, 'trials', int),
            seeds=part(plain, 'seeds', int),
            nested=part(plain, 'nested', bool),
            space=part(plain, 'space', dict),
            methods=methods,
            test_opened=optional(plain, 'test_opened', str),
        )

    def plain(self) -> dict[str, Any]:
        """As JSON holds it."""
        opened = {} if self.test_opened is None else {'test_opened': self.test_opened}
        return {
            'trials': self.trials,
            'seeds': self.seeds,
            'nested': self.nested,
            'space': self.space,
            'methods': {name: method.plain() for name, method in self.methods.items()},
        } | opened
