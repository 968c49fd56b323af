"""Labels of one's own as numbers of classes: integers from 0, or names."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np


def as_array(where: str, labels: Any, number: int) -> np.ndarray:
    """Labels of a split, int64 or text [number]; a last axis of length 1 is taken off.

    Raises:
      ValueError: another shape, or neither integers nor text.
    """
    array = np.asarray(labels)
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.dtype.kind not in 'iuU' or array.shape != (number,):
        more = ', as labels.argmax(-1) makes them of one-hot rows' if array.ndim == 2 else ''
        raise ValueError(
            f'{where} has labels {array.dtype} of shape {np.shape(labels)} for {number} images: '
            f'need integers from 0, or text, [{number}]{more}'
        )
    return array


def number(where: str, labels: Mapping[str, np.ndarray]) -> tuple[int, dict[str, np.ndarray]]:
    """Number of classes, and the labels of every split as int32 [n] below it.

    Args:
      labels: by split, as `as_array` gives them; text is numbered in the order of the names.

    Raises:
      ValueError: a label below 0, one that training lacks, a number that no image has, or text in
        one split and numbers in another.
    """
    kinds = {split: 'text' if x.dtype.kind == 'U' else 'integers' for split, x in labels.items()}
    if len(set(kinds.values())) > 1:
        raise ValueError(f'{where} has labels of several kinds, {kinds}: need one')
    known = np.unique(labels['train'])
    for split, own in labels.items():
        others = np.setdiff1d(own, known)
        if len(others):
            raise ValueError(
                f'{where}: label {others[0].item()!r} is in split {split!r} and not in train: give '
                'images of it to both, or leave it out'
            )
    if kinds['train'] == 'text':
        return len(known), {
            s: np.searchsorted(known, x).astype(np.int32) for s, x in labels.items()
        }
    if known[0] != 0 or known[-1] != len(known) - 1:
        raise ValueError(
            f'{where} has {len(known)} labels from {known[0]} to {known[-1]}, and none is '
            f'{_missing(known)}: number the classes from 0 without gaps, as '
            'numpy.unique(labels, return_inverse=True)[1] does'
        )
    return len(known), {split: x.astype(np.int32) for split, x in labels.items()}


def _missing(known: Iterable[Any]) -> int:
    return next(i for i, label in enumerate(known) if label != i)
