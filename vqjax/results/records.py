"""The content of results.json: of every method a summary, and of every seed its figures.

Each part reads itself from plain data, as JSON holds it, checks what it reads, and writes itself.
"""

from __future__ import annotations

import base64
import dataclasses
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from vqjax.metrics import Interval
from vqjax.results.plain import (
    is_number,
    load,
    mappings,
    numbers,
    optional,
    part,
    read_interval,
    within,
)
from vqjax.results.tuning import Tuning

SCHEMA = 1  # of results.json


@dataclasses.dataclass(frozen=True)
class Fold:
    """The fold that a run was tested on.

    Fields:
      repeat, fold: in which deal of the folds, and which of them; both from 0.
      train, test: numbers of examples.
    """

    repeat: int
    fold: int
    train: int
    test: int

    @classmethod
    def read(cls, plain: Mapping[str, Any]) -> Fold:
        """Of the entry `fold` of a seed.

        Raises:
          ValueError: a number is missing.
        """
        return cls(*(part(plain, field.name, int) for field in dataclasses.fields(cls)))

    def plain(self) -> dict[str, int]:
        """As JSON holds it."""
        return dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True)
class Reliability:
    """Mean confidence, accuracy and number of examples of each confidence bin, [bins] each."""

    confidence: tuple[float, ...]
    accuracy: tuple[float, ...]
    count: tuple[float, ...]

    @classmethod
    def read(cls, plain: Mapping[str, Any]) -> Reliability:
        """Of the entry `reliability` of a seed.

        Raises:
          ValueError: a column is missing, or they are not equally long.
        """
        found = cls(*(numbers(plain, field.name) for field in dataclasses.fields(cls)))
        if not len(found.confidence) == len(found.accuracy) == len(found.count):
            raise ValueError('confidence, accuracy and count are not equally long')
        return found

    def plain(self) -> dict[str, list[float]]:
        """As JSON holds it."""
        return {name: list(column) for name, column in dataclasses.asdict(self).items()}


@dataclasses.dataclass(frozen=True, eq=False)
class SeedResult:
    """What one run showed on the split that it was measured on.

    Fields:
      figures: name -> number: accuracy, nll, perplexity, ...; in the order in which they are told.
      split: the split, where it is not the test split.
      fold: where folds are in turn, the run's.
      correct: bool [examples], which ones it told rightly; None for results of before, tokenizers.
      counts: float64 [..., K], uses of every code; None without codes, or where they were left out.
      perplexity_per_stage: one number a stage, or none.
      reliability: None where it was left out.
    """

    seed: int
    figures: Mapping[str, float]
    split: str | None = None
    fold: Fold | None = None
    correct: np.ndarray | None = None
    counts: np.ndarray | None = None
    perplexity_per_stage: tuple[float, ...] = ()
    reliability: Reliability | None = None

    @property
    def accuracy(self) -> float:
        """Share of the examples that were told rightly."""
        return self.figures['accuracy']

    @property
    def num_examples(self) -> int:
        """Of the split, as the reliability table counts them.

        Raises:
          ValueError: the table was left out.
        """
        if self.reliability is None:
            raise ValueError(f'seed {self.seed} has no reliability table: these results are short')
        return round(sum(self.reliability.count))

    def with_figures(self, more: Mapping[str, float]) -> SeedResult:
        """The same with more figures."""
        return dataclasses.replace(self, figures={**self.figures, **more})

    @classmethod
    def read(cls, plain: Mapping[str, Any]) -> SeedResult:
        """Of an entry of `seeds` in results.json.

        Raises:
          ValueError: a part is missing, damaged, or unknown.
        """
        seed = part(plain, 'seed', int)
        figures = {k: v for k, v in plain.items() if k != 'seed' and is_number(v)}
        own = {'seed', *(field.name for field in dataclasses.fields(cls))} - {'figures'}
        unknown = [name for name in plain if name not in figures and name not in own]
        if unknown:
            raise ValueError(f'{unknown[0]} is {plain[unknown[0]]!r:.40}, which is no number')
        fold, reliability = (optional(plain, name, dict) for name in ('fold', 'reliability'))
        stages = 'perplexity_per_stage'
        with within('fold'):
            fold_read = None if fold is None else Fold.read(fold)
        with within('reliability'):
            reliability_read = None if reliability is None else Reliability.read(reliability)
        return cls(
            seed=seed,
            figures=figures,
            split=optional(plain, 'split', str),
            fold=fold_read,
            correct=read_correct(plain),
            counts=read_counts(plain),
            perplexity_per_stage=numbers(plain, stages) if plain.get(stages) is not None else (),
            reliability=reliability_read,
        )

    def plain(self) -> dict[str, Any]:
        """As JSON holds it: what is None or empty is left out."""
        found: dict[str, Any] = {'seed': self.seed, **self.figures}
        if self.split is not None:
            found['split'] = self.split
        if self.perplexity_per_stage:
            found['perplexity_per_stage'] = list(self.perplexity_per_stage)
        if self.reliability is not None:
            found['reliability'] = self.reliability.plain()
        if self.correct is not None:
            found['correct'] = pack_correct(self.correct)
        if self.counts is not None:
            found['counts'] = pack_counts(self.counts)
        if self.fold is not None:
            found['fold'] = self.fold.plain()
        return found


