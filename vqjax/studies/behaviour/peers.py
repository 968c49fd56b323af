"""What others do with the same sessions: k-means tokens with an HMM, and change points.

Both come with `pip install 'vqjax[bench]'` and are imported when used. Sessions are float [B, T, D]
with mask bool [B, T], True = real; states int [B, T], -1 where the mask is False. Steps that a
mask hides within a session are left out, what is around them being neighbours.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from sklearn.cluster import KMeans
from sklearn.preprocessing import StandardScaler

from vqjax.ops.fields import check_count, check_positive
from vqjax.studies.behaviour import segmentation


def _peer(module: str, package: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError:
        raise ValueError(
            f"{package} is not installed: pip install 'vqjax[bench]', or leave this peer out"
        ) from None


def _rows(sessions: Any, mask: Any) -> tuple[list[np.ndarray], np.ndarray]:
    """The real steps [T_b, D] of each session, and the mask."""
    sessions = np.asarray(sessions)
    if sessions.ndim != 3 or not np.issubdtype(sessions.dtype, np.floating):
        raise ValueError(
            f'sessions must be floating point [B, T, D], got {sessions.dtype} {sessions.shape}'
        )
    mask = np.ones(sessions.shape[:2], bool) if mask is None else np.asarray(mask)
    if mask.dtype != bool or mask.shape != sessions.shape[:2]:
        raise ValueError(
            f'mask must be bool {sessions.shape[:2]}, True where a step is real, got {mask.dtype} '
            f'{mask.shape}'
        )
    if not mask.any(1).all():
        empty = int(np.flatnonzero(~mask.any(1))[0])
        raise ValueError(f'session {empty} has no real step: leave it out')
    rows = [session[real] for session, real in zip(sessions, mask, strict=True)]
    if not all(np.isfinite(row).all() for row in rows):
        raise ValueError('sessions hold values that are not finite: mask those steps')
    return rows, mask


def _back(rows: Sequence[np.ndarray], mask: np.ndarray) -> np.ndarray:
    """States of the real steps in their places, int32 [B, T]."""
    states = np.full(mask.shape, -1, np.int32)
    states[mask] = np.concatenate(rows)
    return states


class TokensHMM:
    """k-means codes of the steps, and hmmlearn's CategoricalHMM over them, fitted by EM.

    Args:
        num_codes: K of k-means.
        num_states: of the HMM.
        seed: of both.
        restarts: starts of EM, the most likely of which is kept.
        iters: of EM.
    """

    def __init__(
        self, num_codes: int, num_states: int, seed: int = 0, restarts: int = 3, iters: int = 100
    ):
        for name, value in (
            ('num_codes', num_codes), ('num_states', num_states), ('restarts', restarts),
            ('iters', iters),
        ):  # fmt: skip
            check_count(name, value)
        self.num_codes, self.num_states = num_codes, num_states
        self.seed, self.restarts, self.iters = seed, restarts, iters

    def _codes(self, rows):
        return [self.tokens.predict(self.scaler.transform(row)) for row in rows]

    def fit(self, sessions: Any, mask: Any = None) -> TokensHMM:
        """Fits both to training sessions; raises ValueError for bad ones, or without hmmlearn."""
        hmm = _peer('hmmlearn.hmm', 'hmmlearn')
        rows, _ = _rows(sessions, mask)
        self.scaler = StandardScaler().fit(np.concatenate(rows))
        self.tokens = KMeans(self.num_codes, n_init=3, random_state=self.seed)
        self.tokens.fit(self.scaler.transform(np.concatenate(rows)))
        codes, lengths = self._codes(rows), [len(row) for row in rows]
        codes = np.concatenate(codes)[:, None]
        best = -np.inf
        # It warns of every start that stops at a slightly lower likelihood.
        logging.getLogger('hmmlearn').setLevel(logging.ERROR)
        for restart in range(self.restarts):
            model = hmm.CategoricalHMM(
                self.num_states,
                n_features=self.num_codes,
                n_iter=self.iters,
                random_state=self.seed + restart,
            )
            score = model.fit(codes, lengths).score(codes, lengths)
            if score > best:
                best, self.model = score, model
        return self

    def predict(self, sessions: Any, mask: Any = None) -> np.ndarray:
        """States [B, T] on the most likely path."""
        rows, mask = _rows(sessions, mask)
        return _back([self.model.predict(code[:, None]) for code in self._codes(rows)], mask)

    def log_likelihood(self, sessions: Any, mask: Any = None) -> float:
        """Of the codes of all sessions, in nats."""
        rows, _ = _rows(sessions, mask)
        return float(sum(self.model.score(code[:, None]) for code in self._codes(rows)))


class Change(NamedTuple):
    """A penalty and the boundary F1 that it had on the training sessions."""

    penalty: float
    f1: float


class ChangePoints:
    """Change points by ruptures' KernelCPD (PELT), segments named by k-means of their means.

    The penalty is chosen on training sessions with true labels, by boundary F1: this peer is told
    more than the models of codes are, which see none.

    Args:
        num_states: clusters of the segments.
        tolerance: of the boundaries by which the penalty is chosen, in steps.
        penalties: that are tried, in units of log T: with features of variance 1.
        kernel: 'linear' (a change of the mean) or 'rbf'.
        min_size: least steps of a segment.
        seed: of k-means.
    """

    def __init__(
        self,
        num_states: int,
        tolerance: int,
        penalties: Sequence[float] = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0),
        kernel: str = 'linear',
        min_size: int = 2,
        seed: int = 0,
    ):
        for name, value, least in (
            ('num_states', num_states, 1), ('tolerance', tolerance, 0), ('min_size', min_size, 1),
        ):  # fmt: skip
            check_count(name, value, least)
        for penalty in penalties:
            check_positive('penalties', penalty)
        if kernel not in ('linear', 'rbf'):
            raise ValueError(f"kernel must be 'linear' or 'rbf', got {kernel!r}")
        self.num_states, self.tolerance, self.penalties = num_states, tolerance, tuple(penalties)
        self.kernel, self.min_size, self.seed = kernel, min_size, seed

    def _ends(self, row: np.ndarray, penalty: float) -> list[int]:
        """Ends of the segments of one session, its last step among them."""
        if len(row) < 2 * self.min_size:
            return [len(row)]
        found = self.detector(self.kernel, min_size=self.min_size).fit(row)
        return found.predict(pen=penalty * np.log(len(row)))

    def _segments(self, rows, penalty):
        """Number of the segment at every step of each session."""
        return [
            np.searchsorted(self._ends(row, penalty), np.arange(len(row)), side='right')
            for row in rows
        ]

    def _means(self, row, segments):
        counts = np.bincount(segments)[:, None]
        sums = np.zeros((len(counts), row.shape[1]))
        np.add.at(sums, segments, row)
        return sums / counts

    def fit(self, sessions: Any, labels: Any, mask: Any = None) -> ChangePoints:
        """Chooses the penalty and finds the clusters; labels int [B, T] of the same sessions.

        Raises ValueError for sessions that do not fit, or without ruptures.
        """
        self.detector = _peer('ruptures', 'ruptures').KernelCPD
        rows, mask = _rows(sessions, mask)
        self.scaler = StandardScaler().fit(np.concatenate(rows))
        rows = [self.scaler.transform(row) for row in rows]
        self.tried = []
        for penalty in self.penalties:
            found = _back(self._segments(rows, penalty), mask)
            edges = segmentation.boundaries(labels, found, tolerance=self.tolerance, mask=mask)
            self.tried.append(Change(penalty, edges.f1))
        self.penalty = max(self.tried, key=lambda change: change.f1).penalty
        segments = self._segments(rows, self.penalty)
        means = np.concatenate([self._means(*pair) for pair in zip(rows, segments, strict=True)])
        weights = np.concatenate([np.bincount(segment) for segment in segments])
        clusters = min(self.num_states, len(np.unique(means, axis=0)))
        self.clusters = KMeans(clusters, n_init=10, random_state=self.seed)
        self.clusters.fit(means, sample_weight=weights)
        return self

    def predict(self, sessions: Any, mask: Any = None) -> np.ndarray:
        """The cluster [B, T] of the segment in which each step lies.

        Neighbouring segments of one cluster are one: the boundaries are those of the states.
        """
        rows, mask = _rows(sessions, mask)
        rows = [self.scaler.transform(row) for row in rows]
        segments = self._segments(rows, self.penalty)
        pairs = zip(rows, segments, strict=True)
        return _back([self.clusters.predict(self._means(*pair))[pair[1]] for pair in pairs], mask)
