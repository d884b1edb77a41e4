"""A process's part in the cluster: what it reports, what is reported to it, and trimming."""

import asyncio
from bisect import bisect_right
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from numbers_uring.cluster.bucket import Buckets
from numbers_uring.cluster.collector.collector import PartitionCollector
from numbers_uring.cluster.collector.copies import Copies
from numbers_uring.cluster.collector.copy_report import CopyReport, Progress
from numbers_uring.cluster.collector.identity import identify
from numbers_uring.cluster.collector.lookup import StreamState
from numbers_uring.cluster.collector.skips import Skips
from numbers_uring.cluster.collector.trim import Trimmer, TrimSource
from numbers_uring.cluster.comparison import NO_SPACE, Floor
from numbers_uring.cluster.index import Record
from numbers_uring.cluster.values import Contents

if TYPE_CHECKING:
    from nats.js import JetStreamContext


class Membership:
    """The copies of `collectors`, whose streams are as `states` say, with their files in `folder`.

    `say` takes one line for the operator, `inform` one that is no warning. The constructor raises
    StartError.
    """

    def __init__(
        self,
        js: "JetStreamContext",
        collectors: Sequence[PartitionCollector],
        states: Sequence[StreamState],
        folder: Path,
        *,
        say: Callable[[str], None],
        inform: Callable[[str], None],
    ) -> None:
        buckets = Buckets(js)
        identity = identify(folder)
        self.skips = {
            collector.partition: Skips(collector.partition, state.created_ns)
            for collector, state in zip(collectors, states, strict=True)
        }
        """By partition: what operators have decided to skip, as it was read last."""
        self.started = asyncio.Event()
        """To be set when all collectors know where to go on."""
        self._reports = {
            collector.partition: CopyReport(
                collector.partition,
                collector.files.log_path,
                state.created_ns,
                partial(progress_of, collector),
                buckets=buckets,
                identity=identity,
            )
            for collector, state in zip(collectors, states, strict=True)
        }
        self.copies = Copies(
            list(self._reports.values()), buckets, identity, say=say, inform=inform
        )
        self.trimmer = Trimmer(
            js,
            buckets,
            [
                TrimSource(
                    partition=collector.partition,
                    stream_created_ns=state.created_ns,
                    record_before=partial(_record_before, collector),
                )
                for collector, state in zip(collectors, states, strict=True)
            ],
            differs=lambda partition: self.copies.differing(partition) > 0,
            say=say,
        )

    async def register(self) -> None:
        """Register all copies, and read what there is. Raises as Copies.register does."""
        self._note_skips(await self.copies.register())

    async def tend(self) -> None:
        """Report until cancelled; compare and trim once `started` is set. Raises CopyInUseError."""
        await self.copies.tend(self.started, self._look_at)

    async def _look_at(self, contents: Contents) -> None:
        self._note_skips(contents)
        await self.trimmer.round(contents)

    def _note_skips(self, contents: Contents) -> None:
        for skips in self.skips.values():
            skips.update(contents.skips)

    def report_age_s(self, partition: int) -> float | None:
        """Return how long ago the bucket took the last report; None before the first one."""
        return self._reports[partition].age_s


def has_started(collector: PartitionCollector) -> bool:
    """Return whether the collector knows where to go on."""
    return collector.record.stream_created_ns != 0


def progress_of(collector: PartitionCollector) -> Progress | None:
    """Return what the collector has on disk; None before it has started."""
    if not has_started(collector):
        return None
    # In this order: the points of a record are told after it.
    points, record = collector.checkpoints.told, collector.files.synced
    waits = None if collector.reader is None else collector.reader.waits
    state = "waiting" if waits is not None else "collecting"
    return Progress(
        stream_created_ns=record.stream_created_ns,
        sequence=record.sequence,
        message_time_ns=record.message_time_ns,
        log_bytes=record.log_bytes,
        count=record.count,
        sum=record.sum,
        points=points,
        taken=collector.unique + collector.duplicate,
        state=NO_SPACE if collector.out_of_space.runs else state,
        waits=None if waits is None else waits.text,
    )


def _record_before(collector: PartitionCollector, limit_ns: int) -> Floor | None:
    # An index that was replaced by a thinned one has other records.
    return record_before(collector.files.records, limit_ns)


def record_before(records: Sequence[Record], limit_ns: int) -> Floor | None:
    """Return the last record of the last stream whose message is not younger than `limit_ns`."""
    if not records:
        return None
    created_ns = records[-1].stream_created_ns
    # A record of a message that was skipped has no time: it ends what is looked at.
    at = bisect_right(records, limit_ns, key=lambda record: record.message_time_ns)
    while at:
        at -= 1
        record = records[at]
        if record.stream_created_ns != created_ns:
            return None
        if 0 < record.message_time_ns <= limit_ns:
            return Floor(record.sequence, record.message_time_ns, record.sequence)
    return None
