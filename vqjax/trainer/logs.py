"""What a run tells while it works: the terminal, metrics.jsonl and other writers."""

import contextlib
import json
import os
import pathlib
import sys
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import rich.console
import rich.progress

from vqjax.trainer.fields import RunError
from vqjax.trainer.writers import Writer

LINE_EVERY_S = 30.0


class Terminal(rich.console.Console):
    """A console that falls silent where its reader has gone (`| head -1`): the run goes on."""

    def on_broken_pipe(self) -> None:
        """Says no more; without this the interpreter would complain of the pipe at its end."""
        self.quiet = True
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.file.fileno())
        os.close(nowhere)


def show(report: Any) -> None:
    """Prints a report to stdout, in colour only on a terminal and where NO_COLOR is not set."""
    # Without a terminal rich assumes 80 columns and would break the rows of a log.
    Terminal(width=None if sys.stdout.isatty() else 120).print(report)


class Display:
    """Progress of all runs together: method, seed, step, accuracy, perplexity, time left.

    A bar that redraws itself on a terminal; elsewhere a line a finished run and, in long runs, a
    line every half minute. A quiet display (every process but the first) shows nothing.

    Args:
      total_steps: of all runs that are still to be trained.
    """

    def __init__(self, total_steps: int, quiet: bool = False):
        self.console = Terminal(stderr=True, quiet=quiet, highlight=False)
        # Lines of a log file are not to be folded at a width nobody has.
        self.lines = not self.console.is_terminal
        self._left = total_steps
        self._spoken = time.monotonic()
        self._first = 0.0  # when the first step was over: before it came compilation
        self._taken = 0
        self._now = ''
        self._quality = ''
        self._bar = rich.progress.Progress(
            rich.progress.TextColumn('{task.description}'),
            rich.progress.BarColumn(bar_width=20),
            rich.progress.TaskProgressColumn(),
            rich.progress.TextColumn('{task.fields[quality]}'),
            rich.progress.TimeRemainingColumn(),
            rich.progress.TextColumn('left'),
            console=self.console,
            refresh_per_second=4,
            transient=True,
            disable=self.lines or quiet,
        )
        self._task = self._bar.add_task('', total=max(total_steps, 1), quality='')

    def __enter__(self) -> 'Display':
        self._bar.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._bar.stop()

    def start(self, method: str, seed: int) -> None:
        """A run begins or goes on."""
        self._now, self._quality = f'{method} seed {seed}', ''

    def skip(self, steps: int) -> None:
        """The current run goes on after this many steps of an earlier session."""
        self._left -= steps
        self._bar.update(self._task, advance=steps)

    def step(self, step: int, num_steps: int) -> None:
        """One more step was taken, the step-th of this run."""
        self._taken += 1
        self._left -= 1
        text = f'{self._now} step {step}/{num_steps}'
        self._bar.update(self._task, advance=1, description=text, quality=self._quality)
        now = time.monotonic()
        self._first = self._first or now
        if self.lines and now - self._spoken > LINE_EVERY_S:
            left = (now - self._first) / max(self._taken - 1, 1) * self._left
            self.say(f'{text} {self._quality}, about {left:.0f} s left for all')

    def evaluated(self, record: dict[str, float]) -> None:
        """Validation numbers of the current run."""
        self._quality = quality(record)

    def finished(self, method: str, seed: int, record: dict[str, float], seconds: float) -> None:
        """A run ended with these numbers on the test split."""
        self.say(f'{method} seed {seed}: {quality(record)}, {seconds:.1f} s')

    def say(self, text: str) -> None:
        """One line that stays."""
        self._spoken = time.monotonic()
        self.console.print(text, soft_wrap=True, markup=False)


def quality(record: dict[str, float]) -> str:
    """'accuracy 0.978, perplexity 112' of a record; without the latter if it has none."""
    text = f'accuracy {record["accuracy"]:.3f}'
    return text + (f', perplexity {record["perplexity"]:.0f}' if 'perplexity' in record else '')


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
            path = records_file(workdir, method, seed)
            path.parent.mkdir(parents=True, exist_ok=True)
            kept = [r for r in read_lines(path) if r['step'] <= first_step]
            beside = path.with_suffix('.tmp')  # a kill while writing loses nothing
            beside.write_text(''.join(json.dumps(r) + '\n' for r in kept))
            beside.replace(path)
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


def records_file(workdir: pathlib.Path, method: str, seed: int) -> pathlib.Path:
    """Where the steps of a run are recorded."""
    return workdir / 'records' / method / f'seed_{seed}.jsonl'


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
