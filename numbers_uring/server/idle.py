"""Connections that have been without a complete line for too long."""

import time
from collections.abc import Callable, Iterator

from numbers_uring.limits import IDLE_PASS_S


class IdleTimeouts:
    """Connections in the order of their last complete line, or of their opening before the first.

    Only time in which the server reads counts: a pass counts for as long as it was to wait and
    IDLE_PASS_S on top. What goes beyond that, a slow disk or a stopped process, and all time
    between two passes, is not the client's silence.

    Each call costs the same however many connections there are: a dict keeps its order of
    insertion, and a connection that has sent a line is taken out and put in again at the end.
    """

    def __init__(self, timeout_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.timeout_s = timeout_s
        self._clock = clock
        self._since_s: dict[int, float] = {}
        self._counted_s = 0.0
        """Time that counts, up to the beginning of this pass."""
        self._pass_begin_s = clock()
        self._pass_s_max = 0.0

    @property
    def _now_s(self) -> float:
        return self._counted_s + min(self._clock() - self._pass_begin_s, self._pass_s_max)

    def begin_pass(self, wait_s: float) -> None:
        """Count from now on, as the server reads after a wait of at most `wait_s`."""
        self._pass_begin_s = self._clock()
        self._pass_s_max = wait_s + IDLE_PASS_S

    def end_pass(self) -> None:
        """Count no longer, until the next pass begins."""
        self._counted_s = self._now_s
        self._pass_s_max = 0.0

    def touch(self, connection: int) -> None:
        """Start the connection's time anew."""
        self._since_s.pop(connection, None)
        self._since_s[connection] = self._now_s

    def forget(self, connection: int) -> None:
        """Leave the connection out from now on."""
        self._since_s.pop(connection, None)

    def left_s(self) -> float | None:
        """Return how long the first connection has left, or None where there is none."""
        for since_s in self._since_s.values():
            return max(since_s + self.timeout_s - self._now_s, 0.0)
        return None

    def take_due(self) -> Iterator[int]:
        """Hand out, and forget, the connections whose time is up."""
        now_s = self._now_s
        while self._since_s:
            connection, since_s = next(iter(self._since_s.items()))
            if since_s + self.timeout_s > now_s:
                return
            del self._since_s[connection]
            yield connection
