"""What several test modules need: a server process, and waiting for something with a deadline."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

DEADLINE_S = 30.0
"""For what should take milliseconds: reached only by a failure, even on a busy machine."""

REACTORS = os.environ.get("NUMBERS_URING_TEST_REACTORS", "1")
"""How many reactors each server of the tests has, unless it is told otherwise."""

REPORT = re.compile(r"Received (\d+) unique numbers, (\d+) duplicates\. Unique total: (\d+)")


def wait_until(condition: Callable[[], object], what: str, deadline_s: float = DEADLINE_S) -> None:
    """Return as soon as `condition` holds; fail, naming `what`, when it does not in time."""
    end_s = time.monotonic() + deadline_s
    pause = threading.Event()
    while not condition():
        assert time.monotonic() < end_s, f"waited {deadline_s} s in vain for {what}"
        pause.wait(0.002)


def lines(numbers: Iterable[int]) -> bytes:
    """Return the protocol's lines for `numbers`."""
    return b"".join(b"%09d\n" % number for number in numbers)


class ServerProcess:
    """A real `numbers-uring serve` on a free port of 127.0.0.1, with its output collected."""

    def __init__(
        self,
        log_path: Path,
        *options: str,
        listen: Iterable[str] = ("--port", "0"),
        prefix: Iterable[str] = (),
        pass_fds: Iterable[int] = (),
        environment: dict[str, str] | None = None,
        stdout: int | None = None,
        python: str = sys.executable,
        has_log: bool = True,
    ) -> None:
        self.log_path = log_path
        self.stderr_lines: list[str] = []
        self.reports: list[str] = []
        self.process = subprocess.Popen(
            [
                *prefix,
                *(python, "-m", "numbers_uring", "serve"),
                *(*listen, "--reactors", REACTORS),
                *(*(("--log-file", str(log_path)) if has_log else ()), *options),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE if stdout is None else stdout,
            stderr=subprocess.PIPE,
            env={**os.environ, **(environment or {})},
            pass_fds=tuple(pass_fds),
            text=True,
        )
        self._readers = [self.collect(self.process.stderr, self.stderr_lines)]
        if self.process.stdout is not None:
            self._readers.append(self.collect(self.process.stdout, self.reports))
        try:
            wait_until(
                lambda: "listening on" in self.stderr or self.process.poll() is not None,
                "the start line",
            )
            start = re.search(r"listening on (\S+):(\d+)[, ]", self.stderr)
            assert start, f"no start line: {self.stderr!r}"
        except BaseException:
            self.kill()
            raise
        self.host = start[1].strip("[]")
        self.port = int(start[2])

    @staticmethod
    def collect(stream: Iterable[str] | None, into: list[str]) -> threading.Thread:
        assert stream is not None

        def read() -> None:
            for line in stream:
                into.append(line.rstrip("\n"))

        thread = threading.Thread(target=read, daemon=True)
        thread.start()
        return thread

    def __enter__(self) -> "ServerProcess":
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def kill(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(DEADLINE_S)
        for stream in (self.process.stdout, self.process.stderr):
            if stream is not None:
                for reader in self._readers:
                    reader.join(DEADLINE_S)
                stream.close()

    def connect(self) -> socket.socket:
        return socket.create_connection((self.host, self.port), timeout=DEADLINE_S)

    def send(self, data: bytes) -> None:
        """Send `data` on a connection of its own and leave."""
        with self.connect() as client:
            client.sendall(data)

    def terminate(self) -> int:
        """Have a client send `terminate`; return the exit code."""
        self.send(b"terminate\n")
        return self.wait()

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.wait()

    def wait(self) -> int:
        code = self.process.wait(DEADLINE_S)
        for reader in self._readers:
            reader.join(DEADLINE_S)
        return code

    @property
    def stderr(self) -> str:
        return "\n".join(self.stderr_lines)

    def logged(self) -> list[int]:
        """Return the log's numbers, after a check that it is made of whole lines alone."""
        data = self.log_path.read_bytes()
        assert re.fullmatch(rb"(?:[0-9]{9}\n)*", data), "the log has something else than lines"
        return [int(line) for line in data.split()]

    def logged_set(self) -> set[int]:
        """Return the log's numbers, after a check that none is there twice."""
        numbers = self.logged()
        assert len(set(numbers)) == len(numbers), "the log has a number twice"
        return set(numbers)

    def reported(self) -> tuple[int, int, int]:
        """Return the sums of the reports' unique and duplicate numbers, and the last total."""
        parsed = []
        for line in self.reports:
            match = REPORT.fullmatch(line)
            assert match, f"not a report: {line!r}"
            parsed.append(tuple(map(int, match.groups())))
        uniques, duplicates, totals = zip(*parsed, strict=True)
        assert [sum(uniques[: i + 1]) for i in range(len(uniques))] == list(totals)
        return sum(uniques), sum(duplicates), totals[-1]


class GrowingLog:
    """A log over several runs; each look reads only what has come since the last one."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._seen_bytes = 0
        self.numbers: set[int] = set()

    @property
    def size(self) -> int:
        return self.path.stat().st_size

    def look(self) -> None:
        with self.path.open("rb") as file:
            file.seek(self._seen_bytes)
            data = file.read()
        whole = data[: len(data) // 10 * 10]
        assert re.fullmatch(rb"(?:[0-9]{9}\n)*", whole)
        assert re.fullmatch(rb"[0-9]{0,9}", data[len(whole) :])
        found = [int(line) for line in whole.split()]
        new = set(found)
        assert len(new) == len(found), "a number is there twice"
        assert not new & self.numbers, "a number is there twice"
        self.numbers |= new
        self._seen_bytes += len(whole)


class CommandProcess:
    """A real `numbers-uring` in the background, with its output collected."""

    def __init__(
        self,
        *arguments: str,
        prefix: Iterable[str] = (),
        environment: dict[str, str] | None = None,
    ) -> None:
        self.stdout_lines: list[str] = []
        self.stderr_lines: list[str] = []
        self.process = subprocess.Popen(
            [*prefix, sys.executable, "-m", "numbers_uring", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, **(environment or {})},
            text=True,
        )
        self._readers = [
            ServerProcess.collect(self.process.stdout, self.stdout_lines),
            ServerProcess.collect(self.process.stderr, self.stderr_lines),
        ]

    def __enter__(self) -> "CommandProcess":
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    @property
    def stderr(self) -> str:
        return "\n".join(self.stderr_lines)

    def wait_for(self, words: str) -> None:
        """Wait until it says them on standard error; fail at once if it ends before."""

        def said() -> bool:
            ended = self.process.poll() is not None
            if ended:
                self.wait()
            assert words in self.stderr or not ended, self.stderr
            return words in self.stderr

        try:
            wait_until(said, f"{words!r}, it said {self.stderr!r}")
        except BaseException:
            self.kill()
            raise

    def stop(self, number: signal.Signals) -> int:
        self.process.send_signal(number)
        return self.wait()

    def wait(self) -> int:
        code = self.process.wait(DEADLINE_S)
        for reader in self._readers:
            reader.join(DEADLINE_S)
        return code

    def kill(self) -> None:
        self.process.kill()
        self.wait()
        for stream in (self.process.stdout, self.process.stderr):
            assert stream is not None
            stream.close()


def is_closed(client: socket.socket) -> bool:
    """Wait for the server to close the connection without a word; False if it says something."""
    client.settimeout(DEADLINE_S)
    try:
        return client.recv(1) == b""
    except ConnectionResetError:
        # What was sent after the line that ended the connection is answered with a reset.
        return True


needs_strace = pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")


@contextmanager
def strace(server: ServerProcess | int, trace: Path, *options: str) -> Iterator[None]:
    """Trace, or interfere with, the system calls of a running server, or of a process by number."""
    pid = server if isinstance(server, int) else server.process.pid
    tracer = subprocess.Popen(
        ["strace", "-f", "-o", str(trace), *options, "-p", str(pid)],
        stderr=subprocess.PIPE,
        text=True,
    )
    assert tracer.stderr is not None
    try:
        said = tracer.stderr.readline()
        while "attached" not in said:
            assert tracer.poll() is None, said
            said = tracer.stderr.readline()
        yield
    finally:
        if tracer.poll() is None:
            tracer.terminate()
        tracer.wait(DEADLINE_S)
        tracer.stderr.close()


@contextmanager
def stalled_sync(server: ServerProcess | int, trace: Path) -> Iterator[Callable[[], bool]]:
    """Slow down the log's syncs from outside, as by a disk that does not answer.

    Gives a function that says whether a sync has begun.
    """
    slow = ("-e", "trace=fdatasync", "-e", "inject=fdatasync:delay_enter=1s")
    with strace(server, trace, *slow):
        yield lambda: "fdatasync" in trace.read_text()


def run_command(
    *arguments: str,
    prefix: Iterable[str] = (),
    environment: dict[str, str] | None = None,
    cwd: Path | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run `numbers-uring` with these arguments to its end."""
    return subprocess.run(
        [*prefix, sys.executable, "-m", "numbers_uring", *arguments],
        capture_output=True,
        check=False,
        cwd=cwd,
        env={**os.environ, **(environment or {})},
        stdin=subprocess.DEVNULL,
        text=True,
        timeout=30,
    )


def assert_one_line_error(done: subprocess.CompletedProcess[str], code: int, *words: str) -> None:
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("numbers-uring: error: ")
    for word in words:
        assert word in line


def failure(
    log_path: Path,
    *options: str,
    prefix: Iterable[str] = (),
    environment: dict[str, str] | None = None,
    pass_fds: Iterable[int] = (),
) -> tuple[int, list[str]]:
    """Run a server that cannot start; return its exit code and its lines on standard error."""
    done = subprocess.run(
        [
            *prefix,
            *(sys.executable, "-m", "numbers_uring", "serve"),
            *("--log-file", str(log_path), *options),
        ],
        capture_output=True,
        check=False,
        env={**os.environ, **(environment or {})},
        pass_fds=tuple(pass_fds),
        text=True,
        timeout=DEADLINE_S,
    )
    return done.returncode, done.stderr.splitlines()
