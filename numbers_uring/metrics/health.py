"""Whether a loop, the server's or the owners', is alive: what a supervisor's probe asks for."""

import time
from collections.abc import Callable
from enum import StrEnum
from typing import Protocol

from numbers_uring.limits import HEARTBEAT_STALE_S


class State(StrEnum):
    """What the loop does."""

    STARTING = "starting"
    """It does not run yet; a long --resume may be under way."""
    OK = "ok"
    HELD_BACK = "held back"
    """It runs, and receives nothing because there is no space for the log, or no engine."""
    STUCK = "stuck"
    """It has not come round for HEARTBEAT_STALE_S: it waits for the disk, most likely."""
    STOPPING = "stopping"


HEALTHY = frozenset({State.OK, State.HELD_BACK})
"""States in which a restart could only do harm."""


class Loop(Protocol):
    """What is asked of the server, or of owners."""

    @property
    def stopping(self) -> bool: ...
    @property
    def held_back(self) -> bool: ...


class Health:
    """The loop calls `beat` every HEARTBEAT_INTERVAL_S or sooner; any thread may ask for it."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._loop: Loop | None = None
        self._beat_s = clock()

    def watch(self, loop: Loop) -> None:
        """Note that this loop begins now."""
        self.beat()
        self._loop = loop

    def beat(self, since_s: float | None = None) -> None:
        """Note that the loop came round, and waits since then for something that it needs."""
        self._beat_s = self._clock() if since_s is None else since_s

    def state(self) -> State:
        """Return what the loop does at this moment."""
        loop = self._loop
        if loop is None:
            return State.STARTING
        if loop.stopping:
            return State.STOPPING
        if self._clock() - self._beat_s > HEARTBEAT_STALE_S:
            return State.STUCK
        return State.HELD_BACK if loop.held_back else State.OK
