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
            raise StartError("cannot write to standard output: it is closed")
        rest = memoryview(data)
        while rest:
            try:
                rest = rest[os.write(STDOUT, rest) :]
            except BlockingIOError:
                # It is shared with a process that has set O_NONBLOCK.
                select.select([], [STDOUT], [])
            except OSError as failed:
                raise StartError(f"cannot write to standard output: {failed.strerror}") from failed


def write_now(writer: LineWriter, text: str) -> None:
    """Write it, or nothing if the reader is slow. Raises StartError if the reader is gone."""
    if not writer.write(text, wait_s=WATCH_WRITE_S):
        poll = select.poll()
        poll.register(STDOUT, 0)
        if any(events & (select.POLLERR | select.POLLNVAL) for _, events in poll.poll(0)):
            raise StartError("cannot write to standard output: its reader is gone")
