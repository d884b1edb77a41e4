"""A loop that is handed its clients, as one of several."""

import time
from collections.abc import Callable

from numbers_uring.ingest.intake import Intake
from numbers_uring.reactor.contract import Reactor
from numbers_uring.server.loop import Loop, Shared
from numbers_uring.server.mailbox import Mailbox


class Worker:
    """Runs a loop that is handed its clients; all but its constructor is for its own thread."""

    def __init__(
        self,
        mailbox: Mailbox,
        reactor: Reactor,
        intake: Intake,
        shared: Shared,
        *,
        round_s: float,
        on_close: Callable[[], None],
    ) -> None:
        self.loop = Loop(reactor, intake, shared, self)
        self._reactor = reactor
        self._mailbox = mailbox
        self._round_s = round_s
        self._on_close = on_close

    @property
    def stopping(self) -> bool:
        return self._mailbox.stop.is_set()

    def due_s(self) -> float:
        return time.monotonic() + self._round_s

    def take_over(self, _: int) -> bool:
        return False

    def connection_closed(self) -> None:
        self._mailbox.closed += 1
        self._on_close()

    def run(self) -> None:
        """Serve until a client of this loop sends `terminate`, or the mailbox says stop."""
        while True:
            self._mailbox.quiet()
            # Asked after that: what was told before is seen now, what comes later wakes the wait.
            if self.loop.terminated or self.stopping:
                return
            self._adopt()
            self.loop.turn()
            self._mailbox.came_round_s = time.monotonic()

    def finish(self) -> None:
        """Drain, and append everything. Raises SinkError and OSError."""
        self._adopt()
        self.loop.drain(self._mailbox.drain_end_s)

    def _adopt(self) -> None:
        for fd, peer in self._mailbox.take():
            self._reactor.adopt(fd, peer)
