"""Standard output and error: always open, and written to in whole lines without waiting."""

import os
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from numbers_uring.limits import STREAM_RETRY_S

if TYPE_CHECKING:
    from numbers_uring.system.nonblocking import Stream

PROGRAM = "numbers-uring"
STDOUT, STDERR = 1, 2


def open_standard_streams() -> None:
    """Open /dev/null in place of each standard stream that is closed.

    Otherwise the next file opened, a socket or the log, gets the number 1 or 2, and reports or
    warnings are written into it.
    """
    for fd in (0, STDOUT, STDERR):
        try:
            os.fstat(fd)
        except OSError:
            # The lowest free number is taken, which is this one: those below it are open.
            try:
                os.open(os.devnull, os.O_RDWR)
            except OSError:
                # There is none in a bare chroot. This can't be written to, which does no harm.
                os.open("/", os.O_PATH)


class LineWriter:
    """One standard stream that takes whole lines, or nothing of them; for any thread.

    A line of which the stream has taken a part is finished before the next one.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._stream: Stream | None = None
        self._lock = threading.RLock()
        self._writing = False
        self.error: OSError | None = None
        """Why the last line could not be written, unless the reader is too slow."""

    def write(self, line: str, *, wait_s: float = 0) -> bool:
        """Write the line and a newline; return False if the reader is too slow or gone.

        Waits at most `wait_s`, until all of it is written.
        """
        data = line.encode(errors="replace") + b"\n"
        with self._lock:
            if self._writing:
                return False  # The handler of a signal that came in the middle of another line.
            self._writing = True
            self.error = None
            try:
                return self._write(data, time.monotonic() + wait_s)
            except OSError as error:
                self.error = error
                return False
            finally:
                self._writing = False

    def _write(self, data: bytes, end_s: float) -> bool:
        if self._stream is None:
            try:
                # Commands that write no diagnostics start faster without it.
                from numbers_uring.system.nonblocking import open_stream  # noqa: PLC0415
            except (ImportError, OSError):
                # Where no file can be opened any more, that is what the line is about.
                return os.write(self._fd, data) == len(data)
            self._stream = open_stream(self._fd)
        while not _begin(self._stream, data):
            if not _pause(end_s):
                return False
        # Part of it is written: it must not be written a second time.
        with suppress(OSError):
            while not _finish(self._stream) and _pause(end_s):
                pass
        return True


def _begin(stream: "Stream", data: bytes) -> bool:
    """Return whether the stream took the line; raises OSError if a retry cannot succeed."""
    if not _finish(stream):
        return False
    try:
        stream.begin(data)
    except BlockingIOError:
        return False
    return True


def _finish(stream: "Stream") -> bool:
    try:
        return stream.finish()
    except BlockingIOError:
        return False


def _pause(end_s: float) -> bool:
    """Wait until it is worth another try; return False where none is left before `end_s`."""
    # Not by poll(2), which calls a terminal writable that takes nothing.
    left_s = end_s - time.monotonic()
    if left_s <= 0:
        return False
    time.sleep(min(STREAM_RETRY_S, left_s))
    return True
