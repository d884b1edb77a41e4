"""When a stop no longer takes in what clients go on to send."""

import time
from collections.abc import Callable

from numbers_uring.limits import DRAIN_BYTES_MAX, DRAIN_USED_S


class DrainBound:
    """The bound of one reactor's drain; for the thread that made it.

    A client that had written all before the stop may have a part of that in its own send buffer,
    which no one sees. On a host that is slow, stopped or waits for its disk, time alone would cut
    that off. So it is over when `end_s` on the monotonic clock has come, and the reactor has also
    received DRAIN_BYTES_MAX on top or used DRAIN_USED_S itself, in processor time and waits.
    """

    def __init__(
        self,
        end_s: float,
        clock: Callable[[], float] = time.monotonic,
        used_clock: Callable[[], float] = time.thread_time,
    ) -> None:
        self._end_s = end_s
        self._clock = clock
        self._used_clock = used_clock
        self._used_end_s = used_clock() + DRAIN_USED_S
        self._left_bytes = DRAIN_BYTES_MAX

    def received(self, size: int, on_top: int) -> None:
        """Count bytes, unless the socket held them at first.

        `on_top` is how much was received from the connection, these included, beyond what it held.
        """
        self._left_bytes -= max(min(size, on_top), 0)

    def waited(self, wait_s: float) -> None:
        """Count a wait, but no longer than it was to be: what goes beyond that is the host's."""
        self._used_end_s -= wait_s

    @property
    def over(self) -> bool:
        """Whether only what sockets held at first is still to be received."""
        if self._clock() < self._end_s:
            return False
        return self._left_bytes <= 0 or self._used_clock() >= self._used_end_s
