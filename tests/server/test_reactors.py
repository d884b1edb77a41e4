"""Several reactors over one bitmap and one log."""

import os
import random
import shutil
import signal
import socket
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from support.clients import is_closed
from support.faults import needs_strace, strace
from support.logs import lines
from support.processes import ServerProcess, run_text
from support.waiting import DEADLINE_S, wait_until

Serve = Callable[..., ServerProcess]


@pytest.fixture(params=[2, 4])
def reactors(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def send_all(server: ServerProcess, streams: list[bytes]) -> None:
    """Send each stream on a connection of its own, all at once, and wait until all are taken in."""

    def send(stream: bytes) -> None:
        with server.connect() as client:
            client.sendall(stream)
            client.shutdown(socket.SHUT_WR)
            assert is_closed(client)

    threads = [threading.Thread(target=send, args=(stream,)) for stream in streams]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE_S)
        assert not thread.is_alive()


def test_the_same_numbers_from_all_clients_at_once_are_each_on_file_once(
    serve: Serve, backend: str, reactors: str
) -> None:
    server = serve("--backend", backend, "--reactors", reactors, "--max-clients", "8")
    assert f"{reactors} reactors" in server.stderr
    numbers = [*range(100_000), *random.Random(5).sample(range(10**9), 100_000)]
    data = lines(numbers)
    send_all(server, [data] * 8)
    assert server.terminate() == 0
    unique = len(set(numbers))
    assert server.logged_set() == set(numbers)
    assert server.reported() == (unique, 8 * len(numbers) - unique, unique)
    assert "9 clients served" in server.stderr


def test_the_limit_is_one_for_all_and_clients_that_wait_are_served(
    serve: Serve, backend: str, reactors: str
) -> None:
    server = serve("--backend", backend, "--reactors", reactors, "--max-clients", "3")
    clients = [server.connect() for _ in range(10)]
    for number, client in enumerate(clients):
        client.sendall(lines([number]))
    wait_until(lambda: len(server.logged()) == 3, "the numbers of those who are served")
    assert server.logged_set() == {0, 1, 2}
    for served, client in enumerate(clients, start=1):
        client.close()
        expected = min(served + 3, 10)
        wait_until(lambda expected=expected: len(server.logged()) == expected, "the next one")  # type: ignore[misc]
    assert server.stop() == 0
    assert server.logged_set() == set(range(10))


def test_a_terminate_on_any_reactor_stops_them_all(
    serve: Serve, backend: str, reactors: str
) -> None:
    for turn in range(int(reactors)):
        server = serve("--backend", backend, "--reactors", reactors)
        clients = [server.connect() for _ in range(int(reactors))]
        for number, client in enumerate(clients):
            client.sendall(lines([number]))
        wait_until(lambda server=server: len(server.logged()) == int(reactors), "all numbers")  # type: ignore[misc]
        clients[turn].sendall(lines([77]) + b"terminate\n")
        assert server.wait() == 0
        assert server.logged_set() == {*range(int(reactors)), 77}
        for client in clients:
            assert is_closed(client)
            client.close()


@needs_strace
def test_a_write_that_fails_in_any_reactor_ends_the_server_and_says_what_is_lost(
    serve: Serve, backend: str, reactors: str, tmp_path: Path
) -> None:
    server = serve("--backend", backend, "--reactors", reactors, "--fsync", "never")
    clients = [server.connect() for _ in range(int(reactors))]
    with strace(
        server, tmp_path / "trace", "-P", str(server.log_path), "-e", "inject=write:error=EIO"
    ):
        for number, client in enumerate(clients):
            # The first of them ends the server, which resets the others.
            with suppress(ConnectionError):
                client.sendall(lines([number]))
        assert server.wait() == 4
    assert "Input/output error" in server.stderr
    assert "counted numbers are lost" in server.stderr
    for client in clients:
        client.close()


@needs_strace
def test_a_repeat_is_not_done_with_before_its_number_is_on_file(
    serve: Serve, backend: str, reactors: str, tmp_path: Path
) -> None:
    server = serve("--backend", backend, "--reactors", reactors)
    trace = tmp_path / "trace"
    slow = ("-P", str(server.log_path), "-e", "inject=write:delay_enter=500ms")
    with strace(server, trace, *slow), server.connect() as first, server.connect() as second:
        first.sendall(lines([7]))
        wait_until(lambda: "write" in trace.read_text(), "the write of the first one's number")
        second.sendall(lines([7]))
        second.shutdown(socket.SHUT_WR)
        assert is_closed(second)
        assert server.logged() == [7]
    assert server.terminate() == 0
    assert server.reported() == (1, 1, 1)


