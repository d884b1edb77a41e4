"""The status of a running server, for the service manager."""

import time
from collections.abc import Callable

from numbers_uring.ingest.report import Counts
from numbers_uring.server.server import Phase
from numbers_uring.systemd.notify import ServiceManager
from numbers_uring.systemd.status import StatusLine

_TEXTS = {
    Phase.RELOADING: "Reopening the log",
    Phase.STOPPING: "Stopping",
}


class ServiceStatus:
    """Turns phases and counters into messages to `manager`.

    `lacking` returns why clients are held back; for `counts` and `clients` see StatusLine.
    """

    def __init__(
        self,
        manager: ServiceManager,
        listening: str,
        *,
        lacking: Callable[[], str] = lambda: "No space for the log",
        counts: Callable[[], Counts],
        clients: Callable[[], int],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._manager = manager
        self._texts = {**_TEXTS, Phase.SERVING: f"Listening on {listening}"}
        self._lacking = lacking
        self._phase: Phase | None = None
        self._status = StatusLine(counts, clients=clients, clock=clock)

    def enter(self, phase: Phase) -> None:
        """Send a new phase; the first one, and the one after a reload, mean that it is ready."""
        before, self._phase = self._phase, phase
        if phase is Phase.RELOADING:
            send = self._manager.reloading
        elif phase is Phase.STOPPING:
            send = self._manager.stopping
        elif before in {None, Phase.RELOADING}:
            send = self._manager.ready
        else:
            send = self._manager.status
        send(self._status.line(self._text(phase)))

    def refresh(self) -> None:
        """Send the counters, and the rate since they were last refreshed."""
        text = self._text(self._phase or Phase.SERVING)
        self._manager.status(self._status.line_with_rate(text))

    def _text(self, phase: Phase) -> str:
        if phase is Phase.HELD_BACK:
            return f"{self._lacking()}, clients are held back"
        return self._texts[phase]
