"""Data sets handed over in memory: arrays, or anything with `len` and an item for every index."""

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vqjax.trainer.data import labels, pixels
from vqjax.trainer.data.folder import SPLITS
from vqjax.trainer.data.records import InMemory
from vqjax.trainer.wording import shorten

_IMAGES, _LABELS = ('image', 'img'), ('label', 'labels')
_NEED = (
    'need a pair (images, labels), a source with len() and items (image, label), or a mapping of '
    'train, validation and test to these'
)


@dataclasses.dataclass
class Source:
    """Items of a source, read when they are asked for; labels int32 [n] are known."""

    where: str
    items: Any
    image_shape: tuple[int, int, int]
    dtype: np.dtype
    labels: np.ndarray
    digest: str

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """See `Records.read`."""
        images = np.zeros((len(indices), *self.image_shape), self.dtype)
        good = self.labels[indices] >= 0
        for row in np.flatnonzero(good):
            try:
                images[row] = pixels.array_of('', _item(self.items, int(indices[row]))[0])
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
    if isinstance(part, tuple | list) and len(part) == 2 and np.ndim(part[0]) > 1:
        return tuple(part)
    array = hasattr(part, 'shape') and hasattr(part, 'dtype')
    if array or not hasattr(part, '__getitem__') or not hasattr(part, '__len__'):
        lacks = ' without labels' if array else ''
        raise ValueError(f'{where} is {shorten(part)}{lacks}: {_NEED}')
    if not len(part):
        raise ValueError(f'{where} is empty: give at least one image')
    return part


def from_arrays(
    name: str, splits: Mapping[str, tuple[Any, Any]]
) -> tuple[int, dict[str, tuple[InMemory, np.ndarray]]]:
    """Number of classes, and of every split the images with bool [n]: which are finite.

    Args:
      splits: images [n, H, W, C] or [n, H, W], and labels [n].

    Raises:
      ValueError: arrays that do not fit together, within a split or beside train.
    """
    found, own = {}, {}
    for split, (images, given) in splits.items():
        where = f'dataset={name!r}: split {split!r}'
        images = _stack(where, images)
        own[split] = labels.as_array(where, given, len(images))
        found[split] = images
        if images.shape[1:] != found['train'].shape[1:]:
            raise ValueError(
                f'{where} has images of shape {images.shape[1:]}, train of '
                f'{found["train"].shape[1:]}: need one shape'
            )
    classes, numbered = labels.number(f'dataset={name!r}', own)
    return classes, {
        split: (InMemory(images, numbered[split]), np.isfinite(images).all((1, 2, 3)))
        for split, images in found.items()
    }


def _stack(where: str, images: Any) -> np.ndarray:
    """Images as one array [n, H, W, C]."""
    try:
        array = np.asarray(images)
    except ValueError:  # a list of arrays of several shapes
        array = np.empty(0, object)
    if array.dtype == object:
        sizes = sorted({np.shape(image) for image in images})
        raise ValueError(
            f'{where} has images of shapes {shorten(sizes)}: need one shape, so resize them first'
        )
    if array.ndim == 3:
        array = array[..., None]
    if array.ndim != 4 or array.dtype.kind not in 'buif' or not array.size:
        raise ValueError(
            f'{where} has images {array.dtype} of shape {np.shape(images)}: need real numbers '
            '[n, H, W, C], or [n, H, W] where they are grey, none of them 0'
        )
    pixels.check_channels_last(f'{where}: images', array.shape)
    return array


def from_source(
    name: str, split: str, items: Any, in_memory_bytes: float
) -> tuple[Any, np.ndarray, np.ndarray]:
    """The records of a source with labels as it has them, and bool [n]: which items are readable.

    Reads every item once. Up to so many bytes of images are kept, of more none.

    Returns:
      InMemory or Source, whose labels are to be set; labels [n], int64 or text; bool [n].

    Raises:
      ValueError: no item is readable, or items have several shapes, or no image and label.
    """
    where = f'dataset={name!r}: split {split!r}'
    number, first, failed = len(items), None, ''
    good = np.zeros(number, bool)
    images: Any = None
    found: list[Any] = [None] * number
    total = hashlib.sha256()
    for index in range(number):
        try:
            image, label = _item(items, index)
        except _NoItem as error:
            raise ValueError(f'{where}: item {index} {error}') from None
        except Exception as error:  # whatever the source is made of
            failed = failed or f'item {index}: {type(error).__name__}: {shorten(str(error))}'
            continue
        array = pixels.array_of(f'{where}: image of item {index}', image)
        if first is None:
            first = array
            if number * first.nbytes <= in_memory_bytes:
                images = np.zeros((number, *first.shape), first.dtype)
        if array.shape != first.shape or array.dtype != first.dtype:
            raise ValueError(
                f'{where}: image of item {index} is {array.dtype} of shape {array.shape}, the '
                f'first {first.dtype} of shape {first.shape}: need one, so convert and resize '
                'them in the source'
            )
        found[index] = _label(f'{where}: label of item {index}', label)
        good[index] = np.isfinite(array).all()
        total.update(array.tobytes() + repr(found[index]).encode())
        if images is not None:
            images[index] = array
    if first is None:
        raise ValueError(f'{where}: none of {number} items can be read ({failed})')
    some = next(x for x in found if x is not None)
    known = [type(some)() if x is None else x for x in found]
    if {type(x) for x in known} != {type(some)}:
        raise ValueError(f'{where} has numbers and text as labels: need one kind')
    own = np.asarray(known)
    if images is not None:
        return InMemory(images, own), own, good
    shape = (first.shape[0], first.shape[1], first.shape[2])
    return Source(where, items, shape, first.dtype, own, total.hexdigest()), own, good


class _NoItem(Exception):
    """An item is no image with a label; the text says what it is."""


def _item(items: Any, index: int) -> tuple[Any, Any]:
    """Image and label of an item: of a pair, or of a mapping with these keys."""
    item = items[index]
    if isinstance(item, Mapping):
        names = [next((k for k in keys if k in item), None) for keys in (_IMAGES, _LABELS)]
        if None in names:
            raise _NoItem(
                f'has {shorten(list(item))}: need image and label, or wrap the source so that '
                'source[i] returns the pair'
            )
        return item[names[0]], item[names[1]]
    if isinstance(item, tuple | list) and len(item) == 2:
        return item[0], item[1]
    raise _NoItem(f'is {shorten(item)}: need a pair (image, label), or a mapping of these')


def _label(where: str, label: Any) -> int | str:
    if isinstance(label, str):
        return label
    array = np.asarray(label)
    if array.size != 1 or array.dtype.kind not in 'iu':
        raise ValueError(f'{where} is {shorten(label)}: need an integer from 0, or text')
    return int(array.reshape(()))


def digest_of(splits: Mapping[str, Any], names: Sequence[str] = ('train', 'validation', 'test')):
    """16 hexadecimal digits of the content of splits: their images, labels and what is left out."""
    total = hashlib.sha256()
    for name in names:
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