@dataclasses.dataclass(frozen=True, eq=False)
class MethodResult:
    """What all runs of one method showed.

    Fields:
      spec: of the quantizer, as plain data; None without one.
      overrides: the fields of the configuration that the method changes.
      bits: an image, mean over the runs.
      params: numbers that the model holds.
      seconds: of all runs together.
      summary: figure -> mean and 95% interval over the runs.
      seeds: the runs.
      rise: of the training accuracy in the last third of the runs, see `summaries.rise`.
      tells_rise: False for results of before, which have no entry `rise`.
      bits_per_token: exact; the study rates adds it.
      collapse: share of the runs that collapsed; the study remedies adds it.
    """

    spec: Mapping[str, Any] | None
    overrides: Mapping[str, Any]
    bits: float
    params: int
    seconds: float
    summary: Mapping[str, Interval]
    seeds: tuple[SeedResult, ...]
    rise: float | None = None
    tells_rise: bool = True
    bits_per_token: float | None = None
    collapse: Interval | None = None

    @property
    def accuracy(self) -> Interval:
        """Mean and 95% interval of the accuracy."""
        return self.summary['accuracy']

    @classmethod
    def read(cls, plain: Mapping[str, Any]) -> MethodResult:
        """Of an entry of `methods` in results.json.

        Raises:
          ValueError: a part is missing or damaged.
        """
        seeds = []
        for i, seed in enumerate(mappings(plain, 'seeds')):
            with within(f'entry {i} of seeds'):
                seeds.append(SeedResult.read(seed))
        summary = part(plain, 'summary', dict)
        with within('summary'):
            intervals = {name: read_interval(summary, name) for name in summary}
        collapse = None if plain.get('collapse') is None else read_interval(plain, 'collapse')
        return cls(
            spec=optional(plain, 'spec', dict),
            overrides=optional(plain, 'overrides', dict) or {},
            bits=part(plain, 'bits', float),
            params=part(plain, 'params', int),
            seconds=part(plain, 'seconds', float),
            summary=intervals,
            seeds=tuple(seeds),
            rise=optional(plain, 'rise', float),
            tells_rise='rise' in plain,
            bits_per_token=optional(plain, 'bits_per_token', float),
            collapse=collapse,
        )

    def plain(self) -> dict[str, Any]:
        """As JSON holds it."""
        found: dict[str, Any] = {
            'spec': self.spec,
            'overrides': self.overrides,
            'bits': self.bits,
            'params': self.params,
            'seconds': self.seconds,
            'summary': {name: interval._asdict() for name, interval in self.summary.items()},
        }
        if self.tells_rise:
            found['rise'] = self.rise
        found['seeds'] = [seed.plain() for seed in self.seeds]
        if self.bits_per_token is not None:
            found['bits_per_token'] = self.bits_per_token
        if self.collapse is not None:
            found['collapse'] = self.collapse._asdict()
        return found


@dataclasses.dataclass(frozen=True)
class RunFinding:
    """What `health.diagnose` found, see `health.Finding`; None for a run that is no method's."""

    name: str
    severity: str
    evidence: Mapping[str, float | None]
    remedy: str
    method: str | None = None
    seed: int | None = None

    @classmethod
    def read(cls, plain: Mapping[str, Any]) -> RunFinding:
        """Of an entry of `findings`.

        Raises:
          ValueError: a part is missing or damaged.
        """
        evidence = part(plain, 'evidence', dict)
        for name, value in evidence.items():
            if value is not None and not is_number(value):
                raise ValueError(f'evidence {name} is {value!r:.40}, which is no number')
        return cls(
            name=part(plain, 'name', str),
            severity=part(plain, 'severity', str),
            evidence=evidence,
            remedy=part(plain, 'remedy', str),
            method=optional(plain, 'method', str),
            seed=optional(plain, 'seed', int),
        )

    def plain(self) -> dict[str, Any]:
        """As JSON holds it."""
        where = {'method': self.method, 'seed': self.seed}
        return {
            'name': self.name,
            'severity': self.severity,
            'evidence': dict(self.evidence),
            'remedy': self.remedy,
        } | {name: value for name, value in where.items() if value is not None}


