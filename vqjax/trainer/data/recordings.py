"""Recordings of sensors as a data set: whole ones are split, then cut into windows.

A window is an image [1, window, C], in which NaN stands for a step that is missing: lost by a
sensor, or beyond the end of its recording. So loader, trainer and codec take it as any image.
"""

import dataclasses
import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from vqjax import sensors
from vqjax.trainer.data.folds import carve, check_labels, check_subjects, one_fold
from vqjax.trainer.data.records import DataInfo, Dataset, Split

_TEST_FOLDS, _VALIDATION_FOLDS = 5, 10  # shares of the recordings that are held out, as 1 / folds

_log = logging.getLogger('vqjax')


class Recording(NamedTuple):
    """One recording.

    Fields:
      signals: float32 [T, C]; a step at which a sensor is not finite is missing.
      label: what is recorded.
      subject: of whom; '' = unknown. All recordings of a set name theirs, or none.
      rate: steps a second; 0 = unknown.
      name: what messages call it.
    """

    signals: np.ndarray
    label: str
    subject: str = ''
    rate: float = 0.0
    name: str = ''


class Cutting(NamedTuple):
    """How recordings are split and cut.

    Fields:
      window: steps of a window; 0 = those of the longest recording, the others padded.
      hop: steps from one window to the next; 0 = window.
      pad: the last window of a recording may reach beyond its end.
      folds: parts that the recordings are dealt out to; 0 = the splits that the set has.
      fold: which of them is the test split, from 0.
      repeat: which way of dealing out, from 0.
    """

    window: int = 0
    hop: int = 0
    pad: bool = False
    folds: int = 0
    fold: int = 0
    repeat: int = 0


WHOLE = Cutting()  # a window a recording


@dataclasses.dataclass(frozen=True)
class RecordingSet(Dataset):
    """A data set whose images are windows.

    Fields beyond those of Dataset:
      recordings: of every split, whole.
      labels: names of the classes.
      rate: steps a second; 0 = unknown.
      cutting: as it was done, no field 0 that means another number.
    """

    recordings: Mapping[str, tuple[Recording, ...]]
    labels: tuple[str, ...]
    rate: float
    cutting: Cutting

    def counts(self) -> dict[str, dict[str, int]]:
        """By split: recordings, their steps, those missing, windows, those left out as missing."""
        return {
            split: {
                'recordings': len(recordings),
                'steps': sum(len(r.signals) for r in recordings),
                'missing_steps': sum(int((~real_steps(r.signals)).sum()) for r in recordings),
                'windows': len(self.splits[split].indices),
                'missing_windows': len(self.splits[split].corrupt),
            }
            for split, recordings in self.recordings.items()
        }

    def about(self) -> dict[str, Any]:
        """What the codec of a run has to know: hop, pad, rate and the names of the classes."""
        cutting = self.cutting
        return {
            'hop': cutting.hop,
            'pad': cutting.pad,
            'rate': self.rate,
            'labels': list(self.labels),
        }


