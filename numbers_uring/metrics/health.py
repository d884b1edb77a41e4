"""Whether a loop, the server's or the collectors', is alive: what a probe asks for."""

import time
from collections.abc import Callable
from enum import StrEnum
from typing import Protocol

from numbers_uring.limits import HEARTBEAT_STALE_S


class State(StrEnum):
    """What the loop does."""

    STARTING = "starting"
    """It does not run yet, for example during a long --resume or --seen."""
    OK = "ok"
    HELD_BACK = "held back"
    """It runs, and receives nothing: no space for the log, or no NATS server."""
    STUCK = "stuck"
    """No heartbeat for HEARTBEAT_STALE_S: most likely it waits for the disk."""
    STOPPING = "stopping"


HEALTHY = frozenset({State.OK, State.HELD_BACK})
"""States in which a restart would only do harm."""


class Loop(Protocol):
    """The part of a server, or of collectors, that a health check reads."""

    @property
    def stopping(self) -> bool: ...
    @property
    def held_back(self) -> bool: ...
    @property
    def lacking(self) -> str:
        """In a few words what it waits for; empty where it waits for nothing."""


class Health:
    """The loop calls `heartbeat` every HEARTBEAT_INTERVAL_S at least; any thread may ask."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._loop: Loop | None = None
        self._heartbeat_s = clock()

    def watch(self, loop: Loop) -> None:
        """Watch this loop, which begins now."""
        self.heartbeat()
        self._loop = loop

    def heartbeat(self, since_s: float | None = None) -> None:
        """Note that the loop ran until now, or until `since_s`, and has waited since then."""
        self._heartbeat_s = self._clock() if since_s is None else since_s

    def state(self) -> State:
        """Return what the loop is doing now."""
        loop = self._loop
        if loop is None:
            return State.STARTING
        if loop.stopping:
            return State.STOPPING
        if self._clock() - self._heartbeat_s > HEARTBEAT_STALE_S:
            return State.STUCK
        return State.HELD_BACK if loop.held_back else State.OK

    def reason(self) -> str:
        """Return in a few words why the state is not a better one; empty if there is no more."""
        state = self.state()
        if state is State.STUCK:
            age_s = self._clock() - self._heartbeat_s
            return f"The loop, or a write or sync that it waits for, takes {age_s:.0f} s"
        loop = self._loop
        return loop.lacking if loop is not None and state in HEALTHY else ""
