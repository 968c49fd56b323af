"""How a run is asked to end, and how it says that it did."""

import os
import signal
from typing import Any


class StopRequest:
    """Turns SIGTERM and SIGINT into a request that the loop honours after the step it is in.

    The first says so on stderr; a second SIGINT ends everything at once, as it would without this.
    """

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
        if number == signal.SIGINT:
            signal.signal(number, signal.default_int_handler)
            # Not through the display, which may be in the middle of a line.
            os.write(2, b'\nsaving, then stopping; again to stop at once\n')

    def __call__(self) -> bool:
        return self.number is not None
