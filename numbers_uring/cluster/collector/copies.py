"""The copies of a collector's partitions: registered in the bucket, and compared with the others.

A registered copy is known by the id of its folder. What it reports is on its disk, index included,
so that streams can be trimmed by it; see collector/trim.py.
"""

import asyncio
import socket
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from numbers_uring.cluster.bucket import CLUSTER_BUCKET, Buckets, ChangedError
from numbers_uring.cluster.checkpoints import Point
from numbers_uring.cluster.collector.identity import Identity
from numbers_uring.cluster.comparison import (
    STARTING,
    STOPPED,
    Disagreement,
    copy_text,
    disagreements,
    passed_by,
    share_points,
)
from numbers_uring.cluster.tasks import each_of, end_tasks
from numbers_uring.cluster.values import Contents, Copy
from numbers_uring.errors import BackendError, StartError
from numbers_uring.ingest.report import next_due_s
from numbers_uring.limits import (
    COPIES_READ_S,
    COPY_GONE_S,
    COPY_POLL_S,
    COPY_STOP_S,
    COPY_TELL_S,
    COPY_UNCHANGED_TELLS,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """What a partition's files have for certain: the last record of its index that is synced."""

    stream_created_ns: int
    sequence: int
    message_time_ns: int
    log_bytes: int
    count: int
    sum: int
    points: tuple[Point, ...]
    taken: int = 0
    """Numbers that this run has taken in, repeats included."""
    state: str = "collecting"
    waits: str | None = None


class CopyInUseError(BackendError):
    """Another process reports as this copy; its text is the one line for the user."""


class CopyReport:
    """What the copy of a partition, with the log at this path, reports.

    `progress` returns None until the start has found where to go on.
    """

    def __init__(
        self,
        partition: int,
        log: Path,
        stream_created_ns: int,
        progress: Callable[[], Progress | None],
        *,
        buckets: Buckets,
        identity: Identity,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.partition = partition
        self._progress = progress
        self._buckets = buckets
        self._clock = clock
        self._base = Copy(
            partition=partition,
            copy=identity.copy,
            run=identity.run,
            place=identity.place,
            host=socket.gethostname(),
            log=str(log),
            stream_created_ns=stream_created_ns,
            state=STARTING,
        )
        """What is reported before there is progress."""
        self._identity = identity
        self._is_new = False
        self._revision: int | None = None
        self._told: Copy | None = None
        self._told_taken = 0
        self._told_s: float | None = None
        self._skipped = 0

    @property
    def age_s(self) -> float | None:
        """How long ago the bucket took the last report; None before the first one."""
        return None if self._told_s is None else self._clock() - self._told_s

    @property
    def has_progress(self) -> bool:
        """Whether the start has found where to go on."""
        return self._progress() is not None

    @property
    def copy(self) -> Copy:
        """The copy as of now."""
        progress = self._progress()
        if progress is None:
            return self._base
        passed_s = self.age_s or COPY_TELL_S
        return replace(
            self._base,
            stream_created_ns=progress.stream_created_ns,
            state=progress.state,
            waits=progress.waits,
            per_s=max(0.0, progress.taken - self._told_taken) / passed_s,
            sequence=progress.sequence,
            message_time_ns=progress.message_time_ns,
            log_bytes=progress.log_bytes,
            count=progress.count,
            sum=progress.sum,
            points=progress.points,
        )

    async def register(self, there: Copy | None) -> None:
        """Take over `there`, the report of an earlier run. Raises ChangedError if it is not that.

        A new copy holds all of its stream until it has found where to go on.
        """
        self._is_new = there is None
        if there is not None:
            ours = self._base
            self._base = replace(
                there,
                run=ours.run,
                place=ours.place,
                host=ours.host,
                log=ours.log,
                state=ours.state,
                waits=None,
                per_s=0.0,
            )
        await self._put(self.copy, 0 if there is None else there.revision)

    async def tell(self) -> None:
        """Report what is new, and now and then that nothing is. Raises CopyInUseError."""
        copy = self.copy
        if copy == self._told and self._skipped + 1 < COPY_UNCHANGED_TELLS:
            self._skipped += 1
            return
        await self._tell(copy)

    async def leave(self) -> None:
        """Report for the last time; a new copy whose start has failed leaves nothing behind.

        Nothing is done for a copy that was not registered. Raises CopyInUseError.
        """
        if self._told is None:
            return
        if self._is_new and not self.has_progress:
            await self._buckets.forget_copy(self.partition, self._identity.copy)
        else:
            await self._tell(replace(self.copy, state=STOPPED, waits=None, per_s=0.0))

    async def _tell(self, copy: Copy) -> None:
        try:
            await self._put(copy, self._revision)
        except ChangedError:
            # It was forgotten, or an answer to us was lost, or another process writes it.
            contents = await self._buckets.read([self.partition], fresh=True)
            there = find(contents.copies, self.partition, self._identity.copy)
            if there is not None and there.run != self._identity.run:
                raise CopyInUseError(in_use(there, self._identity)) from None
            with suppress(ChangedError):
                await self._put(copy, 0 if there is None else there.revision)

    async def _put(self, copy: Copy, revision: int | None) -> None:
        progress = self._progress()
        now = replace(copy, time=time.time(), revision=0, age_s=0.0)
        self._revision = await self._buckets.put_copy(now, revision=revision)
        self._told = copy
        self._told_taken = 0 if progress is None else progress.taken
        self._told_s = self._clock()
        self._skipped = 0


def find(copies: Iterable[Copy], partition: int, copy: str) -> Copy | None:
    """Return the report of this copy of the partition; None if it is not registered."""
    wanted = (partition, copy)
    return next((each for each in copies if (each.partition, each.copy) == wanted), None)


def in_use(there: Copy, identity: Identity) -> str:
    """Return the line for the operator of another process of one copy."""
    return (
        f"{copy_text(there)} is in use by another process: if this folder was copied from there, "
        f"remove {identity.path}"
    )


class Copies:
    """The reports of all partitions of a process, and what the other copies report.

    `say` takes one line for the operator, `inform` one that is no warning.
    """

    def __init__(
        self,
        reports: Sequence[CopyReport],
        buckets: Buckets,
        identity: Identity,
        *,
        say: Callable[[str], None],
        inform: Callable[[str], None],
    ) -> None:
        self._reports = {report.partition: report for report in reports}
        self._buckets = buckets
        self._identity = identity
        self._say = say
        self._inform = inform
        self._contents: Contents | None = None
        self._differing: dict[tuple[int, str], Disagreement] = {}
        self._said: set[str] = set()

    # What was read last, for any thread.

    def registered(self, partition: int) -> int | None:
        """Return how many copies of the partition are registered; None before that was read."""
        contents = self._contents
        if contents is None:
            return None
        return sum(copy.partition == partition for copy in contents.copies)

    @property
    def wanted(self) -> int | None:
        """How many copies of each partition there are to be; None before that was read."""
        contents = self._contents
        return None if contents is None else contents.settings.copies

    def differing(self, partition: int) -> int:
        """Return how many other copies differ from the one of this process."""
        return sum(each == partition for each, _ in self._differing.copy())

    async def passed_by(self, partition: int, sequence: int) -> str | None:
        """Name a copy that has taken in a message that the partition waits for; None without any.

        Raises what Buckets raises.
        """
        contents = await self._buckets.read([partition])
        found = passed_by(contents.copies, self._reports[partition].copy, sequence)
        return None if found is None else copy_text(found)

    # Starting, running, stopping.

    async def register(self) -> Contents:
        """Register all partitions, whose logs are locked; return what the bucket has then.

        Raises StartError where another process is this copy, and what Buckets raises.
        """
        begin_s = time.monotonic()
        waiting, first = list(self._reports), dict[int, int]()
        while waiting:
            contents = await self._buckets.read(waiting, fresh=True)
            for line in contents.unreadable:
                if f".{self._identity.copy} " in line:
                    raise StartError(line)  # It may be of a process that lives.
            free = []
            for partition in waiting:
                there = find(contents.copies, partition, self._identity.copy)
                if there is None or self._can_take_over(there, time.monotonic() - begin_s):
                    free.append((partition, there))
                elif first.setdefault(partition, there.revision) != there.revision:
                    raise StartError(in_use(there, self._identity))
            taken = await each_of(free, lambda each: self._register(*each))
            waiting = [each for each in waiting if each not in set(taken)]
            if waiting:
                self._inform_once("waiting until the last process of this copy is surely gone")
                await asyncio.sleep(COPY_POLL_S)
        self._contents = await self._buckets.read(self._reports)
        return self._contents

    async def _register(self, partition: int, there: Copy | None) -> int | None:
        """Return the partition; None if another process was faster."""
        with suppress(ChangedError):
            await self._reports[partition].register(there)
            return partition
        return None

    def _can_take_over(self, there: Copy, waited_s: float) -> bool:
        """Return whether no living process can have reported `there`.

        One in the very same folder would have the lock of the log, which is ours.
        """
        return (
            there.state == STOPPED
            or there.place == self._identity.place
            or there.age_s + waited_s > COPY_GONE_S
        )

    async def tend(
        self, started: asyncio.Event, after_read: Callable[[Contents], Awaitable[None]]
    ) -> None:
        """Report until cancelled, and compare once all have `started`.

        `after_read` is awaited with what was read. A NATS server that does not answer is asked
        again. Raises CopyInUseError.
        """

        async def compare() -> None:
            await started.wait()
            await self._repeat(COPIES_READ_S, lambda: self.read(after_read))

        tasks = [
            asyncio.create_task(self._repeat(COPY_TELL_S, self.tell)),
            asyncio.create_task(compare()),
        ]
        try:
            await asyncio.gather(*tasks)
        finally:
            await end_tasks(*tasks)

    async def _repeat(self, interval_s: float, step: Callable[[], Awaitable[None]]) -> None:
        import nats  # noqa: PLC0415

        due_s = time.monotonic()
        while True:
            try:
                await step()
            except StartError as error:
                self._say_once(str(error))
            except (nats.errors.Error, TimeoutError, OSError):
                pass  # The connection's own lines say what is wrong.
            due_s = next_due_s(due_s, time.monotonic(), interval_s)
            await asyncio.sleep(due_s - time.monotonic())

    async def tell(self) -> None:
        """Report all partitions that have news. Raises CopyInUseError, and what Buckets raises."""
        await each_of(self._reports.values(), self._tell_one)

    async def _tell_one(self, report: CopyReport) -> None:
        from nats.js.errors import APIError  # noqa: PLC0415

        try:
            # A report is not sent twice: one that was lost with a connection has no answer.
            async with asyncio.timeout(COPY_TELL_S):
                await report.tell()
        except APIError as error:
            self._say_once(
                f"cannot report partition {report.partition} in the bucket {CLUSTER_BUCKET}: "
                f"{error.description}; retrying"
            )

    async def read(self, after_read: Callable[[Contents], Awaitable[None]]) -> None:
        """Compare the copies, and say where one of this process differs. Raises as `tell` does."""
        contents = await self._buckets.read(self._reports)
        for line in contents.unreadable:
            self._say_once(line)
        self._compare(contents)
        self._contents = contents
        await after_read(contents)

    def _compare(self, contents: Contents) -> None:
        before, self._differing = self._differing, {}
        for partition, report in self._reports.items():
            own = report.copy
            for other in contents.copies:
                if other.partition != partition or other.copy == own.copy:
                    continue
                key = partition, other.copy
                found = disagreements([own, other])
                said = before.get(key)
                if said is None and found:
                    said = found[0]
                    self._say(said.text)
                # Equal points of before the difference do not mean that it has ended.
                if said and (found or not share_points(own, other, said.where.differs_at)):
                    self._differing[key] = said

    async def leave(self) -> None:
        """Report for the last time, as stopped: what the files have now."""
        import nats  # noqa: PLC0415

        with suppress(StartError, CopyInUseError, nats.errors.Error, TimeoutError, OSError):
            async with asyncio.timeout(COPY_STOP_S):
                await each_of(self._reports.values(), CopyReport.leave)

    def _say_once(self, text: str) -> None:
        if text not in self._said:
            self._said.add(text)
            self._say(text)

    def _inform_once(self, text: str) -> None:
        if text not in self._said:
            self._said.add(text)
            self._inform(text)
