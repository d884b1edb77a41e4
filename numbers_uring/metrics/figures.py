"""The figures of one process at a moment, as they are read from its metrics."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

Samples = Mapping[tuple[str, ...], float]
"""By name, followed by the values of its labels in the order of their names."""

COLLECTOR = "numbers_uring_collector"
"""Begins the names of the metrics that only collectors have."""


class Snapshot(NamedTuple):
    """All metrics of one process, and its state, at the same moment."""

    read_s: float
    """When, on the monotonic clock."""
    state: str
    """As /healthz names it."""
    info: Mapping[str, str]
    """The labels of numbers_uring_info."""
    samples: Samples

    @property
    def uptime_s(self) -> float | None:
        started_s = self.samples.get(("process_start_time_seconds",))
        return None if started_s is None else max(time.time() - started_s, 0.0)

    def whole(self, name: str) -> int | None:
        """Return the metric of that name; None if this process does not have it."""
        value = self.samples.get((name,))
        return None if value is None else int(value)

    def by_partition(self, name: str) -> dict[str, float]:
        """Return a metric of collectors, by partition; added up if it has further labels."""
        found: dict[str, float] = {}
        for labels, value in self.samples.items():
            if labels[0] == f"{COLLECTOR}_{name}":
                found[labels[1]] = found.get(labels[1], 0) + value
        return found

    def sum(self, name: str, *results: str) -> float:
        """Return a metric of collectors, of all partitions together."""
        return sum(
            value
            for labels, value in self.samples.items()
            if labels[0] == f"{COLLECTOR}_{name}" and labels[2:] == results
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What a server, or a node, is doing; None is what it does not tell."""

    read_s: float
    """When, on the monotonic clock."""
    state: str
    version: str
    backend: str
    kernel: str
    uptime_s: float | None
    unique: int
    duplicate: int
    received_bytes: int
    connections: int
    connections_max: int
    connections_waiting: int | None
    accepted: int
    held_back_s: float
    log_written_bytes: int
    acknowledged: int | None
    """Numbers, only of a node, as the next one."""
    in_flight: int | None

    @property
    def numbers(self) -> int:
        return self.unique + self.duplicate


def figures(now: Snapshot) -> Figures:
    """Return the figures of a server. Raises KeyError, ValueError and OverflowError."""

    def count(*labels: str) -> int:
        return int(now.samples[labels])

    return Figures(
        read_s=now.read_s,
        state=now.state,
        version=now.info["version"],
        backend=now.info["backend"],
        kernel=now.info["kernel"],
        uptime_s=now.uptime_s,
        unique=count("numbers_uring_numbers_total", "unique"),
        duplicate=count("numbers_uring_numbers_total", "duplicate"),
        received_bytes=count("numbers_uring_received_bytes_total"),
        connections=count("numbers_uring_connections"),
        connections_max=count("numbers_uring_connections_max"),
        connections_waiting=now.whole("numbers_uring_connections_waiting"),
        accepted=count("numbers_uring_connections_accepted_total"),
        held_back_s=now.samples["numbers_uring_held_back_seconds_total",],
        log_written_bytes=count("numbers_uring_log_written_bytes_total"),
        acknowledged=now.whole("numbers_uring_forward_acknowledged_total"),
        in_flight=now.whole("numbers_uring_forward_in_flight"),
    )


def rate(before: Figures | None, now: Figures, name: str) -> float | None:
    """Return how fast a counter grows a second; None if the server was started in between."""
    if before is None or now.accepted < before.accepted or now.numbers < before.numbers:
        return None
    grown: int = getattr(now, name) - getattr(before, name)
    return grown / (now.read_s - before.read_s)
