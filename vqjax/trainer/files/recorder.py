"""What a run tells while it works, in files: metrics.jsonl, records and other writers."""

import contextlib
import json
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from vqjax.atomic import replace_file
from vqjax.runfiles import steps_file
from vqjax.trainer.errors import RunError
from vqjax.trainer.files.writers import Writer


class Recorder:
    """metrics.jsonl (one for all runs, append-only), the records of steps, and `writers`.

    Fields:
      labels: method and seed, beside every line of metrics.jsonl.
      metrics, steps: files open for appending; steps is None where they are not recorded.
      writers: what else is told, see `writers`.
    """

    def __init__(self, labels: dict[str, Any], metrics: Any, steps: Any, writers: Sequence[Writer]):
        self._labels, self._metrics, self._steps, self._writers = labels, metrics, steps, writers

    @classmethod
    def open(
        cls,
        workdir: pathlib.Path,
        method: str,
        seed: int,
        first_step: int,
        every_step: bool = False,
        writers: Sequence[Writer] = (),
    ) -> 'Recorder':
        """Opens the files of a run, and drops what a killed one left of steps from first_step on.

        Args:
          workdir: of the experiment.
          first_step: where this run starts.
          every_step: whether records/METHOD/seed_N.jsonl is written, a line a step.

        Raises:
          RunError: records of before are damaged.
          OSError: a file cannot be written.
        """
        steps = None
        if every_step:
            path = steps_file(workdir, method, seed)
            path.parent.mkdir(parents=True, exist_ok=True)
            kept = [r for r in read_lines(path) if r['step'] <= first_step]
            replace_file(path, ''.join(json.dumps(r) + '\n' for r in kept))
            steps = path.open('a')
        labels = {'method': method, 'seed': seed}
        recorder = cls(labels, open_lines(workdir / 'metrics.jsonl'), steps, writers)
        if first_step:
            recorder.line({'event': 'resume', 'step': first_step})
        return recorder

    def step(self, step: int, record: dict[str, float]) -> None:
        """All that one step told, where steps are recorded."""
        if self._steps is not None:
            self._steps.write(json.dumps({'step': step} | record) + '\n')

    def line(self, record: dict[str, Any]) -> None:
        """Appends one object to metrics.jsonl."""
        self._metrics.write(json.dumps(self._labels | record) + '\n')

    def scalars(self, split: str, step: int, record: dict[str, Any]) -> None:
        """Numbers of one step or one evaluation; writers leave what is no number aside."""
        self.line({'split': split, 'step': step} | record)
        numbers = {f'{split}/{k}': float(v) for k, v in record.items() if np.ndim(v) == 0}
        for writer in self._writers:
            writer.scalars(step, numbers)

    def code_use(self, step: int, counts: np.ndarray) -> None:
        """Counts [..., K] of an evaluation."""
        for writer in self._writers:
            writer.code_use(step, counts.reshape(-1, counts.shape[-1]))

    def flush(self) -> None:
        """Makes what was recorded visible to readers."""
        for part in (self._metrics, self._steps, *self._writers):
            if part is not None:
                part.flush()

    def close(self) -> None:
        """Ends all of it, also where one part cannot be: the first error is raised."""
        with contextlib.ExitStack() as stack:
            for part in (*self._writers, self._steps, self._metrics):
                if part is not None:
                    stack.callback(part.close)


class NoRecorder:
    """Stands in for Recorder on processes that write nothing."""

    def step(self, step: int, record: dict[str, float]) -> None:
        """Writes nothing."""

    def line(self, record: dict[str, Any]) -> None:
        """Writes nothing."""

    def scalars(self, split: str, step: int, record: dict[str, float]) -> None:
        """Writes nothing."""

    def code_use(self, step: int, counts: np.ndarray) -> None:
        """Writes nothing."""

    def flush(self) -> None:
        """Does nothing."""

    def close(self) -> None:
        """Does nothing."""


def read_lines(path: pathlib.Path) -> list[dict[str, Any]]:
    """The records of a file of lines; none where there is no file. A line cut short is left out.

    Raises:
      RunError: the file or a line cannot be read.
    """
    if not path.exists():
        return []
    records: list[dict[str, Any]] = []
    try:
        for line in path.read_text().split('\n')[:-1]:
            record = json.loads(line)
            record['step'] + 0  # what all are sorted by
            records.append(record)
        return records
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise RunError(
            f'{path} is damaged in line {len(records) + 1} ({type(error).__name__}: {error}): '
            'remove that line, or the run it is of'
        ) from error


def open_lines(path: pathlib.Path) -> Any:
    """Opens a file of lines for appending; a last line cut short by a kill is removed first."""
    if path.exists():
        with path.open('rb+') as file:
            data = file.read()
            file.truncate(data.rfind(b'\n') + 1)
    return path.open('a')
