"""The encoder of a run on recordings: signals of any length to vectors, whole or in pieces.

Places are computed in blocks of a fixed size, each place always at the same position of its block,
by one program: what a place sees is the same numbers in the same order, however a recording is cut.
So codes of pieces are those of the whole to the bit.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vqjax import sensors
from vqjax.codec.images import ImageEncoder

# Places of a block: of windows fewer, since each is as much to compute as many places of a grid.
_PLACES, _WINDOWS = 256, 32
# Steps before and after a block of a grid, whole places: all that its first and last one see.
_EDGE = -(-sensors.REACH // sensors.STRIDE) * sensors.STRIDE


class Stream(NamedTuple):
    """What a recording that arrives in pieces has left behind.

    Fields:
      steps: float32 [n, C], the last ones, standardised, NaN where missing.
      first: number of the first of them in the recording; below 0 before its start.
      done: places whose codes were given out.
    """

    steps: np.ndarray
    first: int
    done: int

    @property
    def seen(self) -> int:
        """Steps of the recording so far."""
        return self.first + len(self.steps)


@dataclasses.dataclass(frozen=True, eq=False)
class SensorEncoder(ImageEncoder):
    """Recordings [T, C] -> vectors float32 [n, D] by the encoder of a training run.

    With bottleneck 'grid' a place stands for 4 steps, and n = ceil(T / 4); with 'vector' it is a
    window, as those that the run was trained on.

    Fields beyond those of ImageEncoder, whose image_shape is (1, window, C):
      hop: steps from one window to the next.
      pad: the last window may reach beyond the end of a recording.
      rate: steps a second; 0 = unknown.
      labels: names of the classes.
    """

    hop: int = 1
    pad: bool = False
    rate: float = 0.0
    labels: tuple[str, ...] = ()

    @property
    def stride(self) -> int:
        """Steps from one place to the next."""
        return self.hop if self.bottleneck == 'vector' else sensors.STRIDE

    @property
    def lag(self) -> int:
        """Steps after the first one of a place until its code is known: all that it sees."""
        if self.bottleneck == 'vector':
            return self.image_shape[1]
        return sensors.STRIDE + sensors.REACH

    @property
    def block(self) -> int:
        """Places that are computed together."""
        return _WINDOWS if self.bottleneck == 'vector' else _PLACES

    def begin(self) -> Stream:
        """The state before the first step."""
        edge = self._edge
        return Stream(np.full((edge, self.image_shape[2]), np.nan, np.float32), -edge, 0)

    def places(self, steps: int) -> int:
        """Places of a recording of so many steps, once it has ended."""
        if self.bottleneck == 'grid':
            return -(-steps // self.stride)
        return sensors.count_windows(steps, self.image_shape[1], self.hop, self.pad)

    def check(self, signals: Any) -> np.ndarray:
        """Signals as float32 [T, C], standardised, NaN where any sensor is not finite.

        Raises:
          ValueError: they are not real numbers of that form.
        """
        try:
            if not isinstance(signals, np.ma.MaskedArray):
                signals = np.asarray(signals)
        except ValueError as error:  # lists of different lengths
            raise ValueError(f'signals must be [T, C]: {error}') from None
        if not any(jnp.issubdtype(signals.dtype, kind) for kind in (jnp.integer, jnp.floating)):
            raise ValueError(f'signals must be real numbers, got {signals.dtype}')
        channels = self.image_shape[2]
        if signals.ndim != 2 or signals.shape[1] != channels:
            raise ValueError(
                f'signals must be [T, {channels}], steps x sensors, got shape {signals.shape}'
            )
        # What NumPy masks is missing, as what is not finite.
        signals = np.ma.filled(signals.astype(np.float32), np.nan)
        real = np.isfinite(signals).all(-1, keepdims=True)
        scaled = (signals - np.float32(self.mean)) / np.float32(self.std)
        return np.where(real, scaled, np.float32(np.nan))

    def whole(self, signals: Any) -> Stream:
        """The state with a whole recording in it.

        Raises:
          ValueError: as `check`; it has fewer steps than a window, or all are missing.
        """
        steps = self.check(signals)
        if not np.isfinite(steps).any():
            raise ValueError(f'signals of shape {steps.shape} have no step with all sensors finite')
        if not self.places(len(steps)):
            raise ValueError(
                f'signals have {len(steps)} steps, fewer than the window, {self.image_shape[1]}'
            )
        return self.take(self.begin(), steps)

    def __call__(self, signals: np.ndarray) -> np.ndarray:
        """Vectors of a recording [T, C], raw: float32 [n, D], NaN where it is missing.

        Raises:
          ValueError: as `whole`.
        """
        stream = self.whole(signals)
        blocks = self.blocks(stream, self.known(stream, True))
        return np.concatenate([z[new] for z, new in blocks])

    def take(self, stream: Stream, steps: np.ndarray) -> Stream:
        """The stream with more steps, as `check` gives them."""
        return stream._replace(steps=np.concatenate([stream.steps, steps]))

    def known(self, stream: Stream, ended: bool) -> int:
        """Places whose codes can be told."""
        if ended:
            return self.places(stream.seen)
        return max(stream.seen - self.lag + self.stride, 0) // self.stride

    def blocks(self, stream: Stream, known: int) -> Iterator[tuple[np.ndarray, slice]]:
        """Vectors float32 [block, D], NaN where missing, and which of them are new; in order."""
        done, size = stream.done, self.block
        while done < known:
            begin = done // size * size
            new = slice(done - begin, min(known - begin, size))
            first = begin * self.stride - self._edge - stream.first
            yield self._vectors(stream.steps[first:]), new
            done = begin + new.stop

    def forget(self, stream: Stream, known: int) -> Stream:
        """The stream once those places are told, without the steps that are no longer needed."""
        begin = known // self.block * self.block * self.stride - self._edge
        # Hops longer than a window may lead beyond all that has come.
        gone = min(max(begin - stream.first, 0), len(stream.steps))
        return Stream(stream.steps[gone:], stream.first + gone, known)

    @property
    def _edge(self) -> int:
        """Steps before the first place of a block that it sees."""
        return 0 if self.bottleneck == 'vector' else _EDGE

    def _vectors(self, steps: np.ndarray) -> np.ndarray:
        """Vectors of the block that begins with the first of the steps, float32 [block, D]."""
        window = self.image_shape[1]
        if self.bottleneck == 'vector':
            length = (self.block - 1) * self.stride + window
        else:
            length = self.block * self.stride + 2 * _EDGE
        whole = np.full((length, steps.shape[1]), np.nan, np.float32)
        whole[: len(steps)] = steps[:length]
        if self.bottleneck == 'vector':
            rows = np.arange(self.block)[:, None] * self.stride + np.arange(window)
            return np.asarray(_masked(self._model, self.variables, whole[rows][:, None]))[:, 0, 0]
        edge = _EDGE // sensors.STRIDE
        z = np.asarray(_masked(self._model, self.variables, whole[None, None]))
        return z[0, 0, edge:-edge]

    def check_fields(self) -> None:
        """See `ImageEncoder`."""
        super().check_fields()
        if self.image_shape[0] != 1 or self.bottleneck not in ('grid', 'vector'):
            raise ValueError(
                f'an encoder of windows must have image_shape (1, T, C) and bottleneck grid or '
                f'vector, got {self.image_shape} and {self.bottleneck!r}'
            )
        if type(self.hop) is not int or not 1 <= self.hop < 2**31 or type(self.pad) is not bool:
            raise ValueError(
                f'hop must be an integer above 0 and pad True or False, got {self.hop!r:.20} and '
                f'{self.pad!r:.20}'
            )
        if not isinstance(self.rate, int | float) or not 0 <= self.rate < math.inf:
            raise ValueError(f'rate must be steps a second, at least 0, got {self.rate!r:.20}')
        if not all(isinstance(label, str) for label in self.labels):
            raise ValueError('labels must be texts')


@functools.partial(jax.jit, static_argnums=0)
def _masked(model, variables, windows):
    """z [B, 1, w, D] of windows [B, 1, T, C], NaN at places that count nowhere."""
    z = model.apply(variables, windows, train=False)
    real = sensors.real_places(model.kind, model.bottleneck, windows)
    return jnp.where(real[..., None], z, jnp.nan)
