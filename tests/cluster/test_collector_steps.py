"""A collector with a scripted reader and disk: how messages come makes no difference to the log."""

import asyncio
import errno
import gc
import os
from array import array
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from itertools import chain, pairwise
from mmap import mmap
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from numbers_uring.cluster.collector import collector as collector_module
from numbers_uring.cluster.collector.collector import PartitionCollector
from numbers_uring.cluster.collector.feed import Message
from numbers_uring.cluster.collector.files import PartitionFiles, Stream
from numbers_uring.cluster.collector.kernel import CollectKernel
from numbers_uring.cluster.collector.membership import progress_of
from numbers_uring.cluster.collector.waits import Wait
from numbers_uring.cluster.index import RECORD_BYTES, read_index
from numbers_uring.cluster.partitions import index_name, log_name, range_of
from numbers_uring.errors import BackendError
from numbers_uring.limits import BITMAP_BYTES, COLLECTOR_BATCH_BYTES
from numbers_uring.log.calls import FileCalls
from support.logs import lines
from support.waiting import DEADLINE_S

PARTITIONS = 1024
BITMAP = mmap(-1, BITMAP_BYTES)


def message(sequence: int, *places: int, partition: int = 5) -> Message:
    """Return a message with numbers of the partition, by their place in it."""
    first = range_of(partition, PARTITIONS).first
    data = array("I", [first + place for place in places]).tobytes()
    return Message(sequence, 1000 + sequence, data, None)


def log_of(messages: Sequence[Message]) -> bytes:
    numbers = chain.from_iterable(array("I", each.data) for each in messages)
    return lines(list(dict.fromkeys(numbers)))


class ScriptedReader:
    """Returns batches one after the other, then nothing, or raises what comes last."""

    def __init__(self, batches: Sequence[Sequence[Message]], end: Exception | None = None) -> None:
        self.received_messages = self.received_bytes = 0
        self.last_sequence: int | None = None
        self.waits: Wait | None = None
        self.refused: list[tuple[int, str]] = []
        self.closed = False
        self.lag_messages: int | None = None
        self._batches = deque(batches)
        self._end = end
        self._returned: Sequence[Message] = ()

    async def read(self) -> Sequence[Message]:
        if self._batches:
            self._returned = self._batches.popleft()
            return self._returned
        if self._end is not None:
            raise self._end
        await asyncio.sleep(0.01)
        return ()

    def refuse(self, message: Message, why: str) -> None:
        """Return it again as one that is skipped, and those behind it."""
        self.refused.append((message.sequence, why))
        rest = [each for each in self._returned if each.sequence > message.sequence]
        self._batches.appendleft([message._replace(data=b"", skipped=True), *rest])

    async def close(self) -> None:
        self.closed = True


class Disk:
    """write(2) that has space for so many bytes at a time: one list entry for each refill."""

    def __init__(self, *free_bytes: int) -> None:
        self._free = deque(free_bytes)

    def write(self, fd: int, data: memoryview) -> int:
        if not self._free:
            return os.write(fd, data)
        if self._free[0] <= 0:
            self._free.popleft()
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        size = os.write(fd, data[: self._free[0]])
        self._free[0] -= size
        return size


class Run:
    """Collectors of partitions in one event loop, with a pool of one thread."""

    def __init__(self, running: ExitStack) -> None:
        self.said: list[str] = []
        self.stop = asyncio.Event()
        self._pool = running.enter_context(ThreadPoolExecutor(1))
        self._running = running

    def collector(
        self,
        folder: Path,
        reader: ScriptedReader,
        disk: Disk | None = None,
        partition: int = 5,
        calls: FileCalls | None = None,
    ) -> PartitionCollector:
        kernel = CollectKernel(range_of(partition, PARTITIONS), BITMAP, COLLECTOR_BATCH_BYTES)
        kernel.reset()
        files = PartitionFiles(
            folder,
            partition,
            PARTITIONS,
            say=self.said.append,
            inform=lambda _text: None,
            calls=calls or (FileCalls() if disk is None else FileCalls(write=disk.write)),
        )
        self._running.callback(files.close)
        collector = PartitionCollector(
            partition, files=files, kernel=kernel, pool=self._pool, say=self.said.append
        )
        collector.start(
            Stream(created_ns=1, first_sequence=1),
            replay=False,
            progress=lambda _text: None,
            stop_requested=lambda: False,
        )
        collector.reader = reader
        return collector

    async def until(self, condition: Callable[[], bool], *collectors: PartitionCollector) -> None:
        """Run the collectors until the condition holds, then stop them."""
        tasks = [asyncio.create_task(each.run(self.stop)) for each in collectors]
        async with asyncio.timeout(DEADLINE_S):
            while not condition() and not any(task.done() for task in tasks):
                await asyncio.sleep(0.001)
            self.stop.set()
            await asyncio.gather(*tasks)


