"""What a server on io_uring makes of system calls that fail: of its ring and of its sockets."""

import errno
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from support.faults import needs_strace, strace
from support.processes import ServerProcess, run_command
from support.waiting import wait_until

Serve = Callable[..., ServerProcess]

pytestmark = [pytest.mark.usefixtures("ring"), needs_strace]

MAY_PASS = ["EAGAIN", "EBUSY", "EINTR"]
FAULT_S = 1.0


def failing(call: str, error: str, when: str = "") -> tuple[str, ...]:
    """Return options of strace that make a system call fail, always or as `when` says."""
    suffix = f":when={when}" if when else ""
    return ("-e", f"trace={call}", "-e", f"inject={call}:error={error}{suffix}")


def calls(trace: Path) -> int:
    return len(trace.read_text().splitlines())


def line(number: int) -> bytes:
    return b"%09d\n" % number


def serve_one(server: ServerProcess) -> socket.socket:
    """Return a client whose first number is on file."""
    client = server.connect()
    client.sendall(line(1))
    wait_until(lambda: server.logged() == [1], "the first number")
    return client


def warnings(server: ServerProcess) -> list[str]:
    """Return what it said between its start and its end."""
    return [said for said in server.stderr_lines if " listening on " not in said][:-1]


# The ring.


@pytest.mark.parametrize("error", MAY_PASS)
def test_a_ring_that_fails_for_a_while_is_not_spun_on_and_serves_on(
    serve: Serve, tmp_path: Path, error: str
) -> None:
    server = serve("--backend", "uring")
    with serve_one(server) as client:
        with strace(server, tmp_path / "trace", *failing("io_uring_enter", error)):
            client.sendall(line(2))
            server.wait_for("io_uring fails for now")
            time.sleep(FAULT_S)
            assert calls(tmp_path / "trace") < 300 * FAULT_S, "it spins"
        client.sendall(line(3))
        wait_until(lambda: server.logged() == [1, 2, 3], "what was sent meanwhile and later")
    assert server.stop() == 0
    (warning,) = warnings(server)
    assert os.strerror(getattr(errno, error)) in warning


@pytest.mark.parametrize("error", MAY_PASS)
def test_a_stop_while_the_ring_fails_takes_in_what_was_delivered(
    serve: Serve, tmp_path: Path, error: str
) -> None:
    server = serve("--backend", "uring", "--max-clients", "2")
    with (
        serve_one(server) as client,
        server.connect(),
        server.connect() as waiting,
        strace(server, tmp_path / "trace", *failing("io_uring_enter", error)),
    ):
        server.wait_for("io_uring fails for now")
        client.sendall(line(2))
        waiting.sendall(line(3))
        assert server.stop() == 0
    assert server.logged_set() == {1, 2, 3}


def test_a_ring_that_fails_for_good_ends_the_server_in_bounded_time(
    serve: Serve, tmp_path: Path
) -> None:
    server = serve("--backend", "uring")
    with serve_one(server), strace(server, tmp_path / "trace", *failing("io_uring_enter", "EBUSY")):
        assert server.wait() == 1
    assert server.stderr_lines[-1].startswith("numbers-uring: error: the backend failed: ")
    assert "Traceback" not in server.stderr
    assert server.logged() == [1]


@pytest.mark.parametrize("error", ["ENOMEM", "EBADF", "EINVAL", "EFAULT", "EBADFD", "EOPNOTSUPP"])
def test_a_ring_that_breaks_ends_the_server_with_one_line_and_all_numbers_on_file(
    serve: Serve, tmp_path: Path, error: str
) -> None:
    server = serve("--backend", "uring")
    breaking = strace(server, tmp_path / "trace", *failing("io_uring_enter", error))
    with serve_one(server) as client, breaking:
        client.sendall(line(2))
        assert server.wait() == 1
    assert len(server.stderr_lines) == 2
    assert server.stderr_lines[-1].startswith("numbers-uring: error: the backend failed: ")
    unique, _, _ = server.reported()
    assert len(server.logged_set()) == unique, "counted and not on file"


