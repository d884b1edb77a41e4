"""The pause in accepting after accept(2) has failed, for lack of descriptors or for good."""

import os
import time
from collections.abc import Callable

from numbers_uring.limits import ACCEPT_BACKOFF_S, ACCEPT_WARNING_INTERVAL_S


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
