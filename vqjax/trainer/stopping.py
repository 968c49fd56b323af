"""How a run is asked to end, and how it says that it did."""

import signal
from typing import Any


class Stopped(Exception):
    """The run was asked to end; everything is saved. `signal` is what asked."""

    def __init__(self, number: int | None):
        # None: the signal came to another process.
        self.signal = signal.SIGTERM if number is None else number
        name = signal.Signals(self.signal).name
        super().__init__(f'stopped by {name}: everything is saved, the same command goes on')


class StopRequest:
    """Turns SIGTERM and SIGINT into a request that the loop honours after the step it is in."""

    def __init__(self) -> None:
        self.number: int | None = None

    def __enter__(self) -> 'StopRequest':
        numbers = (signal.SIGTERM, signal.SIGINT)
        self._before = {number: signal.signal(number, self._note) for number in numbers}
        return self

    def __exit__(self, *_: Any) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: Any) -> None:
        self.number = number

    def __call__(self) -> bool:
        return self.number is not None
