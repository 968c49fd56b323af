"""Batches of a data set as functions of (seed, step): to train, to evaluate, to start from."""

import functools
import sys
from collections.abc import Iterable

import grain
import numpy as np

from vqjax.trainer.data.records import Batch, Dataset
from vqjax.trainer.errors import Unreadable

_PAD = 1 / 8  # random crops shift by up to this share of the image's side

# Threads in this process and no worker processes: an error in one is raised by `next`, and there
# is no worker that could die without a word.
_PREFETCH = grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)


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
            images = _flip_and_crop(
                images, rng=np.random.default_rng((seed, step, 1)), batch_size=batch_size, own=own
            )
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
