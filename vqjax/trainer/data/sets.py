"""Classification sets as batches, by Grain: digits (with scikit-learn), recordings, any TFDS set.

A set that fits in memory is decoded once; batches are gathered from it by index, which costs far
less than a training step. Everything random is a function of (seed, step), so the position of an
iterator is one number, and a resumed run, or one with more processes, sees the same batches.
"""

import functools
import logging
from collections.abc import Mapping

import numpy as np

from vqjax.trainer.data import recording_files, records
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

# A set up to this many bytes when decoded is kept in memory, a larger one decoded batch by batch.
IN_MEMORY_BYTES = 4 * 2**30


_log = logging.getLogger('vqjax')


def load(
    name: str,
    data_dir: str | None = None,
    image_size: int | None = None,
    cutting: Cutting = WHOLE,
) -> Dataset:
    """The classification set `name`; validation is carved from train where it has none.

    Args:
        name: 'digits', which needs no files; 'basic_motions' or 'japanese_vowels', recordings that
            the package aeon holds; 'recordings' of one's own; or a TFDS set, of images or of
            recordings, prepared in array_record format.
        data_dir: folder of the prepared TFDS sets, None is TFDS's own default; or of recordings,
            see `recording_files.read_folder`.
        image_size: side in pixels to crop and resize TFDS images to; None keeps their size.
        cutting: how recordings are cut into windows; and with `folds` which part of recordings, or
            of images without a test split of their own, is the test split.

    Raises:
        ValueError: folds of a set of images with a test split, or too large for memory; unknown
            set, or not prepared (with the command that prepares it), or neither images of one size
            nor recordings of one number of sensors with one label each; and what
            `recordings.from_recordings` refuses.
    """
    if name == 'digits':
        return _digits(cutting)
    if name in recording_files.NAMES:
        return from_recordings(name, recording_files.read(name, data_dir), cutting)
    from vqjax.trainer.data import tfds  # which takes a second to import

    recordings = tfds.open_recordings(name, data_dir)
    if recordings is not None:
        return from_recordings(name, recordings, cutting)
    if cutting.folds:
        num_classes, _, found = _read_once(name, data_dir, image_size)
        _check_folds(name, found)
        return one_fold_of(name, num_classes, found['train'], cutting, held_out=10)
    num_classes, shape, found = _read(name, data_dir, image_size)
    # Sets such as ImageNet publish no labelled test split: their validation split is the test.
    if 'test' not in found and 'validation' in found:
        found['test'] = found.pop('validation')
    for split in ('test', 'validation'):
        if split not in found:
            found['train'], found[split] = carve(found['train'])
    return assemble(name, num_classes, shape, found)


def _read(
    name: str, data_dir: str | None, image_size: int | None
) -> tuple[int, tuple[int, int, int], dict[str, Split]]:
    """Number of classes, shape of the images and splits of a TFDS set."""
    from vqjax.trainer.data import tfds

    num_classes, files = tfds.open_splits(name, data_dir, image_size)
    shape = files['train'].image_shape
    size = sum(len(f) for f in files.values()) * int(np.prod(shape))
    found = {split: whole(f, in_memory=size <= IN_MEMORY_BYTES) for split, f in files.items()}
    for split, examples in found.items():
        if examples.corrupt:
            total = len(examples.indices) + len(examples.corrupt)
            _log.warning(
                "%s: %d of %d images of split %s cannot be decoded and are left out",
                name, len(examples.corrupt), total, split,
            )  # fmt: skip
        if not len(examples.indices):
            raise ValueError(f'dataset={name!r}: no image of split {split!r} can be decoded')
    return num_classes, shape, found


_read_once = functools.lru_cache(maxsize=1)(_read)  # for all folds of a set


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
        check_arrays(split, images, labels, num_classes)
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
    return assemble(name, num_classes, (shape[0], shape[1], shape[2]), found)


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
        return one_fold_of('digits', 10, whole(records, in_memory=False), cutting, held_out=4)
    cut = functools.partial(train_test_split, random_state=SPLIT_SEED)
    train, held_out = cut(np.arange(len(images)), test_size=720, stratify=digits.target)
    validation, test = cut(held_out, test_size=360, stratify=digits.target[held_out])
    parts = {'train': train, 'validation': validation, 'test': test}
    return from_arrays(
        'digits', 10, {split: (images[i], digits.target[i]) for split, i in parts.items()}
    )


def load_dataset(name: str, data_dir: str, cutting: Cutting = WHOLE) -> records.Dataset:
    """`data.load` for a run: data_dir '' is TFDS's own default.

    Raises:
      RunError: where the set is unknown, not prepared or unreadable, in one line.
    """
    try:
        return load(name, data_dir or None, cutting=cutting)
    except (ValueError, OSError) as error:
        raise RunError(f'dataset {name}: {" ".join(str(error).split())}') from error
