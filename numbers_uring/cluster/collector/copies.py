"""The copies of a collector's partitions: registered in the bucket, and compared with the others.

A registered copy is known by the id of its folder. What it reports is on its disk, index included,
so that streams can be trimmed by it; see collector/trim.py.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress

from numbers_uring.cluster.bucket import CLUSTER_BUCKET, Buckets, ChangedError
from numbers_uring.cluster.collector.copy_report import CopyInUseError, CopyReport, find, in_use
from numbers_uring.cluster.collector.identity import Identity
from numbers_uring.cluster.comparison import (
    STOPPED,
    Disagreement,
    copy_text,
    disagreements,
    passed_by,
    share_points,
)
from numbers_uring.cluster.tasks import each_of, end_tasks
from numbers_uring.cluster.values import Contents, Copy
from numbers_uring.errors import StartError
from numbers_uring.ingest.report import next_due_s
from numbers_uring.limits import (
    COPIES_READ_S,
    COPY_GONE_S,
    COPY_POLL_S,
    COPY_STOP_S,
    COPY_TELL_S,
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
