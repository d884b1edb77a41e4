"""Metric families from tables: one row for each, with its name, its help text and where it is read.

A table has all metrics of one kind of process; what it is read from is a snapshot of counters.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from numbers_uring.metrics.exposition import info
from numbers_uring.metrics.health import State

Counters = TypeVar("Counters")
Value = float | None
"""Unknown values are None: they are left out of what is shown."""


@dataclass(frozen=True, slots=True)
class Row(Generic[Counters]):
    """One family of metrics. `read` returns its value, or with `labels` one for each of theirs."""

    kind: type[CounterMetricFamily] | type[GaugeMetricFamily]
    name: str
    help: str
    read: Callable[[Counters], Value | Mapping[tuple[str, ...], Value]]
    labels: tuple[str, ...] = ()

    def family(self, now: Counters) -> Metric:
        found = self.read(now)
        values = found if isinstance(found, Mapping) else {(): found}
        family = self.kind(self.name, self.help, labels=self.labels)
        for labels, value in values.items():
            if value is not None:
                family.add_metric(labels, value)
        return family


def state_row(read: Callable[[Counters], State]) -> Row[Counters]:
    """Return the row of the state that /healthz names."""
    return Row(
        GaugeMetricFamily,
        "numbers_uring_state",
        "Whether the process is in this state, as /healthz names it",
        lambda now: {(state,): state is read(now) for state in State},
        labels=("state",),
    )


class TableCollector(Collector, Generic[Counters]):
    """The metrics of `table`, made of what `read` returns, and the version with what was `chosen`.

    `read` may be replaced at any time.
    """

    def __init__(
        self, table: Sequence[Row[Counters]], read: Callable[[], Counters], **chosen: str
    ) -> None:
        self.read = read
        self._table = table
        self._chosen = chosen

    def collect(self) -> Iterator[Metric]:
        now = self.read()
        yield info(**self._chosen)
        for row in self._table:
            yield row.family(now)
