"""Classification sets as batches, by Grain: digits (with scikit-learn), recordings, any TFDS set.

A set that fits in memory is decoded once; batches are gathered from it by index, which costs far
less than a training step. Everything random is a function of (seed, step), so the position of an
iterator is one number, and a resumed run, or one with more processes, sees the same batches.
"""

import functools
import logging
import sys
from collections.abc import Iterable, Mapping

import grain
import numpy as np

from vqjax.trainer import recording_files
from vqjax.trainer.folds import one_fold_of
from vqjax.trainer.recordings import WHOLE, Cutting, from_recordings
from vqjax.trainer.records import (
    SPLIT_SEED,
    Batch,
    DataInfo,  # noqa: F401, its callers name it here
    Dataset,
    InMemory,
    Split,
    assemble,
    carve,
    check_arrays,
    whole,
)

# A set up to this many bytes when decoded is kept in memory, a larger one decoded batch by batch.
IN_MEMORY_BYTES = 4 * 2**30
_PAD = 1 / 8  # random crops shift by up to this share of the image's side

# Threads in this process and no worker processes: an error in one is raised by `next`, and there
# is no worker that could die without a word.
_PREFETCH = grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)

_log = logging.getLogger('vqjax')


class Unreadable(ValueError):
    """Data that were readable when the run began are no longer."""


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
    from vqjax.trainer import (
        tfds_records,  # TFDS takes a second to import: only for those who use it
    )

    found = tfds_records.open_recordings(name, data_dir)
    if found is not None:
        return from_recordings(name, found, cutting)
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
    from vqjax.trainer import tfds_records

    num_classes, files = tfds_records.open_splits(name, data_dir, image_size)
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
    found, shape = {}, ()
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
    return assemble(name, num_classes, shape, found)


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


def steps_per_epoch(dataset: Dataset, batch_size: int) -> int:
    """Full training batches in one pass over the training split.

    Raises:
        ValueError: batch_size below 1, or above the number of training images.
    """
    num_examples = dataset.info.num_examples['train']
    if not 1 <= batch_size <= num_examples:
        raise ValueError(
            f'batch_size={batch_size}: need 1 to {num_examples}, '
            f'the training images of {dataset.info.name!r}'
        )
    return num_examples // batch_size


def _own_rows(batch_size: int, process_index: int, process_count: int) -> slice:
    if not 0 <= process_index < process_count or batch_size % process_count:
        raise ValueError(
            f'batch_size={batch_size}, process_index={process_index}, '
            f'process_count={process_count}: need a batch size divisible by the process count, '
            'and an index below the count'
        )
    rows = batch_size // process_count
    return slice(process_index * rows, (process_index + 1) * rows)


def train_batches(
    dataset: Dataset,
    batch_size: int,
    seed: int,
    process_index: int = 0,
    process_count: int = 1,
    augment: bool = False,
) -> grain.DatasetIterator[Batch]:
    """Endless training batches, every epoch in a new order, its last short batch dropped.

    Args:
        dataset: from `load` or `from_arrays`.
        batch_size: examples of all processes together.
        seed: of the order and of the augmentation.
        process_index: each process reads its own rows of the same global batch.
        process_count: number of processes.
        augment: flip and crop colour images at random.

    Returns:
        Iterator of {'image': float32 [b, H, W, C], 'label': int32 [b]}, b = batch_size /
        process_count. `get_state()` is plain data, and `set_state` goes on to the bit.

    Raises:
        ValueError: batch_size too large or not divisible; augment for images not in colour.
    """
    steps = steps_per_epoch(dataset, batch_size)
    own = _own_rows(batch_size, process_index, process_count)
    split, name = dataset.splits['train'], dataset.info.name
    if augment and dataset.info.image_shape[-1] != 3:
        raise ValueError(
            f'augment=True is for colour images: {name!r} has shape {dataset.info.image_shape}'
        )
    order = functools.lru_cache(maxsize=2)(functools.partial(_order, len(split.indices), seed))

    def batch_at(step: int) -> Batch:
        epoch, position = divmod(step, steps)
        rows = order(epoch)[position * batch_size : (position + 1) * batch_size]
        images, labels, good = split.read(rows[own])
        if not good.all():
            # Only sets too large to decode beforehand: a good neighbour stands in, for the shape.
            if not good.any():
                raise Unreadable(f'dataset={name!r}: no image of training batch {step} is readable')
            stand_in = np.where(good, np.arange(len(good)), np.flatnonzero(good)[0])
            images, labels = images[stand_in], labels[stand_in]
        if augment:
            images = _flip_and_crop(images, np.random.default_rng((seed, step, 1)), batch_size, own)
        return dataset.batch(images, labels)

    # One element is one whole batch: Grain's own shuffle and batch take 20 us an example, 2.5 ms
    # for 128 digits, as long as their training step.
    return iter(grain.MapDataset.range(sys.maxsize).map(batch_at).to_iter_dataset(_PREFETCH))


