"""How long something lasted, all its times together: kept by one thread, read by any."""

import time
from collections.abc import Callable


class Stopwatch:
    """Stands still until `start`, and again from `stop` on; both may be called at any time."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        # What is over, and since when it goes on: one object, because others ask meanwhile.
        self._state: tuple[float, float | None] = (0.0, None)

    @property
    def runs(self) -> bool:
        """Whether it is going on."""
        return self._state[1] is not None

    @property
    def total_s(self) -> float:
        """How long it has lasted, up to now."""
        over_s, since_s = self._state
        return over_s if since_s is None else over_s + self._clock() - since_s

    def start(self) -> None:
        """Count from now on."""
        if not self.runs:
            self._state = self._state[0], self._clock()

    def stop(self) -> None:
        """Count no more."""
        self._state = self.total_s, None
