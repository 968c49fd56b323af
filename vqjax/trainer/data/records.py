"""Images and labels with random access: decoded in memory, or decoded when asked for."""

import dataclasses
from collections.abc import Mapping
from typing import Protocol

import numpy as np

_CHUNK = 1000  # images decoded at a time while filling the memory
Batch = dict[str, np.ndarray]
SPLIT_SEED = 0  # fixed: every run has the same validation split, whatever its own seed


class Records(Protocol):
    """Random access to images and labels."""

    def __len__(self) -> int: ...

    def read(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Images [b, H, W, C], labels int32 [b], and bool [b]: False where not decodable."""


@dataclasses.dataclass(frozen=True)
class InMemory:
    """Decoded images [n, H, W, C] and labels int32 [n]."""

    images: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """See `Records.read`; what could not be decoded was left out before, so all are good."""
        return self.images[indices], self.labels[indices], np.ones(len(indices), bool)


@dataclasses.dataclass(frozen=True)
class Split:
    """The examples of `records` at `indices` [n]; `corrupt` collects indices not decodable."""

    records: Records
    indices: np.ndarray
    corrupt: set[int] = dataclasses.field(default_factory=set)

    def read(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Examples at `positions` within the split, see `Records.read`."""
        indices = self.indices[positions]
        images, labels, good = self.records.read(indices)
        if not good.all():
            self.corrupt.update(indices[~good].tolist())
        return images, labels, good


@dataclasses.dataclass(frozen=True)
class DataInfo:
    """What a model must know: name, shape (H, W, C), classes, usable images of each split."""

    name: str
    image_shape: tuple[int, int, int]
    num_classes: int
    num_examples: Mapping[str, int]


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Splits 'train', 'validation', 'test', and the training images' mean and std, float32 [C].

    `digest` tells the content of a set of one's own; it is '' of those that are known by name.
    """

    info: DataInfo
    splits: Mapping[str, Split]
    mean: np.ndarray
    std: np.ndarray
    digest: str = dataclasses.field(default='', kw_only=True)

    @property
    def num_corrupt(self) -> dict[str, int]:
        """Images of each split found not decodable so far; they are in no loss and no metric."""
        return {name: len(split.corrupt) for name, split in self.splits.items()}

    def batch(self, images: np.ndarray, labels: np.ndarray) -> Batch:
        """Raw images [b, H, W, C] and labels -> float32 of zero mean and unit scale, int32."""
        scaled = images.astype(np.float32, order='C')
        # A row an image, in place: broadcast over three channels, NumPy takes ten times as long.
        rows, places = scaled.reshape(len(images), scaled[:1].size), scaled[:1, ..., 0].size
        rows -= np.tile(self.mean, places)
        rows /= np.tile(self.std, places)
        return {'image': scaled, 'label': labels.astype(np.int32)}


def whole(records: Records, in_memory: bool) -> Split:
    """All of `records` as a split; decoded now where they fit in memory."""
    indices = np.arange(len(records))
    if not in_memory:
        return Split(records, indices)
    parts = [records.read(chunk) for chunk in np.split(indices, indices[_CHUNK::_CHUNK])]
    images, labels, good = (np.concatenate(part) for part in zip(*parts, strict=True))
    corrupt = set(np.flatnonzero(~good).tolist())
    return Split(InMemory(images, labels), np.flatnonzero(good), corrupt)


def carve(split: Split) -> tuple[Split, Split]:
    """Nine tenths and one tenth of `split`, always the same ones."""
    order = np.random.default_rng(SPLIT_SEED).permutation(len(split.indices))
    kept, carved = np.split(split.indices[order], [len(order) - len(order) // 10])
    return (
        Split(split.records, np.sort(kept), split.corrupt),
        Split(split.records, np.sort(carved)),
    )


def assemble(
    name: str, num_classes: int, shape: tuple[int, int, int], splits: Mapping[str, Split]
) -> Dataset:
    """The dataset of these splits, with the mean and scale of its training images.

    Raises:
        ValueError: a split without a usable image, or no class.
    """
    splits = {split: splits[split] for split in ('train', 'validation', 'test')}
    num_examples = {split: len(examples.indices) for split, examples in splits.items()}
    height, width, channels = shape
    info = DataInfo(
        name,
        image_shape=(height, width, channels),
        num_classes=num_classes,
        num_examples=num_examples,
    )
    _check_sizes(info)
    train = splits['train']
    # A spread of 5,000 images gives each channel's mean and std to about a percent.
    sample = np.unique(np.linspace(0, len(train.indices) - 1, 5000).astype(int))
    images, _, good = train.read(sample)
    if not good.any():
        raise ValueError(f'dataset={name!r}: none of {len(sample)} training images can be decoded')
    pixels = images[good].reshape(-1, shape[-1]).astype(np.float64)
    std = pixels.std(0)
    return Dataset(
        info,
        splits=splits,
        mean=pixels.mean(0).astype(np.float32),
        std=np.where(std, std, 1).astype(np.float32),
    )


def _check_sizes(info: DataInfo) -> None:
    empty = [split for split, number in info.num_examples.items() if not number]
    if empty:
        raise ValueError(
            f'dataset={info.name!r} has no usable image in {", ".join(empty)}: '
            f'its splits have {dict(info.num_examples)}'
        )
    if info.num_classes < 1:
        raise ValueError(f'dataset={info.name!r} has {info.num_classes} classes: need at least 1')


def check_arrays(split: str, images: np.ndarray, labels: np.ndarray, num_classes: int) -> None:
    """Checks that a split given as arrays is one.

    Raises:
        ValueError: naming the split and what does not fit.
    """
    if images.ndim != 4 or labels.shape != images.shape[:1] or not images.size:
        raise ValueError(
            f'splits[{split!r}] has images {images.shape} and labels {labels.shape}: '
            'need [n, H, W, C] and [n], none of them 0'
        )
    if images.dtype.kind not in 'buif' or labels.dtype.kind not in 'ui':
        raise ValueError(
            f'splits[{split!r}] has images of {images.dtype} and labels of {labels.dtype}: '
            'need real numbers and integers'
        )
    if labels.min() < 0 or labels.max() >= num_classes:
        raise ValueError(
            f'splits[{split!r}] has labels {labels.min()} to {labels.max()}: '
            f'need 0 to {num_classes - 1}'
        )
