"""Streams of each kind that a process may find in the place of its standard output and error."""

import fcntl
import os
import pty
import select
import socket
import sys
import termios
from pathlib import Path

from numbers_uring.system.stdio import LineWriter

MANY = 1_000_000
"""More lines than any stream takes without a reader."""
SMALL = 8192
"""What a stream of the tests holds, as far as Linux lets us choose: it is soon full."""


class StreamPair:
    """A stream, and the end that it is read from."""

    def __init__(self, write_fd: int, read_fd: int) -> None:
        self.write_fd = write_fd
        self.read_fd: int = read_fd

    def read(self) -> bytes:
        """Return what is there to be read."""
        data = b""
        while select.select([self.read_fd], [], [], 0)[0]:
            try:
                data += os.read(self.read_fd, 1 << 16)
            except OSError:
                break
        # What terminals make of a newline.
        return data.replace(b"\r\n", b"\n")

    def readable_bytes(self) -> int:
        return int.from_bytes(fcntl.ioctl(self.read_fd, termios.FIONREAD, bytes(4)), sys.byteorder)

    def writer(self) -> LineWriter:
        return LineWriter(self.write_fd)

    def close_reader(self) -> None:
        # Once only: the next file that is opened has the same number.
        os.close(self.read_fd)
        self.read_fd = -1

    def close(self) -> None:
        os.close(self.write_fd)
        if self.read_fd >= 0:
            self.close_reader()


def _pipe(_tmp_path: Path) -> StreamPair:
    read_fd, write_fd = os.pipe()
    fcntl.fcntl(write_fd, fcntl.F_SETPIPE_SZ, SMALL)
    return StreamPair(write_fd, read_fd)


def _terminal(_tmp_path: Path) -> StreamPair:
    read_fd, write_fd = pty.openpty()
    return StreamPair(write_fd, read_fd)


def _fifo(tmp_path: Path) -> StreamPair:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    read_fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    fcntl.fcntl(read_fd, fcntl.F_SETPIPE_SZ, SMALL)
    return StreamPair(os.open(path, os.O_WRONLY), read_fd)


def _socket(_tmp_path: Path) -> StreamPair:
    near, far = socket.socketpair()
    near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SMALL)
    return StreamPair(near.detach(), far.detach())


def _tcp(_tmp_path: Path) -> StreamPair:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL)
        near = socket.create_connection(listener.getsockname())
        far, _ = listener.accept()
    near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SMALL)
    return StreamPair(near.detach(), far.detach())


STREAM_KINDS = {"pipe": _pipe, "terminal": _terminal, "fifo": _fifo, "socket": _socket, "tcp": _tcp}


def write_until_full(writer: LineWriter) -> list[int]:
    """Write numbered lines until one is refused; return the numbers of those that were not."""
    for number in range(MANY):
        # Linux makes more space a moment later, where it passes data on in the background.
        if not writer.write(numbered_line(number), wait_s=0.2):
            return list(range(number))
    raise AssertionError("the stream takes everything")


def numbered_line(number: int) -> str:
    return f"{number:07d} " + "-" * 50


def numbers_of(data: bytes) -> list[int]:
    """Return the numbers of the lines, after a check that each is whole."""
    assert not data or data.endswith(b"\n"), data[-100:]
    numbers = []
    for line in data.decode().splitlines():
        numbers.append(int(line[:7]))
        assert line == numbered_line(numbers[-1])
    return numbers