def run(use: Callable[[Run], Coroutine[Any, Any, None]]) -> list[str]:
    """Run a test in an event loop; return what collectors said."""

    async def main() -> list[str]:
        with ExitStack() as running:
            made = Run(running)
            await use(made)
            return made.said

    return asyncio.run(main())


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collector_module, "NO_SPACE_RETRY_S", 0.001)


MESSAGES = [
    message(1, *range(20)),
    message(2, 3, 4, 30),
    message(3, 3, 4),
    message(4, *range(100, 60, -1)),
    message(5, 1000, 2),
]


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_how_messages_come_and_when_there_is_space_makes_no_difference(data: st.DataObject) -> None:
    messages = [
        message(sequence, *places)
        for sequence, places in enumerate(
            data.draw(st.lists(st.lists(st.integers(0, 50), min_size=1, max_size=20), max_size=8)),
            1,
        )
    ]
    cuts = sorted(data.draw(st.sets(st.integers(0, len(messages)))) | {0, len(messages)})
    batches = [messages[a:b] for a, b in pairwise(cuts)]
    disk = Disk(*data.draw(st.lists(st.integers(0, 300), max_size=8)))
    with TemporaryDirectory() as name:
        folder = Path(name)

        async def collect(made: Run) -> None:
            collector = made.collector(folder, ScriptedReader(batches), disk)
            await made.until(lambda: collector.record.sequence == len(messages), collector)
            assert collector.unique == len(log_of(messages)) // 10
            assert collector.unique + collector.duplicate == sum(
                len(each.data) // 4 for each in messages
            )

        said = run(collect)
        assert (folder / log_name(5)).read_bytes() == log_of(messages)
        if messages:
            last = read_index(folder / index_name(5)).records[-1]
            assert (last.sequence, last.message_time_ns) == (len(messages), 1000 + len(messages))
        lacks = [line for line in said if "no space for the log" in line]
        assert len(lacks) == sum("there is space for the log" in line for line in said)


def test_a_full_disk_of_one_partition_holds_up_no_other_one(tmp_path: Path) -> None:
    full = Disk(*[0] * 10**6)
    others = [message(sequence, sequence, partition=6) for sequence in range(1, 50)]

    async def collect(made: Run) -> None:
        stuck = made.collector(tmp_path, ScriptedReader([MESSAGES]), full)
        reader = ScriptedReader([[each] for each in others])
        other = made.collector(tmp_path, reader, partition=6)
        await made.until(lambda: other.record.sequence == len(others), stuck, other)
        assert stuck.record.sequence == 0
        assert stuck.out_of_space.runs
        assert stuck.step_s is None

    said = run(collect)
    assert len([line for line in said if "no space for the log" in line]) == 1
    # What was not on file at the stop comes again.

    async def collect_the_rest(made: Run) -> None:
        collector = made.collector(tmp_path, ScriptedReader([MESSAGES]))
        await made.until(lambda: collector.record.sequence == len(MESSAGES), collector)

    run(collect_the_rest)
    assert (tmp_path / log_name(5)).read_bytes() == log_of(MESSAGES)


