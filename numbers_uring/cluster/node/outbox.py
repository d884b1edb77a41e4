"""Numbers on their way to the NATS server: split, packed, and kept until they are acknowledged."""

import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass

from numbers_uring.cluster.node.packer import Packer
from numbers_uring.cluster.partitions import NUMBER_BYTES
from numbers_uring.limits import (
    FORWARD_AREAS_BYTES,
    FORWARD_BATCH_BYTES,
    FORWARD_BATCHES_MAX,
    FORWARD_LINGER_S,
    FORWARD_ROOM_ALL_S,
    FORWARD_ROOM_S,
    FORWARD_STOP_ACK_S,
    LINE_BYTES,
)
from numbers_uring.log.sink import Forwarded


@dataclass(slots=True, eq=False)
class Batch:
    """Numbers of one partition, published under one id until they are acknowledged."""

    partition: int
    number: int
    """Of this process' batches: what makes its message's id."""
    payload: bytes
    since: int
    """None of its numbers was among the first so many that were put."""
    due_s: float = 0.0
    failures: int = 0


class Outbox:
    """Filled by the loops' threads, emptied by the one that publishes; bounded on both sides.

    `wake` is called, in the thread that puts, when there may be something to be taken that was not
    there before. A batch that is not full waits until those of its partition before it are
    acknowledged, as TCP's small segments do (Nagle, RFC 896): a slow disk gets fewer and larger
    ones, and no batch waits longer than for that disk. A partition of which a batch has failed gets
    no new ones until that is acknowledged, so that what one stream refuses leaves room for others.
    """

    def __init__(
        self,
        partitions: int,
        *,
        wake: Callable[[], None],
        batch_bytes: int = FORWARD_BATCH_BYTES,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        area_bytes = min(batch_bytes, FORWARD_AREAS_BYTES // partitions)
        self._packer = Packer(partitions, area_bytes - area_bytes % NUMBER_BYTES)
        self._wake = wake
        self._clock = clock
        self._changed = threading.Condition()
        self._full: deque[Batch] = deque()
        self._failed: deque[Batch] = deque()
        self._failing: Counter[int] = Counter()
        self._outstanding: set[Batch] = set()
        self._outstanding_of = [0] * partitions
        self._area_since = [0] * partitions
        """What `since` will be of the next batch of each partition."""
        self._batches = 0
        self._swept: deque[int] = deque()
        self._first_s: float | None = None
        """Since when there may be numbers in an area that no sweep has taken up."""
        self._appended = 0
        self._acknowledged = 0
        self._resent = 0
        self._published_bytes = 0
        self._progress_s = clock()
        self._stopping = False
        self._closed = False
        self.write_s = 0.0
        """Seconds spent in `put`."""

    # For the loops.

    def put(self, lines: memoryview) -> int:
        """Take whole lines; return how many bytes of them were taken.

        Less than len(lines) means that the next line found no room for FORWARD_ROOM_S, or, while
        the server stops, that nothing was acknowledged for FORWARD_STOP_ACK_S.
        """
        taken = 0
        with self._changed:
            begin_s = moved_s = self._clock()
            while True:
                size = self._packer.pack(lines[taken:])
                if size:
                    taken += size
                    self._appended += size // LINE_BYTES
                    moved_s = self._clock()
                    if self._first_s is None:
                        self._first_s = moved_s
                        self._wake()
                if taken == len(lines):
                    break
                partition = self._packer.partition_of(lines[taken:])
                if self._may_seal(partition):
                    self._full.append(self._seal(partition))
                    self._wake()
                elif not self._wait_until(self._room_end_s(begin_s, moved_s)):
                    break
            self.write_s += self._clock() - begin_s
        return taken

    def _wait_until(self, end_s: float) -> bool:
        """Wait for a change; False where the time has come without one, or it is closed."""
        left_s = end_s - self._clock()
        if self._closed or left_s <= 0:
            return False
        return self._changed.wait(left_s) or self._stopping

    def _room_end_s(self, begin_s: float, moved_s: float) -> float:
        if self._stopping:
            return self._progress_s + FORWARD_STOP_ACK_S
        return min(moved_s + FORWARD_ROOM_S, begin_s + FORWARD_ROOM_ALL_S)

    def begin_stop(self) -> None:
        """Be patient from now on: the clock of FORWARD_STOP_ACK_S begins."""
        with self._changed:
            self._stopping = True
            self._progress_s = self._clock()

    def wait_until_acknowledged(self, mark: int) -> bool:
        """Wait until everything up to the mark is acknowledged, and return True; from any thread.

        False means that nothing was acknowledged for FORWARD_STOP_ACK_S, since `begin_stop`, or
        that it is closed.
        """
        with self._changed:
            while not self._has_acknowledged(mark):
                left_s = self._progress_s + FORWARD_STOP_ACK_S - self._clock()
                if self._closed or left_s <= 0:
                    return False
                self._changed.wait(left_s)
            return True

    def close(self) -> None:
        """End all waits, and count no further acknowledgement; from any thread."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def mark(self) -> int:
        """Return what stands for all that was put up to now; from any thread."""
        with self._changed:
            return self._appended

    def has_acknowledged(self, mark: int) -> bool:
        """Return whether everything up to the mark is acknowledged; from any thread.

        It is True a little late where a partition's area has numbers from both sides of the mark.
        """
        with self._changed:
            return self._has_acknowledged(mark)

    def _has_acknowledged(self, mark: int) -> bool:
        if self._acknowledged == self._appended:
            return True
        return all(batch.since >= mark for batch in self._outstanding) and all(
            self._area_since[partition] >= mark for partition in self._packer.occupied()
        )

    @property
    def forwarded(self) -> Forwarded:
        """The counters at this moment; from any thread."""
        with self._changed:
            return Forwarded(
                self._acknowledged,
                self._appended - self._acknowledged,
                self._resent,
                self._published_bytes,
            )

    @property
    def acknowledged(self) -> int:
        """Numbers whose batch is acknowledged; from any thread."""
        return self._acknowledged

    # For the thread that publishes.

    def take(self) -> Batch | None:
        """Return what is to be published now; None where nothing is due."""
        with self._changed:
            now_s = self._clock()
            if self._failed and self._failed[0].due_s <= now_s:
                batch = self._failed.popleft()
                self._resent += 1
            elif self._full:
                batch = self._full.popleft()
            else:
                swept = self._sweep(now_s)
                if swept is None:
                    return None
                batch = swept
            self._published_bytes += len(batch.payload)
            return batch

    def _sweep(self, now_s: float) -> Batch | None:
        """Return what has waited in an area for FORWARD_LINGER_S, full or not."""
        if self._first_s is not None and now_s >= self._first_s + FORWARD_LINGER_S:
            self._first_s = None
            self._swept.extend(self._packer.occupied())
        while self._swept and len(self._outstanding) < FORWARD_BATCHES_MAX:
            partition = self._swept.popleft()
            if not self._outstanding_of[partition] and self._packer.used(partition):
                return self._seal(partition)
        return None

    def due_in_s(self) -> float | None:
        """Return how long `take` will have nothing; None where that depends on others."""
        with self._changed:
            due = [self._failed[0].due_s] if self._failed else []
            if self._first_s is not None and len(self._outstanding) < FORWARD_BATCHES_MAX:
                due.append(self._first_s + FORWARD_LINGER_S)
            return max(min(due) - self._clock(), 0) if due else None

    def acknowledge(self, batch: Batch) -> bool:
        """Forget the batch, which is where it belongs. Returns whether that ends a failure."""
        with self._changed:
            if self._closed:
                return False
            self._acknowledged += len(batch.payload) // NUMBER_BYTES
            self._outstanding.remove(batch)
            self._progress_s = self._clock()
            if batch.failures:
                self._failing[batch.partition] -= 1
                if not self._failing[batch.partition]:
                    del self._failing[batch.partition]
            self._outstanding_of[batch.partition] -= 1
            if not self._outstanding_of[batch.partition]:
                self._swept.append(batch.partition)
            self._changed.notify_all()
            return bool(batch.failures) and not self._failing

    def fail(self, batch: Batch, pause_s: float) -> None:
        """Return the batch, to be taken again after `pause_s`."""
        with self._changed:
            if not batch.failures:
                self._failing[batch.partition] += 1
            batch.failures += 1
            batch.due_s = self._clock() + pause_s
            self._failed.append(batch)

    def _may_seal(self, partition: int) -> bool:
        return len(self._outstanding) < FORWARD_BATCHES_MAX and not self._failing[partition]

    def _seal(self, partition: int) -> Batch:
        self._outstanding_of[partition] += 1
        self._batches += 1
        since, self._area_since[partition] = self._area_since[partition], self._appended
        batch = Batch(partition, self._batches, self._packer.take(partition), since)
        self._outstanding.add(batch)
        return batch
