"""What a run tells on the terminal."""

import contextlib
import os
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any

import rich.console
import rich.progress

LINE_EVERY_S = 30.0
_SILENT_S = 3.0  # so long a log hears nothing of what is under way, such as the loading of data


class Terminal(rich.console.Console):
    """A console that falls silent where its reader has gone (`| head -1`): the run goes on."""

    def on_broken_pipe(self) -> None:
        """Says no more; without this the interpreter would complain of the pipe at its end."""
        self.quiet = True
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.file.fileno())
        os.close(nowhere)


def show(report: Any, width: int = 120) -> None:
    """Prints a report to stdout, in colour only on a terminal and where NO_COLOR is not set.

    Args:
      width: columns where there is no terminal; rich would assume 80 and break rows.
    """
    Terminal(width=None if sys.stdout.isatty() else width).print(report)


@contextlib.contextmanager
def waiting(what: str, quiet: bool = False) -> Iterator[None]:
    """Says what is under way: on a terminal at once, in a log where it takes some seconds."""
    console = Terminal(stderr=True, quiet=quiet, highlight=False)
    delay = 0.0 if console.is_terminal else _SILENT_S
    said = threading.Timer(delay, console.print, (f'{what} ...',), {'markup': False})
    said.daemon = True
    said.start()
    try:
        yield
    finally:
        said.cancel()


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
        self._compiled: set[str] = set()  # methods
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
        # The first step of a method compiles it, which takes longer than many steps.
        doing = 'starting' if method in self._compiled else 'compiling'
        if self.lines and method not in self._compiled:
            self.say(f'{method}: compiling')
        self._compiled.add(method)
        self._bar.update(self._task, description=f'{self._now}: {doing}', quality='')

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
            # The steps of the first dispatch are told together: they say nothing of its speed.
            took, known = now - self._first, now - self._first > 1.0
            left = f'about {took / max(self._taken - 1, 1) * self._left:.0f} s left for all'
            self.say(', '.join(filter(None, (text, self._quality, left if known else ''))))

    def evaluated(self, record: dict[str, float]) -> None:
        """Validation numbers of the current run."""
        self._quality = quality(record)

    def finished(self, method: str, seed: int, record: Mapping[str, float], seconds: float) -> None:
        """A run ended with these numbers on the test split."""
        self.say(f'{method} seed {seed}: {quality(record)}, {seconds:.1f} s')

    def say(self, text: str) -> None:
        """One line that stays."""
        self._spoken = time.monotonic()
        self.console.print(text, soft_wrap=True, markup=False)


def quality(record: Mapping[str, float]) -> str:
    """'accuracy 0.978, perplexity 112' of a record; without the latter if it has none."""
    text = f'accuracy {record["accuracy"]:.3f}'
    return text + (f', perplexity {record["perplexity"]:.0f}' if 'perplexity' in record else '')
