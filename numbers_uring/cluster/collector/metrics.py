"""The counters of owners for Prometheus, by partition.

They are read when somebody asks, of plain numbers that the owners keep anyway. How far each is
behind its stream is asked of the engine in the background, never by a scrape.
"""

import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from numbers_uring.cluster.collector.owner import PartitionOwner
from numbers_uring.limits import LINE_BYTES
from numbers_uring.metrics.exposition import Exposition, dropped_reports, info
from numbers_uring.metrics.health import Health


@dataclass(frozen=True, slots=True, kw_only=True)
class PartitionCounters:
    """Those of one partition at one moment, since the start of the run."""

    unique: int = 0
    duplicate: int = 0
    received_messages: int = 0
    received_bytes: int = 0
    redelivered_messages: int = 0
    acknowledged_messages: int = 0
    written_bytes: int = 0
    write_s: float = 0
    sync_s: float = 0
    held_back_s: float = 0
    log_numbers: int = 0
    """All that are in the log, those of earlier runs included."""
    lag_messages: int | None = None
    """None as long as the engine has not said it."""
    lease_age_s: float | None = None
    """None as long as there is no lease."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnersCounters:
    """All of them at one moment."""

    partitions: Mapping[int, PartitionCounters] = field(default_factory=dict)
    cluster_partitions: int = 0
    """How many the cluster was made with, owned by whomever; 0 before the engine was asked."""
    engine_connected: bool = False
    engine_reconnects: int = 0
    reports_dropped: int = 0


def counters(owner: PartitionOwner) -> PartitionCounters:
    """Read the counters of an owner, from any thread."""
    progress, log = owner.progress, owner.log
    return PartitionCounters(
        unique=progress.unique,
        duplicate=progress.duplicates,
        # In this order, so that never more are acknowledged than came.
        acknowledged_messages=owner.acknowledged_messages,
        redelivered_messages=owner.redelivered_messages,
        received_messages=owner.received_messages,
        received_bytes=owner.received_bytes,
        written_bytes=progress.unique * LINE_BYTES,
        write_s=log.write_s,
        sync_s=log.sync_s,
        held_back_s=owner.out_of_space.total_s,
        log_numbers=progress.numbers,
        lag_messages=owner.lag_messages,
        lease_age_s=owner.lease.age_s,
    )


_Value = Callable[[PartitionCounters], float | None]

_COUNTERS: tuple[tuple[str, str, _Value], ...] = (
    (
        "received_messages",
        "Messages delivered by the engine, redelivered ones included",
        lambda now: now.received_messages,
    ),
    ("received_bytes", "Bytes of the messages delivered", lambda now: now.received_bytes),
    (
        "redelivered_messages",
        "Messages delivered that had been delivered before",
        lambda now: now.redelivered_messages,
    ),
    (
        "acknowledged_messages",
        "Messages acknowledged: their numbers are on disk",
        lambda now: now.acknowledged_messages,
    ),
    (
        "log_written_bytes",
        "Bytes of lines written to the partition's log",
        lambda now: now.written_bytes,
    ),
    ("log_write_seconds", "Time spent writing the partition's log", lambda now: now.write_s),
    ("log_sync_seconds", "Time spent in syncs of the partition's log", lambda now: now.sync_s),
    (
        "held_back_seconds",
        "Time in which the stream waited because its log had no space",
        lambda now: now.held_back_s,
    ),
)
_GAUGES: tuple[tuple[str, str, _Value], ...] = (
    (
        "log_numbers",
        "Numbers in the partition's log, those of earlier runs included",
        lambda now: now.log_numbers,
    ),
    (
        "lag_messages",
        "Messages of the stream that are not acknowledged, as the engine said last",
        lambda now: now.lag_messages,
    ),
    (
        "lease_age_seconds",
        "Time since the partition's lease was said again last",
        lambda now: now.lease_age_s,
    ),
)


class OwnersCollector(Collector):
    """The metrics of owners that docs/metrics.md lists, made of what `read` returns."""

    def __init__(self, read: Callable[[], OwnersCounters], *, kernel: str) -> None:
        self.read = read
        self._kernel = kernel

    def collect(self) -> Iterator[Metric]:
        now = self.read()
        yield info(kernel=self._kernel)
        yield GaugeMetricFamily(
            "numbers_uring_owner_cluster_partitions",
            "Partitions of the cluster, whoever owns them",
            now.cluster_partitions,
        )
        yield GaugeMetricFamily(
            "numbers_uring_owner_engine_connected",
            "Whether there is a connection to the engine",
            now.engine_connected,
        )
        yield CounterMetricFamily(
            "numbers_uring_owner_engine_reconnects",
            "Connections to the engine made again after one was lost",
            now.engine_reconnects,
        )
        yield dropped_reports(now.reports_dropped)
        numbers = CounterMetricFamily(
            "numbers_uring_owner_numbers",
            "Numbers put on disk or found there, by what they were",
            labels=["partition", "result"],
        )
        for partition, each in now.partitions.items():
            numbers.add_metric([str(partition), "unique"], each.unique)
            numbers.add_metric([str(partition), "duplicate"], each.duplicate)
        yield numbers
        for make, families in ((CounterMetricFamily, _COUNTERS), (GaugeMetricFamily, _GAUGES)):
            for name, text, value in families:
                family = make(f"numbers_uring_owner_{name}", text, labels=["partition"])
                for partition, each in now.partitions.items():
                    # What is not known is not there: any number would be taken for the truth.
                    if (known := value(each)) is not None:
                        family.add_metric([str(partition)], known)
                yield family


class OwnerMetrics:
    """Serves /metrics and /healthz of owners on `listeners`, which it takes over.

    Until `tell` all counters are 0; until `health` is given a loop the owners count as starting.
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
        none = OwnersCounters(partitions=dict.fromkeys(partitions, PartitionCounters()))
        self._collector = OwnersCollector(lambda: none, kernel=kernel)
        self._exposition = Exposition(
            listeners,
            self._collector,
            self.health,
            say=say,
            descriptors_needed=descriptors_needed,
        )
        self.urls = self._exposition.urls

    def tell(
        self,
        owners: Sequence[PartitionOwner],
        cluster_partitions: int,
        *,
        engine: Callable[[], tuple[bool, int]],
        reports_dropped: Callable[[], int],
    ) -> None:
        """Tell of these owners from now on; `engine` says: connected, and how often again."""

        def read() -> OwnersCounters:
            connected, reconnects = engine()
            return OwnersCounters(
                partitions={owner.partition: counters(owner) for owner in owners},
                cluster_partitions=cluster_partitions,
                engine_connected=connected,
                engine_reconnects=reconnects,
                reports_dropped=reports_dropped(),
            )

        self._collector.read = read

    def close(self) -> None:
        self._exposition.close()
