"""Real `numbers-uring` processes: one in the background, a server, and one that runs to its end."""

import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Self

from support import logs
from support.waiting import DEADLINE_S, wait_until

REACTORS = os.environ.get("TEST_REACTORS", "1")
"""How many reactors each server of the tests has, unless it is told otherwise."""


_STAMP = re.compile(r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z (?=numbers-uring: )", re.MULTILINE)


def unstamped(text: str) -> str:
    """Return a service's lines without the times that they begin with."""
    return _STAMP.sub("", text)


def run_text(command: Sequence[str | Path], **options: Any) -> subprocess.CompletedProcess[str]:
    """Do what subprocess.run does, and leave out the times before lines on standard error."""
    done = subprocess.run(command, check=False, text=True, **options)
    if done.stderr is not None:
        done.stderr = unstamped(done.stderr)
    return done


def _collect(stream: Iterable[str], into: list[str]) -> threading.Thread:
    def read() -> None:
        for line in stream:
            into.append(unstamped(line.rstrip("\n")))

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    return thread


class CommandProcess:
    """A `numbers-uring` in the background, with its output collected line by line."""

    def __init__(
        self,
        *arguments: str,
        prefix: Iterable[str] = (),
        pass_fds: Iterable[int] = (),
        environment: dict[str, str] | None = None,
        stdout: int | None = None,
        python: str = sys.executable,
    ) -> None:
        self.stdout_lines: list[str] = []
        self.stderr_lines: list[str] = []
        self.process = subprocess.Popen(
            [*prefix, python, "-m", "numbers_uring", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE if stdout is None else stdout,
            stderr=subprocess.PIPE,
            env={**os.environ, **(environment or {})},
            pass_fds=tuple(pass_fds),
            text=True,
        )
        self._readers = [
            _collect(stream, into)
            for stream, into in (
                (self.process.stderr, self.stderr_lines),
                (self.process.stdout, self.stdout_lines),
            )
            if stream is not None
        ]

    def __enter__(self) -> Self:
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

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.wait()

    def wait(self) -> int:
        """Return the exit code, once everything that it said is collected."""
        code = self.process.wait(DEADLINE_S)
        for reader in self._readers:
            reader.join(DEADLINE_S)
        return code

    def kill(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.wait()
        for stream in (self.process.stdout, self.process.stderr):
            if stream is not None:
                stream.close()


class ServerProcess(CommandProcess):
    """A `numbers-uring serve` that listens, on a free port of 127.0.0.1 unless told otherwise."""

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
        super().__init__(
            *("serve", *listen, "--reactors", REACTORS),
            *(("--log-file", str(log_path)) if has_log else ()),
            *options,
            prefix=prefix,
            pass_fds=pass_fds,
            environment=environment,
            stdout=stdout,
            python=python,
        )
        self.wait_for("listening on")
        start = re.search(r"listening on (\S+):(\d+)[, ]", self.stderr)
        if start is None:
            self.kill()
        assert start, f"no start line: {self.stderr!r}"
        self.host = start[1].strip("[]")
        self.port = int(start[2])

    @property
    def reports(self) -> list[str]:
        """The lines on standard output."""
        return self.stdout_lines

    def connect(self) -> socket.socket:
        return socket.create_connection((self.host, self.port), timeout=DEADLINE_S)

    def send(self, data: bytes) -> None:
        """Send `data` on a connection of its own and leave."""
        with self.connect() as client:
            client.sendall(data)

    def terminate(self) -> int:
        """Send `terminate` as a client; return the exit code."""
        self.send(b"terminate\n")
        return self.wait()

    def logged(self) -> list[int]:
        """Return the log's numbers, after a check that it consists of whole lines."""
        return logs.logged(self.log_path)

    def logged_set(self) -> set[int]:
        """Return the log's numbers, after a check that none is there twice."""
        return logs.logged_once(self.log_path)

    def reported(self) -> tuple[int, int, int]:
        """Return the sums of the reports' unique and duplicate numbers, and the last total."""
        return logs.reported(self.reports)


def run_command(
    *arguments: str,
    prefix: Iterable[str] = (),
    pass_fds: Iterable[int] = (),
    environment: dict[str, str] | None = None,
    cwd: Path | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run `numbers-uring` with these arguments to its end."""
    return run_text(
        [*prefix, sys.executable, "-m", "numbers_uring", *arguments],
        capture_output=True,
        cwd=cwd,
        env={**os.environ, **(environment or {})},
        pass_fds=tuple(pass_fds),
        stdin=subprocess.DEVNULL,
        timeout=DEADLINE_S,
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
    done = run_command(
        *("serve", "--log-file", str(log_path), *options),
        prefix=prefix,
        environment=environment,
        pass_fds=pass_fds,
    )
    return done.returncode, done.stderr.splitlines()
