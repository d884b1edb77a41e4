"""The counters of collectors for Prometheus, by partition.

They are read when a client asks, from plain numbers that the collectors keep anyway.
"""

import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily

from numbers_uring.cluster.collector.collector import PartitionCollector
from numbers_uring.cluster.collector.membership import Membership
from numbers_uring.metrics.exposition import Exposition
from numbers_uring.metrics.families import Row, TableCollector, state_row
from numbers_uring.metrics.glance import collector_rows
from numbers_uring.metrics.health import Health, State


@dataclass(frozen=True, slots=True, kw_only=True)
class PartitionCounters:
    """A snapshot of what was counted for one partition since the start of the run."""

    unique: int = 0
    duplicate: int = 0
    received_messages: int = 0
    received_bytes: int = 0
    written_bytes: int = 0
    write_s: float = 0
    sync_s: float = 0
    held_back_s: float = 0
    log_numbers: int = 0
    """Including those of earlier runs."""
    sequence: int = 0
    """Of the last message whose numbers are on disk."""
    waiting_sequence: int = 0
    """Of the first message that it waits for; 0 where it does not wait."""
    lag_messages: int | None = None
    """None until the NATS server has reported it, as the next ones."""
    stream_bytes: int | None = None
    stream_bytes_max: int | None = None
    copies: int | None = None
    copies_differing: int = 0
    report_age_s: float | None = None
    """None until the NATS server has taken the first report."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CollectorsCounters:
    """A snapshot of the counters of all partitions, and of the process."""

    state: State = State.STARTING
    partitions: Mapping[int, PartitionCounters] = field(default_factory=dict)
    cluster_partitions: int = 0
    """How many the cluster was made with; 0 before the NATS server was asked."""
    nats_connected: bool = False
    nats_reconnects: int = 0
    reports_dropped: int = 0
    copies_wanted: int | None = None

    def by_partition(
        self, read: Callable[[PartitionCounters], float | None]
    ) -> dict[tuple[str, ...], float | None]:
        """Return what `read` finds, by the partition's label."""
        return {(str(partition),): read(each) for partition, each in self.partitions.items()}


def counters(collector: PartitionCollector, membership: Membership) -> PartitionCounters:
    """Read the counters of a collector, from any thread."""
    files, record, reader = collector.files, collector.record, collector.reader
    stream = membership.trimmer.streams.get(collector.partition)
    waits = None if reader is None else reader.waits
    return PartitionCounters(
        unique=collector.unique,
        duplicate=collector.duplicate,
        received_messages=0 if reader is None else reader.received_messages,
        received_bytes=0 if reader is None else reader.received_bytes,
        written_bytes=files.written_bytes,
        write_s=files.write_s,
        sync_s=files.sync_s,
        held_back_s=collector.out_of_space.total_s,
        log_numbers=record.count,
        sequence=record.sequence,
        waiting_sequence=0 if waits is None else waits.first_sequence,
        lag_messages=collector.lag_messages,
        stream_bytes=None if stream is None else stream.bytes,
        stream_bytes_max=None if stream is None else stream.bytes_max,
        copies=membership.copies.registered(collector.partition),
        copies_differing=membership.copies.differing(collector.partition),
        report_age_s=membership.report_age_s(collector.partition),
    )


