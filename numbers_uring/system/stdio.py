"""Standard output and error, written to without ever waiting for their readers."""

import json
import os
import select
from datetime import UTC, datetime
from enum import IntEnum

from numbers_uring.config import LogFormat
from numbers_uring.limits import DIAGNOSTIC_CHARACTERS_MAX

PROGRAM = "numbers-uring"
STDOUT, STDERR = 1, 2


class Level(IntEnum):
    """How much a diagnostic matters."""

    DEBUG = 0
    INFO = 1
    WARNING = 2
    ERROR = 3


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
            try:
                os.open(os.devnull, os.O_RDWR)
            except OSError:
                # There is none in a bare chroot. This can't be written to, which does no harm.
                os.open("/", os.O_PATH)


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


class Diagnostics:
    """What is said to the operator on `lines`: one line each, as text or as a JSON object.

    Calling it says a warning. Fields are for programs: only the JSON has them, beside time (UTC),
    level and message. Nothing waits for the reader; a line that can't be written is dropped.
    """

    def __init__(
        self, lines: Lines, *, form: LogFormat = LogFormat.TEXT, level_min: Level = Level.INFO
    ) -> None:
        self._lines = lines
        self.form = form
        self.level_min = level_min

    def __call__(self, text: str, **fields: object) -> None:
        self._say(Level.WARNING, text, fields)

    def debug(self, text: str, **fields: object) -> None:
        self._say(Level.DEBUG, text, fields)

    def info(self, text: str, **fields: object) -> None:
        self._say(Level.INFO, text, fields)

    def error(self, text: str, **fields: object) -> None:
        self._say(Level.ERROR, text, fields)

    def _say(self, level: Level, text: str, fields: dict[str, object]) -> None:
        if level < self.level_min:
            return
        text = _one_line(text)
        if self.form is LogFormat.TEXT:
            mark = "error: " if level is Level.ERROR else ""
            self._lines.write(f"{PROGRAM}: {mark}{text}")
            return
        time = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        line = {"time": time, "level": level.name.lower(), "message": text, **fields}
        self._lines.write(json.dumps(line, ensure_ascii=False, default=str))


def _one_line(text: str) -> str:
    """Make of it one printable line, short enough to be written whole."""
    text = " ".join(text.split())[:DIAGNOSTIC_CHARACTERS_MAX]
    return "".join(character if character.isprintable() else "\ufffd" for character in text)
