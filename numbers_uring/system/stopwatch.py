"""Adds up the times between starts and stops: set by one thread, read by any."""

import time
from collections.abc import Callable


class Stopwatch:
    """Runs from `start` to `stop`; a second call of either has no effect."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        # The time of earlier runs, and the start of this one: one object, so that other threads
        # see both change at once.
        self._state: tuple[float, float | None] = (0.0, None)

    @property
    def runs(self) -> bool:
        """Whether it was started and not stopped since."""
        return self._state[1] is not None

    @property
    def total_s(self) -> float:
        """The time of all runs, up to now."""
        earlier_s, start_s = self._state
        return earlier_s if start_s is None else earlier_s + self._clock() - start_s

    def start(self) -> None:
        """Start to run."""
        if not self.runs:
            self._state = self._state[0], self._clock()

    def stop(self) -> None:
        """Stop, and keep the time so far."""
        self._state = self.total_s, None
