"""Real servers whose standard output or error no one reads, or many threads write to."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from support.logs import lines, logged_once, reported
from support.processes import ServerProcess
from support.streams import MANY, STREAM_KINDS, StreamPair, write_until_full
from support.waiting import DEADLINE_S, wait_until

Serve = Callable[..., ServerProcess]
STUCK_S = 0.5
"""Of a server that reports each millisecond, a stream that gets nothing for this long is full."""


class Server:
    """A server on a unix socket, with its standard streams where the test wants them."""

    def __init__(self, folder: Path, *options: str, stdout: int, stderr: int) -> None:
        self.log_path = folder / "numbers.log"
        self._path = folder / "socket"
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-m", "numbers_uring", "serve", *options),
                *("--listen", f"unix:{self._path}", "--log-file", str(self.log_path)),
            ],
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
        )
        wait_until(self._listens, "the server")

    def _listens(self) -> bool:
        assert self.process.poll() is None
        try:
            self.exchange(b"")
        except (FileNotFoundError, ConnectionRefusedError):
            return False
        return True

    def exchange(self, data: bytes) -> None:
        """Send `data` as a client, and wait until the server has taken it in and closed."""
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(DEADLINE_S)
            client.connect(str(self._path))
            client.sendall(data)
            client.shutdown(socket.SHUT_WR)
            assert client.recv(1) == b""

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(DEADLINE_S)


@contextmanager
def serving(folder: Path, *options: str, stdout: int, stderr: int) -> Iterator[Server]:
    server = Server(folder, *options, stdout=stdout, stderr=stderr)
    try:
        yield server
    finally:
        server.process.kill()
        server.process.wait()


def exchange_until_stuck(server: Server, written_bytes: Callable[[], int]) -> int:
    """Send new numbers, until what there is to read stays as it is; return how many."""
    sent, before, since_s = 0, 0, time.monotonic()
    while time.monotonic() < since_s + STUCK_S or not before:
        server.exchange(lines(range(sent, sent + 100)))
        sent += 100
        now = written_bytes()
        if now != before:
            before, since_s = now, time.monotonic()
        assert sent < 100 * MANY, "the stream takes everything"
    return sent


@pytest.fixture(params=list(STREAM_KINDS))
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[StreamPair]:
    with closing(STREAM_KINDS[request.param](tmp_path)) as pair:
        yield pair


@contextmanager
def reading(pair: StreamPair) -> Iterator[list[bytes]]:
    """Read all that comes, until the end of the context and of what is there then."""
    data: list[bytes] = []
    end = threading.Event()

    def read() -> None:
        while not end.wait(0.001):
            data.append(pair.read())

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        yield data
    finally:
        end.set()
        reader.join(DEADLINE_S)
        data.append(pair.read())


def _whole_lines(data: bytes) -> list[str]:
    """Return the lines; the last one may be torn, where its reader has come too late."""
    return data.decode().split("\n")[:-1]


@pytest.mark.parametrize("is_read_again", [True, False])
def test_reports_that_no_one_reads_hold_nothing_up_and_add_up(
    tmp_path: Path, pair: StreamPair, is_read_again: bool
) -> None:
    with serving(
        tmp_path, "--report-interval", "0.001", stdout=pair.write_fd, stderr=subprocess.DEVNULL
    ) as server:
        sent = exchange_until_stuck(server, pair.readable_bytes)
        if is_read_again:
            with reading(pair) as data:
                assert server.stop() == 0
        else:
            assert server.stop() == 0
            data = [pair.read()]
    assert logged_once(server.log_path) == set(range(sent))
    unique, duplicate, _ = reported(_whole_lines(b"".join(data)))
    assert duplicate == 0
    if is_read_again:
        assert unique == sent
    else:
        assert 0 < unique <= sent


@pytest.mark.parametrize("reactors", ["1", "2"])
def test_diagnostics_that_no_one_reads_hold_nothing_up(
    tmp_path: Path, pair: StreamPair, backend: str, reactors: str
) -> None:
    write_until_full(pair.writer())
    options = ("--verbose", "--backend", backend, "--reactors", reactors)
    with serving(tmp_path, *options, stdout=subprocess.DEVNULL, stderr=pair.write_fd) as server:
        for number in range(100):
            with contextlib.suppress(ConnectionResetError):
                server.exchange(lines([number]) + b"invalid\n")
            server.process.send_signal(signal.SIGHUP)
        assert server.stop() == 0
    assert logged_once(server.log_path) == set(range(100))


def test_both_streams_on_one_terminal_that_no_one_reads(tmp_path: Path, backend: str) -> None:
    options = ("--verbose", "--report-interval", "0.001", "--backend", backend)
    with (
        closing(STREAM_KINDS["terminal"](tmp_path)) as pair,
        serving(tmp_path, *options, stdout=pair.write_fd, stderr=pair.write_fd) as server,
    ):
        sent = exchange_until_stuck(server, pair.readable_bytes)
        assert server.stop() == 0
    assert logged_once(server.log_path) == set(range(sent))


def test_a_disk_that_is_full_for_reports_holds_nothing_up(tmp_path: Path, small_disk: Path) -> None:
    (small_disk / "filler").write_bytes(b"x" * MANY)
    with (
        (small_disk / "reports").open("wb") as file,
        serving(
            tmp_path,
            *("--report-interval", "0.001"),
            stdout=file.fileno(),
            stderr=subprocess.DEVNULL,
        ) as server,
    ):
        sent = exchange_until_stuck(server, lambda: os.fstat(file.fileno()).st_size)
        (small_disk / "filler").unlink()
        assert server.stop() == 0
    unique, _, _ = reported(_whole_lines((small_disk / "reports").read_bytes()))
    assert unique == sent


@pytest.mark.parametrize("reactors", ["1", "4"])
def test_threads_that_log_at_once_are_no_failure(serve: Serve, backend: str, reactors: str) -> None:
    server = serve("--verbose", "--backend", backend, "--reactors", reactors)
    end_s = time.monotonic() + 1

    def send_invalid_lines() -> None:
        while time.monotonic() < end_s:
            with server.connect() as client, contextlib.suppress(OSError):
                client.sendall(b"invalid\n")
                client.recv(1)

    clients = [threading.Thread(target=send_invalid_lines, daemon=True) for _ in range(4)]
    for client in clients:
        client.start()
    while time.monotonic() < end_s:
        server.process.send_signal(signal.SIGHUP)
        os.sched_yield()
    for client in clients:
        client.join(DEADLINE_S)
    server.send(lines([1]))
    assert server.terminate() == 0
    assert server.logged() == [1]
    assert sum("invalid line" in line for line in server.stderr_lines) > 2
    assert all(line.startswith("numbers-uring: ") for line in server.stderr_lines)
