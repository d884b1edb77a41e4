"""Non-blocking writes to inherited streams of any kind.

What it stands on:

- O_NONBLOCK belongs to the open file description, which is shared with the parent and with every
  other process that has the stream: it must not be set there. Opening /proc/self/fd/N gives a pipe
  or terminal a description of our own (proc(5)); sockets can't be opened, and need no more than
  MSG_DONTWAIT (send(2)).
- poll(2) calls a terminal writable that has no space for a whole line (n_tty_poll and pty_write in
  Linux), and a pipe that another process fills a moment later: a write after a poll may wait.
- A non-blocking pipe takes up to PIPE_BUF bytes whole or not at all (pipe(7)); a terminal, a stream
  socket and a full disk may take a part.
- Nothing keeps write(2) on a file from waiting for a disk, or for the server of a network file
  system, that does not answer: files are written to from a thread.
"""

import errno
import os
import socket
import stat
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol

from numbers_uring.errors import StartError
from numbers_uring.limits import STREAM_THREAD_WAIT_S

_MEMORY_DEVICES_MAJOR = 1
_PTMX = os.makedev(5, 2)


class Stream(Protocol):
    """Takes data one piece at a time: `begin` may be called once `finish` has returned True."""

    def begin(self, data: bytes) -> None:
        """Write `data` as far as possible at once; `finish` writes the rest.

        Raises OSError where nothing of it was written, nor will be; BlockingIOError where that is
        because the reader is behind.
        """

    def finish(self) -> bool:
        """Return whether all that was taken is written, after another try. Raises OSError."""


def open_stream(fd: int) -> Stream:
    """Return the stream that `fd` is open on.

    Raises OSError where it has no reader now; that may change.
    """
    try:
        status = os.fstat(fd)
        terminal = os.isatty(fd)
    except OSError:
        return _Direct(lambda data: os.write(fd, data))
    mode = status.st_mode
    if stat.S_ISSOCK(mode):
        with suppress(OSError):
            return _Direct(_sender(fd))
    elif stat.S_ISFIFO(mode) or (terminal and status.st_rdev != _PTMX):
        # What is opened anew as /dev/ptmx is another terminal.
        try:
            return _Direct(_reopen(fd))
        except OSError as error:
            # No one has the pipe open for reading, or the terminal hung up.
            if error.errno == errno.ENXIO or (terminal and error.errno == errno.EIO):
                raise
    elif stat.S_ISCHR(mode) and os.major(status.st_rdev) == _MEMORY_DEVICES_MAJOR:
        return _Direct(lambda data: os.write(fd, data))  # /dev/null and /dev/full never wait.
    try:
        return _Threaded(fd)
    except StartError:
        return _Direct(lambda data: os.write(fd, data))


def _sender(fd: int) -> Callable[[bytes], int]:
    connection = socket.socket(fileno=os.dup(fd))
    return lambda data: connection.send(data, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)


def _reopen(fd: int) -> Callable[[bytes], int]:
    """Return a write to the pipe or terminal that does not wait. Raises OSError."""
    flags = os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    own_fd = os.open(f"/proc/self/fd/{fd}", flags)
    return lambda data: os.write(own_fd, data)


class _Direct:
    """Written to by calls that do not wait."""

    def __init__(self, put: Callable[[bytes], int]) -> None:
        self._put = put
        self._rest = b""

    def begin(self, data: bytes) -> None:
        self._rest = data[self._put(data) :]

    def finish(self) -> bool:
        if self._rest:
            self._rest = self._rest[self._put(self._rest) :]
        return not self._rest


class _Threaded:
    """Written to by a thread, which is waited for STREAM_THREAD_WAIT_S at most."""

    def __init__(self, fd: int) -> None:
        from numbers_uring.system.threads import start_thread  # noqa: PLC0415 - few streams need it

        self._fd = fd
        self._rest = b""
        self._error: OSError | None = None
        self._work = threading.Semaphore(0)
        self._idle = threading.Event()
        start_thread(self._run, "standard streams")
        self._idle.set()

    def begin(self, data: bytes) -> None:
        self._write(data)
        if self._idle.is_set() and self._error is not None and len(self._rest) == len(data):
            self._rest = b""
            raise self._error

    def finish(self) -> bool:
        if self._idle.is_set() and self._rest:
            self._write(self._rest)
        return self._idle.is_set() and not self._rest

    def _write(self, data: bytes) -> None:
        self._rest = data
        self._error = None
        self._idle.clear()
        self._work.release()
        self._idle.wait(STREAM_THREAD_WAIT_S)

    def _run(self) -> None:
        while self._work.acquire():
            try:
                while self._rest:
                    self._rest = self._rest[os.write(self._fd, self._rest) :]
            except OSError as error:
                self._error = error
            self._idle.set()
