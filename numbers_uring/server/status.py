"""What a running server has the service manager know."""

import time
from collections.abc import Callable

from numbers_uring.ingest.report import Counts, rate_text
from numbers_uring.server.server import Phase
from numbers_uring.systemd.notify import ServiceManager

_TEXTS = {
    Phase.RELOADING: "Reopening the log",
    Phase.STOPPING: "Stopping",
}


class ServiceStatus:
    """Turns phases and counters into messages to `manager`.

    `lacking` is why clients are held back when they are, `counts` are the numbers taken in so far,
    `clients` how many are connected.
    """

    def __init__(
        self,
        manager: ServiceManager,
        listening: str,
        *,
        lacking: str = "No space for the log",
        counts: Callable[[], Counts],
        clients: Callable[[], int],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._manager = manager
        self._texts = {
            **_TEXTS,
            Phase.SERVING: f"Listening on {listening}",
            Phase.HELD_BACK: f"{lacking}, clients are held back",
        }
        self._phase: Phase | None = None
        self._counts = counts
        self._clients = clients
        self._clock = clock
        self._told_s = clock()
        self._told = Counts(0, 0)

    def enter(self, phase: Phase) -> None:
        """Tell of a change; the first time, and after a reload, that means being ready."""
        before, self._phase = self._phase, phase
        if phase is Phase.RELOADING:
            tell = self._manager.reloading
        elif phase is Phase.STOPPING:
            tell = self._manager.stopping
        elif before in {None, Phase.RELOADING}:
            tell = self._manager.ready
        else:
            tell = self._manager.status
        tell(self._line())

    def refresh(self) -> None:
        """Tell the counters, and the rate since they were told last."""
        now, now_s = self._counts(), self._clock()
        numbers = sum(now) - sum(self._told)
        rate = numbers / max(now_s - self._told_s, 1e-9)
        self._told, self._told_s = now, now_s
        self._manager.status(f"{self._line()}, {rate_text(rate)}")

    def _line(self) -> str:
        counts, clients = self._counts(), self._clients()
        return (
            f"{self._texts[self._phase or Phase.SERVING]}; "
            f"{clients} client{'' if clients == 1 else 's'}, "
            f"{counts.unique} unique, {counts.duplicate} duplicates"
        )
