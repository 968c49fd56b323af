"""What is kept of long runs: the outcome of every method, without its runs."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

from vqjax.metrics import Interval
from vqjax.results import summaries
from vqjax.results.plain import load, optional, part, read_interval, within
from vqjax.results.records import MethodResult, Results
from vqjax.results.tuning import Tuning


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of a method.

    Fields:
      runs: how many.
      accuracy: over the runs.
      spec, lowest_perplexity: of one with a quantizer.
      compared, verdict: the paired difference of accuracy to the baseline; not of itself.
    """

    runs: int
    accuracy: Interval
    spec: Mapping[str, Any] | None = None
    lowest_perplexity: float | None = None
    compared: Interval | None = None
    verdict: str | None = None

    @classmethod
    def of(cls, results: Results, name: str) -> Outcome:
        """Of a method of results that have the baseline."""
        method: MethodResult = results.methods[name]
        compared = summaries.compare(results, name)
        lowest = None
        if method.spec is not None:
            lowest = min(seed.figures['perplexity'] for seed in method.seeds)
        return cls(
            runs=len(method.seeds),
            accuracy=method.accuracy,
            spec=method.spec,
            lowest_perplexity=lowest,
            compared=compared,
            verdict=compared and summaries.verdict(compared, len(method.seeds)),
        )

    @classmethod
    def read(cls, plain: Mapping[str, Any]) -> Outcome:
        """Of an entry of `outcome`.

        Raises:
          ValueError: a part is missing or damaged.
        """
        return cls(
            runs=part(plain, 'runs', int),
            accuracy=read_interval(plain, 'accuracy'),
            spec=optional(plain, 'spec', dict),
            lowest_perplexity=optional(plain, 'lowest_perplexity', float),
            compared=read_interval(plain, 'compared') if 'compared' in plain else None,
            verdict=optional(plain, 'verdict', str),
        )

    def plain(self) -> dict[str, Any]:
        """As JSON holds it."""
        found = {
            'runs': self.runs,
            'accuracy': self.accuracy._asdict(),
            'spec': self.spec,
            'lowest_perplexity': self.lowest_perplexity,
            'compared': self.compared and self.compared._asdict(),
            'verdict': self.verdict,
        }
        return {name: value for name, value in found.items() if value is not None}


@dataclasses.dataclass(frozen=True)
class Excerpt:
    """What is kept of the results of a long run.

    Fields:
      command, environment: as in results.json.
      outcome: by method.
      tuning: of a search.
    """

    command: str
    environment: Mapping[str, Any]
    outcome: Mapping[str, Outcome]
    tuning: Tuning | None = None

    @classmethod
    def of(cls, results: Results) -> Excerpt:
        """Of results that have the baseline."""
        return cls(
            command=results.command or '',
            environment=results.environment,
            outcome={name: Outcome.of(results, name) for name in results.methods},
            tuning=results.tuning,
        )

    @classmethod
    def read(cls, plain: Mapping[str, Any]) -> Excerpt:
        """Of the content of a file.

        Raises:
          ValueError: a part is missing or damaged.
        """
        outcome, found = {}, part(plain, 'outcome', dict)
        for name in found:
            with within(f'outcome of {name}'):
                outcome[name] = Outcome.read(part(found, name, dict))
        tuning = optional(plain, 'tuning', dict)
        with within('tuning'):
            tuning_read = None if tuning is None else Tuning.read(tuning)
        return cls(
            command=part(plain, 'command', str),
            environment=part(plain, 'environment', dict),
            outcome=outcome,
            tuning=tuning_read,
        )

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Excerpt:
        """Of a file.

        Raises:
          ValueError: it cannot be read, or `read` refuses it; names the file and the remedy.
        """
        return load(path, cls.read, 'make it again by docs/excerpts.py')

    def plain(self) -> dict[str, Any]:
        """As JSON holds it."""
        found: dict[str, Any] = {'command': self.command, 'environment': self.environment}
        if self.tuning is not None:
            found['tuning'] = self.tuning.plain()
        found['outcome'] = {name: outcome.plain() for name, outcome in self.outcome.items()}
        return found
