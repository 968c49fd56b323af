"""What an encoder that never moves makes of a data set: computed once, then read in its place."""

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from vqjax.runfiles import ENCODER
from vqjax.trainer.config.settings import Method
from vqjax.trainer.data import sets
from vqjax.trainer.data.recordings import RecordingSet
from vqjax.trainer.data.records import Dataset, InMemory, Split
from vqjax.trainer.step.task import Task, TrainState

_CHUNK = 512  # images encoded at a time


def may_stand_in(own: Method, dataset: Dataset) -> bool:
    """Whether runs with these settings read features in place of images.

    They do where the encoder is frozen for good and sees each image always alike: no augmentation,
    no decoder, which wants the images themselves, and no second grid that knows the codes of the
    first. The images, and their features, fit in memory.
    """
    size = sum(dataset.info.num_examples.values()) * own.features * 4
    if own.bottleneck == 'grid':
        # At most: encoders halve the sides twice or more.
        size *= -(-dataset.info.image_shape[0] // 4) * -(-dataset.info.image_shape[1] // 4)
    return (
        own.frozen_epochs < 0
        and not own.augment
        and not own.reconstruction_weight
        and own.bottleneck != 'two_level'
        and not isinstance(dataset, RecordingSet)
        and size <= sets.IN_MEMORY_BYTES  # those of more are computed anew in every step
        and all(isinstance(split.records, InMemory) for split in dataset.splits.values())
    )


def reading(task: Task, features: bool) -> Task:
    """The task for batches of features, or for those of images."""
    return dataclasses.replace(task, model=task.model.clone(encoded=features))


def encoder_of(task: Task, state: TrainState) -> Mapping[str, Any]:
    """Collections of the model of a run, as evaluation reads it."""
    return {'params': state.ema_params if task.ema_decay else state.params} | dict(state.stats)


def stand_in(dataset: Dataset, task: Task, variables: Mapping[str, Any]) -> Dataset:
    """The data set whose images [N, H, W, C] are replaced by features z float32 [N, h, w, D].

    Those of the two newest encoders (of a vector, of a grid) are kept for the runs to come.

    Args:
      dataset: for which `may_stand_in`.
      task: for images.
      variables: collections of the model; the encoder's are what is read.
    """
    variables = {
        name: {ENCODER: tree[ENCODER]} for name, tree in variables.items() if ENCODER in tree
    }
    key = hashlib.sha256(repr((task.model.bottleneck, id(dataset))).encode())
    for path, x in jax.tree_util.tree_leaves_with_path(variables):
        key.update(repr(path).encode() + np.ascontiguousarray(x).tobytes())
    return _encoded(
        _Keyed(
            key.hexdigest(),
            dataset=dataset,
            model=task.model.clone(axis_name=None),
            variables=variables,
        )
    )


@dataclasses.dataclass(frozen=True)
class _Keyed:
    """Arguments of `_encoded`, equal where the digest of their content is."""

    digest: str
    dataset: Dataset = dataclasses.field(compare=False)
    model: Any = dataclasses.field(compare=False)
    variables: Any = dataclasses.field(compare=False)


@functools.lru_cache(maxsize=2)
def _encoded(given: _Keyed) -> Dataset:
    dataset = given.dataset
    encode = jax.jit(functools.partial(given.model.apply, method='represent'))

    def features(split: Split) -> Split:
        number, found = len(split.indices), []
        for start in range(0, number, _CHUNK):
            # The last chunk is filled up, so that one program serves all.
            rows = np.minimum(np.arange(start, start + _CHUNK), number - 1)
            images, labels, _ = split.read(rows)
            z = encode(given.variables, dataset.batch(images, labels)['image'])
            found.append(np.asarray(z)[: number - start])
        labels = split.read(np.arange(number))[1].astype(np.int32)
        return Split(InMemory(np.concatenate(found), labels), np.arange(number), split.corrupt)

    image = jax.ShapeDtypeStruct((1, *dataset.info.image_shape), np.float32)
    shape = jax.eval_shape(encode, given.variables, image).shape[1:]
    info = dataclasses.replace(dataset.info, image_shape=shape)
    one = np.ones(shape[-1], np.float32)
    splits = {name: functools.partial(features, x) for name, x in dataset.splits.items()}
    return Dataset(info, _WhenAsked(splits), mean=0 * one, std=one)


class _WhenAsked(Mapping):
    """Splits, each made when it is first read: the test split not before it is opened."""

    def __init__(self, makers: Mapping[str, Callable[[], Split]]):
        self._makers = makers
        self._made = functools.cache(lambda name: makers[name]())

    def __getitem__(self, name: str) -> Split:
        if name not in self._makers:
            raise KeyError(name)
        return self._made(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._makers)

    def __len__(self) -> int:
        return len(self._makers)
