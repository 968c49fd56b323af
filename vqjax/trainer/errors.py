"""What a run can be refused or ended for: errors that reach the user as one sentence."""

import signal
from typing import Any


class RunError(Exception):
    """Something for the user to put right, said in one line."""


class FolderInUse(Exception):
    """Another process has the folder; the text says which, as far as it is known."""


class CheckpointError(RuntimeError):
    """A checkpoint cannot be written, or belongs to another run."""


class Diverged(RuntimeError):
    """A step was not finite. `state` is the last healthy one, `step` the one that failed."""

    def __init__(self, step: int, what: str, state: Any):
        super().__init__(f'step {step}: the {what} turned NaN or infinite first')
        self.step, self.what, self.state = step, what, state


class DivergedRun(RunError):
    """A step of this method with this seed was not finite; the state before it is saved."""

    def __init__(self, method: str, seed: int, reason: object):
        super().__init__(
            f'{method} seed {seed}, {reason} is saved: lower learning_rate or clip_norm'
        )
        self.method, self.seed = method, seed


class Unreadable(ValueError):
    """Data that were readable when the run began are no longer."""


class Stopped(Exception):
    """The run was asked to end; everything is saved. `signal` is what asked."""

    def __init__(self, number: int | None):
        # None: the signal came to another process.
        self.signal = signal.SIGTERM if number is None else number
        name = signal.Signals(self.signal).name
        super().__init__(f'stopped by {name}: everything is saved, the same command goes on')
