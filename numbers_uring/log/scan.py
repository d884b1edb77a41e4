"""Reads a log from its first byte to its last, through a kernel, and says what is in it."""

import os
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from numbers_uring.ingest.kernel import Kernel, Memory, Verdict
from numbers_uring.limits import HEADROOM_BYTES, LINE_BYTES, LOG_SCAN_CHUNK_BYTES

# No possessive quantifiers and no atomic groups, here or anywhere: `re` before Python 3.11.5, which
# Debian 12 has, matches wrongly with them (https://github.com/python/cpython/issues/106052).
_BEFORE_NUMBER = re.compile(rb"\n(?=[0-9]{9}\n)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Scan:
    """What one log holds: whole lines, numbers or bad ones, and perhaps a torn tail.

    The bytes after the last newline are a torn tail where a crash can have left them: up to nine
    digits, then nothing but NULs, in any number, up to the end of the file. Otherwise they are a
    bad line, as is each whole line that is no number, `terminate` included.
    """

    unique: int
    """Lines whose number was not in the bitmap before."""
    duplicates: int
    """Lines whose number was in the bitmap, from this log or from an earlier one."""
    bad_lines: int
    first_bad_offset: int | None
    """Where the first bad line starts, in bytes from the start of the file."""
    torn_bytes: int
    consumed_bytes: int
    """All bytes before the torn tail, those of bad lines included."""

    @property
    def lines(self) -> int:
        """Whole lines of nine digits."""
        return self.unique + self.duplicates

    @property
    def size_bytes(self) -> int:
        """All that was read."""
        return self.consumed_bytes + self.torn_bytes


def scan(
    fd: int,
    kernel: Kernel,
    bitmap: Memory,
    *,
    chunk_bytes: int = LOG_SCAN_CHUNK_BYTES,
    on_new: Callable[[memoryview], None] | None = None,
    progress: Callable[[int], None] | None = None,
) -> Scan:
    """Read the file open as `fd` from its start to its end and set its numbers' bits in `bitmap`.

    `on_new` is given the lines of new numbers, in the file's order; the view is valid until it
    returns. `progress` is called with the size of each chunk, in bytes, once it was parsed. The
    descriptor's position is neither used nor moved. Raises OSError where the file can't be read,
    and what the two functions raise.
    """
    with suppress(OSError):  # It is advice.
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_SEQUENTIAL)

    def read(chunk: memoryview, offset: int) -> int:
        return os.preadv(fd, [chunk], offset)

    return scan_chunks(
        read, kernel, bitmap, chunk_bytes=chunk_bytes, on_new=on_new, progress=progress
    )


def scan_chunks(
    read: Callable[[memoryview, int], int],
    kernel: Kernel,
    bitmap: Memory,
    *,
    chunk_bytes: int = LOG_SCAN_CHUNK_BYTES,
    on_new: Callable[[memoryview], None] | None = None,
    progress: Callable[[int], None] | None = None,
) -> Scan:
    """Do what `scan` does with the bytes that `read` puts into a chunk.

    It is given the chunk and the offset at which the bytes are, and returns how many they are, 0 at
    the end. Raises what it raises.
    """
    scanner = _Scanner(kernel, bitmap, chunk_bytes, on_new)
    while size := read(scanner.chunk, scanner.read_bytes):
        scanner.take(size)
        if progress is not None:
            progress(size)
    return scanner.finish()


