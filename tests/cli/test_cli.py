"""The command line: usage errors, hosts where it cannot start, environment, help."""

import errno
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from numbers_uring import __version__
from numbers_uring.errors import StartError
from numbers_uring.server.select import choose_backend, room_for_buffers
from support.logs import lines
from support.processes import ServerProcess, assert_one_line_error, run_text
from support.processes import run_command as run
from support.seccomp import FORBID
from support.waiting import DEADLINE_S

LINES = lines(range(100))


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--port", "65536"], "65536"),
        (["--port", "-1"], "-1"),
        (["--port", "http"], "http"),
        (["--max-clients", "0"], "--max-clients"),
        (["--concurrent-connections", "x"], "--max-clients"),
        (["--report-interval", "0"], "--report-interval"),
        (["--report-interval", "nan"], "--report-interval"),
        (["--report-interval", "inf"], "--report-interval"),
        (["--report-interval", "-1"], "--report-interval"),
        (["--idle-timeout", "-0.5"], "--idle-timeout"),
        (["--idle-timeout", "soon"], "'soon' is not a number."),
        (["--backend", "kqueue"], "--backend"),
        (["--kernel", "cuda"], "--kernel"),
        (["--when-full", "panic"], "--when-full"),
        (["--no-such-option"], "--no-such-option"),
        (["--port"], "--port"),
        (["extra"], "extra"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_2(
    arguments: list[str], word: str, tmp_path: Path
) -> None:
    assert_one_line_error(run("serve", *arguments, cwd=tmp_path), 2, word, "--help")
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_environment_is_one_line_and_exit_2() -> None:
    done = run("serve", environment={"NUMBERS_URING_SERVE_PORT": "http"})
    assert_one_line_error(done, 2, "http")


def test_an_unknown_command_is_one_line_and_exit_2() -> None:
    assert_one_line_error(run("server"), 2, "server")


def test_without_a_command_the_help_is_shown() -> None:
    done = run()
    assert done.returncode == 2
    assert "serve" in done.stderr


@pytest.mark.parametrize("arguments", [["--version"], ["serve", "--version"]])
def test_the_version_is_told(arguments: list[str]) -> None:
    done = run(*arguments)
    assert done.returncode == 0
    assert __version__ in done.stdout


def test_the_help_names_every_option_and_the_exit_codes() -> None:
    done = run("serve", "--help")
    assert done.returncode == 0
    for word in (
        *("--backend", "--kernel", "--host", "--port", "--max-clients", "--when-full"),
        *(
            "--concurrent-connections",
            "--log-file",
            "--report-interval",
            "--idle-timeout",
            "--metrics",
        ),
        *("--version", "terminate", "NUMBERS_URING_SERVE_", "Exit status"),
    ):
        assert word in done.stdout


def test_a_port_in_use_is_said_and_the_log_left_as_it_is(tmp_path: Path) -> None:
    log = tmp_path / "numbers.log"
    log.write_bytes(LINES)
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        done = run("serve", "--port", str(port), "--log-file", str(log))
    assert_one_line_error(done, 3, f"127.0.0.1:{port}", "Address already in use")
    assert log.read_bytes() == LINES


@pytest.mark.parametrize(
    "host", ["", "no.such.host.invalid", "256.0.0.1", "1.2.3.4", "a" * 300, "é" * 70]
)
def test_a_host_that_cannot_be_listened_on_is_said(host: str, tmp_path: Path) -> None:
    done = run("serve", "--host", host, "--port", "0", cwd=tmp_path)
    assert_one_line_error(done, 3, "cannot listen on")
    assert list(tmp_path.iterdir()) == []


def test_a_log_in_use_is_said_and_left_as_it_is(
    serve: Callable[..., ServerProcess], tmp_path: Path
) -> None:
    server = serve()
    server.send(LINES)
    done = run("serve", "--port", "0", "--log-file", str(server.log_path))
    assert_one_line_error(done, 3, "numbers.log", "locked")
    assert server.terminate() == 0
    assert server.log_path.read_bytes() == LINES


def _directory(path: Path) -> Path:
    path.mkdir()
    return path


def _fifo(path: Path) -> Path:
    os.mkfifo(path)
    return path


@pytest.mark.parametrize(
    "make",
    [
        _directory,
        _fifo,
        lambda _: Path("/dev/full"),
        lambda _: Path("/dev/null"),
        lambda path: path / "nowhere" / "numbers.log",
        lambda _: Path("/proc/numbers.log"),
    ],
    ids=["directory", "fifo", "/dev/full", "/dev/null", "no such folder", "/proc"],
)
def test_a_log_that_cannot_be_written_is_said(make: Callable[[Path], Path], tmp_path: Path) -> None:
    path = make(tmp_path / "numbers.log")
    done = run("serve", "--port", "0", "--log-file", str(path))
    assert_one_line_error(done, 3, str(path))


def test_a_limit_of_descriptors_that_is_too_low_is_said(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "numbers_uring", "serve", "--port", "0"]
    done = run_text(
        ["prlimit", "--nofile=100:100", *command, "--max-clients", "1000"],
        capture_output=True,
        cwd=tmp_path,
        timeout=DEADLINE_S,
    )
    assert_one_line_error(done, 3, "1000", "hard limit is 100")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "limits",
    [
        [f"--as={100 * 2**20}"],
        # A thread's stack is as large as the limit of the stack says.
        [f"--as={400 * 2**20}", f"--stack={2**30}:"],
    ],
    ids=["bitmap", "thread"],
)
def test_too_little_memory_is_said(limits: list[str], tmp_path: Path) -> None:
    log = tmp_path / "numbers.log"
    log.write_bytes(LINES)
    command = [sys.executable, "-m", "numbers_uring", "serve", "--port", "0"]
    done = run_text(
        ["prlimit", *limits, *command],
        capture_output=True,
        cwd=tmp_path,
        timeout=DEADLINE_S,
    )
    assert_one_line_error(done, 3, "memory")
    assert log.read_bytes() == LINES


