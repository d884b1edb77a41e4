"""Logs a line for each disconnected client, at a limited rate."""

import math
import threading
import time
from collections.abc import Callable
from typing import Protocol

from numbers_uring.addresses import Peer
from numbers_uring.limits import DISCONNECT_LOG_PER_S_MAX
from numbers_uring.words import counted

REASONS = {
    "eof": "end of stream",
    "reset": "connection reset",
    "incomplete": "left within a line",
    "invalid": "invalid line",
    "idle": "idle",
    "stop": "the server stops",
}


class _Say(Protocol):
    def __call__(self, text: str, **fields: object) -> None: ...


class DisconnectLog:
    """Logs at most DISCONNECT_LOG_PER_S_MAX clients a second one by one, and counts the others.

    How many were left out is told with the first line of a later second, or by `flush`.
    """

    def __init__(self, say: _Say, clock: Callable[[], float] = time.monotonic) -> None:
        self._say = say
        self._clock = clock
        self._second_from_s = -math.inf
        self._said = 0
        self._left_out = 0
        self._refused = 0
        self._refused_from_s = -math.inf
        self._lock = threading.Lock()

    def note(self, peer: Peer, reason: str, rejected: bytes | None) -> None:
        """Log that the client was disconnected; `rejected` is the beginning of an invalid line.

        For any thread.
        """
        with self._lock:
            self._note(peer, reason, rejected)

    def _note(self, peer: Peer, reason: str, rejected: bytes | None) -> None:
        now_s = self._clock()
        if now_s - self._second_from_s >= 1:
            self._tell_left_out()
            self._second_from_s, self._said = now_s, 0
        if self._said == DISCONNECT_LOG_PER_S_MAX:
            self._left_out += 1
            return
        self._said += 1
        text = f"client {peer} disconnected: {REASONS[reason]}"
        if rejected is None:
            self._say(text, peer=str(peer), reason=reason)
        else:
            # For programs each byte is the character of its number; for people it is escaped.
            line = rejected.decode("latin-1")
            self._say(f"{text} {repr(rejected)[1:]}", peer=str(peer), reason=reason, line=line)

    def note_refused(self, refused: int) -> None:
        """Log, at most once a second, that `refused` clients have been refused since the start."""
        if refused != self._refused and self._clock() - self._refused_from_s >= 1:
            self._refused_from_s = self._clock()
            self._tell_refused(refused)

    def flush(self, refused: int) -> None:
        """Log all counts that were not logged yet."""
        self._tell_left_out()
        if refused != self._refused:
            self._tell_refused(refused)

    def _tell_refused(self, refused: int) -> None:
        new = refused - self._refused
        self._refused = refused
        self._say(
            f"{counted(new, 'client')} refused: all slots are taken", reason="refused", clients=new
        )

    def _tell_left_out(self) -> None:
        if self._left_out:
            self._say(
                f"{counted(self._left_out, 'more client')} disconnected", clients=self._left_out
            )
            self._left_out = 0