# What docs/metrics.md lists.
TABLE: tuple[Row[CollectorsCounters], ...] = (
    state_row(lambda now: now.state),
    Row(
        GaugeMetricFamily,
        "numbers_uring_collector_cluster_partitions",
        "Partitions of the whole cluster",
        lambda now: now.cluster_partitions,
    ),
    Row(
        GaugeMetricFamily,
        "numbers_uring_collector_nats_connected",
        "Whether there is a connection to the NATS server",
        lambda now: now.nats_connected,
    ),
    Row(
        CounterMetricFamily,
        "numbers_uring_collector_nats_reconnects",
        "Connections to the NATS server made again after one was lost",
        lambda now: now.nats_reconnects,
    ),
    Row(
        CounterMetricFamily,
        "numbers_uring_reports_dropped",
        "Reports that could not be written, each merged into the next one",
        lambda now: now.reports_dropped,
    ),
    Row(
        CounterMetricFamily,
        "numbers_uring_collector_numbers",
        "Numbers taken in and on disk, by result",
        lambda now: {
            (str(partition), result): value
            for partition, each in now.partitions.items()
            for result, value in (("unique", each.unique), ("duplicate", each.duplicate))
        },
        labels=("partition", "result"),
    ),
    Row(
        CounterMetricFamily,
        "numbers_uring_collector_received_messages",
        "Messages of the stream that were read, those that were read again included",
        lambda now: now.by_partition(lambda each: each.received_messages),
        labels=("partition",),
    ),
    Row(
        CounterMetricFamily,
        "numbers_uring_collector_received_bytes",
        "Bytes of these messages",
        lambda now: now.by_partition(lambda each: each.received_bytes),
        labels=("partition",),
    ),
    Row(
        CounterMetricFamily,
        "numbers_uring_collector_log_written_bytes",
        "Bytes of lines written to the partition's log",
        lambda now: now.by_partition(lambda each: each.written_bytes),
        labels=("partition",),
    ),
    Row(
        CounterMetricFamily,
        "numbers_uring_collector_log_write_seconds",
        "Time spent writing to the partition's log",
        lambda now: now.by_partition(lambda each: each.write_s),
        labels=("partition",),
    ),
    Row(
        CounterMetricFamily,
        "numbers_uring_collector_log_sync_seconds",
        "Time spent syncing the partition's log",
        lambda now: now.by_partition(lambda each: each.sync_s),
        labels=("partition",),
    ),
    Row(
        CounterMetricFamily,
        "numbers_uring_collector_held_back_seconds",
        "Time during which the stream waited because its log had no space",
        lambda now: now.by_partition(lambda each: each.held_back_s),
        labels=("partition",),
    ),
    Row(
        GaugeMetricFamily,
        "numbers_uring_collector_log_numbers",
        "Numbers in the partition's log, including those of earlier runs",
        lambda now: now.by_partition(lambda each: each.log_numbers),
        labels=("partition",),
    ),
    Row(
        GaugeMetricFamily,
        "numbers_uring_collector_position",
        "The last message of the stream whose numbers are on disk, by its sequence",
        lambda now: now.by_partition(lambda each: each.sequence),
        labels=("partition",),
    ),
    Row(
        GaugeMetricFamily,
        "numbers_uring_collector_waiting_sequence",
        "The first message that the partition waits for, because it is missing or no batch, or 0",
        lambda now: now.by_partition(lambda each: each.waiting_sequence),
        labels=("partition",),
    ),
    Row(
        GaugeMetricFamily,
        "numbers_uring_collector_lag_messages",
        "Messages of the stream whose numbers are not on disk",
        lambda now: now.by_partition(lambda each: each.lag_messages),
        labels=("partition",),
    ),
    Row(
        GaugeMetricFamily,
        "numbers_uring_collector_stream_bytes",
        "What the stream holds on the NATS server's disk",
        lambda now: now.by_partition(lambda each: each.stream_bytes),
        labels=("partition",),
    ),
    Row(
        GaugeMetricFamily,
        "numbers_uring_collector_stream_bytes_max",
        "What the stream may hold at most",
        lambda now: now.by_partition(lambda each: each.stream_bytes_max),
        labels=("partition",),
    ),
    Row(
        GaugeMetricFamily,
        "numbers_uring_collector_copies",
        "Registered copies of the partition, this one included",
        lambda now: now.by_partition(lambda each: each.copies),
        labels=("partition",),
    ),
    Row(
        GaugeMetricFamily,
        "numbers_uring_collector_copies_wanted",
        "Copies of each partition that the cluster is to have",
        lambda now: now.copies_wanted,
    ),
    Row(
        GaugeMetricFamily,
        "numbers_uring_collector_copies_differing",
        "Other copies of the partition that differ from this one",
        lambda now: now.by_partition(lambda each: each.copies_differing),
        labels=("partition",),
    ),
    Row(
        GaugeMetricFamily,
        "numbers_uring_collector_report_age_seconds",
        "Time since the NATS server took the last report of this copy",
        lambda now: now.by_partition(lambda each: each.report_age_s),
        labels=("partition",),
    ),
)


class CollectorMetrics:
    """Serves /, /metrics and /healthz of collectors on `listeners`, which it takes over.

    Until `watch` all counters are 0; until `health` is given a loop the collectors are starting.
    For the other parameters see Exposition. Raises StartError.
    """

    def __init__(
        self,
        listeners: Sequence[socket.socket],
        partitions: Sequence[int],
        *,
        kernel: str,
        say: Callable[[str], None],
        descriptors_needed: int,
    ) -> None:
        self.health = Health()
        none = CollectorsCounters(partitions=dict.fromkeys(partitions, PartitionCounters()))
        self._collector = TableCollector(TABLE, lambda: none, kernel=kernel)
        self._exposition = Exposition(
            listeners,
            self._collector,
            self.health,
            collector_rows,
            say=say,
            descriptors_needed=descriptors_needed,
        )
        self.urls = self._exposition.urls

    def watch(
        self,
        collectors: Sequence[PartitionCollector],
        membership: Membership,
        cluster_partitions: int,
        *,
        broker: Callable[[], tuple[bool, int]],
        reports_dropped: Callable[[], int],
    ) -> None:
        """Show these collectors from now on; `broker` returns: connected, number of reconnects."""

        def read() -> CollectorsCounters:
            connected, reconnects = broker()
            return CollectorsCounters(
                state=self.health.state(),
                partitions={
                    collector.partition: counters(collector, membership) for collector in collectors
                },
                cluster_partitions=cluster_partitions,
                nats_connected=connected,
                nats_reconnects=reconnects,
                reports_dropped=reports_dropped(),
                copies_wanted=membership.copies.wanted,
            )

        self._collector.read = read

    def close(self) -> None:
        self._exposition.close()
