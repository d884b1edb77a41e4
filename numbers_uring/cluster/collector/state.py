"""The state of the collectors of a process: for probes, the service manager and its watchdog."""

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from numbers_uring.cluster.collector.collector import PartitionCollector
from numbers_uring.ingest.report import Counts
from numbers_uring.metrics.health import Health
from numbers_uring.systemd.notify import ServiceManager
from numbers_uring.systemd.status import StatusLine

if TYPE_CHECKING:
    from nats.aio.client import Client


class CollectorsState:
    """Sends the state of `collectors` to `manager`, and is the loop that `health` watches.

    `name` is what they collect, `counts` are the numbers taken in so far, `stopped` returns whether
    the stop has begun. The properties are for any thread.
    """

    def __init__(
        self,
        name: str,
        collectors: Sequence[PartitionCollector],
        client: "Client",
        manager: ServiceManager,
        health: Health | None,
        *,
        counts: Callable[[], Counts],
        stopped: Callable[[], bool],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._name = name
        self._collectors = collectors
        self._client = client
        self._manager = manager
        self._health = health
        self._stopped = stopped
        self._clock = clock
        self._status = StatusLine(counts, clock=clock)
        self._sent = ""

    @property
    def stopping(self) -> bool:
        """Whether the stop has begun."""
        return self._stopped()

    @property
    def held_back(self) -> bool:
        """Whether a collector waits for space for its log, or for the NATS server."""
        return self._lacks_space or not self._client.is_connected

    @property
    def _lacks_space(self) -> bool:
        return any(collector.out_of_space.runs for collector in self._collectors)

    @property
    def _waiting(self) -> list[tuple[int, int]]:
        """The partitions that wait for a message, each with its sequence."""
        found = []
        for collector in self._collectors:
            waits = None if collector.reader is None else collector.reader.waits
            if waits is not None:
                found.append((collector.partition, waits.first_sequence))
        return found

    @property
    def lacking(self) -> str:
        """In a few words what the collectors wait for; empty if they wait for nothing."""
        if self._lacks_space:
            return "No space for a log"
        if self.held_back:
            return "The NATS server does not answer"
        if waiting := self._waiting:
            partition, sequence = waiting[0]
            others = f" and {len(waiting) - 1} more" if len(waiting) > 1 else ""
            return f"Partition {partition} waits at message {sequence}{others}"
        return ""

    @property
    def text(self) -> str:
        """The state, for people."""
        lacking = self.lacking
        return f"{lacking}, collecting {self._name}" if lacking else f"Collecting {self._name}"

    # For the loop alone.

    def ready(self) -> None:
        """Note that the collectors begin now."""
        if self._health is not None:
            self._health.watch(self)
        self._sent = self.text
        self._manager.ready(self._status.line(self._sent))

    def heartbeat(self) -> None:
        """Note that the loop runs; pass it on if no thread has been in one write or sync for long.

        A wait for space does not count: it is tried again every second.
        """
        begun_s = [collector.step_s for collector in self._collectors]
        oldest_s = min((each for each in begun_s if each is not None), default=None)
        if self._health is not None:
            self._health.heartbeat(oldest_s)
        if oldest_s is None or self._clock() - oldest_s < self._manager.heartbeat_interval_s:
            self._manager.heartbeat()

    def refresh(self) -> None:
        """Send the state, the counters, and the rate since they were last refreshed."""
        if not self.stopping:
            self._sent = self.text
            self._manager.status(self._status.line_with_rate(self._sent))

    def send_changed(self) -> None:
        """Send the state if it is another one than was sent last."""
        text = self.text
        if text != self._sent and not self.stopping:
            self._sent = text
            self._manager.status(self._status.line(text))
