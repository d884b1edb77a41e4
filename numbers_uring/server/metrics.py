"""The server's counters for Prometheus.

Counters are read when a client asks; the reactor does nothing for it.
"""

import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily

from numbers_uring.limits import LINE_BYTES
from numbers_uring.log.sink import Forwarded, Sink
from numbers_uring.metrics.exposition import Exposition
from numbers_uring.metrics.families import Row, TableCollector, state_row
from numbers_uring.metrics.glance import server_rows
from numbers_uring.metrics.health import Health, State
from numbers_uring.reactor.contract import Reactor
from numbers_uring.server.server import Server
from numbers_uring.server.statistics import END_REASONS

_NOTHING_FORWARDED = Forwarded(acknowledged=0, in_flight=0, resent=0, published_bytes=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Counters:
    """A snapshot of what was counted since the start of the run."""

    connections_max: int
    state: State = State.STARTING
    unique: int = 0
    duplicate: int = 0
    received_bytes: int = 0
    accepted: int = 0
    """Including refused connections."""
    waiting: int | None = 0
    """Clients in the backlog while all slots are taken; None if that is unknown."""
    ended: Mapping[str, int] = field(default_factory=dict)
    """By END_REASONS; a missing one is 0."""
    written_bytes: int = 0
    write_s: float = 0
    sync_s: float = 0
    held_back_s: float = 0
    reports_dropped: int = 0
    forwarded: Forwarded = _NOTHING_FORWARDED
    """Of a node, which forwards numbers instead of writing a log."""


def counters(
    server: Server, reactor: Reactor, sink: Sink, *, connections_max: int, state: State
) -> Counters:
    """Read the counters of a running server, from any thread."""
    counts, statistics = server.counts, server.statistics
    refused = reactor.refused
    forwarded = sink.forwarded
    # Ends before beginnings, so that never more have ended than were accepted.
    ended = {**statistics.ended, "refused": refused}
    return Counters(
        connections_max=connections_max,
        state=state,
        unique=counts.unique,
        duplicate=counts.duplicate,
        received_bytes=statistics.received_bytes,
        accepted=statistics.accepted + refused,
        waiting=server.clients_waiting,
        ended=ended,
        written_bytes=0 if forwarded is not None else sink.written_lines * LINE_BYTES,
        write_s=0 if forwarded is not None else sink.write_s,
        sync_s=sink.sync_s,
        held_back_s=server.held_back_s,
        reports_dropped=statistics.reports_dropped,
        forwarded=forwarded or _NOTHING_FORWARDED,
    )


# What docs/metrics.md lists.
TABLE: tuple[Row[Counters], ...] = (
    state_row(lambda now: now.state),
    Row(
        CounterMetricFamily,
        "numbers_uring_numbers",
        "Numbers received, by result",
        lambda now: {("unique",): now.unique, ("duplicate",): now.duplicate},
        labels=("result",),
    ),
    Row(
        CounterMetricFamily,
        "numbers_uring_received_bytes",
        "Bytes received from clients",
        lambda now: now.received_bytes,
    ),
    Row(
        GaugeMetricFamily,
        "numbers_uring_connections",
        "Open connections of clients",
        lambda now: now.accepted - sum(now.ended.values()),
    ),
    Row(
        GaugeMetricFamily,
        "numbers_uring_connections_max",
        "Clients that can be served at the same time",
        lambda now: now.connections_max,
    ),
    Row(
        GaugeMetricFamily,
        "numbers_uring_connections_waiting",
        "Clients that wait for a slot",
        lambda now: now.waiting,
    ),
    Row(
        CounterMetricFamily,
        "numbers_uring_connections_accepted",
        "Connections accepted, including refused ones",
        lambda now: now.accepted,
    ),
    Row(
        CounterMetricFamily,
        "numbers_uring_connections_ended",
        "Connections that ended, by reason",
        lambda now: {(reason,): now.ended.get(reason, 0) for reason in END_REASONS},
        labels=("reason",),
    ),
    Row(
        CounterMetricFamily,
        "numbers_uring_log_written_bytes",
        "Bytes of lines written to the log",
        lambda now: now.written_bytes,
    ),
    Row(
        CounterMetricFamily,
        "numbers_uring_log_write_seconds",
        "Time spent writing to the log",
        lambda now: now.write_s,
    ),
    Row(
        CounterMetricFamily,
        "numbers_uring_log_sync_seconds",
        "Time spent syncing the log",
        lambda now: now.sync_s,
    ),
    Row(
        CounterMetricFamily,
        "numbers_uring_held_back_seconds",
        "Time during which clients were held back: no space for the log, or a slow NATS server",
        lambda now: now.held_back_s,
    ),
    Row(
        CounterMetricFamily,
        "numbers_uring_reports_dropped",
        "Reports that could not be written, each merged into the next one",
        lambda now: now.reports_dropped,
    ),
)
NODE_TABLE: tuple[Row[Counters], ...] = (
    *TABLE,
    Row(
        CounterMetricFamily,
        "numbers_uring_forward_acknowledged",
        "Numbers acknowledged by the NATS server",
        lambda now: now.forwarded.acknowledged,
    ),
    Row(
        GaugeMetricFamily,
        "numbers_uring_forward_in_flight",
        "Numbers received and not acknowledged yet",
        lambda now: now.forwarded.in_flight,
    ),
    Row(
        CounterMetricFamily,
        "numbers_uring_forward_resent",
        "Batches published again because they were not acknowledged",
        lambda now: now.forwarded.resent,
    ),
    Row(
        CounterMetricFamily,
        "numbers_uring_forward_published_bytes",
        "Bytes of batches published, including those published again",
        lambda now: now.forwarded.published_bytes,
    ),
)


class Metrics:
    """Serves /, /metrics and /healthz on `listeners`, which it takes over.

    Until `watch` the server counts as starting, and all counters are 0. `forwards` adds the metrics
    of a node; for the other parameters see Exposition. Raises StartError.
    """

    def __init__(
        self,
        listeners: Sequence[socket.socket],
        *,
        backend: str,
        kernel: str,
        connections_max: int,
        forwards: bool,
        say: Callable[[str], None],
        descriptors_needed: int,
    ) -> None:
        self.health = Health()
        self._connections_max = connections_max
        self._collector = TableCollector(
            NODE_TABLE if forwards else TABLE,
            lambda: Counters(connections_max=connections_max),
            backend=backend,
            kernel=kernel,
        )
        self._exposition = Exposition(
            listeners,
            self._collector,
            self.health,
            server_rows,
            say=say,
            descriptors_needed=descriptors_needed,
        )
        self.urls = self._exposition.urls

    def watch(self, server: Server, reactor: Reactor, sink: Sink) -> None:
        """Show this server from now on."""
        connections_max = self._connections_max
        self._collector.read = lambda: counters(
            server,
            reactor,
            sink,
            connections_max=connections_max,
            state=self.health.state(),
        )
        self.health.watch(server)

    def close(self) -> None:
        self._exposition.close()
