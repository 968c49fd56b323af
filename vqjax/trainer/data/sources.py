"""Data sets handed over in memory: arrays, or anything with `len` and an item for every index."""

import dataclasses
import hashlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from vqjax.trainer.data import labels, pixels
from vqjax.trainer.data.folder import SPLITS
from vqjax.trainer.data.records import InMemory, Split
from vqjax.trainer.wording import shorten

_IMAGES, _LABELS = ('image', 'img'), ('label', 'labels')
_ENDLESS = 2**40  # items of a source that repeats itself: Grain says `sys.maxsize`
_NEED = (
    'need a pair (images, labels), a source with len() and items (image, label), or a mapping of '
    'train, validation and test to these'
)


@dataclasses.dataclass(frozen=True)
class Source:
    """Items of a source, read when they are asked for; labels int32 [n] are known."""

    items: Any
    shape: tuple[int, ...]
    dtype: np.dtype
    labels: np.ndarray
    digest: str

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """See `Records.read`."""
        images = np.zeros((len(indices), *self.shape), self.dtype)
        good = np.zeros(len(indices), bool)
        for row, index in enumerate(indices):
            try:
                images[row] = pixels.array_of('', _pair(self.items[int(index)])[0])
                good[row] = np.isfinite(images[row]).all()
            except Exception:  # an item may fail in whatever the source is made of
                good[row] = False
        images[~good] = 0
        return images, np.where(good, self.labels[indices], 0).astype(np.int32), good

    def fingerprint(self) -> str:
        """Of all images and labels, as they were when the source was first read."""
        return self.digest


def parts_of(name: str, given: Any) -> dict[str, Any]:
    """By split what was handed over: a pair (images, labels), or a source.

    Raises:
      ValueError: it is none, or its splits are not train, validation and test, or lack train.
    """
    where = f'dataset={name!r}'
    if not isinstance(given, Mapping):
        return {'train': _part(where, given)}
    unknown = [key for key in given if key not in SPLITS]
    if unknown or 'train' not in given:
        raise ValueError(
            f'{where} has splits {shorten(list(given))}: need train, and validation and test where '
            'there are such splits; what is missing is taken out of train'
        )
    found = {SPLITS[key]: _part(f'{where}: split {key!r}', part) for key, part in given.items()}
    if len(found) < len(given):
        raise ValueError(f'{where} has splits val and validation: give one of them')
    return found


def _part(where: str, part: Any) -> Any:
    if isinstance(part, tuple | list) and len(part) == 2:
        if not isinstance(part[0], tuple | Mapping):  # which are the items of a source of two
            return tuple(part)
    array = hasattr(part, 'shape') and hasattr(part, 'dtype')
    if array or not hasattr(part, '__getitem__') or not hasattr(part, '__len__'):
        lacks = ' without labels' if array else ''
        raise ValueError(f'{where} is {shorten(part)}{lacks}: {_NEED}')
    if not 1 <= len(part) < _ENDLESS:
        said = 'is empty' if not len(part) else f'has {len(part)} items, repeated without an end'
        raise ValueError(f'{where} {said}: give every image once')
    return part


class _Read(NamedTuple):
    """What was read of a split.

    Fields:
      images: [n, H, W, C]; None where they do not fit in memory.
      shape: [H, W, C]
      labels: [n], int64 or text.
      good: bool [n], False for what is left out.
      digest: of all items, where images is None.
    """

    images: np.ndarray | None
    shape: tuple[int, ...]
    dtype: np.dtype
    labels: np.ndarray
    good: np.ndarray
    digest: str = ''


def read(
    name: str, parts: Mapping[str, Any], in_memory_bytes: float
) -> tuple[int, tuple[int, ...], dict[str, Split]]:
    """Number of classes, shape of the images, and the splits, without what is left out.

    Args:
      parts: see `parts_of`. Every item of a source is read once; where all sources have at most so
        many bytes of images they are kept, else none is.

    Raises:
      ValueError: no image of a split can be read; images of several shapes, or without a number of
        channels; labels that do not fit.
    """
    firsts = [_first_bytes(part) * len(part) for part in parts.values() if type(part) is not tuple]
    keep = sum(firsts) <= in_memory_bytes
    found = {}
    for split, part in parts.items():
        where = f'dataset={name!r}: split {split!r}'
        arrays = type(part) is tuple
        found[split] = _read_arrays(where, *part) if arrays else _read_source(where, part, keep)
    shape = found['train'].shape
    for split, own in found.items():
        if own.shape != shape:
            raise ValueError(
                f'dataset={name!r}: split {split!r} has images of shape {own.shape}, train of '
                f'{shape}: need one shape'
            )
    known = {split: own.labels[own.good] for split, own in found.items()}
    classes, numbered = labels.number(f'dataset={name!r}', known)
    splits = {}
    for split, own in found.items():
        numbers = np.zeros(len(own.good), np.int32)
        numbers[own.good] = numbered[split]
        records = (
            InMemory(own.images, numbers)
            if own.images is not None
            else Source(
                parts[split], shape=own.shape, dtype=own.dtype, labels=numbers, digest=own.digest
            )
        )
        bad = set(np.flatnonzero(~own.good).tolist())
        splits[split] = Split(records, np.flatnonzero(own.good), bad)
    return classes, shape, splits


