"""The report of one copy: what its process writes of a partition into the bucket."""

import socket
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from numbers_uring.cluster.bucket import Buckets, ChangedError
from numbers_uring.cluster.checkpoints import Point
from numbers_uring.cluster.collector.identity import Identity
from numbers_uring.cluster.comparison import STARTING, STOPPED, copy_text
from numbers_uring.cluster.values import Copy
from numbers_uring.errors import BackendError
from numbers_uring.limits import COPY_TELL_S, COPY_UNCHANGED_TELLS


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
