"""The line that the service manager shows of a process: what it does, its counters, its rate."""

import time
from collections.abc import Callable

from numbers_uring.ingest.report import Counts, rate_text


class StatusLine:
    """Makes status lines of a text and of `counts`, the numbers received so far.

    `clients` returns how many are connected; None for a process that has none.
    """

    def __init__(
        self,
        counts: Callable[[], Counts],
        *,
        clients: Callable[[], int] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._counts = counts
        self._clients = clients
        self._clock = clock
        self._rated_s = clock()
        self._rated = Counts(0, 0)

    def line(self, text: str) -> str:
        """Return the text and the counters."""
        counts = self._counts()
        clients = "" if self._clients is None else f"{_clients(self._clients())}, "
        return f"{text}; {clients}{counts.unique} unique, {counts.duplicate} duplicates"

    def line_with_rate(self, text: str) -> str:
        """Return the same with the rate since the last call of this method."""
        now, now_s = self._counts(), self._clock()
        rate = (sum(now) - sum(self._rated)) / max(now_s - self._rated_s, 1e-9)
        self._rated, self._rated_s = now, now_s
        return f"{self.line(text)}, {rate_text(rate)}"


def _clients(count: int) -> str:
    return f"{count} client{'' if count == 1 else 's'}"