def _read_arrays(where: str, images: Any, given: Any) -> _Read:
    """Images and labels as arrays; images that are not finite are left out."""
    images = _stack(where, images)
    own = labels.as_array(where, given, len(images))
    good = np.isfinite(images).all((1, 2, 3))
    _check_any(where, good, 'every image holds NaN or infinities')
    return _Read(images, shape=images.shape[1:], dtype=images.dtype, labels=own, good=good)


def _stack(where: str, images: Any) -> np.ndarray:
    """Images as one array [n, H, W, C]."""
    try:
        array = np.asarray(images)
    except ValueError:  # a list of arrays of several shapes
        sizes = sorted({np.shape(image) for image in images})
        raise ValueError(
            f'{where} has images of shapes {shorten(sizes)}: need one shape, so resize them first'
        ) from None
    if array.ndim == 3:
        array = array[..., None]
    if array.ndim != 4 or array.dtype.kind not in 'buif' or not array.size:
        raise ValueError(
            f'{where} has images {array.dtype} of shape {np.shape(images)}: need real numbers '
            '[n, H, W, C], or [n, H, W] where they are grey, none of them 0'
        )
    pixels.check_channels_last(f'{where}: images', array.shape)
    return array


def _first_bytes(items: Any) -> int:
    """Bytes of the first image that can be read; 0 where that is none of the first ones."""
    for index in range(min(len(items), 100)):
        try:
            return pixels.array_of('', _pair(items[index])[0]).nbytes
        except Exception:  # which is told of where all are read
            continue
    return 0


def _read_source(where: str, items: Any, keep: bool) -> _Read:
    """Every item of a source; those that cannot be read, or are not finite, are left out."""
    number, failed = len(items), ''
    good = np.zeros(number, bool)
    first: np.ndarray | None = None
    images: np.ndarray | None = None
    own: list[int | str] = []
    total = hashlib.sha256()
    for index in range(number):
        try:
            item = items[index]
        except Exception as error:  # whatever the source is made of
            failed = failed or f'item {index}: {type(error).__name__}: {shorten(str(error))}'
            continue
        if item is None:  # as Grain has it for what a filter took out
            continue
        image, label = _pair(item, f'{where}: item {index}')
        array = pixels.array_of(f'{where}: image of item {index}', image)
        if first is None:
            first = array
            images = np.zeros((number, *first.shape), first.dtype) if keep else None
        if array.shape != first.shape or array.dtype != first.dtype:
            raise ValueError(
                f'{where}: image of item {index} is {array.dtype} of shape {array.shape}, the '
                f'first {first.dtype} of shape {first.shape}: need one, so convert and resize '
                'them in the source'
            )
        good[index] = np.isfinite(array).all()
        if not good[index]:
            failed = failed or f'item {index}: NaN or infinities'
            continue
        own.append(_label(f'{where}: label of item {index}', label))
        total.update(array.tobytes() + repr(own[-1]).encode())
        if images is not None:
            images[index] = array
    _check_any(where, good, f'none of {number} items can be read ({failed or "all are None"})')
    if len({type(label) for label in own}) > 1:
        raise ValueError(f'{where} has numbers and text as labels: need one kind')
    known = np.asarray(own)
    placed = np.zeros(number, known.dtype)
    placed[good] = known
    assert first is not None
    return _Read(
        images,
        shape=first.shape,
        dtype=first.dtype,
        labels=placed,
        good=good,
        digest=total.hexdigest(),
    )


def _check_any(where: str, good: np.ndarray, otherwise: str) -> None:
    if not good.any():
        raise ValueError(f'{where}: {otherwise}')


def _pair(item: Any, where: str = 'item') -> tuple[Any, Any]:
    """Image and label of an item, which is a pair or a mapping with these keys."""
    if isinstance(item, Mapping):
        names = [next((k for k in keys if k in item), None) for keys in (_IMAGES, _LABELS)]
        if None not in names:
            return item[names[0]], item[names[1]]
        raise ValueError(
            f'{where} has {shorten(list(item))}: need image and label, or wrap the source so that '
            'source[i] returns the pair'
        )
    if isinstance(item, tuple | list) and len(item) == 2:
        return item[0], item[1]
    raise ValueError(
        f'{where} is {shorten(item)}: need a pair (image, label), or a mapping of these'
    )


def _label(where: str, label: Any) -> int | str:
    if isinstance(label, str):
        return label
    array = np.asarray(label)
    if array.size != 1 or array.dtype.kind not in 'iu':
        raise ValueError(f'{where} is {shorten(label)}: need an integer from 0, or text')
    return int(array.reshape(()))


def digest_of(splits: Mapping[str, Split]) -> str:
    """16 hexadecimal digits of the content of splits: their images, labels and what is left out."""
    total = hashlib.sha256()
    for name in ('train', 'validation', 'test'):
        if name not in splits:
            continue
        split = splits[name]
        total.update(f'{name} {len(split.indices)} {sorted(split.corrupt)}'.encode())
        if hasattr(split.records, 'fingerprint'):
            total.update(split.records.fingerprint().encode())
            continue
        for part in np.array_split(split.indices, max(len(split.indices) // 1000, 1)):
            images, own, _ = split.records.read(part)
            total.update(f'{images.shape[1:]} {images.dtype}'.encode())
            total.update(np.ascontiguousarray(images).tobytes())
            total.update(np.asarray(own, np.int32).tobytes())
    return total.hexdigest()[:16]