def test_a_ring_that_cannot_be_had_in_a_thread_is_refused_with_the_log_untouched(
    ring: None, tmp_path: Path
) -> None:
    log = tmp_path / "numbers.log"
    log.write_bytes(lines([1]))
    prlimit = shutil.which("prlimit")
    if prlimit is None:
        pytest.skip("prlimit is not installed")
    done = run_text(
        [
            *(prlimit, "--nofile=60:60", sys.executable, "-m", "numbers_uring", "serve"),
            *("--backend", "uring", "--reactors", "64", "--port", "0", "--log-file", str(log)),
        ],
        capture_output=True,
        timeout=DEADLINE_S,
    )
    assert done.returncode == 3, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("numbers-uring: error: ")
    assert log.read_bytes() == lines([1])


def test_rotation_and_reports_go_on_beside_floods(
    serve: Serve, backend: str, reactors: str, tmp_path: Path
) -> None:
    server = serve("--backend", backend, "--reactors", reactors, "--report-interval", "0.05")
    streams = [lines(range(start, start + 400_000)) for start in range(0, 1_600_000, 400_000)]
    flood = threading.Thread(target=send_all, args=(server, streams))
    flood.start()
    for i in range(4):
        server.log_path.rename(tmp_path / f"numbers.log.{i}")
        os.kill(server.process.pid, signal.SIGHUP)
        wait_until(lambda i=i: server.stderr.count("is reopened") > i, "the new log")  # type: ignore[misc]
    flood.join(DEADLINE_S)
    assert server.terminate() == 0
    data = b"".join(path.read_bytes() for path in tmp_path.glob("numbers.log*"))
    assert sorted(map(int, data.split())) == list(range(1_600_000))
    assert server.reported() == (1_600_000, 0, 1_600_000)


@pytest.mark.parametrize("stop", ["terminate", "SIGTERM"])
def test_wake_ups_that_fail_delay_a_stop_and_do_not_prevent_it(
    serve: Serve, backend: str, tmp_path: Path, stop: str
) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import errno, os\n"
        "def refuse(*_):\n"
        "    raise OSError(errno.EIO, os.strerror(errno.EIO))\n"
        "os.eventfd_write = refuse\n"
    )
    server = serve(
        *("--backend", backend, "--reactors", "2"), environment={"PYTHONPATH": str(tmp_path)}
    )
    with server.connect() as first, server.connect() as second:
        first.sendall(lines([1]))
        second.sendall(lines([2]))
        assert server.terminate() == 0 if stop == "terminate" else server.stop() == 0
    assert server.logged_set() == {1, 2}


@pytest.mark.parametrize("reactors", ["1", "2"])
def test_clients_that_come_after_others_have_left_are_not_refused(
    serve: Serve, backend: str, reactors: str
) -> None:
    server = serve(
        *("--backend", backend, "--reactors", reactors),
        *("--max-clients", "2", "--when-full", "refuse"),
    )
    numbers = iter(range(1000))
    for _ in range(50):
        clients = [server.connect() for _ in range(2)]
        for client in clients:
            client.sendall(lines([next(numbers)]))
        for client in clients:
            client.close()
    # It comes behind the last two.
    assert server.terminate() == 0
    assert server.logged_set() == set(range(100))
    assert " 0 refused" in server.stderr


@needs_strace
@pytest.mark.parametrize("error", ["ENOBUFS", "EPERM", "EINTR"])
@pytest.mark.parametrize("when", ["", ":when=1"])
def test_clients_are_handed_over_though_nothing_can_be_asked_about_their_sockets(
    serve: Serve, backend: str, tmp_path: Path, error: str, when: str
) -> None:
    server = serve("--backend", backend, "--reactors", "2")
    questions = "getsockname,getsockopt"
    options = ("-e", f"trace={questions}", "-e", f"inject={questions}:error={error}{when}")
    with strace(server, tmp_path / "trace", *options):
        send_all(server, [lines([number]) for number in range(4)])
    assert server.stop() == 0
    assert server.logged_set() == set(range(4))