class _Scanner:
    """Takes a log chunk by chunk; what a chunk's last line has of it is carried to the next.

    The start of a line that may become a number, at most nine bytes, is laid in front of the next
    chunk. Of a longer line without an end only its offset is kept, and whether it may be torn.
    """

    def __init__(
        self,
        kernel: Kernel,
        bitmap: Memory,
        chunk_bytes: int,
        on_new: Callable[[memoryview], None] | None,
    ) -> None:
        self._arena = bytearray(HEADROOM_BYTES + chunk_bytes)
        batch = bytearray(len(self._arena))
        self._kernel = kernel.bind(self._arena, bitmap, batch)
        self._batch = memoryview(batch)
        self._on_new = on_new
        self._tail_bytes = 0
        self._endless_offset: int | None = None
        self._endless_is_torn = False
        self._bad_lines = 0
        self._first_bad_offset: int | None = None
        self.read_bytes = 0
        self.chunk = memoryview(self._arena)[HEADROOM_BYTES:]

    def take(self, size: int) -> None:
        """Take in the first `size` bytes of the chunk."""
        start, stop = HEADROOM_BYTES - self._tail_bytes, HEADROOM_BYTES + size
        self._tail_bytes = 0
        if self._endless_offset is not None:
            start = self._go_on(self._endless_offset, stop)
        while start < stop:
            verdict = self._kernel.ingest(start, stop)
            start += self._kernel.consumed
            self._hand_out()
            if verdict == Verdict.MORE:
                self._carry(start, stop)
                break
            if verdict == Verdict.TERMINATE:
                start -= LINE_BYTES
            start = self._skip(start, stop)
        self.read_bytes += size

    def finish(self) -> Scan:
        """Judge what the file ends with."""
        torn_bytes = 0
        if self._endless_offset is not None:
            if self._endless_is_torn:
                torn_bytes = self.read_bytes - self._endless_offset
            else:
                self._note_bad(self._endless_offset, 1)
        elif self._arena[HEADROOM_BYTES - self._tail_bytes : HEADROOM_BYTES].isdigit():
            torn_bytes = self._tail_bytes
        elif self._tail_bytes:
            self._note_bad(self.read_bytes - self._tail_bytes, 1)
        return Scan(
            unique=self._kernel.unique,
            duplicates=self._kernel.duplicate,
            bad_lines=self._bad_lines,
            first_bad_offset=self._first_bad_offset,
            torn_bytes=torn_bytes,
            consumed_bytes=self.read_bytes - torn_bytes,
        )

    def _hand_out(self) -> None:
        used = self._kernel.batch_used
        self._kernel.batch_used = 0
        if self._on_new is not None and used:
            self._on_new(self._batch[:used])

    def _carry(self, start: int, stop: int) -> None:
        self._tail_bytes = stop - start
        self._arena[HEADROOM_BYTES - self._tail_bytes : HEADROOM_BYTES] = self._arena[start:stop]

    def _skip(self, start: int, stop: int) -> int:
        """Count the bad lines from `start` on; return where the first that may be none starts."""
        offset = self.read_bytes + start - HEADROOM_BYTES
        found = _BEFORE_NUMBER.search(self._arena, start, stop)
        end = self._arena.rfind(b"\n", start, stop) + 1 if found is None else found.end()
        if end == 0:
            self._endless_offset = offset
            self._endless_is_torn = _is_torn(self._arena[start:stop])
            return stop
        self._note_bad(offset, self._arena.count(b"\n", start, end))
        return end

    def _go_on(self, offset: int, stop: int) -> int:
        """Look for the end of the line that started at `offset`; return where the next starts."""
        end = self._arena.find(b"\n", HEADROOM_BYTES, stop)
        if end < 0:
            # It is longer than a number's line, so only NULs keep it from being a bad one.
            if self._endless_is_torn:
                nuls = self._arena.count(0, HEADROOM_BYTES, stop)
                self._endless_is_torn = nuls == stop - HEADROOM_BYTES
            return stop
        self._endless_offset = None
        self._note_bad(offset, 1)
        return end + 1

    def _note_bad(self, offset: int, lines: int) -> None:
        if self._first_bad_offset is None:
            self._first_bad_offset = offset
        self._bad_lines += lines


def _is_torn(rest: bytearray) -> bool:
    """Return whether a crash may have left that behind the last newline."""
    digits = rest.rstrip(b"\0")
    return not digits or (len(digits) < LINE_BYTES and digits.isdigit())