def test_a_full_disk_that_has_the_log_but_not_the_index_is_the_same(tmp_path: Path) -> None:
    log_bytes = len(log_of(MESSAGES))

    async def collect(made: Run) -> None:
        collector = made.collector(
            tmp_path, ScriptedReader([MESSAGES]), Disk(log_bytes + RECORD_BYTES // 2, 10, 0)
        )
        await made.until(lambda: collector.record.sequence == len(MESSAGES), collector)
        assert not collector.out_of_space.runs

    said = run(collect)
    assert [line.split(" the log")[0] for line in said] == ["no space for", "there is space for"]
    assert (tmp_path / log_name(5)).read_bytes() == log_of(MESSAGES)


BAD = {
    "torn": b"12345",
    "foreign": array("I", [range_of(6, PARTITIONS).first]).tobytes(),
    "long": bytes(1024 * 1024),
    "empty": b"",
}


@pytest.mark.parametrize("place", [0, 2, 4])
@pytest.mark.parametrize("data", BAD.values(), ids=BAD)
def test_a_message_that_is_no_batch_is_refused_and_what_is_before_it_is_on_disk(
    tmp_path: Path, data: bytes, place: int
) -> None:
    batch = [*MESSAGES]
    batch[place] = batch[place]._replace(data=data)
    good = [each for each in MESSAGES if each.sequence != place + 1]
    reader = ScriptedReader([batch])

    async def collect(made: Run) -> None:
        collector = made.collector(tmp_path, reader)
        await made.until(lambda: collector.record.sequence == len(MESSAGES), collector)

    run(collect)
    assert [sequence for sequence, _ in reader.refused] == [place + 1]
    assert (tmp_path / log_name(5)).read_bytes() == log_of(good)
    assert reader.closed


def test_what_was_taken_in_before_the_reader_failed_is_on_disk(tmp_path: Path) -> None:
    reader = ScriptedReader([MESSAGES], end=BackendError("no stream"))

    async def collect(made: Run) -> None:
        collector = made.collector(tmp_path, reader)
        with pytest.raises(BackendError, match="no stream"):
            await made.until(lambda: False, collector)
        assert collector.record.sequence == len(MESSAGES)

    run(collect)
    assert read_index(tmp_path / index_name(5)).records[-1].sequence == len(MESSAGES)
    assert reader.closed


def test_a_reader_that_fails_while_the_collector_stops_leaves_no_traceback(tmp_path: Path) -> None:
    class Late(ScriptedReader):
        """Fails in the moment in which it is no longer asked for."""

        async def read(self) -> Sequence[Message]:
            try:
                return await super().read()
            except asyncio.CancelledError:
                raise BackendError("no stream") from None

    async def collect(made: Run) -> None:
        unnoticed: list[dict[str, Any]] = []
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: unnoticed.append(context))
        collector = made.collector(tmp_path, Late([MESSAGES]))
        await made.until(lambda: collector.record.sequence == len(MESSAGES), collector)
        gc.collect()
        assert unnoticed == []

    run(collect)


def test_a_busy_log_has_few_records_and_an_idle_one_its_last_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collector_module, "COMMIT_INTERVAL_S", 0.5)
    messages = [message(sequence, sequence) for sequence in range(1, 201)]

    async def collect(made: Run) -> None:
        collector = made.collector(tmp_path, ScriptedReader([[each] for each in messages]))
        # No message comes behind the last one, and no stop.
        await made.until(lambda: collector.record.sequence == len(messages), collector)

    run(collect)
    # The base, and two for each time: the last message, and one that copies are compared by.
    assert len(read_index(tmp_path / index_name(5)).records) < 20


class SyncedIndex:
    """fdatasync(2) that counts which records of the index it has made last, and may lack space."""

    def __init__(self, folder: Path, fails_every: int = 0) -> None:
        self.sequence = 0
        self.calls = 0
        self._folder = folder
        self._fails_every = fails_every

    def __call__(self, fd: int) -> None:
        path = Path(f"/proc/self/fd/{fd}").readlink()
        if path.name.startswith(index_name(5)):
            self.calls += 1
            if self._fails_every and self.calls % self._fails_every == 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self.sequence = read_index(path).records[-1].sequence
        os.fdatasync(fd)


@pytest.mark.parametrize("fails_every", [0, 2])
def test_what_a_copy_reports_is_in_its_synced_index_and_an_idle_one_reports_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails_every: int
) -> None:
    monkeypatch.setattr(collector_module, "COMMIT_INTERVAL_S", 0)
    monkeypatch.setattr(collector_module, "INDEX_SYNC_INTERVAL_S", 0.03)
    messages = [message(sequence, sequence) for sequence in range(1, 201)]
    synced = SyncedIndex(tmp_path, fails_every)
    reported = set()

    async def collect(made: Run) -> None:
        collector = made.collector(
            tmp_path,
            ScriptedReader([[each] for each in messages]),
            calls=FileCalls(fdatasync=synced),
        )

        def is_reported() -> bool:
            progress = progress_of(collector)
            # In this order: a sync may come between the two.
            assert progress is not None
            assert progress.sequence <= synced.sequence
            assert all(point.sequence <= progress.sequence for point in progress.points)
            reported.add(progress.sequence)
            return progress.sequence == len(messages)

        # No message comes behind the last one, and no stop.
        await made.until(is_reported, collector)

    run(collect)
    assert len(reported) < len(read_index(tmp_path / index_name(5)).records)
    assert synced.calls < len(messages)


def test_a_log_that_is_longer_than_its_stream_is_said_once(tmp_path: Path) -> None:
    whole = log_of(MESSAGES)
    (tmp_path / log_name(5)).write_bytes(whole)
    reader = ScriptedReader([MESSAGES[:2], [], [], []])
    reader.last_sequence = 2

    async def collect(made: Run) -> None:
        collector = made.collector(tmp_path, reader)
        await made.until(lambda: bool(made.said) and collector.record.sequence == 2, collector)

    (line,) = run(collect)
    rest = len(whole) - len(log_of(MESSAGES[:2]))
    assert f"has {rest} bytes that no message of its stream has brought, up to message 2" in line
    assert (tmp_path / log_name(5)).read_bytes() == whole
