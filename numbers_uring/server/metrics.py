"""The server's counters for Prometheus.

Counters are read when somebody asks; the reactor does nothing for it.
"""

import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from numbers_uring.limits import LINE_BYTES
from numbers_uring.log.sink import Forwarded, Sink
from numbers_uring.metrics.exposition import Exposition, dropped_reports, info
from numbers_uring.metrics.health import Health
from numbers_uring.reactor.contract import Reactor
from numbers_uring.server.server import Server

END_REASONS = ("eof", "invalid", "incomplete", "reset", "idle", "refused", "stop")


@dataclass(frozen=True, slots=True, kw_only=True)
class Counters:
    """All of them at one moment, since the start of the run."""

    unique: int = 0
    duplicate: int = 0
    received_bytes: int = 0
    accepted: int = 0
    """Those that were refused included."""
    ended: Mapping[str, int] = field(default_factory=dict)
    """By END_REASONS; one that is not there is 0."""
    written_bytes: int = 0
    write_s: float = 0
    sync_s: float = 0
    held_back_s: float = 0
    reports_dropped: int = 0
    forwarded: Forwarded | None = None
    """Of a server that has an engine in the place of a log."""


def counters(server: Server, reactor: Reactor, sink: Sink) -> Counters:
    """Read the counters of a running server, from any thread."""
    counts, statistics = server.counts, server.statistics
    refused = reactor.refused
    forwarded = sink.forwarded
    # Ends before beginnings, so that never more have ended than were accepted.
    ended = {**statistics.ended, "refused": refused}
    return Counters(
        unique=counts.unique,
        duplicate=counts.duplicate,
        received_bytes=statistics.received_bytes,
        accepted=statistics.accepted + refused,
        ended=ended,
        written_bytes=0 if forwarded is not None else sink.written_lines * LINE_BYTES,
        write_s=0 if forwarded is not None else sink.write_s,
        sync_s=sink.sync_s,
        held_back_s=server.held_back_s,
        reports_dropped=statistics.reports_dropped,
        forwarded=forwarded,
    )


class NumbersCollector(Collector):
    """The metrics that docs/metrics.md lists, made of what `read` returns."""

    def __init__(
        self, read: Callable[[], Counters], *, backend: str, kernel: str, connections_max: int
    ) -> None:
        self.read = read
        self._connections_max = connections_max
        self._info = {"backend": backend, "kernel": kernel}

    def collect(self) -> Iterator[Metric]:
        now = self.read()
        yield info(**self._info)
        numbers = CounterMetricFamily(
            "numbers_uring_numbers", "Numbers taken in, by what they were", labels=["result"]
        )
        numbers.add_metric(["unique"], now.unique)
        numbers.add_metric(["duplicate"], now.duplicate)
        yield numbers
        yield CounterMetricFamily(
            "numbers_uring_received_bytes", "Bytes received from clients", now.received_bytes
        )
        yield GaugeMetricFamily(
            "numbers_uring_connections",
            "Connections at the moment",
            now.accepted - sum(now.ended.values()),
        )
        yield GaugeMetricFamily(
            "numbers_uring_connections_max", "Clients served at once", self._connections_max
        )
        yield CounterMetricFamily(
            "numbers_uring_connections_accepted",
            "Connections accepted, those included that were refused",
            now.accepted,
        )
        ended = CounterMetricFamily(
            "numbers_uring_connections_ended", "Connections that ended, by why", labels=["reason"]
        )
        for reason in END_REASONS:
            ended.add_metric([reason], now.ended.get(reason, 0))
        yield ended
        yield CounterMetricFamily(
            "numbers_uring_log_written_bytes",
            "Bytes of lines written to the log",
            now.written_bytes,
        )
        yield CounterMetricFamily(
            "numbers_uring_log_write_seconds", "Time spent writing the log", now.write_s
        )
        yield CounterMetricFamily(
            "numbers_uring_log_sync_seconds", "Time spent in syncs of the log", now.sync_s
        )
        yield CounterMetricFamily(
            "numbers_uring_held_back_seconds",
            "Time in which clients were held back because the log, or the engine, had no space",
            now.held_back_s,
        )
        yield dropped_reports(now.reports_dropped)
        if now.forwarded is not None:
            yield from _forward_metrics(now.forwarded)


def _forward_metrics(forwarded: Forwarded) -> Iterator[Metric]:
    yield CounterMetricFamily(
        "numbers_uring_forward_acknowledged",
        "Numbers that the engine has acknowledged",
        forwarded.acknowledged,
    )
    yield GaugeMetricFamily(
        "numbers_uring_forward_in_flight",
        "Numbers taken in that are not acknowledged yet",
        forwarded.in_flight,
    )
    yield CounterMetricFamily(
        "numbers_uring_forward_resent",
        "Batches published once more because they were not acknowledged",
        forwarded.resent,
    )
    yield CounterMetricFamily(
        "numbers_uring_forward_published_bytes",
        "Bytes of batches published, those included that were sent again",
        forwarded.published_bytes,
    )


class Metrics:
    """Serves /metrics and /healthz on `listeners`, which it takes over.

    Until `watch` the server counts as starting, and all counters are 0.
    """

    def __init__(
        self,
        listeners: Sequence[socket.socket],
        *,
        backend: str,
        kernel: str,
        connections_max: int,
        say: Callable[[str], None],
        descriptors_needed: int,
    ) -> None:
        self.health = Health()
        self._collector = NumbersCollector(
            Counters, backend=backend, kernel=kernel, connections_max=connections_max
        )
        self._exposition = Exposition(
            listeners,
            self._collector,
            self.health,
            say=say,
            descriptors_needed=descriptors_needed,
        )
        self.urls = self._exposition.urls

    def watch(self, server: Server, reactor: Reactor, sink: Sink) -> None:
        """Tell of this server from now on."""
        self._collector.read = lambda: counters(server, reactor, sink)
        self.health.watch(server)

    def close(self) -> None:
        self._exposition.close()
