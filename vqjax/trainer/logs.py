"""What a run tells while it works: the terminal, metrics.jsonl and TensorBoard events."""

import json
import pathlib
import time
from typing import Any

import numpy as np
import rich.console
import rich.progress
import tensorboardX

LINE_EVERY_S = 30.0


class Display:
    """Progress of all runs together: method, seed, step, accuracy, perplexity, time left.

    A bar that redraws itself on a terminal; elsewhere a line a finished run and, in long runs, a
    line every half minute. A quiet display (every process but the first) shows nothing.

    Args:
      total_steps: of all runs that are still to be trained.
    """

    def __init__(self, total_steps: int, quiet: bool = False):
        self.console = rich.console.Console(stderr=True, quiet=quiet, highlight=False)
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
    """metrics.jsonl (one for all runs, append-only) and TensorBoard events (one folder a run).

    Args:
      workdir: of the experiment.
      first_step: where this run starts; what a killed run left of later steps is dropped.
      every_step: whether records/METHOD/seed_N.jsonl is written, a line a step.
    """

    def __init__(
        self,
        workdir: pathlib.Path,
        method: str,
        seed: int,
        first_step: int,
        every_step: bool = False,
    ):
        self._labels = {'method': method, 'seed': seed}
        self._file = open_lines(workdir / 'metrics.jsonl')
        self._events = tensorboardX.SummaryWriter(
            str(workdir / 'tensorboard' / method / f'seed_{seed}'),
            purge_step=first_step or None,
            write_to_disk=True,
        )
        if first_step:
            self.line({'event': 'resume', 'step': first_step})

        self._steps = None
        if every_step:
            path = records_file(workdir, method, seed)
            path.parent.mkdir(parents=True, exist_ok=True)
            kept = [r for r in read_lines(path) if r['step'] <= first_step]
            beside = path.with_suffix('.tmp')  # a kill while writing loses nothing
            beside.write_text(''.join(json.dumps(r) + '\n' for r in kept))
            beside.replace(path)
            self._steps = path.open('a')

    def step(self, step: int, record: dict[str, float]) -> None:
        """All that one step told, where steps are recorded."""
        if self._steps is not None:
            self._steps.write(json.dumps({'step': step} | record) + '\n')

    def line(self, record: dict[str, Any]) -> None:
        """Appends one object to metrics.jsonl."""
        self._file.write(json.dumps(self._labels | record) + '\n')

    def scalars(self, split: str, step: int, record: dict[str, float]) -> None:
        """Numbers of one step or one evaluation."""
        self.line({'split': split, 'step': step} | record)
        for name, value in record.items():
            if np.ndim(value) == 0:
                self._events.add_scalar(f'{split}/{name}', value, step)

    def code_use(self, step: int, counts: np.ndarray) -> None:
        """A histogram over the codes (of each stage) of counts [..., K]."""
        for stage, row in enumerate(counts.reshape(-1, counts.shape[-1])):
            # At most 256 bars: TensorBoard draws no more, and K may be 64,000.
            bars = np.add.reduceat(row, np.unique(np.linspace(0, row.size, 257)[:-1].astype(int)))
            codes = np.linspace(0, row.size, bars.size + 1)
            self._events.add_histogram_raw(
                f'codes/stage_{stage}',
                min=0.0,
                max=float(row.size),
                num=float(row.sum()),
                sum=float(np.dot(row, np.arange(row.size))),
                sum_squares=float(np.dot(row, np.arange(row.size, dtype=float) ** 2)),
                bucket_limits=codes[1:].tolist(),
                bucket_counts=bars.tolist(),
                global_step=step,
            )

    def flush(self) -> None:
        """Makes what was recorded visible to readers."""
        self._file.flush()
        self._events.flush()
        if self._steps is not None:
            self._steps.flush()

    def close(self) -> None:
        """Ends both files."""
        self._file.close()
        self._events.close()
        if self._steps is not None:
            self._steps.close()


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
    """The objects of a file of lines; none where there is no file. A line cut short is left out."""
    if not path.exists():
        return []
    lines = path.read_text().split('\n')
    return [json.loads(line) for line in lines[:-1]]


def open_lines(path: pathlib.Path) -> Any:
    """Opens a file of lines for appending; a last line cut short by a kill is removed first."""
    if path.exists():
        with path.open('rb+') as file:
            data = file.read()
            file.truncate(data.rfind(b'\n') + 1)
    return path.open('a')
