"""The record of a finished run: finished/METHOD/seed_N.json of a workdir."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

from vqjax.results.plain import load, mappings, numbers, optional, part, within
from vqjax.results.records import SeedResult

_NEEDED = ('accuracy', 'nll', 'seconds')  # of the figures of a run


@dataclasses.dataclass(frozen=True)
class ImageStatistics:
    """What a tokenizer made of a run has to know of the images, or windows, it was trained on.

    Fields:
      shape: [H, W, C].
      mean, std: of each channel, [C].
      num_classes: of their labels.
    """

    shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    num_classes: int

    @classmethod
    def read(cls, plain: Mapping[str, Any]) -> ImageStatistics:
        """Of the entry `images` of a record.

        Raises:
          ValueError: a part is missing or damaged.
        """
        shape = part(plain, 'shape', list)
        if len(shape) != 3 or not all(type(size) is int for size in shape):
            raise ValueError(f'shape is {shape!r:.40}, not three whole numbers')
        return cls(
            shape=(shape[0], shape[1], shape[2]),
            mean=numbers(plain, 'mean'),
            std=numbers(plain, 'std'),
            num_classes=part(plain, 'num_classes', int),
        )

    def plain(self) -> dict[str, Any]:
        """As JSON holds it."""
        return {
            'shape': list(self.shape),
            'mean': list(self.mean),
            'std': list(self.std),
            'num_classes': self.num_classes,
        }


@dataclasses.dataclass(frozen=True, eq=False)
class FinishedRun:
    """What one method with one seed left when it was finished.

    Fields:
      result: its figures, as results.json has them.
      history: the records of its evaluations in order, each with its 'step'.
      bits: an image.
      params: how many numbers the model holds.
      images: of the data.
      recordings: of the data, where they are recordings; what `SensorEncoder` needs besides.
    """

    result: SeedResult
    history: tuple[Mapping[str, Any], ...]
    bits: float
    params: int
    images: ImageStatistics
    recordings: Mapping[str, Any] | None = None

    @property
    def step(self) -> int:
        """Optimizer steps at the last evaluation, which is the end of the run."""
        return int(self.history[-1]['step'])

    @classmethod
    def read(cls, plain: Mapping[str, Any], seed: int | None = None) -> FinishedRun:
        """Of the content of a file.

        Args:
          seed: that it has to be of; None for any.

        Raises:
          ValueError: a part is missing or damaged, or it is of another seed.
        """
        result = part(plain, 'result', dict)
        history = mappings(plain, 'history')
        if not history or not all(isinstance(record.get('step'), int) for record in history):
            raise ValueError('its history has no steps')
        if seed is not None and result.get('seed') != seed:
            raise ValueError(f'it is of seed {result.get("seed")}')
        lacking = sorted({*_NEEDED, 'reliability'} - result.keys())
        if lacking:
            raise ValueError(f'its result has no {lacking[0]}')
        with within('result'):
            result_read = SeedResult.read(result)
        with within('images'):
            images = ImageStatistics.read(part(plain, 'images', dict))
        return cls(
            result=result_read,
            history=tuple(history),
            bits=part(plain, 'bits', float),
            params=part(plain, 'params', int),
            images=images,
            recordings=optional(plain, 'recordings', dict),
        )

    @classmethod
    def load(cls, path: str | os.PathLike[str], seed: int | None = None) -> FinishedRun:
        """Of a file.

        Raises:
          ValueError: it cannot be read, or `read` refuses it; names the file and the remedy.
        """
        remedy = 'remove it, and the same command finishes that run again'
        return load(path, lambda plain: cls.read(plain, seed), remedy)

    def plain(self) -> dict[str, Any]:
        """As JSON holds it."""
        found: dict[str, Any] = {
            'result': self.result.plain(),
            'history': [dict(record) for record in self.history],
            'bits': self.bits,
            'params': self.params,
            'images': self.images.plain(),
        }
        if self.recordings is not None:
            found['recordings'] = dict(self.recordings)
        return found
