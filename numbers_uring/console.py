"""Standard output and error, written to without ever waiting for their readers."""

import os
import select
from collections.abc import Callable

PROGRAM = "numbers-uring"
STDOUT, STDERR = 1, 2


def open_standard_streams() -> None:
    """Put /dev/null where a standard stream is closed.

    Otherwise the next file opened, a socket or the log, gets the number 1 or 2, and reports or
    warnings are written into it.
    """
    for fd in (0, STDOUT, STDERR):
        try:
            os.fstat(fd)
        except OSError:
            # The lowest free number is taken, which is this one: those below it are open.
            os.open(os.devnull, os.O_RDWR)


class Lines:
    """One standard stream that takes whole lines, or nothing of them.

    A pipe or terminal that poll(2) calls writable takes at least PIPE_BUF (4096) bytes at once, and
    our lines are shorter. Its flags are not touched: they are shared with whoever else has it open.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._rest = b""
        self._poll = select.poll()
        self._poll.register(fd, select.POLLOUT)

    def write(self, line: str, *, wait_s: float = 0) -> bool:
        """Write the line and a newline; False where the reader is behind or gone.

        A part of a line can be left over only where a disk is full; it is finished first.
        """
        return self._finish(wait_s) and self._put(line.encode(errors="replace") + b"\n", wait_s)

    def _finish(self, wait_s: float) -> bool:
        if self._rest:
            self._put(self._rest, wait_s)
        return not self._rest

    def _put(self, data: bytes, wait_s: float) -> bool:
        events = self._poll.poll(wait_s * 1000)
        if not events or not events[0][1] & select.POLLOUT:
            return False
        try:
            size = os.write(self._fd, data)
        except OSError:
            return False
        self._rest = data[size:]
        return True


def diagnostics(lines: Lines) -> Callable[[str], None]:
    """Return a function that says one line on `lines`, with the program's name in front."""

    def say(text: str) -> None:
        lines.write(f"{PROGRAM}: {' '.join(text.split())}")

    return say
