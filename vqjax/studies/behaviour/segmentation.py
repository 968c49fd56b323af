"""How well a segmentation that was found agrees with the true one.

States and labels are integers [..., T], -1 where there is none; a step without a label counts
nowhere, nor does one that `mask` (bool [..., T], True = real) hides. A session is a row of the
last axis, and boundaries are looked for within it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from scipy.optimize import linear_sum_assignment
from sklearn.metrics import adjusted_rand_score


class Boundaries(NamedTuple):
    """Matched pairs, and how many boundaries there are: found, and true."""

    matched: int
    found: int
    true: int

    @property
    def precision(self) -> float:
        """Share of the found ones that are true; 1 where none was found."""
        return self.matched / self.found if self.found else 1.0

    @property
    def recall(self) -> float:
        """Share of the true ones that were found; 1 where there is none."""
        return self.matched / self.true if self.true else 1.0

    @property
    def f1(self) -> float:
        """2 matched / (found + true), the harmonic mean of both; 1 where there is neither."""
        total = self.found + self.true
        return 2 * self.matched / total if total else 1.0


def _taken(labels: Any, states: Any, mask: Any) -> tuple[np.ndarray, np.ndarray]:
    """Labels and states [B, T], labels -1 where a step does not count."""
    labels, states = np.asarray(labels), np.asarray(states)
    for name, value in (('labels', labels), ('states', states)):
        if not np.issubdtype(value.dtype, np.integer):
            raise ValueError(f'{name} must be integers [..., T], got {value.dtype}')
    if labels.shape != states.shape or not labels.ndim:
        raise ValueError(
            f'labels and states must be of one shape [..., T], got {labels.shape} and '
            f'{states.shape}: one of each for every step'
        )
    if mask is not None:
        mask = np.asarray(mask)
        if mask.dtype != bool or mask.shape != labels.shape:
            raise ValueError(
                f'mask must be bool {labels.shape}, True where a step is real, got {mask.dtype} '
                f'{mask.shape}'
            )
        labels = np.where(mask, labels, -1)
    if not (labels >= 0).any():
        raise ValueError('labels hold no step that counts: every one is masked or -1')
    return labels.reshape(-1, labels.shape[-1]), states.reshape(-1, labels.shape[-1])


def fit_matching(labels: Any, states: Any, mask: Any = None) -> dict[int, int]:
    """State -> label, one to one, so that most steps agree (Hungarian method).

    States beyond the number of labels, or that never occur with one, have no label. To be learned
    on some sessions and used for others: states do not know what they are called.
    """
    labels, states = _taken(labels, states, mask)
    counts = labels >= 0
    counts &= states >= 0
    names, label = np.unique(labels[counts], return_inverse=True)
    codes, state = np.unique(states[counts], return_inverse=True)
    table = np.zeros((len(codes), len(names)), int)
    np.add.at(table, (state, label), 1)
    rows, columns = linear_sum_assignment(-table)
    pairs = zip(rows, columns, strict=True)
    return {int(codes[i]): int(names[j]) for i, j in pairs if table[i, j]}


def frame_accuracy(
    labels: Any, states: Any, mask: Any = None, matching: dict[int, int] | None = None
) -> float:
    """Share of the steps whose state is matched to their label.

    matching: as `fit_matching` gives it; None fits it to these sessions. A state without a label
    is wrong everywhere.
    """
    if matching is None:
        matching = fit_matching(labels, states, mask)
    labels, states = _taken(labels, states, mask)
    named = np.full(states.shape, -2)
    for state, label in matching.items():
        named[states == state] = label
    return float(np.mean((named == labels)[labels >= 0]))


def adjusted_rand_index(labels: Any, states: Any, mask: Any = None) -> float:
    """Agreement of two partitions of the steps, 0 by chance and 1 where equal.

    Hubert and Arabie 1985, eq. 5. Steps without a state are a part of their own.
    """
    labels, states = _taken(labels, states, mask)
    counts = labels >= 0
    return float(adjusted_rand_score(labels[counts], np.maximum(states[counts], -1)))


def _changes(row: np.ndarray) -> np.ndarray:
    """Steps at which a value begins that is not that of the step before; a gap is bridged.

    Across a gap of -1 the boundary is the first step after it.
    """
    steps = np.flatnonzero(row >= 0)
    return steps[1:][row[steps][1:] != row[steps][:-1]]


def _matched(found: np.ndarray, true: np.ndarray, tolerance: int) -> int:
    """The most pairs of one found and one true boundary, each used once, at most so far apart.

    On a line taking them in order is best: the earliest of either goes with the earliest of the
    other that it can reach.
    """
    pairs = i = j = 0
    while i < len(found) and j < len(true):
        if abs(int(found[i]) - int(true[j])) <= tolerance:
            pairs, i, j = pairs + 1, i + 1, j + 1
        elif found[i] < true[j]:
            i += 1
        else:
            j += 1
    return pairs


def boundaries(labels: Any, states: Any, tolerance: int, mask: Any = None) -> Boundaries:
    """Found boundaries against true ones, in all sessions.

    A boundary is a step whose value differs from that of the step before. Found and true ones are
    matched one to one, as many as possible, those within `tolerance` steps of each other (0: at
    the same step); no boundary counts twice. Steps without a label are left out of both rows, so
    nothing is found within them, and a change across them is one boundary at the first
    step after them.
    """
    if isinstance(tolerance, bool) or not isinstance(tolerance, int | np.integer) or tolerance < 0:
        raise ValueError(f'tolerance must be a number of steps from 0, got {tolerance!r}')
    labels, states = _taken(labels, states, mask)
    total = np.zeros(3, int)
    for true, found in zip(labels, states, strict=True):
        found = np.where(true >= 0, np.maximum(found, 0) + (found >= 0), -1)
        here, there = _changes(found), _changes(true)
        total += _matched(here, there, tolerance), len(here), len(there)
    return Boundaries(*map(int, total))


def figures(
    labels: Any,
    states: Any,
    tolerance: int,
    mask: Any = None,
    matching: dict[int, int] | None = None,
    log_likelihood: float | None = None,
) -> dict[str, float]:
    """All figures of some sessions by name; see the functions of this file.

    Args:
        labels: true behaviour, int [..., T].
        states: found, int [..., T].
        tolerance: of boundaries, in steps.
        mask: bool [..., T], True = real.
        matching: of states to labels, learned elsewhere; None fits it here.
        log_likelihood: of all sessions together, in nats: told for a step that counts.

    Raises:
        ValueError: shapes or dtypes do not fit, or no step counts.
    """
    edges = boundaries(labels, states, tolerance=tolerance, mask=mask)
    found = {
        'frame_accuracy': frame_accuracy(labels, states, mask=mask, matching=matching),
        'adjusted_rand_index': adjusted_rand_index(labels, states, mask),
        'boundary_precision': edges.precision,
        'boundary_recall': edges.recall,
        'boundary_f1': edges.f1,
    }
    labels, states = _taken(labels, states, mask)
    counts = labels >= 0
    used = states[counts]
    found['states_found'] = len(np.unique(used[used >= 0]))
    if log_likelihood is not None:
        found['log_likelihood_a_step'] = float(log_likelihood) / int(counts.sum())
    return found
