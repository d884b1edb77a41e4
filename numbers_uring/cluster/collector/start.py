"""The steps of a start of collectors: files, where their logs go on, and readers."""

import asyncio
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from numbers_uring.cluster.collector.collector import PartitionCollector
from numbers_uring.cluster.collector.files import PartitionFiles, Stream
from numbers_uring.cluster.collector.kernel import CollectKernel
from numbers_uring.cluster.collector.lookup import (
    Lookup,
    NoAnswerError,
    NoStreamError,
    StreamState,
    read_state,
)
from numbers_uring.cluster.collector.membership import Membership
from numbers_uring.cluster.collector.reader import Reader
from numbers_uring.cluster.partitions import parse_partitions, range_of, stream_name
from numbers_uring.cluster.streams import check_streams, recorded_partitions
from numbers_uring.cluster.tasks import each_of
from numbers_uring.errors import StartError
from numbers_uring.ingest.bitmap import populate, reserve
from numbers_uring.limits import COLLECTOR_BATCH_BYTES, COLLECTOR_THREADS_MAX, READ_OPENS_MAX
from numbers_uring.system.descriptors import raise_descriptor_limit
from numbers_uring.system.diagnostics import Diagnostics
from numbers_uring.words import counted

if TYPE_CHECKING:
    from nats.js import JetStreamContext

_FILES = 2
"""Of each partition: its log and its index. While an index is replaced, two more are open."""


def files_max(partitions: int) -> int:
    """Return how many files collectors of so many partitions have open at most."""
    return _FILES * (partitions + min(partitions, COLLECTOR_THREADS_MAX))


async def choose_partitions(js: "JetStreamContext", text: str) -> tuple[list[int], int]:
    """Return the partitions that `text` names, such as 0-3,8, and how many the cluster has.

    Checks their streams, and raises the limit of descriptors. Raises StartError.
    """
    partitions = await recorded_partitions(js)
    try:
        chosen = parse_partitions(text, partitions)
    except ValueError as error:
        raise StartError(f"the cluster has {counted(partitions, 'partition')}: {error}") from error
    raise_descriptor_limit(files_max(len(chosen)), f"--partitions {text}")
    await check_streams(js, partitions)
    return chosen, partitions


class Start:
    """The start of some collectors of a cluster with so many `partitions`, with threads of `pool`.

    Its steps are called in the order in which they are here. `inform` takes a line that is no
    warning, and that a service manager may show.
    """

    def __init__(
        self,
        js: "JetStreamContext",
        partitions: int,
        pool: ThreadPoolExecutor,
        *,
        say: Diagnostics,
        inform: Callable[[str], None],
    ) -> None:
        self._js = js
        self._partitions = partitions
        self._pool = pool
        self._say = say
        self._inform = inform
        # Of all numbers; memory is taken for what is touched: the collected ones' bytes.
        self._bitmap = reserve()

    def open(
        self,
        parts: AsyncExitStack,
        chosen: Sequence[int],
        folder: Path,
        collectors: list[PartitionCollector],
    ) -> None:
        """Open and lock all files, which `parts` closes; add to `collectors`. Raises StartError."""
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StartError(f"cannot make the folder {folder}: {error.strerror}") from error
        for partition in chosen:
            files = PartitionFiles(
                folder, partition, self._partitions, say=self._say, inform=self._inform
            )
            parts.callback(files.close)
            collectors.append(
                PartitionCollector(
                    partition,
                    files=files,
                    kernel=CollectKernel(
                        range_of(partition, self._partitions), self._bitmap, COLLECTOR_BATCH_BYTES
                    ),
                    pool=self._pool,
                    say=self._say,
                )
            )

    async def ask_states(self, chosen: Sequence[int]) -> list[StreamState]:
        """Ask for the streams of these. Raises StartError, and what the client raises."""
        return await each_of(chosen, self._ask_state)

    async def _ask_state(self, partition: int) -> StreamState:
        try:
            return await read_state(self._js, stream_name(partition))
        except NoStreamError as error:
            raise StartError(f"the stream {stream_name(partition)} is gone") from error

    async def resume(
        self,
        collectors: Sequence[PartitionCollector],
        states: Sequence[StreamState],
        *,
        replay: bool,
        stop_requested: Callable[[], bool],
        halt: threading.Event,
    ) -> None:
        """Take up all logs, several at once; `halt` ends that, and is set where one cannot be.

        Raises StartError, and StopRequestedError if `stop_requested` returns True on the way.
        """
        loop = asyncio.get_running_loop()
        pairs = list(zip(collectors, states, strict=True))
        put_back = [False] * len(pairs)
        if replay:
            put_back = await each_of(pairs, lambda pair: self._was_put_back(*pair))

        def start(collector: PartitionCollector, state: StreamState, was_put_back: bool) -> None:
            collected = range_of(collector.partition, self._partitions)
            if collected.first < collected.end:
                populate(self._bitmap, collected.first // 8, -(-collected.end // 8))
            collector.start(
                Stream(
                    created_ns=state.created_ns,
                    first_sequence=state.first_sequence,
                    was_put_back=was_put_back,
                ),
                replay=replay,
                progress=self._inform,
                stop_requested=lambda: stop_requested() or halt.is_set(),
            )

        tasks = [
            loop.run_in_executor(self._pool, start, *pair, was_put_back)
            for pair, was_put_back in zip(pairs, put_back, strict=True)
        ]
        try:
            await asyncio.gather(*tasks)
        except BaseException:
            halt.set()
            await asyncio.gather(*tasks, return_exceptions=True)
            raise

    async def _was_put_back(self, collector: PartitionCollector, state: StreamState) -> bool:
        """Return whether the stream lacks the last message that is in the log."""
        records, stream = collector.files.records, stream_name(collector.partition)
        if not records or records[-1].stream_created_ns != state.created_ns:
            return False
        last = records[-1]
        if state.last_sequence < last.sequence:
            return True
        if not last.message_time_ns or state.first_sequence > last.sequence:
            return False
        try:
            return await Lookup(self._js, stream).is_other(last.sequence, last.message_time_ns)
        except NoAnswerError as error:
            raise StartError(
                f"cannot ask for message {last.sequence} of the stream {stream}: no answer"
            ) from error

    def make_readers(
        self,
        collectors: Sequence[PartitionCollector],
        states: Sequence[StreamState],
        membership: Membership,
    ) -> None:
        """Give each collector a reader that begins where its log ends."""
        opens = asyncio.Semaphore(READ_OPENS_MAX)
        for collector, state in zip(collectors, states, strict=True):
            record = collector.record
            collector.reader = Reader(
                self._js,
                collector.partition,
                position=record.sequence,
                time_ns=record.message_time_ns,
                created_ns=state.created_ns,
                skipped=membership.skips[collector.partition],
                say=self._say,
                inform=self._say.info,
                passed_by=partial(membership.copies.passed_by, collector.partition),
                tail_bytes=partial(_tail_bytes, collector),
                opens=opens,
            )


def _tail_bytes(collector: PartitionCollector) -> int:
    return collector.files.tail_bytes
