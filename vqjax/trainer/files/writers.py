"""Where numbers of a run go besides its own files: TensorBoard events, wandb."""

import hashlib
import pathlib
import time
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from vqjax.trainer.config.fields import writer_names
from vqjax.trainer.errors import RunError

BARS = 256  # of a histogram: no viewer draws more, and there may be 64,000 codes


class Writer(Protocol):
    """One place that the numbers of one run go to."""

    def scalars(self, step: int, numbers: Mapping[str, float]) -> None:
        """Numbers of one step by name, such as 'validation/accuracy'."""

    def code_use(self, step: int, counts: np.ndarray) -> None:
        """Uses of every code, [stages, K]."""

    def flush(self) -> None:
        """Makes it visible to readers."""

    def close(self) -> None:
        """Ends it."""


def bars(row: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Uses [K] of the codes in at most BARS bars of neighbours: (uses, edges, one more)."""
    first = np.unique(np.linspace(0, row.size, BARS + 1)[:-1].astype(int))
    return np.add.reduceat(row, first), np.linspace(0, row.size, first.size + 1)


class TensorBoard:
    """TensorBoard events in a folder.

    Args:
      first_step: where this run starts; what a killed run left of later steps is not shown.

    Raises:
      OSError: here and when it writes, where the folder cannot be written.
    """

    def __init__(self, folder: pathlib.Path, first_step: int = 0):
        # tensorboardX takes a moment to import. Its SummaryWriter writes from a thread, which a
        # full disk ends without a word, and the next event then waits for it for ever.
        from tensorboardX import event_file_writer, proto, summary

        self._summary, self._proto = summary, proto.event_pb2
        folder.mkdir(parents=True, exist_ok=True)
        self._file = event_file_writer.EventsWriter(str(folder / 'events'))
        if first_step:
            start = self._proto.SessionLog(status=self._proto.SessionLog.START)
            self._write(first_step, session_log=start)

    def _write(self, step: int, **content: Any) -> None:
        self._file.write_event(self._proto.Event(step=step, wall_time=time.time(), **content))

    def scalars(self, step: int, numbers: Mapping[str, float]) -> None:
        """See `Writer`."""
        for name, value in numbers.items():
            self._write(step, summary=self._summary.scalar(name, value))

    def code_use(self, step: int, counts: np.ndarray) -> None:
        """See `Writer`: a histogram a stage."""
        for stage, row in enumerate(counts):
            uses, edges = bars(row)
            codes = np.arange(row.size, dtype=float)
            histogram = self._summary.histogram_raw(
                f'codes/stage_{stage}',
                min=0.0,
                max=float(row.size),
                num=float(row.sum()),
                sum=float(np.dot(row, codes)),
                sum_squares=float(np.dot(row, codes**2)),
                bucket_limits=edges[1:].tolist(),
                bucket_counts=uses.tolist(),
            )
            self._write(step, summary=histogram)

    def flush(self) -> None:
        """See `Writer`."""
        self._file.flush()

    def close(self) -> None:
        """See `Writer`."""
        self._file.close()


class Wandb:
    """A run of wandb, which goes on under the same identity when the run is resumed.

    Project `vqjax`, a group a workdir; the environment variables of wandb (WANDB_PROJECT,
    WANDB_MODE and so on) hold as everywhere.

    Raises:
      RunError: wandb is not installed, or does not start.
    """

    def __init__(self, workdir: pathlib.Path, method: str, seed: int, config: Mapping[str, Any]):
        try:
            import wandb
        except ImportError as error:
            raise RunError(
                "writers names wandb, which is not installed: pip install 'vqjax[wandb]'"
            ) from error
        self._wandb = wandb
        workdir = workdir.absolute()
        identity = f'{workdir}/{method}/{seed}'
        try:
            self._run = wandb.init(
                project='vqjax',
                group=workdir.name,
                name=f'{method} seed {seed}',
                id=hashlib.sha256(identity.encode()).hexdigest()[:16],
                resume='allow',
                dir=str(workdir),
                config=dict(config) | {'method': method, 'seed': seed},
                reinit='finish_previous',
            )
        except Exception as error:  # no login, no network: of types of its own
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise RunError(
                f'wandb does not start ({reason}): set WANDB_MODE=offline, or leave it out of '
                'writers'
            ) from error

    def scalars(self, step: int, numbers: Mapping[str, float]) -> None:
        """See `Writer`."""
        self._run.log(dict(numbers), step=step)

    def code_use(self, step: int, counts: np.ndarray) -> None:
        """See `Writer`: a histogram a stage."""
        self._run.log(
            {
                f'codes/stage_{stage}': self._wandb.Histogram(np_histogram=bars(row))
                for stage, row in enumerate(counts)
            },
            step=step,
        )

    def flush(self) -> None:
        """Does nothing: wandb sends from a process of its own."""

    def close(self) -> None:
        """See `Writer`."""
        self._run.finish()


def open_writers(
    names: str,
    workdir: pathlib.Path,
    method: str,
    seed: int,
    first_step: int,
    config: Mapping[str, Any],
) -> list[Writer]:
    """The writers that a comma-separated list names, for one run.

    Raises:
      RunError, OSError: one cannot be opened.
    """
    found: list[Writer] = []
    chosen = writer_names(names)
    if 'tensorboard' in chosen:
        folder = workdir / 'tensorboard' / method / f'seed_{seed}'
        found.append(TensorBoard(folder, first_step))
    if 'wandb' in chosen:
        found.append(Wandb(workdir, method=method, seed=seed, config=config))
    return found
