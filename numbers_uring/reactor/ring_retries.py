"""The pauses between passes of a ring that Linux does not serve, and when to give it up."""

import os
import time
from collections.abc import Callable

from numbers_uring.limits import RING_RETRIES_AT_ONCE, RING_RETRY_MAX_S, RING_RETRY_S


class RingRetries:
    """Counts the passes in a row that failed with an error that may pass.

    `warn` is given one line when the pauses begin. A pass that hands something out, or ends without
    an error, ends them.
    """

    def __init__(self, warn: Callable[[str], None]) -> None:
        self.pause_s = 0.0
        """How long to wait before the next pass."""
        self._warn = warn
        self._failures = 0
        self._begin_s = 0.0

    def note(self, error: int) -> None:
        """Note how a pass ended: with an errno, or 0.

        Raises OSError once passes have failed for RING_RETRY_MAX_S.
        """
        if not error:
            self._failures = 0
            self.pause_s = 0.0
            return
        now_s = time.monotonic()
        if self._failures == 0:
            self._begin_s = now_s
        self._failures += 1
        if self._failures <= RING_RETRIES_AT_ONCE:
            return
        if now_s - self._begin_s >= RING_RETRY_MAX_S:
            raise OSError(error, f"io_uring fails: {os.strerror(error)}")
        if not self.pause_s:
            self._warn(
                f"io_uring fails for now: {os.strerror(error)}; retrying for {RING_RETRY_MAX_S:g} s"
            )
        self.pause_s = RING_RETRY_S
