"""Reads a partition's log, and compares it with what its index says of it."""

import os
import time

from numbers_uring.cluster.collector.kernel import CollectKernel
from numbers_uring.cluster.index import Record
from numbers_uring.limits import LINE_BYTES, LOG_SCAN_CHUNK_BYTES
from numbers_uring.log.progress import StartProgress

_CHUNK_BYTES = LOG_SCAN_CHUNK_BYTES // LINE_BYTES * LINE_BYTES


class LogScan:
    """Reads a log from its start, through the kernel, for as long as its lines can be its own.

    Raises OSError, and what `progress` raises.
    """

    def __init__(
        self, fd: int, kernel: CollectKernel, progress: StartProgress | None = None
    ) -> None:
        self.kernel = kernel
        self._fd = fd
        self._progress = progress
        self._offset = 0
        self._chunk = memoryview(bytearray(_CHUNK_BYTES))
        self._begin_s = time.monotonic()

    @property
    def seconds(self) -> float:
        """How long it has taken."""
        return time.monotonic() - self._begin_s

    def take(self, end: int) -> int:
        """Take in lines up to the offset `end`; return where the first is that cannot be."""
        while self._offset < end:
            if self._progress is not None:
                self._progress.read_bytes = self._offset
                self._progress.note(0)
            size = os.preadv(
                self._fd, [self._chunk[: min(end - self._offset, _CHUNK_BYTES)]], self._offset
            )
            taken = self.kernel.take_lines(self._chunk[:size])
            self._offset += taken
            if taken < size - size % LINE_BYTES or not taken:
                break
        return self._offset

    def agrees(self, record: Record) -> bool:
        """Return whether the log up to this record, which is behind the last one, is as it says."""
        return self.take(record.log_bytes) == record.log_bytes and self.kernel.sum == record.sum

    def rewind(self, record: Record) -> None:
        """Drop what is behind this record, with which the log agrees: take in what is before it."""
        if self.kernel.unique != record.count:
            self.restart()
            self.take(record.log_bytes)

    def restart(self) -> None:
        self.kernel.reset()
        self._offset = 0
