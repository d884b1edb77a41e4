"""Waiting for a condition, with a deadline that only a failure reaches."""

import threading
import time
from collections.abc import Callable

DEADLINE_S = 60.0
"""For what takes milliseconds on an idle machine, and seconds under a load of 40 on two cores."""

PAUSE_MAX_S = 0.02
"""Pauses grow up to this: many tests wait at once, and each look takes processor time."""


def wait_until(condition: Callable[[], object], what: str, deadline_s: float = DEADLINE_S) -> None:
    """Return as soon as `condition` holds; fail, naming `what`, when it does not in time."""
    end_s = time.monotonic() + deadline_s
    pause = threading.Event()
    pause_s = 0.001
    while not condition():
        assert time.monotonic() < end_s, f"waited {deadline_s} s in vain for {what}"
        pause.wait(pause_s)
        pause_s = min(pause_s * 1.3, PAUSE_MAX_S)
