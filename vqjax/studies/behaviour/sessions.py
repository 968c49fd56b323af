"""Sessions: recordings one after the other, so that it is known where a behaviour begins."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from vqjax import quantizers
from vqjax.quantizers import FSQ, Banked, Guarded, Projected, Quantizer
from vqjax.trainer.data.recordings import Recording


class Sessions(NamedTuple):
    """B sessions of T steps, the short ones filled up with NaN and label -1.

    signals: float32 [B, T, C].
    labels: int [B, T], the number of the behaviour.
    """

    signals: np.ndarray
    labels: np.ndarray

    @property
    def mask(self) -> np.ndarray:
        """bool [B, T], True where every sensor has a value."""
        return np.isfinite(self.signals).all(-1) & (self.labels >= 0)


def draw(
    recordings: Sequence[Recording], labels: Sequence[str], rounds: int, length: int, seed: int
) -> Sessions:
    """Every recording `rounds` times, in random order, `length` of them a session (the last fewer).

    Neighbours with the same label are one stretch of that behaviour.
    """
    rng = np.random.default_rng(seed)
    chains = []
    for _ in range(rounds):
        order = rng.permutation(len(recordings))
        chains += [order[at : at + length] for at in range(0, len(order), length)]
    pieces = [[recordings[i] for i in chain] for chain in chains]
    steps = max(sum(len(r.signals) for r in chain) for chain in pieces)
    sensors = recordings[0].signals.shape[-1]
    signals = np.full((len(pieces), steps, sensors), np.nan, np.float32)
    found = np.full((len(pieces), steps), -1)
    for row, chain in enumerate(pieces):
        whole = np.concatenate([r.signals for r in chain])
        signals[row, : len(whole)] = whole
        named = [np.full(len(r.signals), labels.index(r.label)) for r in chain]
        found[row, : len(whole)] = np.concatenate(named)
    return Sessions(signals, found)


def axes_of(quantizer: Quantizer, codes: np.ndarray) -> tuple[np.ndarray, tuple[int, ...]]:
    """Codes [..., *code_shape] as independent axes [..., C], and how many codes each axis has.

    A product or residual code has an axis a part. A grid (FSQ) has one a feature: its single code
    numbers tens of thousands of combinations, of which a session shows each but once.
    """
    leaf: Any = quantizer
    while isinstance(leaf, Projected | Banked | Guarded):
        leaf = leaf.inner
    if isinstance(leaf, FSQ) and not quantizer.code_shape:
        digits = np.unravel_index(np.maximum(codes, 0), leaf.levels, order='F')
        return np.where(codes[..., None] < 0, -1, np.stack(digits, -1)), tuple(leaf.levels)
    number = quantizers.stages(quantizer)
    return codes.reshape(*codes.shape[: codes.ndim - len(quantizer.code_shape)], number), (
        (quantizer.num_codes,) * number
    )


def as_steps(states: np.ndarray, stride: int, steps: int) -> np.ndarray:
    """States of places [B, n] as states of steps [B, steps], a place for `stride` of them."""
    return np.repeat(states, stride, axis=1)[:, :steps]