def test_buffers_that_find_no_memory_are_a_failed_start() -> None:
    with pytest.raises(StartError, match="not enough memory"), room_for_buffers("epoll"):
        raise MemoryError


def test_options_come_from_the_environment_too(
    serve: Callable[..., ServerProcess], tmp_path: Path
) -> None:
    server = serve(
        environment={
            "NUMBERS_URING_SERVE_MAX_CLIENTS": "7",
            "NUMBERS_URING_SERVE_KERNEL": "python",
            "NUMBERS_URING_SERVE_BACKEND": "epoll",
            "NUMBERS_URING_SERVE_REPORT_INTERVAL": "0.5",
            "NUMBERS_URING_SERVE_WHEN_FULL": "refuse",
        }
    )
    assert "at most 7 clients" in server.stderr
    assert "kernel python" in server.stderr
    assert server.terminate() == 0


@pytest.mark.parametrize("variable", ["MAX_CLIENTS", "CONCURRENT_CONNECTIONS"])
def test_both_names_of_the_client_limit_work_everywhere(
    serve: Callable[..., ServerProcess], variable: str
) -> None:
    server = serve(environment={f"NUMBERS_URING_SERVE_{variable}": "9"})
    assert "at most 9 clients" in server.stderr
    assert server.terminate() == 0
    option = f"--{variable.lower().replace('_', '-')}"
    server = serve(option, "3", environment={f"NUMBERS_URING_SERVE_{variable}": "9"})
    assert "at most 3 clients" in server.stderr
    assert server.terminate() == 0


# A ring that is forbidden, or not there.


def run_without_a_ring(
    error: int, *arguments: str, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    return run_text(
        [sys.executable, "-c", FORBID, str(error), *arguments],
        capture_output=True,
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        timeout=DEADLINE_S,
    )


NO_RING = [
    (errno.EPERM, "seccomp"),
    (errno.ENOSYS, "without io_uring"),
    (errno.ENOMEM, "ulimit -l"),
    (errno.EINVAL, "Linux 6.1"),
    (errno.EMFILE, "Too many open files"),
]


@pytest.mark.parametrize(("error", "hint"), NO_RING)
def test_a_ring_that_cannot_be_had_is_said(error: int, hint: str, tmp_path: Path) -> None:
    arguments = ["-m", "numbers_uring", "serve", "--backend", "uring", "--port", "0"]
    done = run_without_a_ring(error, *arguments, cwd=tmp_path)
    words = ("io_uring_setup", os.strerror(error), hint, "--backend epoll")
    assert_one_line_error(done, 3, *words)
    assert list(tmp_path.iterdir()) == []


CHOOSE = """
import sys
from numbers_uring.server.select import (choose_backend, room_for_buffers)
from numbers_uring.errors import StartError
said = []
name, make = choose_backend("auto", said.append)
print(name, make.__name__, *said, sep="\\n")
"""


@pytest.mark.parametrize(("error", "hint"), NO_RING)
def test_without_a_ring_auto_is_epoll_and_says_why(error: int, hint: str) -> None:
    done = run_without_a_ring(error, "-c", CHOOSE)
    assert done.returncode == 0, done.stderr
    name, make, said = done.stdout.splitlines()
    assert (name, make) == ("epoll", "EpollReactor")
    for word in ("io_uring", os.strerror(error), hint, "using epoll instead"):
        assert word in said


@pytest.mark.usefixtures("ring")
@pytest.mark.parametrize(
    ("name", "auto", "taken"),
    [
        ("auto", "epoll", ("epoll", "EpollReactor")),
        ("auto", "uring", ("uring", "UringReactor")),
        ("uring", "epoll", ("uring", "UringReactor")),
        ("epoll", "uring", ("epoll", "EpollReactor")),
    ],
)
def test_with_a_ring_nothing_is_said(name: str, auto: str, taken: tuple[str, str]) -> None:
    said: list[str] = []
    chosen, make = choose_backend(name, said.append, auto=auto)
    assert (chosen, make.__name__, said) == (*taken, [])


def test_closed_standard_streams_do_no_harm_to_an_error() -> None:
    done = run_text(
        ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", sys.executable, "-m", "numbers_uring", "x"],
        timeout=DEADLINE_S,
    )
    assert done.returncode == 2
