"""Images and recordings dealt out to splits and folds: by label, and by subject where it is known.

Recordings stay whole.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vqjax.trainer.data.records import SPLIT_SEED, Dataset, Split, assemble


def deal(labels: Sequence[Any], subjects: Sequence[str], folds: int, repeat: int = 0) -> np.ndarray:
    """The fold of every recording, int [n]: always the same, of sizes and labels as even as can be.

    Every `repeat` is another way.
    All recordings of a subject come into one fold; subject '' is one for each recording. Without
    subjects the sizes differ by at most one, and so do the numbers of every label.
    """
    seed = (SPLIT_SEED, repeat) if repeat else SPLIT_SEED
    order = np.random.default_rng(seed).permutation(len(labels))
    names = np.asarray(labels)[order]
    fold = np.empty(len(order), int)
    if not any(subjects):
        # Label after label in turn, so that the next one goes on where the last one ended.
        fold[order[np.argsort(names, kind='stable')]] = np.arange(len(order)) % folds
        return fold
    classes, number = np.unique(labels, return_inverse=True)
    owners, owner = np.unique(subjects, return_inverse=True)
    held = np.zeros((len(owners), len(classes)))
    np.add.at(held, (owner, number), 1)
    counts, taken = np.zeros((folds, len(classes))), np.zeros(len(owners), int)
    # Those with most recordings first, each to the fold that has least of what they bring.
    for one in np.argsort(-held.sum(1), kind='stable'):
        taken[one] = np.argmin((counts * held[one]).sum(1) + 1e-6 * counts.sum(1))
        counts[taken[one]] += held[one]
    return taken[owner]


def one_fold(
    where: str, recordings: Sequence[Any], folds: int, fold: int, repeat: int = 0
) -> tuple[list[Any], list[Any]]:
    """All recordings but those of a fold, and these.

    Raises:
      ValueError: there are fewer recordings, or subjects, than folds.
    """
    units, what = _units(recordings)
    if folds > units:
        raise ValueError(f'{where} has {units} {what}: give at most {units} folds, got {folds}')
    return _apart(recordings, deal(*_of(recordings), folds, repeat) == fold)


def parts_of(
    where: str, labels: np.ndarray, folds: int, fold: int, repeat: int, held_out: int
) -> dict[str, np.ndarray]:
    """Places in labels int [n] of the splits of one fold, stratified, each int and in order.

    Test is the fold, validation one of `held_out` parts of what is left. Training is of one size in
    every fold, so that all train for as many steps: validation takes what is over.

    Raises:
      ValueError: more folds than there are examples of some label.
    """
    classes, number = np.unique(labels, return_counts=True)
    if folds > number.min():
        rare = classes[number.argmin()]
        raise ValueError(
            f'{where} has {number.min()} examples of class {rare}: give at most that many folds, '
            f'at least 2, got {folds}'
        )
    dealt = deal(labels.tolist(), [''] * len(labels), folds, repeat)
    test, rest = np.flatnonzero(dealt == fold), np.flatnonzero(dealt != fold)
    again = deal(labels[rest].tolist(), [''] * len(rest), held_out)
    least = len(labels) - -(-len(labels) // folds)  # what the largest fold leaves
    train = rest[again != 0][: least - -(-least // held_out)]
    return {'train': train, 'validation': np.setdiff1d(rest, train), 'test': test}


def one_fold_of(
    name: str, num_classes: int, examples: Split, cutting: Any, held_out: int
) -> Dataset:
    """One fold of decoded images, which a `recordings.Cutting` names; see `parts_of`."""
    records: Any = examples.records  # in memory
    indices = examples.indices
    where = f'dataset={name!r}'
    order = cutting.folds, cutting.fold, cutting.repeat
    parts = parts_of(where, records.labels[indices], *order, held_out)
    found = {split: Split(records, indices[places]) for split, places in parts.items()}
    found['train'].corrupt.update(examples.corrupt)
    return assemble(name, num_classes=num_classes, shape=records.images.shape[1:], splits=found)


def carve(
    where: str, recordings: Sequence[Any], folds: int, split: str
) -> tuple[list[Any], list[Any]]:
    """What is left, and one of so many folds (of fewer, where there are fewer recordings).

    The first one that leaves every label.

    Raises:
      ValueError: there is one recording, or subject, or no fold leaves every label.
    """
    units, what = _units(recordings)
    if units < 2:
        more = ', leave subject out to split by recording' if what == 'subjects' else ''
        raise ValueError(
            f'{where} has one {what[:-1]} for train and {split}: give two or more{more}'
        )
    folds = min(folds, units)
    dealt, labels = deal(*_of(recordings), folds), np.asarray(_of(recordings)[0])
    for fold in range(folds):
        if set(labels[dealt != fold]) == set(labels):
            return _apart(recordings, dealt == fold)
    raise ValueError(
        f'{where}: every split into train and {split} takes all {what} of a label: give more of '
        f'each label, or a split {split!r} of its own'
    )


def check_subjects(where: str, splits: Mapping[str, Sequence[Any]]) -> None:
    """Checks that no subject is in two splits.

    Raises:
      ValueError: one is.
    """
    seen: dict[str, str] = {}
    for split, recordings in splits.items():
        for subject in (r.subject for r in recordings if r.subject):
            if seen.setdefault(subject, split) != split:
                raise ValueError(
                    f'{where}: subject {subject!r} is in the splits {seen[subject]!r} and '
                    f'{split!r}: put each subject into one, or give folds, which are by subject'
                )


def check_labels(where: str, splits: Mapping[str, Sequence[Any]]) -> None:
    """Checks that every split has recordings, and training all labels.

    Raises:
      ValueError: otherwise.
    """
    known = {r.label for r in splits['train']}
    for split, recordings in splits.items():
        if not recordings:
            raise ValueError(f'{where} has no recording in split {split!r}')
        for label in (r.label for r in recordings if r.label not in known):
            raise ValueError(
                f'{where}: label {label!r} is in split {split!r} and not in train: give recordings '
                'of it to both, or fewer folds'
            )


def _of(recordings: Sequence[Any]) -> tuple[list[str], list[str]]:
    return [r.label for r in recordings], [r.subject for r in recordings]


def _units(recordings: Sequence[Any]) -> tuple[int, str]:
    """How many parts cannot be divided, and what they are."""
    subjects = {r.subject for r in recordings}
    return (len(subjects), 'subjects') if any(subjects) else (len(recordings), 'recordings')


def _apart(recordings: Sequence[Any], out: np.ndarray) -> tuple[list[Any], list[Any]]:
    train = [r for r, o in zip(recordings, out, strict=True) if not o]
    return train, [r for r, o in zip(recordings, out, strict=True) if o]
