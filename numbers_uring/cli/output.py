"""What a command prints: at its end all of it, or a failure; while it runs, whole lines."""

import os
import select
import sys
from contextlib import redirect_stdout
from io import BytesIO, TextIOWrapper
from types import TracebackType
from typing import Self

from numbers_uring.errors import Failure, StartError
from numbers_uring.limits import WATCH_WRITE_S
from numbers_uring.system.stdio import STDOUT, LineWriter

_CLOSED = "cannot write to standard output: it is closed"


class PrintedOutput:
    """As a context manager, collects what is printed, and writes it when it is left.

    Make it before anything opens a file: afterwards a closed standard output can't be told from
    another file. Leaving it raises StartError where not all can be written, unless the command has
    failed: then that failure is raised.
    """

    def __init__(self) -> None:
        self._closed = sys.stdout is None
        # Names of files need not be text.
        self._bytes = BytesIO()
        text = TextIOWrapper(self._bytes, "utf-8", "backslashreplace", write_through=True)
        self._redirected = redirect_stdout(text)

    def __enter__(self) -> Self:
        self._redirected.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._redirected.__exit__(kind, error, trace)
        try:
            self._write(self._bytes.getvalue())
        except StartError:
            if not isinstance(error, Failure):
                raise

    def _write(self, data: bytes) -> None:
        if data and self._closed:
            raise StartError(_CLOSED)
        rest = memoryview(data)
        while rest:
            try:
                rest = rest[os.write(STDOUT, rest) :]
            except BlockingIOError:
                # It is shared with a process that has set O_NONBLOCK.
                select.select([], [STDOUT], [])
            except OSError as failed:
                raise StartError(f"cannot write to standard output: {failed.strerror}") from failed


class WatchOutput:
    """Standard output of a command that writes again and again. Raises StartError if closed."""

    def __init__(self) -> None:
        if sys.__stdout__ is None:
            raise StartError(_CLOSED)
        self._writer = LineWriter(STDOUT)
        self.is_terminal = os.isatty(STDOUT)

    def write(self, text: str) -> None:
        """Write it, or nothing if the reader is slow. Raises StartError if that cannot succeed."""
        if not self._writer.write(text, wait_s=WATCH_WRITE_S) and self._writer.error is not None:
            reason = self._writer.error.strerror
            raise StartError(f"cannot write to standard output: {reason}")

    def size(self) -> tuple[int, int]:
        """Return the columns and lines of the terminal; 0 where it does not know them."""
        try:
            return os.get_terminal_size(STDOUT)
        except OSError:
            return 0, 0