@pytest.mark.parametrize("call", ["io_uring_setup", "io_uring_enter", "io_uring_register"])
@pytest.mark.parametrize("error", MAY_PASS)
def test_a_call_of_the_ring_that_fails_once_at_the_start_is_tried_again(
    serve: Serve, tmp_path: Path, call: str, error: str
) -> None:
    prefix = ("strace", "-f", "-o", str(tmp_path / "trace"), *failing(call, error, "1"))
    with serve("--backend", "uring", prefix=prefix) as server:
        assert server.terminate() == 0
    assert "(INJECTED)" in (tmp_path / "trace").read_text()


@pytest.mark.parametrize(
    ("call", "error", "options"),
    [
        ("io_uring_setup", "ENOMEM", ()),
        ("io_uring_setup", "EPERM", ()),
        ("io_uring_setup", "EAGAIN", ()),
        ("io_uring_register", "EINVAL", ()),
        ("io_uring_register", "ENOMEM", ()),
        ("io_uring_register", "EINTR", ()),
        ("io_uring_enter", "EINVAL", ()),
        ("mmap", "ENOMEM", ("-P", "anon_inode:[io_uring]")),
        ("mmap", "EAGAIN", ("-P", "anon_inode:[io_uring]")),
    ],
)
def test_a_ring_that_cannot_be_set_up_leaves_the_old_log_as_it_was(
    tmp_path: Path, call: str, error: str, options: tuple[str, ...]
) -> None:
    log = tmp_path / "numbers.log"
    log.write_bytes(line(7))
    trace = tmp_path / "trace"
    done = run_command(
        *("serve", "--port", "0", "--log-file", str(log), "--backend", "uring"),
        prefix=("strace", "-f", "-o", str(trace), *options, *failing(call, error)),
    )
    assert "(INJECTED)" in trace.read_text()
    assert done.returncode == 3, done.stderr
    (said,) = done.stderr.splitlines()
    assert said.startswith("numbers-uring: error: cannot use io_uring")
    assert log.read_bytes() == line(7)


# The stop.


@pytest.mark.parametrize("call", ["ioctl", "setsockopt", "shutdown"])
@pytest.mark.parametrize("error", ["EINVAL", "ENOMEM"])
def test_a_stop_does_not_depend_on_calls_that_only_inform(
    serve: Serve, tmp_path: Path, call: str, error: str
) -> None:
    server = serve("--backend", "uring", "--max-clients", "1")
    with serve_one(server) as client, server.connect() as waiting:
        client.sendall(b"".join(map(line, range(2, 1000))))
        waiting.sendall(line(1000))
        with strace(server, tmp_path / "trace", *failing(call, error)):
            assert server.stop() == 0
    assert "Traceback" not in server.stderr
    assert set(range(1, 1000)) <= server.logged_set()


@pytest.mark.alone
def test_a_stop_with_a_full_backlog_takes_less_than_a_second(serve: Serve) -> None:
    clients_max = 4096
    server = serve("--backend", "uring", "--max-clients", "1")
    raise_limit = (
        "import resource, socket, sys, time\n"
        "limits = resource.getrlimit(resource.RLIMIT_NOFILE)\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (limits[1], limits[1]))\n"
        "address = ('127.0.0.1', int(sys.argv[1]))\n"
        "clients = []\n"
        "for number in range(int(sys.argv[2])):\n"
        "    clients.append(socket.create_connection(address))\n"
        "    if number % 64 == 63: clients[-1].sendall(b'%09d\\n' % number)\n"
        "print('connected', flush=True)\n"
        "sys.stdin.read()\n"
    )
    with serve_one(server):
        clients = subprocess.Popen(
            [sys.executable, "-c", raise_limit, str(server.port), str(clients_max)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        with clients:
            assert clients.stdout is not None
            assert clients.stdout.readline() == b"connected\n"
            begin_s = time.monotonic()
            assert server.stop() == 0
            took_s = time.monotonic() - begin_s
            clients.communicate(b"")
    assert server.logged_set() == {1, *range(63, clients_max, 64)}
    assert took_s < 1
