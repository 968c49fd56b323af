"""The model of a finished run, for those who read more of it than its figures."""

import contextlib
import dataclasses
import functools
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from vqjax import runfiles
from vqjax.codec import Codec
from vqjax.codec.runs import encoder_of
from vqjax.codec.streams import SensorEncoder
from vqjax.trainer.config import settings
from vqjax.trainer.config.fields import complete
from vqjax.trainer.config.settings import Parts, Settings
from vqjax.trainer.data import records, sets
from vqjax.trainer.data.recordings import RecordingSet, real_steps, starts_of
from vqjax.trainer.errors import RunError
from vqjax.trainer.run import tasks
from vqjax.trainer.step import starts
from vqjax.trainer.step.task import Task

_BATCH = 256  # windows that go to the device at once


@dataclasses.dataclass(frozen=True, eq=False)
class Finished:
    """A trained classifier of windows.

    Fields:
      model: without replicas.
      variables: of the model, as evaluation reads them.
      dataset: that it was trained on; `dataset.recordings['test']` were held out.
      encoder: recordings -> vectors.
      codec: recordings -> codes, or None where nothing is quantized.
    """

    model: Any
    variables: Any
    dataset: RecordingSet
    encoder: SensorEncoder
    codec: Codec | None

    def logits(
        self, signals: np.ndarray, hop: int | None = None, pad: bool | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Logits along a recording [T, C] of any length, raw as the sensors give it.

        Args:
          hop: steps from one window to the next; by default that of the run.
          pad: whether the last window may reach beyond the end; by default as in the run.

        Returns:
          First step of every window, int64 [n], and its logits, float32 [n, classes], NaN for a
          window that is missing altogether.

        Raises:
          ValueError: signals of another shape, or fewer steps than a window without padding.
        """
        own, signals = self.dataset.cutting, np.asarray(signals, np.float32)
        window, sensors = self.dataset.info.image_shape[1:]
        pad = own.pad if pad is None else pad
        if signals.ndim != 2 or signals.shape[1] != sensors:
            raise ValueError(
                f'signals must be [T, {sensors}], steps x sensors, got shape {signals.shape}'
            )
        if hop is not None and hop < 1:
            raise ValueError(f'hop={hop}: give at least 1 step')
        if len(signals) < window and not pad:
            raise ValueError(f'signals have {len(signals)} steps, fewer than the window, {window}')
        starts = starts_of(len(signals), own._replace(hop=hop or own.hop, pad=pad))
        beyond = max(int(starts[-1]) + window - len(signals), 0)
        whole = np.pad(signals, ((0, beyond), (0, 0)), constant_values=np.nan)
        found = []
        for first in range(0, len(starts), _BATCH):
            rows = starts[first : first + _BATCH, None] + np.arange(window)
            images = np.zeros((_BATCH, 1, window, sensors), np.float32)
            images[: len(rows), 0] = (whole[rows] - self.dataset.mean) / self.dataset.std
            logits = np.array(_logits(self.model, self.variables, images))[: len(rows)]
            logits[~real_steps(whole[rows]).any(-1)] = np.nan
            found.append(logits)
        return starts, np.concatenate(found)


@functools.partial(jax.jit, static_argnums=0)
def _logits(model, variables, images):
    return model.apply(variables, images, train=False).logits


def read(
    workdir: str | os.PathLike[str],
    method: str,
    seed: int = 0,
    parts: Parts = Parts(),  # noqa: B008
) -> Finished:
    """The model of one run of a folder that `experiment.run` wrote.

    Args:
      method: with a quantizer or without.
      parts: what made the quantizers of the run.

    Raises:
      RunError: it is not finished there, or is none of recordings, its data are gone, or one of
        its files cannot be read.
    """
    folder = pathlib.Path(workdir)
    with as_run_error():
        record = runfiles.read_record(folder, method, seed)
        given = settings.check(runfiles.read_config(folder), parts)
    if method not in given.methods:
        raise RunError(f'config.json in {folder} has no method {method}: restore it from a copy')
    dataset = sets.load_dataset(given.dataset, given.data_dir, settings.cutting(given.config, seed))
    if not isinstance(dataset, RecordingSet):
        raise RunError(f'{folder} is a run on {given.dataset}, which holds no recordings')
    given = tasks.fit_quantizers(given, dataset)
    own = given.methods[method]
    task, variables = trained(given, method=method, seed=seed, workdir=folder, dataset=dataset)
    with as_run_error():
        encoder = encoder_of(vars(own), record, variables)
    if not isinstance(encoder, SensorEncoder):
        raise RunError(
            f'{folder} is a run on recordings, and its config.json says encoder {own.encoder}: '
            'restore it from a copy'
        )
    codec = None
    if own.quantizer is not None:
        quantized = runfiles.quantizer_variables(variables)
        codec = Codec(own.quantizer, *quantized, own.features, {}, encoder)
    return Finished(
        task.model.clone(axis_name=None),
        variables=variables,
        dataset=dataset,
        encoder=encoder,
        codec=codec,
    )


def trained(
    given: Settings,
    method: str,
    seed: int,
    workdir: pathlib.Path,
    dataset: records.Dataset,
) -> tuple[Task, dict[str, Any]]:
    """What a run trained, and the variables that it ended with, as evaluation reads them.

    Args:
      given: of the workdir, with the quantizers that fit the data set.

    Raises:
      RunError: its checkpoint cannot be read, is not the last one or is of another model.
    """
    task, size = tasks.make_task(given, method, dataset), given.methods[method].init_batch_size
    like = starts.state_shapes(task, tuple(dataset.info.image_shape), size)
    folder = runfiles.checkpoints_folder(workdir, method, seed)
    with as_run_error():
        found = runfiles.read_variables(folder)
        return task, runfiles.filled({'params': like.params, **like.stats}, found, folder)


def check_kept(config: Mapping[str, Any]) -> None:
    """Checks, before anything is trained, that a study can read the models that runs end with.

    Raises:
      RunError: a run keeps no checkpoint.
    """
    config = complete(config)
    overrides = {f'overrides.{method}.': own for method, own in config['overrides'].items()}
    for where, fields in {'': config, **overrides}.items():
        if fields.get('checkpoint_every') == 0:
            raise RunError(
                f'{where}checkpoint_every is 0, and study {config["study"]} reads the models that '
                'runs end with: set it to at least 1'
            )


@contextlib.contextmanager
def as_run_error() -> Iterator[None]:
    """What the library refuses is something for the user to put right."""
    try:
        yield
    except ValueError as error:
        raise RunError(str(error)) from error
