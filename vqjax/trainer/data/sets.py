"""Classification sets by name: digits, folders and arrays of one's own, recordings, any TFDS set.

A set that fits in memory is decoded once; batches are gathered from it by index, which costs far
less than a training step. Everything random is a function of (seed, step), so the position of an
iterator is one number, and a resumed run, or one with more processes, sees the same batches.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from vqjax.trainer.data import folder, npz, recording_files, sources
from vqjax.trainer.data.folds import one_fold_of
from vqjax.trainer.data.recordings import WHOLE, Cutting, from_recordings
from vqjax.trainer.data.records import (
    SPLIT_SEED,
    Dataset,
    InMemory,
    Split,
    assemble,
    carve,
    check_arrays,
    whole,
)
from vqjax.trainer.errors import RunError

if TYPE_CHECKING:
    from vqjax.trainer.data import tfds

# A set up to this many bytes when decoded is kept in memory, a larger one decoded batch by batch.
IN_MEMORY_BYTES = 4 * 2**30
_NAMED = 3  # images that a warning names

_log = logging.getLogger('vqjax')


OWN = ('folder', 'npz')  # images of one's own, by these names


@dataclasses.dataclass(frozen=True)
class Own:
    """A data set of one's own, read once: `at(cutting)` makes the splits that are missing.

    Fields:
      name: what reports call it.
      at: may raise ValueError, see `load`.
      digest: 16 hexadecimal digits that tell its content; names and sizes of the files alone where
        they do not fit in memory.
    """

    name: str
    at: Callable[[Cutting], Dataset]
    digest: str


def load(
    name: str,
    data_dir: str | None = None,
    image_size: int | None = None,
    cutting: Cutting = WHOLE,
) -> Dataset:
    """The classification set `name`; validation is carved from train where it has none.

    Args:
        name: 'digits', which needs no files; 'folder', images in a folder for each class, see
            `folder.open_splits`, or 'npz', arrays in a file, see `npz.read`; 'basic_motions' or
            'japanese_vowels', recordings that the package aeon holds; 'recordings' of one's own; or
            a TFDS set, of images or of recordings, prepared in array_record format.
        data_dir: folder of the images, or file of the arrays; folder of the prepared TFDS sets,
            None is TFDS's own default; or of recordings, see `recording_files.read_folder`.
        image_size: side in pixels to crop and resize images of files to; None keeps their size.
        cutting: how recordings are cut into windows; and with `folds` which part of recordings, or
            of images without a test split of their own, is the test split.

    Raises:
        ValueError: folds of a set of images with a test split, or too large for memory; unknown
            set, or not prepared (with the command that prepares it), or neither images of one size
            nor recordings of one number of sensors with one label each; and what
            `folder.open_splits`, `npz.read` and `recordings.from_recordings` refuse.
    """
    if name in OWN:
        return open_own(name, data_dir, image_size).at(cutting)
    if name in ('digits', *recording_files.NAMES):
        _check_no_size(name, image_size)
    if name == 'digits':
        return _digits(cutting)
    if name in recording_files.NAMES:
        return from_recordings(name, recording_files.read(name, data_dir), cutting)
    from vqjax.trainer.data import tfds  # which takes a second to import

    recordings = tfds.open_recordings(name, data_dir)
    if recordings is not None:
        _check_no_size(name, image_size)
        return from_recordings(name, recordings, cutting)
    read = _read_once if cutting.folds else _read
    return _complete(name, read(name, data_dir, image_size), cutting)


class _Splits(NamedTuple):
    """What a set of images has before the splits that are missing are made."""

    num_classes: int
    shape: tuple[int, int, int]
    found: dict[str, Split]


def _complete(name: str, splits: _Splits, cutting: Cutting, digest: str = '') -> Dataset:
    """The data set, or one fold of it, with the splits that are missing."""
    num_classes, shape, found = splits
    if cutting.folds:
        _check_folds(name, found)
        one = one_fold_of(
            name, num_classes=num_classes, examples=found['train'], cutting=cutting, held_out=10
        )
        return dataclasses.replace(one, digest=digest)
    found = dict(found)
    # Sets such as ImageNet publish no labelled test split: their validation split is the test.
    if 'test' not in found and 'validation' in found:
        found['test'] = found.pop('validation')
    for split in ('test', 'validation'):
        if split not in found:
            found['train'], found[split] = carve(found['train'])
    return dataclasses.replace(
        assemble(name, num_classes=num_classes, shape=shape, splits=found), digest=digest
    )


def _read(name: str, data_dir: str | None, image_size: int | None) -> _Splits:
    """Number of classes, shape of the images and splits of a TFDS set."""
    from vqjax.trainer.data import tfds

    num_classes, files = tfds.open_splits(name, data_dir, image_size)
    return _Splits(num_classes, files['train'].image_shape, _decode(name, files))


def _decode(
    name: str, files: Mapping[str, tfds.TfdsRecords | folder.ImageFiles]
) -> dict[str, Split]:
    """The splits of files of images: decoded, where all of them fit in memory."""
    size = sum(len(f) for f in files.values()) * int(np.prod(files['train'].image_shape))
    found = {split: whole(f, in_memory=size <= IN_MEMORY_BYTES) for split, f in files.items()}
    for split, examples in found.items():
        names = files[split].names(sorted(examples.corrupt)[:_NAMED])
        _warn(name, split=split, examples=examples, what='cannot be decoded', names=names)
    return found


def _warn(name: str, split: str, examples: Split, what: str, names: Sequence[str]) -> None:
    """Tells of images that are left out.

    Raises:
      ValueError: all of them are.
    """
    if not len(examples.indices):
        raise ValueError(f'dataset={name!r}: no image of split {split!r} can be decoded')
    if not examples.corrupt:
        return
    total, left = len(examples.indices) + len(examples.corrupt), len(examples.corrupt)
    more = f' and {left - len(names)} more' if left > len(names) else ''
    said = f': {", ".join(names)}{more}' if names else ''
    _log.warning(
        '%s: %d of %d images of split %s %s and are left out%s',
        name, left, total, split, what, said,
    )  # fmt: skip


_read_once = functools.lru_cache(maxsize=1)(_read)  # for all folds of a set


def open_own(
    name: str, data_dir: str | None = None, image_size: int | None = None, given: Any = None
) -> Own:
    """A data set of one's own, checked and read once.

    Args:
        name: 'folder' or 'npz'; of data that are given any name.
        data_dir, image_size: see `load`.
        given: a `Dataset`; or a pair (images [n, H, W, C], labels [n]), or a source with `len` and
            items (image, label), or a mapping of train, validation and test to these.

    Raises:
        ValueError: what `load` says of such a set.
    """
    if isinstance(given, Own):
        return given
    if given is not None or name != 'folder':
        _check_no_size(name, image_size)
    if isinstance(given, Dataset):
        return _split_already(given)
    if given is None and name == 'folder':
        num_classes, files = folder.open_splits(data_dir, image_size)
        splits = _Splits(num_classes, files['train'].image_shape, _decode(name, files))
    else:
        parts = sources.parts_of(name, npz.read(data_dir) if given is None else given)
        splits = _of_parts(name, parts)
    digest = sources.digest_of(splits.found)
    return Own(name, lambda cutting: _complete(name, splits, cutting, digest), digest)


def from_sources(name: str, given: Any, cutting: Cutting = WHOLE) -> Dataset:
    """A data set of your own arrays or sources, with the splits that are missing.

    Args:
        name: of the set.
        given: a pair (images [n, H, W, C] or [n, H, W], labels [n]); or a source with `len` and
            items (image, label), such as a Grain MapDataset; or a mapping of 'train', 'validation'
            and 'test' to these. Labels are integers from 0, or text.
        cutting: `folds`, and which of them is the test split.

    Raises:
        ValueError: no image or no label, images of several shapes, labels that do not fit, or
            folds of a set with splits.
    """
    return open_own(name, given=given).at(cutting)


def _of_parts(name: str, parts: Mapping[str, Any]) -> _Splits:
    """Splits of arrays, or of sources."""
    num_classes, shape, found = sources.read(name, parts, IN_MEMORY_BYTES)
    for split, examples in found.items():
        names = [f'number {i}' for i in sorted(examples.corrupt)[:_NAMED]]
        _warn(
            name,
            split=split,
            examples=examples,
            what='cannot be read or hold NaN or infinities',
            names=names,
        )
    return _Splits(num_classes, (shape[0], shape[1], shape[2]), found)


def _check_no_size(name: str, image_size: int | None) -> None:
    if image_size:
        raise ValueError(
            f'image_size is {image_size}, which is for images in files, and dataset={name!r} holds '
            'arrays: resize them before they are given, and set image_size to 0'
        )


def _split_already(dataset: Dataset) -> Own:
    """A `Dataset`, whose splits are made."""
    digest = dataset.digest or sources.digest_of(dataset.splits)
    found = dataclasses.replace(dataset, digest=digest)

    def at(cutting: Cutting) -> Dataset:
        if cutting != WHOLE:
            raise ValueError(
                f'dataset={dataset.info.name!r} is split and cut already: leave folds, window, hop '
                'and pad at their defaults'
            )
        return found

    return Own(dataset.info.name, at, digest)


def _check_folds(name: str, found: Mapping[str, Split]) -> None:
    for split in ('test', 'validation'):
        if split in found:
            raise ValueError(
                f'dataset={name!r} has a {split} split of its own, and a fixed one is kept as it '
                'is: set folds to 0'
            )
    if not isinstance(found['train'].records, InMemory):
        raise ValueError(f'dataset={name!r} does not fit in memory: set folds to 0')


def from_arrays(
    name: str, num_classes: int, splits: Mapping[str, tuple[np.ndarray, np.ndarray]]
) -> Dataset:
    """A dataset of your own: train, validation and test, each (images [n, H, W, C], labels [n]).

    Images that hold NaN or infinities count as corrupt and are left out.

    Raises:
        ValueError: a split missing or empty, or shapes and labels that do not fit together.
    """
    found: dict[str, Split] = {}
    shape: tuple[int, ...] = ()
    for split in ('train', 'validation', 'test'):
        if split not in splits:
            raise ValueError(f'splits has {list(splits)}: need train, validation and test')
        images, labels = (np.asarray(x) for x in splits[split])
        check_arrays(split, images=images, labels=labels, num_classes=num_classes)
        shape = shape or images.shape[1:]
        if images.shape[1:] != shape:
            raise ValueError(
                f'splits[{split!r}] has images of shape {images.shape[1:]}, train of {shape}: '
                'need one shape'
            )
        good = np.isfinite(images).all((1, 2, 3))
        found[split] = Split(
            InMemory(images, labels.astype(np.int32)),
            np.flatnonzero(good),
            set(np.flatnonzero(~good).tolist()),
        )
    return assemble(
        name, num_classes=num_classes, shape=(shape[0], shape[1], shape[2]), splits=found
    )


def _digits(cutting: Cutting) -> Dataset:
    """1,797 handwritten digits of 8 x 8 pixels in 17 grey levels, split 1,077 / 360 / 360.

    Folds hold out a quarter of what is left for validation: five of them have these sizes too.
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    images = digits.images[..., None].astype(np.uint8)
    if cutting.folds:
        records = InMemory(images, digits.target.astype(np.int32))
        return one_fold_of(
            'digits',
            num_classes=10,
            examples=whole(records, in_memory=False),
            cutting=cutting,
            held_out=4,
        )
    cut = functools.partial(train_test_split, random_state=SPLIT_SEED)
    train, held_out = cut(np.arange(len(images)), test_size=720, stratify=digits.target)
    validation, test = cut(held_out, test_size=360, stratify=digits.target[held_out])
    parts = {'train': train, 'validation': validation, 'test': test}
    return from_arrays(
        'digits', 10, {split: (images[i], digits.target[i]) for split, i in parts.items()}
    )


def load_dataset(
    name: str,
    data_dir: str,
    cutting: Cutting = WHOLE,
    image_size: int = 0,
    digest: str = '',
) -> Dataset:
    """`load` for a run: data_dir '' is TFDS's own default, image_size 0 the size of the files.

    Args:
      digest: that the content of a set of one's own has to have; '' = any.

    Raises:
      RunError: where the set is unknown, not prepared or unreadable, in one line.
    """
    with told(name):
        found = load(name, data_dir or None, image_size or None, cutting)
        check_digest(name, digest, found.digest)
    return found


def check_digest(name: str, wanted: str, found: str) -> None:
    """Checks that data are those that a run was made with.

    Raises:
      ValueError: they are not.
    """
    if wanted and wanted != found:
        there = f'is {found}' if found else 'is that of no folder, file or arrays'
        raise ValueError(
            f'data_digest is {wanted}, and the content of dataset {name!r} {there}: give the data '
            "that the run was made with, or set data_digest to ''"
        )


@contextlib.contextmanager
def told(name: str) -> Iterator[None]:
    """Errors of a data set as RunError, in one line."""
    try:
        yield
    except (ValueError, OSError) as error:
        text = ' '.join(str(error).split())
        raise RunError(f'dataset {name}: {text}') from error
