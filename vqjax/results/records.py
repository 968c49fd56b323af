"""One run's part of results.json: its figures, use of codes, and which test examples were right."""

from __future__ import annotations

import base64
import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from vqjax.results.plain import is_number, numbers, optional, part, within


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
        counts = np.zeros(kept['shape'])
        counts.reshape(-1)[np.asarray(kept['codes'], int)] = kept['uses']
        return counts
    except (ValueError, TypeError, KeyError, IndexError) as error:
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
