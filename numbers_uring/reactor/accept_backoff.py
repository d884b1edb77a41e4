"""The reaction to a failed accept(2), temporary or permanent."""

import os
import select
import socket
import time
from collections.abc import Callable, Iterable

from numbers_uring.limits import (
    ACCEPT_BACKOFF_S,
    ACCEPT_WARNING_INTERVAL_S,
    STOP_RETRY_S,
    STOP_TRIES,
)


class AcceptBackoff:
    """Tells how long to accept nothing, and warns once in ACCEPT_WARNING_INTERVAL_S."""

    def __init__(self, warn: Callable[[str], None]) -> None:
        self.active = False
        self._warn = warn
        self._until_s = 0.0
        self._warned_s = -ACCEPT_WARNING_INTERVAL_S

    def begin(self, error: int) -> None:
        """Pause from now on, because of the errno `error`."""
        now_s = time.monotonic()
        self.active = True
        self._until_s = now_s + ACCEPT_BACKOFF_S
        if now_s - self._warned_s >= ACCEPT_WARNING_INTERVAL_S:
            self._warned_s = now_s
            self._warn(f"cannot accept connections for now: {os.strerror(error)}")

    def left_s(self) -> float:
        """Return how much of the pause is left; at 0 it is over, and `active` is false."""
        left_s = max(self._until_s - time.monotonic(), 0.0)
        self.active = left_s > 0
        return left_s


class StopAccepts:
    """Accepts that fail at a stop, when nothing of the server's own can be closed any more.

    They are tried STOP_TRIES times; `warn` is then given one line.
    """

    def __init__(self, warn: Callable[[str], None]) -> None:
        self._warn = warn
        self._tries = 0

    def wait_to_try_again(self, listeners: Iterable[socket.socket]) -> bool:
        """Return True, after a pause, if these are to be tried again as clients wait there."""
        if self._tries == STOP_TRIES or not any(map(_has_client, listeners)):
            return False
        self._tries += 1
        if self._tries == STOP_TRIES:
            self._warn(
                "clients that waited at the stop cannot be accepted: their numbers are not taken in"
            )
            return False
        time.sleep(STOP_RETRY_S)
        return True


def _has_client(listener: socket.socket) -> bool:
    poll = select.poll()
    poll.register(listener, select.POLLIN)
    # One that another process has shut down is hung up, too.
    return any(events == select.POLLIN for _, events in poll.poll(0))
