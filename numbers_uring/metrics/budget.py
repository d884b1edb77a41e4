"""How much of the processor, and of the interpreter, a thread beside the reactor may take."""

import time
from collections.abc import Callable


class Budget:
    """A share of the processor for the thread that makes it: a bucket of time that refills.

    Of each second it may use `share`, and what it has saved, `burst_s` at most, at once. `spent_s`
    is the clock of the thread's own processor time: what it waits for costs nothing. Where Linux
    refuses that clock, all time since the last call counts as used.
    """

    def __init__(
        self,
        share: float,
        burst_s: float,
        *,
        clock: Callable[[], float] = time.monotonic,
        spent_s: Callable[[], float] = time.thread_time,
    ) -> None:
        self._share = share
        self._burst_s = burst_s
        self._clock = clock
        self._spent_s = spent_s
        self._saved_s = burst_s
        self._seen_s = clock()
        self._seen_spent_s = 0.0
        self._seen_spent_s = self._read_spent_s(self._seen_s)

    def pause_s(self) -> float:
        """Return how long to sleep now so that the share is kept; 0 while time is saved."""
        now_s = self._clock()
        spent_s = self._read_spent_s(now_s)
        refilled_s = self._saved_s + self._share * (now_s - self._seen_s)
        self._saved_s = min(refilled_s, self._burst_s) - (spent_s - self._seen_spent_s)
        self._seen_s, self._seen_spent_s = now_s, spent_s
        return max(-self._saved_s, 0) / self._share

    def _read_spent_s(self, now_s: float) -> float:
        try:
            return self._spent_s()
        except OSError:
            return self._seen_spent_s + now_s - self._seen_s
