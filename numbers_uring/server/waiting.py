"""Counts the clients that wait for a slot, and tells the operator when some begin to wait."""

import math
import socket
import time
from collections.abc import Callable, Sequence

from numbers_uring.limits import WAITING_LINE_INTERVAL_S, WAITING_LOOK_INTERVAL_S
from numbers_uring.net.listeners import clients_in_backlog
from numbers_uring.words import counted_and


class WaitingClients:
    """Looks at the listeners' backlogs at most every WAITING_LOOK_INTERVAL_S.

    Only while all slots are taken: a client that waits for another reason, for example because the
    log has no space, does not wait for a slot. `say` is given a line when clients begin to wait, at
    most every WAITING_LINE_INTERVAL_S, and after it one when none waits any more.
    """

    def __init__(
        self,
        listeners: Sequence[socket.socket],
        *,
        connections_max: int,
        say: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._listeners = [each for each in listeners if clients_in_backlog(each) is not None]
        self._connections_max = connections_max
        self._say = say
        self._clock = clock
        self._look_due_s = -math.inf
        self._line_due_s = -math.inf
        self._told_s: float | None = None
        self.clients = 0 if self._listeners else None
        """How many waited at the last look; None where no backlog can be read. For any thread."""

    def look(self, connected: Callable[[], int]) -> None:
        """Count them if it is time to; `connected` returns how many slots are taken."""
        now_s = self._clock()
        if now_s < self._look_due_s or self.clients is None:
            return
        self._look_due_s = now_s + WAITING_LOOK_INTERVAL_S
        # Between two clients a slot is free for a moment, and the others wait all the same.
        if self.clients or connected() >= self._connections_max:
            self.clients = sum(clients_in_backlog(each) or 0 for each in self._listeners)
            self._tell(now_s, self.clients)

    def _tell(self, now_s: float, clients: int) -> None:
        if clients and self._told_s is None and now_s >= self._line_due_s:
            self._told_s = now_s
            self._line_due_s = now_s + WAITING_LINE_INTERVAL_S
            waiting = counted_and(clients, "client", "waits", "wait")
            self._say(f"{waiting} for a slot: --max-clients {self._connections_max} is reached")
        elif not clients and self._told_s is not None:
            self._say(f"no client waits for a slot any more, after {now_s - self._told_s:.0f} s")
            self._told_s = None
