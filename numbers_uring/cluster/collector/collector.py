"""The collector of one partition: its stream's messages into its log, each number once.

Messages are taken in strictly in sequence, and each step depends on the earlier ones alone. So the
log is a function of the stream, whatever is killed, paused or restarted, and every collector of the
partition has the same.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from functools import partial
from typing import TYPE_CHECKING, Protocol

from numbers_uring.cluster.checkpoints import Checkpoints, Point
from numbers_uring.cluster.collector.files import PartitionFiles, Stream
from numbers_uring.cluster.collector.kernel import CollectKernel, ForeignNumberError
from numbers_uring.cluster.collector.reader import malformed
from numbers_uring.cluster.collector.waits import Wait
from numbers_uring.cluster.index import Record
from numbers_uring.cluster.tasks import end_tasks
from numbers_uring.errors import BackendError
from numbers_uring.limits import (
    COLLECTOR_WRITE_BYTES,
    COMMIT_INTERVAL_S,
    INDEX_SYNC_INTERVAL_S,
    LINE_BYTES,
    NO_SPACE_RETRY_S,
)
from numbers_uring.system.stopwatch import Stopwatch
from numbers_uring.words import counted

if TYPE_CHECKING:
    from numbers_uring.cluster.collector.feed import Message


class MessageReader(Protocol):
    """What a collector needs of a Reader."""

    received_messages: int
    received_bytes: int
    last_sequence: int | None

    @property
    def waits(self) -> Wait | None: ...
    async def read(self) -> "Sequence[Message]": ...
    def refuse(self, message: "Message", why: str) -> None: ...
    async def close(self) -> None: ...


class PartitionCollector:
    """Takes in one partition, with a `reader` that begins behind what `start` has found.

    `say` takes one line for the operator. What it counts may be read from any thread.
    """

    def __init__(
        self,
        partition: int,
        *,
        files: PartitionFiles,
        kernel: CollectKernel,
        pool: Executor,
        say: Callable[[str], None],
    ) -> None:
        self.partition = partition
        self.files = files
        self.reader: MessageReader | None = None
        """None before the start."""
        self.out_of_space = Stopwatch()
        self.unique = 0
        """Numbers of this run that are on disk, in the log."""
        self.duplicate = 0
        """Repeats of this run, likewise."""
        self.checkpoints = Checkpoints()
        self.step_s: float | None = None
        """Since when a thread is in a step, of which the longest is a sync; None where in none."""
        self._kernel = kernel
        self._pool = pool
        self._say = say
        self._first_count = 0
        self._written_bytes = 0
        """Of the kernel's batch."""
        self._position = (0, 0)
        """The last message that was taken in, and its time."""
        self._committed_s = 0.0
        self._synced_s = 0.0
        self._lacks_space = False
        self._bad: str | None = None
        self._tail_said = False

    @property
    def record(self) -> Record:
        """What of the log is on disk."""
        return self.files.record

    @property
    def lag_messages(self) -> int | None:
        """Messages of the stream whose numbers are not on disk; None if that is not known."""
        last = None if self.reader is None else self.reader.last_sequence
        return None if last is None else max(0, last - self.record.sequence)

    def start(
        self,
        stream: Stream,
        *,
        replay: bool,
        progress: Callable[[str], None],
        stop_requested: Callable[[], bool],
    ) -> None:
        """Start the files, as PartitionFiles.start does."""
        self.files.start(
            self._kernel, stream, replay=replay, progress=progress, stop_requested=stop_requested
        )
        record = self.record
        self._first_count = record.count
        self._position = record.sequence, record.message_time_ns
        self.checkpoints = Checkpoints(
            Point(each.sequence, each.count, each.sum)
            for each in self.files.records.of_last_stream()
        )

    async def run(self, stop: asyncio.Event) -> None:
        """Take in until `stop` is set. Raises SinkError, and what the reader raises."""
        assert self.reader is not None
        try:
            await self._collect(self.reader, stop)
        except BackendError:
            # What was taken in is right.
            await self._in_pool(partial(self._commit, is_last=True))
            raise
        finally:
            await self.reader.close()
        await self._in_pool(partial(self._commit, is_last=True))

    async def _collect(self, reader: MessageReader, stop: asyncio.Event) -> None:
        stopped = asyncio.create_task(stop.wait())
        read: asyncio.Task[Sequence[Message]] | None = None
        try:
            while not stop.is_set():
                # While messages are written and synced the reader has the next ones sent.
                read = read or asyncio.create_task(reader.read())
                await asyncio.wait(
                    {read, stopped},
                    timeout=self._commit_due_s,
                    return_when=asyncio.FIRST_COMPLETED,
                )
                messages: Sequence[Message] = ()
                if read.done():
                    messages, read = read.result(), None
                    if not messages:
                        self._look_at_tail(reader)
                taken = await self._process(messages, stop)
                if self._bad is not None:
                    reader.refuse(messages[taken], self._bad)
                    self._bad = None
        finally:
            # What a read that is not looked at any more has failed with is found at the next start.
            await end_tasks(stopped, *(() if read is None else (read,)))

    @property
    def _commit_due_s(self) -> float | None:
        """In how many seconds the next commit is due; None if there is nothing to commit."""
        if self._position[0] != self.record.sequence:
            due_s = self._committed_s + COMMIT_INTERVAL_S
        elif self.files.synced != self.record:
            due_s = self._index_due_s
        else:
            return None
        return max(0.0, due_s - time.monotonic())

    @property
    def _index_due_s(self) -> float:
        """When the index is to be synced, on time.monotonic's clock."""
        return self._synced_s + INDEX_SYNC_INTERVAL_S

    async def _process(self, messages: "Sequence[Message]", stop: asyncio.Event) -> int:
        """Take in messages, and commit if that is due; return how many of them were taken in."""
        taken = 0
        while True:
            taken += await self._in_pool(partial(self._take_in, messages[taken:]))
            if not self._lacks_space:
                if self.out_of_space.runs:
                    self.out_of_space.stop()
                    self._say(f"there is space for the log {self.files.log_path} again: continuing")
                return taken
            if not self.out_of_space.runs:
                self.out_of_space.start()
                self._say(
                    f"no space for the log {self.files.log_path}: its stream waits, retrying every "
                    f"{NO_SPACE_RETRY_S:g} s"
                )
            try:
                async with asyncio.timeout(NO_SPACE_RETRY_S):
                    await stop.wait()
                return taken
            except TimeoutError:
                pass

    async def _in_pool(self, step: Callable[[], int]) -> int:
        return await asyncio.get_running_loop().run_in_executor(self._pool, self._timed, step)

    def _look_at_tail(self, reader: MessageReader) -> None:
        """Report once that the stream has ended before the log."""
        at_end = reader.last_sequence == self._position[0] and reader.waits is None
        if self.files.tail_bytes and at_end and not self._tail_said:
            self._tail_said = True
            self._say(
                f"the log {self.files.log_path} has {counted(self.files.tail_bytes, 'byte')} that "
                "no message of its stream has brought, up to message "
                f"{self._position[0]}, its last one"
            )

    # In a thread of the pool.

    def _timed(self, step: Callable[[], int]) -> int:
        self.step_s = time.monotonic()
        try:
            return step()
        finally:
            self.step_s = None

    def _take_in(self, messages: "Sequence[Message]") -> int:
        """Return how many messages, from the first on, are in the log or in the batch.

        The next one is a bad one, or there is no space. Raises SinkError.
        """
        self._lacks_space = False
        taken = 0
        for message in messages:
            if not message.skipped:
                if not self._kernel.fits(len(message.data)) and not self._write():
                    return taken
                self._bad = malformed(message) or self._take(message.data)
                if self._bad is not None:
                    break
            self._position = message.sequence, message.time_ns
            point = Point(message.sequence, self._kernel.unique, self._kernel.sum)
            self.checkpoints.note(point, message.time_ns)
            taken += 1
            if len(self._kernel.lines()) >= COLLECTOR_WRITE_BYTES and not self._write():
                return taken
        if self._write() and self._commit_due_s == 0:
            self._commit()
        return taken

    def _take(self, data: bytes) -> str | None:
        """Take in a message; return why it is none of this partition, or None."""
        try:
            self._kernel.take(data)
        except ForeignNumberError:
            return "holds something else than whole numbers of this partition"
        return None

    def _write(self) -> bool:
        """Write the batch; return False if there is no space for all of it."""
        lines = self._kernel.lines()
        if self._written_bytes < len(lines):
            self._written_bytes += self.files.append(lines[self._written_bytes :])
            self._lacks_space = self._written_bytes < len(lines)
            if self._lacks_space:
                return False
        self._kernel.clear()
        self._written_bytes = 0
        return True

    def _commit(self, *, is_last: bool = False) -> int:
        """Sync what was written, and record it in the index; sync that as well if it is due."""
        if not self._write():
            return 0
        if self._position[0] != self.record.sequence:
            self._record_position()
        index_is_due = is_last or time.monotonic() >= self._index_due_s
        if index_is_due and self.files.synced != self.record and not self._lacks_space:
            self._sync_index()
        return 0

    def _record_position(self) -> None:
        # What is counted is read before the sync, and shown after it.
        unique, duplicate = self._kernel.unique, self._kernel.duplicate
        sequence, time_ns = self._position
        records = [self._record(Point(sequence, unique, self._kernel.sum), time_ns)]
        landmark = self.checkpoints.landmark
        if landmark is not None and landmark.point.sequence < sequence:
            records.insert(0, self._record(landmark.point, landmark.time_ns))
        self._lacks_space = not self.files.commit(*records)
        if not self._lacks_space:
            self.checkpoints.recorded()
            self.unique, self.duplicate = unique - self._first_count, duplicate
            self._committed_s = time.monotonic()

    def _sync_index(self) -> None:
        """Have the index on disk up to the position, which may be told then."""
        self._lacks_space = not self.files.sync()
        if not self._lacks_space:
            self.checkpoints.synced()
            self._synced_s = time.monotonic()

    def _record(self, point: Point, time_ns: int) -> Record:
        return Record(
            partition=self.record.partition,
            partitions=self.record.partitions,
            stream_created_ns=self.record.stream_created_ns,
            sequence=point.sequence,
            message_time_ns=time_ns,
            log_bytes=point.numbers * LINE_BYTES,
            sum=point.sum,
        )
