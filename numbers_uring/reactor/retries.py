"""The pauses between waits that fail with an error that may pass, and when to give up."""

import os
import time
from collections.abc import Callable

from numbers_uring.limits import RETRIES_AT_ONCE, RETRY_MAX_S, RETRY_S


class Retries:
    """Counts the waits in a row that failed like that.

    `what` names what fails, for `warn`, which is given one line when the pauses begin. A wait that
    hands something out, or ends without an error, ends them.
    """

    def __init__(self, what: str, warn: Callable[[str], None]) -> None:
        self.pause_s = 0.0
        """How long to sleep before the next wait."""
        self._what = what
        self._warn = warn
        self._failures = 0
        self._begin_s = 0.0

    def note(self, error: int) -> None:
        """Note how a wait ended: with an errno, or 0.

        Raises OSError once waits have failed for RETRY_MAX_S.
        """
        if not error:
            self._failures = 0
            self.pause_s = 0.0
            return
        now_s = time.monotonic()
        if self._failures == 0:
            self._begin_s = now_s
        self._failures += 1
        if self._failures <= RETRIES_AT_ONCE:
            return
        if now_s - self._begin_s >= RETRY_MAX_S:
            raise OSError(error, f"{self._what} fails: {os.strerror(error)}")
        if not self.pause_s:
            self._warn(
                f"{self._what} fails for now: {os.strerror(error)}; retrying for {RETRY_MAX_S:g} s"
            )
        self.pause_s = RETRY_S
