"""What a server makes of accepts that fail, once or for ever, on each backend."""

import errno
import os
import re
import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from support.faults import needs_strace, strace
from support.logs import lines
from support.processes import CommandProcess, ServerProcess
from support.waiting import DEADLINE_S, wait_until

Serve = Callable[..., ServerProcess]

FAULT_S = 1.0


def failing(error: str, when: str = "") -> tuple[str, ...]:
    """Return options of strace that make accept4(2) fail, always or as `when` says."""
    suffix = f":when={when}" if when else ""
    return ("-e", "trace=accept4", "-e", f"inject=accept4:error={error}{suffix}")


def calls(trace: Path) -> int:
    return len(trace.read_text().splitlines())


def serve_one(server: ServerProcess) -> socket.socket:
    """Return a client whose first number is on file."""
    client = server.connect()
    client.sendall(lines([1]))
    wait_until(lambda: server.logged() == [1], "the first number")
    return client


def warnings(server: ServerProcess) -> list[str]:
    """Return what it said between its start and its end."""
    return [said for said in server.stderr_lines if " listening on " not in said][:-1]


def processor_s(server: ServerProcess) -> float:
    fields = Path(f"/proc/{server.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@needs_strace
@pytest.mark.parametrize(
    "error", ["EPERM", "EACCES", "ECONNABORTED", "EINVAL", "EMFILE", "ENOBUFS", "EAGAIN", "EINTR"]
)
def test_accepts_that_keep_failing_are_paused_with_one_line(
    serve: Serve, backend: str, tmp_path: Path, error: str
) -> None:
    server = serve("--backend", backend)
    with serve_one(server) as client:
        with (
            strace(server, tmp_path / "trace", *failing(error)),
            server.connect() as late,
        ):
            late.sendall(lines([2]))
            server.wait_for("cannot accept connections for now")
            time.sleep(FAULT_S)
            client.sendall(lines([3]))
            wait_until(lambda: server.logged() == [1, 3], "the client that is connected")
            assert calls(tmp_path / "trace") < 200 * FAULT_S, "it spins"
        wait_until(lambda: server.logged() == [1, 3, 2], "the client that waited")
    assert server.stop() == 0
    (warning,) = warnings(server)
    assert os.strerror(getattr(errno, error)) in warning


@needs_strace
@pytest.mark.parametrize("error", ["ECONNABORTED", "EPROTO", "ENETDOWN", "EPERM", "EINTR"])
def test_one_accept_that_fails_is_not_worth_a_word(
    serve: Serve, backend: str, tmp_path: Path, error: str
) -> None:
    server = serve("--backend", backend)
    with serve_one(server), strace(server, tmp_path / "trace", *failing(error, "1..3")):
        server.send(lines([2]))
        wait_until(lambda: server.logged() == [1, 2], "the next client")
    assert server.stop() == 0
    assert warnings(server) == []


def test_a_listener_that_someone_shut_down_keeps_no_other_from_accepting(
    backend: str, tmp_path: Path
) -> None:
    broken, sound = (socket.create_server(("127.0.0.1", 0)) for _ in range(2))
    with broken, sound:
        code = (
            "import os, sys\n"
            "for target, fd in zip((3, 4), map(int, sys.argv[1:3])): os.dup2(fd, target)\n"
            "os.environ['LISTEN_PID'] = str(os.getpid())\n"
            "os.execv(sys.executable, [sys.executable, *sys.argv[4:]])\n"
        )
        fds = (broken.fileno(), sound.fileno())
        with ServerProcess(
            tmp_path / "numbers.log",
            *("--backend", backend),
            listen=(),
            prefix=(sys.executable, "-c", code, *map(str, fds)),
            pass_fds=fds,
            environment={"LISTEN_FDS": "2"},
        ) as server:
            broken.shutdown(socket.SHUT_RDWR)
            server.wait_for("cannot accept connections for now: Invalid argument")
            begin_s = processor_s(server)
            for number in range(5):
                with socket.create_connection(sound.getsockname(), DEADLINE_S) as client:
                    client.sendall(lines([number]))
                wait_until(lambda n=number: n in server.logged_set(), "the sound listener")  # type: ignore[misc]
            time.sleep(FAULT_S)
            assert processor_s(server) - begin_s < FAULT_S / 2, "it spins"
            assert server.stop() == 0
            assert len(warnings(server)) == 1


@needs_strace
@pytest.mark.parametrize("error", ["EPERM", "ECONNABORTED", "EINVAL", "EINTR"])
def test_an_accept_that_fails_at_the_stop_costs_no_client_that_waits(
    serve: Serve, backend: str, tmp_path: Path, error: str
) -> None:
    server = serve("--backend", backend, "--max-clients", "1")
    with serve_one(server) as first, server.connect() as waits, server.connect() as waits_too:
        waits.sendall(lines([2]))
        waits_too.sendall(lines([3]))
        with strace(server, tmp_path / "trace", *failing(error, "1")):
            assert server.stop() == 0
        assert [client.recv(1) for client in (first, waits, waits_too)] == [b""] * 3
    assert server.logged_set() == {1, 2, 3}


@needs_strace
@pytest.mark.parametrize("error", ["EPERM", "EMFILE"])
def test_accepts_that_keep_failing_at_the_stop_are_said(
    serve: Serve, backend: str, tmp_path: Path, error: str
) -> None:
    server = serve("--backend", backend, "--max-clients", "1")
    with serve_one(server), server.connect() as waits:
        waits.sendall(lines([2]))
        with strace(server, tmp_path / "trace", *failing(error)):
            assert server.stop() == 0
        first_said, said = warnings(server)
        assert "cannot accept connections for now" in first_said
        assert "clients that waited at the stop cannot be accepted" in said
        with pytest.raises(ConnectionResetError):
            waits.recv(1)
    assert server.logged_set() == {1}


@needs_strace
@pytest.mark.parametrize("error", ["EPERM", "EMFILE", "ENFILE", "ENOMEM"])
@pytest.mark.parametrize("reactors", ["1", "2"])
def test_accepts_that_fail_a_few_times_at_the_stop_cost_no_client_that_waits(
    serve: Serve, backend: str, reactors: str, tmp_path: Path, error: str
) -> None:
    server = serve("--backend", backend, "--reactors", reactors, "--max-clients", "1")
    with serve_one(server), server.connect() as waits, server.connect() as waits_too:
        waits.sendall(lines([2]))
        waits_too.sendall(lines([3]))
        with strace(server, tmp_path / "trace", *failing(error, "1..3")):
            assert server.stop() == 0
        assert [client.recv(1) for client in (waits, waits_too)] == [b""] * 2
    assert server.logged_set() == {1, 2, 3}


# epoll_ctl(2), which accepts and receives stand on.


@needs_strace
@pytest.mark.parametrize("nth", range(1, 9))
@pytest.mark.parametrize("reactors", ["1", "2"])
def test_one_epoll_ctl_that_fails_costs_no_client(
    serve: Serve, tmp_path: Path, reactors: str, nth: int
) -> None:
    trace = tmp_path / "trace"
    fault = ("-e", "trace=epoll_ctl", "-e", f"inject=epoll_ctl:error=ENOSPC:when={nth}")
    server = serve(
        *("--backend", "epoll", "--reactors", reactors),
        prefix=("strace", "-f", "-o", str(trace), *fault),
    )
    clients = [server.connect() for _ in range(3)]
    for number, client in enumerate(clients):
        client.sendall(lines([number]))
    wait_until(lambda: server.logged_set() == {0, 1, 2}, "all numbers")
    assert server.terminate() == 0
    for client in clients:
        assert client.recv(1) == b""
        client.close()
    assert "(INJECTED)" in trace.read_text()
    assert warnings(server) == []


@needs_strace
@pytest.mark.parametrize("nth", [1, 2, 4, 6])
@pytest.mark.parametrize("reactors", ["1", "2"])
def test_epoll_ctl_that_keeps_failing_ends_the_server_or_leaves_it_stoppable(
    tmp_path: Path, reactors: str, nth: int
) -> None:
    fault = ("-e", "trace=epoll_ctl", "-e", f"inject=epoll_ctl:error=EIO:when={nth}+")
    log = tmp_path / "numbers.log"
    with CommandProcess(
        *("serve", "--port", "0", "--log-file", str(log)),
        *("--backend", "epoll", "--reactors", reactors),
        prefix=("strace", "-D", "-f", "-o", str(tmp_path / "trace"), *fault),
    ) as server:
        wait_until(
            lambda: "listening on" in server.stderr or server.process.poll() is not None,
            "its start or its end",
        )
        listening = re.search(r"listening on 127.0.0.1:(\d+)", server.stderr)
        if listening is not None:
            with (
                suppress(ConnectionError),
                socket.create_connection(("127.0.0.1", int(listening[1])), DEADLINE_S) as client,
            ):
                client.sendall(lines([1]))
        assert server.stop() in ({0, 1} if listening else {3})
    assert "Traceback" not in server.stderr
    for kind in ("cannot accept connections for now", "the backend failed"):
        assert server.stderr.count(kind) <= int(reactors)
