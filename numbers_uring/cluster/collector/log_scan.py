"""Reads a partition's log, and compares it with what its index says of it."""

import os
import time
from collections.abc import Callable
from pathlib import Path

from numbers_uring.cluster.collector.kernel import CollectKernel
from numbers_uring.cluster.index import Record
from numbers_uring.errors import StopRequestedError
from numbers_uring.limits import LINE_BYTES, LOG_SCAN_CHUNK_BYTES, RESUME_PROGRESS_S

_CHUNK_BYTES = LOG_SCAN_CHUNK_BYTES // LINE_BYTES * LINE_BYTES


class LogScan:
    """Reads a log from its start, through the kernel, for as long as its lines can be its own."""

    def __init__(
        self,
        path: Path,
        fd: int,
        kernel: CollectKernel,
        *,
        progress: Callable[[str], None],
        stop_requested: Callable[[], bool],
    ) -> None:
        self.kernel = kernel
        self._path = path
        self._fd = fd
        self._progress = progress
        self._stop_requested = stop_requested
        self._offset = 0
        self._chunk = memoryview(bytearray(_CHUNK_BYTES))
        self._begin_s = time.monotonic()
        self._due_s = self._begin_s + RESUME_PROGRESS_S

    @property
    def seconds(self) -> float:
        """How long it has taken."""
        return time.monotonic() - self._begin_s

    def take(self, end: int) -> int:
        """Take in lines up to the offset `end`; return where the first is that cannot be."""
        while self._offset < end:
            if self._stop_requested():
                raise StopRequestedError
            size = os.preadv(
                self._fd, [self._chunk[: min(end - self._offset, _CHUNK_BYTES)]], self._offset
            )
            taken = self.kernel.take_lines(self._chunk[:size])
            self._offset += taken
            if taken < size - size % LINE_BYTES or not taken:
                break
            if time.monotonic() >= self._due_s:
                self._due_s += RESUME_PROGRESS_S
                self._progress(
                    f"resuming {self._path}: {100 * self._offset // end} % of {end / 1e9:.1f} GB"
                )
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