@dataclasses.dataclass(frozen=True)
class Windows:
    """Windows with random access: those at `starts` [n] of `flat` [steps, C], labels int32 [n]."""

    flat: np.ndarray
    starts: np.ndarray
    labels: np.ndarray
    window: int

    def __len__(self) -> int:
        return len(self.starts)

    def read(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """See `Records.read`; images float32 [b, 1, window, C]."""
        rows = self.starts[indices][:, None] + np.arange(self.window)
        return self.flat[rows][:, None], self.labels[indices], np.ones(len(indices), bool)


def real_steps(signals: np.ndarray) -> np.ndarray:
    """Which steps of signals [..., T, C] are there: bool [..., T]."""
    return np.isfinite(signals).all(-1)


def starts_of(steps: int, cutting: Cutting) -> np.ndarray:
    """First steps of the windows of a recording of so many steps, int64 [n]."""
    number = sensors.count_windows(steps, window=cutting.window, hop=cutting.hop, pad=cutting.pad)
    return np.arange(number) * cutting.hop


def from_recordings(
    name: str, splits: Mapping[str, Iterable[Recording]], cutting: Cutting = WHOLE
) -> RecordingSet:
    """A data set of recordings of your own.

    Args:
      name: of the set.
      splits: 'train', and 'validation' and 'test' where the set has them. A test split that is
        missing takes one of five parts, a validation split one of ten of what is left; by subject
        where the set names them, with all labels in both parts where that can be.
      cutting: see Cutting.

    Raises:
      ValueError: nothing in a split; recordings without a step, of other numbers of sensors or
        rates, shorter than a window, or with all steps missing; a subject in two splits, or too few
        subjects to split by; a label that training does not see.
    """
    found = {
        split: tuple(r._replace(signals=np.asarray(r.signals)) for r in recordings)
        for split, recordings in splits.items()
    }
    where = f'dataset={name!r}'
    if not found.get('train'):
        raise ValueError(f'{where} has no recording to train from')
    everything = [r for recordings in found.values() for r in recordings]
    for recording in everything:
        _check(where, recording, everything[0])
    cutting = _settle(where, everything, cutting)
    found = _split(where, found, cutting)
    labels = _in_order({r.label for r in everything})
    parts = {split: _cut(r, labels, cutting) for split, r in found.items()}
    shape = (1, cutting.window, everything[0].signals.shape[1])
    number = {split: len(part.indices) for split, part in parts.items()}
    mean, std = _scale(found['train'])
    info = DataInfo(name, image_shape=shape, num_classes=len(labels), num_examples=number)
    rate = everything[0].rate
    whole = RecordingSet(info, parts, mean, std, found, labels, rate, cutting)
    for split, counts in whole.counts().items():
        if counts['missing_steps']:
            _log.warning(
                '%s: %d of %d steps of split %s are missing and masked; %d windows left out',
                name, counts['missing_steps'], counts['steps'], split, counts['missing_windows'],
            )  # fmt: skip
        if not counts['windows']:
            raise ValueError(f'{where}: no window of split {split!r} has a step that is there')
    return whole


def _check(where: str, recording: Recording, first: Recording) -> None:
    """Checks a recording for itself, and beside the first one."""
    where, signals = f'{where}: recording {recording.name!r}', recording.signals
    if signals.ndim != 2 or not signals.size or signals.dtype.kind not in 'iuf':
        raise ValueError(
            f'{where} has signals {signals.dtype} of shape {signals.shape}: need real numbers '
            '[T, C], steps x sensors, none of them 0'
        )
    if signals.shape[1] != first.signals.shape[1]:
        raise ValueError(
            f'{where} has {signals.shape[1]} sensors, {first.name!r} has '
            f'{first.signals.shape[1]}: need the same in all; signals are [T, C], steps x sensors'
        )
    if recording.rate != first.rate:
        raise ValueError(
            f'{where} has a rate of {recording.rate:g} Hz, {first.name!r} of {first.rate:g}: '
            'resample to one rate, since a window is a number of steps'
        )
    if not real_steps(signals).any():
        raise ValueError(
            f'{where} has no step at which all sensors are finite: leave it out, or the sensor '
            'that is missing out of all'
        )
    if bool(recording.subject) != bool(first.subject):
        raise ValueError(
            f'{where} has subject {recording.subject!r}, {first.name!r} has {first.subject!r}: '
            'name that of all recordings or of none'
        )


def _split(
    where: str, found: dict[str, tuple[Recording, ...]], cutting: Cutting
) -> dict[str, tuple[Recording, ...]]:
    """Train, validation and test."""
    parts: dict[str, Sequence[Recording]] = dict(found)
    if cutting.folds:
        everything = [r for recordings in found.values() for r in recordings]
        train, test = one_fold(
            where,
            recordings=everything,
            folds=cutting.folds,
            fold=cutting.fold,
            repeat=cutting.repeat,
        )
        parts = {'train': train, 'test': test}
    else:
        check_subjects(where, found)
    if 'test' not in parts:
        train, test = carve(where, parts['train'], _TEST_FOLDS, 'test')
        parts |= {'train': train, 'test': test}
    if 'validation' not in parts:
        train, validation = carve(where, parts['train'], _VALIDATION_FOLDS, 'validation')
        parts |= {'train': train, 'validation': validation}
    whole = {split: tuple(parts[split]) for split in ('train', 'validation', 'test')}
    check_labels(where, whole)
    return whole


def _settle(where: str, recordings: Sequence[Recording], cutting: Cutting) -> Cutting:
    """The numbers that zeros stand for, and that every recording has a window of them."""
    longest, shortest = (f(recordings, key=lambda r: len(r.signals)) for f in (max, min))
    window, steps = cutting.window or len(longest.signals), len(shortest.signals)
    if window > len(longest.signals):
        raise ValueError(
            f'{where}: window={window} is longer than the longest recording, of '
            f'{len(longest.signals)} steps: give at most that'
        )
    pad = cutting.pad or not cutting.window
    if steps < window and not pad:
        raise ValueError(
            f'{where}: recording {shortest.name!r} has {steps} steps, fewer than window={window}: '
            f'give at most {steps}, or pad=True'
        )
    return cutting._replace(window=window, hop=cutting.hop or window, pad=pad)


def _in_order(labels: set[str]) -> tuple[str, ...]:
    """Names of classes, numbers by their size."""
    numbers = all(label.isdecimal() for label in labels)
    return tuple(sorted(labels, key=int if numbers else str))


def _cut(recordings: Sequence[Recording], labels: tuple[str, ...], cutting: Cutting) -> Split:
    """The windows of a split; those without a step that is there count as corrupt."""
    window, begin = cutting.window, 0
    flat: list[np.ndarray] = []
    starts: list[np.ndarray] = []
    classes: list[np.ndarray] = []
    for recording in recordings:
        signals = np.asarray(recording.signals, np.float32)
        own = starts_of(len(signals), cutting)
        beyond = max(int(own[-1]) + window - len(signals), 0)
        flat.append(np.pad(signals, ((0, beyond), (0, 0)), constant_values=np.nan))
        starts.append(begin + own)
        classes.append(np.full(len(own), labels.index(recording.label), np.int32))
        begin += len(flat[-1])
    joined = {'flat': flat, 'starts': starts, 'labels': classes}
    records = Windows(**{name: np.concatenate(x) for name, x in joined.items()}, window=window)
    there = np.concatenate([[0], np.cumsum(real_steps(records.flat))])
    good = there[records.starts + window] > there[records.starts]
    return Split(records, np.flatnonzero(good), set(np.flatnonzero(~good).tolist()))


def _scale(recordings: Sequence[Recording]) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of every sensor over the steps that are there, float32 [C]."""
    steps = np.concatenate([r.signals[real_steps(r.signals)] for r in recordings])
    steps = steps.astype(np.float64)
    std = steps.std(0)
    return steps.mean(0).astype(np.float32), np.where(std, std, 1).astype(np.float32)
