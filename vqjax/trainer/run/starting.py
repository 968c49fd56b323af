"""How a run begins: fresh, from another run's encoder, or where its newest checkpoint left it."""

from typing import Any, NamedTuple

import jax
import numpy as np

from vqjax import quantizers
from vqjax.trainer.config.settings import Method
from vqjax.trainer.data import batches, records
from vqjax.trainer.errors import RunError
from vqjax.trainer.files.checkpoints import Checkpoints
from vqjax.trainer.run import encoded, pretrained
from vqjax.trainer.run.context import Context
from vqjax.trainer.run.processes import agree, agree_arrays, on_first_process
from vqjax.trainer.run.progress import Progress
from vqjax.trainer.step import starts, task
from vqjax.trainer.step.task import Task, TrainState


class Start(NamedTuple):
    """Where a run begins.

    state: placed on the devices
    dataset: what the run reads: images, or what the encoder makes of them
    batches: its iterator, at the first batch that is to come
    progress: of the steps behind it
    checkpoints: open; None on processes that write nothing
    """

    state: task.TrainState
    dataset: records.Dataset
    batches: Any
    progress: Progress
    checkpoints: Checkpoints | None


def start(context: Context, method: str, seed: int, task: Task) -> Start:
    """The start of one method with one seed.

    Args:
      task: of the last stage; its quantizer, where it has one, is part of the state.

    Raises:
      RunError: data, model, checkpoint or the run to start from do not fit together.
      CheckpointError: the newest readable checkpoint is of another run.
    """
    own, progress = context.settings.methods[method], Progress()
    checkpoints, taken = None, False
    dataset, task = context.dataset, encoded.reading(task, False)
    try:
        batches = _batches(dataset, own, seed)
        like = starts.state_shapes(task, context.dataset.info.image_shape, own.init_batch_size)
        if context.workdir is not None:
            checkpoints = Checkpoints(
                context.workdir.checkpoints_of(method, seed),
                context.settings.config,
                own.keep_checkpoints,
            )
        state = _restore(
            context, checkpoints=checkpoints, like=like, batches=batches, progress=progress
        )
        loaded = _load(own, seed, dataset, task, like) if own.init_from and state is None else None
        if encoded.may_stand_in(own, dataset):
            encoder = loaded
            if encoder is None:
                if state is None:
                    state = starts.init_state(task, seed, start_images(dataset, own, seed))
                encoder = encoded.encoder_of(task, state)
            dataset = encoded.stand_in(dataset, task, encoder)
            task = encoded.reading(task, True)
            position = batches.get_state()
            batches = _batches(dataset, own, seed)
            batches.set_state(position)
        if state is None:
            state = starts.init_state(task, seed, start_images(dataset, own, seed), loaded)
        placed = context.form.place(state, task)
        taken = True
        return Start(placed, dataset, batches, progress, checkpoints)
    except ValueError as error:  # what data and quantizers say of values that do not fit
        raise RunError(f'{method} seed {seed}: {error}') from error
    finally:
        if checkpoints is not None and not taken:
            checkpoints.close()


def _batches(dataset: records.Dataset, own: Method, seed: int) -> Any:
    return batches.train_batches(
        dataset, own.batch_size, seed, jax.process_index(), jax.process_count(), own.augment
    )


def start_images(dataset: records.Dataset, own: Method, seed: int) -> Any:
    """The images that codebooks of a run start from."""
    return batches.init_batch(dataset, own.init_batch_size, seed)['image']


def _load(own: Method, seed: int, dataset: records.Dataset, task: Task, like: TrainState) -> Any:
    """Parts of another run's model, from process 0."""
    path = own.init_from
    found = on_first_process(lambda: pretrained.load(path, seed, like))
    names = agree(found and {collection: list(tree) for collection, tree in found.items()})
    if found is None:
        here = {'params': like.params} | like.stats
        taken = {c: {name: here[c][name] for name in parts} for c, parts in names.items()}
        found = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), taken)
    found = agree_arrays(found)
    there = agree(on_first_process(lambda: pretrained.bottleneck_of(path, seed)))
    if there == own.bottleneck:
        return found
    # The same images whatever the seed, so that all seeds see the same features.
    return starts.restandardize(task, found, start_images(dataset, own, 0))


def _restore(
    context: Context,
    checkpoints: Checkpoints | None,
    like: task.TrainState,
    batches: Any,
    progress: Progress,
) -> task.TrainState | None:
    """The newest state, on every process; puts batches and progress where it was."""
    found = None
    if checkpoints is not None:
        found = checkpoints.restore(like, context.display.say)
    extra = agree(None if found is None else found[1])
    if extra is None:
        return None
    zeros = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), like)
    state = agree_arrays(zeros if found is None else found[0])
    progress.restore(extra, int(state.step), int(quantizers.count_refits(state.stats)))
    batches.set_state(extra['data'])
    context.display.skip(progress.step)
    return state