@dataclasses.dataclass(frozen=True, eq=False)
class Results:
    """The content of results.json.

    Fields:
      config: of the runs, plain data.
      environment: versions and devices.
      methods: by name, in the order of the configuration.
      command: that made them, where it is known.
      findings: what is wrong with the runs.
      recordings: of a set of recordings with one split, how many there are of each.
      tuning: how the settings were chosen, where the run chose them.
      added: what a study adds, plain data under names of its own.
    """

    config: Mapping[str, Any]
    environment: Mapping[str, Any]
    methods: Mapping[str, MethodResult]
    command: str | None = None
    findings: tuple[RunFinding, ...] = ()
    recordings: Mapping[str, Any] | None = None
    tuning: Tuning | None = None
    added: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @classmethod
    def read(cls, plain: Mapping[str, Any]) -> Results:
        """Of the content of a file.

        Raises:
          ValueError: it is of another schema, or a part is missing or damaged.
        """
        if plain.get('schema') != SCHEMA:
            raise ValueError(f'its schema is {plain.get("schema")!r:.40}, not {SCHEMA}')
        methods, found = {}, part(plain, 'methods', dict)
        for name in found:
            with within(f'method {name}'):
                methods[name] = MethodResult.read(part(found, name, dict))
        findings = mappings(plain, 'findings') if 'findings' in plain else []
        tuning = optional(plain, 'tuning', dict)
        with within('findings'):
            findings_read = tuple(map(RunFinding.read, findings))
        with within('tuning'):
            tuning_read = None if tuning is None else Tuning.read(tuning)
        own = {'schema', *(field.name for field in dataclasses.fields(cls))}
        return cls(
            config=part(plain, 'config', dict),
            environment=part(plain, 'environment', dict),
            methods=methods,
            command=optional(plain, 'command', str),
            findings=findings_read,
            recordings=optional(plain, 'recordings', dict),
            tuning=tuning_read,
            added={name: value for name, value in plain.items() if name not in own},
        )

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Results:
        """Of a file.

        Raises:
          ValueError: it cannot be read, or `read` refuses it; names the file and the remedy.
        """
        remedy = 'give a results.json that a run has finished, or run the same command again'
        return load(path, cls.read, remedy)

    def plain(self) -> dict[str, Any]:
        """As JSON holds it."""
        found: dict[str, Any] = {'schema': SCHEMA}
        if self.command is not None:
            found['command'] = self.command
        found['config'] = self.config
        found['environment'] = self.environment
        found['methods'] = {name: method.plain() for name, method in self.methods.items()}
        if self.recordings is not None:
            found['recordings'] = self.recordings
        found['findings'] = [finding.plain() for finding in self.findings]
        if self.tuning is not None:
            found['tuning'] = self.tuning.plain()
        return found | dict(self.added)


def pack_counts(counts: np.ndarray) -> dict[str, list[int]]:
    """Counts [..., K] as plain data: their shape, the used codes, and the uses of each.

    Codes of several stages are numbered through: code c of stage s is s * K + c.
    """
    flat = np.asarray(counts).reshape(-1)
    used = np.flatnonzero(flat)
    return {
        'shape': list(np.shape(counts)),
        'codes': used.tolist(),
        'uses': flat[used].astype(int).tolist(),
    }


def read_counts(result: Mapping[str, Any]) -> np.ndarray | None:
    """Counts float64 [..., K] of a seed of results.json; None of a method without codes.

    Takes the lists with every zero that results held before, too.

    Raises:
      ValueError: `counts` is neither, or its parts do not fit together.
    """
    kept = result.get('counts')
    if kept is None:
        return None
    try:
        if not isinstance(kept, Mapping):
            return np.asarray(kept, np.float64)
        codes, uses = np.asarray(kept['codes'], int), np.asarray(kept['uses'], np.float64)
        if codes.shape != uses.shape:
            raise ValueError(f'{codes.size} codes and {uses.size} uses')
        counts = np.zeros(kept['shape'])
        counts.reshape(-1)[codes] = uses
        return counts
    except (ValueError, TypeError, KeyError, IndexError, MemoryError) as error:
        raise ValueError(
            f'counts of seed {result.get("seed")} are damaged: {type(error).__name__}, {error}'
        ) from error


def pack_correct(correct: np.ndarray) -> dict[str, Any]:
    """bool [n] as plain data: their number, and the bits in base64, the first one the highest."""
    bits = np.packbits(np.asarray(correct, bool)).tobytes()
    return {'examples': len(correct), 'bits': base64.b64encode(bits).decode()}


def read_correct(result: Mapping[str, Any]) -> np.ndarray | None:
    """bool [n] of a seed of results.json, in the order of the test split; None where it has none.

    So are results of before, and tokenizers.

    Raises:
      ValueError: `correct` is damaged: another number of bits than examples, or other right ones
        than the accuracy says.
    """
    kept = result.get('correct')
    if kept is None:
        return None
    try:
        number = kept['examples']
        raw = np.frombuffer(base64.b64decode(kept['bits'], validate=True), np.uint8)
        if len(raw) != -(-number // 8):
            raise ValueError(f'{8 * len(raw)} bits of {number} examples')
        correct = np.unpackbits(raw, count=number).astype(bool)
        told, accuracy = float(correct.mean()), result.get('accuracy')
        if accuracy is not None and not abs(told - accuracy) < 1e-5:
            raise ValueError(f'{told:.4f} of them are right, and accuracy is {accuracy:.4f}')
        return correct
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f'correct of seed {result.get("seed")} is damaged: {type(error).__name__}, {error}'
        ) from error