def _order(num_examples: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch)).permutation(num_examples)


def _flip_and_crop(
    images: np.ndarray, rng: np.random.Generator, batch_size: int, own: slice
) -> np.ndarray:
    """Mirror half of the images [b, H, W, C] and shift all, the border filled by reflection."""
    height, width = images.shape[1:3]
    dy, dx = int(height * _PAD), int(width * _PAD)
    # Drawn for the global batch, so that the rows of a process do not depend on their number.
    top, left = (rng.integers(0, 2 * d + 1, batch_size)[own] for d in (dy, dx))
    flip = rng.random(batch_size)[own] < 0.5
    padded = np.pad(images, ((0, 0), (dy, dy), (dx, dx), (0, 0)), mode='reflect')
    out = np.empty_like(images)
    for row, (t, s, mirrored) in enumerate(zip(top, left, flip, strict=True)):
        crop = padded[row, t : t + height, s : s + width]
        out[row] = crop[:, ::-1] if mirrored else crop
    return out


def eval_batches(
    dataset: Dataset, split: str, batch_size: int, process_index: int = 0, process_count: int = 1
) -> Iterable[Batch]:
    """Every example of `split` once, in order; the last batch padded, the same number everywhere.

    Args:
        dataset: from `load` or `from_arrays`.
        split: 'train', 'validation' or 'test'.
        batch_size: examples of all processes together.
        process_index: each process reads its own rows of the same global batch.
        process_count: number of processes.

    Returns:
        Iterable, any number of times, of {'image': float32 [b, H, W, C], 'label': int32 [b],
        'mask': bool [b]}; mask is False for padding and for images that cannot be decoded.

    Raises:
        ValueError: unknown split, or batch_size not divisible.
    """
    if split not in dataset.splits:
        raise ValueError(f'split={split!r}: need one of {list(dataset.splits)}')
    own = _own_rows(batch_size, process_index, process_count)
    examples = dataset.splits[split]
    num_examples = len(examples.indices)

    def batch_at(step: int) -> Batch:
        rows = np.arange(step * batch_size, (step + 1) * batch_size)[own]
        real = rows < num_examples
        images, labels, good = examples.read(np.where(real, rows, 0))
        mask = real & good
        batch = dataset.batch(images, np.where(mask, labels, 0))
        batch['image'][~mask] = 0.0
        return batch | {'mask': mask}

    num_batches = -(-num_examples // batch_size)
    return grain.MapDataset.range(num_batches).map(batch_at).to_iter_dataset(_PREFETCH)


def init_batch(dataset: Dataset, size: int, seed: int) -> Batch:
    """The first `size` examples that `train_batches` with this seed yields, unaugmented.

    The same on every process; fewer where the training split is smaller. For `model.init`, where
    k-means needs at least as many vectors as codes.
    """
    split = dataset.splits['train']
    images, labels, good = split.read(_order(len(split.indices), seed, epoch=0)[:size])
    return dataset.batch(images[good], labels[good])
