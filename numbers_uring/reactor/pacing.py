"""When a short sleep before a wait saves more than it costs: packets that are tiny and many."""

from numbers_uring.limits import (
    PACING_CHUNK_BYTES,
    PACING_INTERVAL_S,
    PACING_PASSES,
    PACING_SIGNS,
    PACING_SLEEP_S,
)


class Pacing:
    """Watches the passes of a reactor.

    A pass has a price of its own: the wait, a receive for each connection, the write to the log.
    Where each brings a few bytes and the next follows at once, the passes are the load. Sleeping
    for PACING_SLEEP_S first lets packets pile up in the sockets, and one pass takes them all. A
    stream with pauses is never slept for: in PACING_SIGNS passes in a row, events must have come
    within PACING_INTERVAL_S of each other. It is checked again after PACING_PASSES passes.
    """

    def __init__(self) -> None:
        self._left = 0
        self._signs = 0
        self._pass_s = 0.0

    def sleep_s(self) -> float:
        """Return how long to sleep before the next wait; mostly not at all."""
        return PACING_SLEEP_S if self._left else 0.0

    def note_pass(self, now_s: float, events: int, received_bytes: int) -> None:
        """Learn from a pass that ended at `now_s`, of so many events with so many bytes in all."""
        if self._left:
            self._left -= 1
            if not events:
                self._left = 0
        elif (
            received_bytes < events * PACING_CHUNK_BYTES
            and now_s - self._pass_s < events * PACING_INTERVAL_S
        ):
            self._signs += 1
            if self._signs >= PACING_SIGNS:
                self._signs = 0
                self._left = PACING_PASSES
        else:
            self._signs = 0
        self._pass_s = now_s
