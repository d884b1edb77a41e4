"""A reactor that cannot be had, or that breaks while it serves: in one thread, or in all."""

import re
import signal
import socket
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from numbers_uring.limits import RECEIVE_FAILURES_MAX, RETRY_S
from support.faults import needs_strace, strace
from support.logs import lines
from support.processes import ServerProcess, assert_one_line_error, run_text
from support.waiting import DEADLINE_S, wait_until

Serve = Callable[..., ServerProcess]

CLIENTS = 4
WAITS = {"epoll": ("epoll_wait,epoll_pwait", "EIO"), "uring": ("io_uring_enter", "ENOMEM")}

# The start.

FAILS_IN_A_THREAD = """
import os, sys, threading
from numbers_uring.reactor import epoll, uring
from numbers_uring.server import reactors, workers

def fails_in_a_thread(call):
    def stand_in(*arguments, **keywords):
        if threading.current_thread() is not threading.main_thread():
            raise {error}
        return call(*arguments, **keywords)
    return stand_in

def fails(*_, **__):
    raise {error}

if "{part}" == "reactor":
    for reactor in (epoll.EpollReactor, uring.UringReactor):
        reactor.__init__ = fails_in_a_thread(reactor.__init__)
elif "{part}" == "intake":
    reactors.Intake = fails_in_a_thread(reactors.Intake)
elif "{part}" == "mailbox":
    workers.Mailbox.__init__ = fails
else:
    threading.Thread.start = fails
from numbers_uring.cli.main import main
main()
"""


@pytest.mark.parametrize(
    ("part", "error"),
    [
        ("reactor", "OSError(12, 'Cannot allocate memory')"),
        ("reactor", "MemoryError"),
        ("intake", "MemoryError"),
        ("mailbox", "OSError(24, 'Too many open files')"),
        ("thread", 'RuntimeError("can\'t start new thread")'),
    ],
)
def test_a_reactor_that_cannot_be_had_is_one_line_and_leaves_the_old_log(
    backend: str, part: str, error: str, tmp_path: Path
) -> None:
    log = tmp_path / "numbers.log"
    log.write_bytes(lines([7]))
    done = run_text(
        [
            *(sys.executable, "-c", FAILS_IN_A_THREAD.format(part=part, error=error), "serve"),
            *("--port", "0", "--log-file", str(log), "--backend", backend, "--reactors", "2"),
        ],
        capture_output=True,
        timeout=DEADLINE_S,
    )
    assert_one_line_error(done, 3)
    assert log.read_bytes() == lines([7])


# Serving.


def further_thread(server: ServerProcess, waits: str, tmp_path: Path) -> int:
    """Return the number of the thread of the second reactor, once it has come round."""
    trace = tmp_path / "waits"

    def found() -> set[int]:
        time.sleep(0.01)
        with server.connect() as first, server.connect() as second:
            for client in (first, second):
                client.sendall(lines([0]))
                client.shutdown(socket.SHUT_WR)
                assert client.recv(1) == b""
        said = re.findall(rf"^(\d+) +(?:{waits.replace(',', '|')})\(", trace.read_text(), re.M)
        return {int(number) for number in said} - {server.process.pid}

    with strace(server, trace, "-e", f"trace={waits}"):
        wait_until(lambda: bool(found()), "the second reactor")
        (number,) = found()
    return number


@needs_strace
@pytest.mark.parametrize(
    ("broken", "kernel"),
    [("the first", "auto"), ("the second", "auto"), ("all", "auto"), ("all", "python")],
)
def test_a_reactor_that_breaks_ends_the_server_with_all_that_was_delivered_on_file(
    serve: Serve, backend: str, broken: str, kernel: str, tmp_path: Path
) -> None:
    waits, error = WAITS[backend]
    options = ("--backend", backend, "--kernel", kernel, "--reactors", "2")
    server = serve(*options, "--max-clients", str(CLIENTS))
    thread = server.process.pid
    if broken == "the second":
        thread = further_thread(server, waits, tmp_path)
    with ExitStack() as stack:
        clients = [stack.enter_context(server.connect()) for _ in range(CLIENTS + 1)]
        for number, client in enumerate(clients):
            client.sendall(lines([number]))
        wait_until(lambda: server.logged_set() >= set(range(CLIENTS)), "those that are served")
        server.process.send_signal(signal.SIGSTOP)
        for number, client in enumerate(clients):
            client.sendall(lines([100 + number]))
        fault = ("-e", f"trace={waits}", "-e", f"inject={waits}:error={error}")
        with strace(thread, tmp_path / "trace", *fault, all_threads=broken == "all"):
            server.process.send_signal(signal.SIGCONT)
            assert server.wait() == 1
        for client in clients:
            with pytest.raises(ConnectionResetError):
                client.recv(1)
    assert "(INJECTED)" in (tmp_path / "trace").read_text()
    # The one that waits for a slot is told of within a second, which may have passed.
    told = [line for line in server.stderr_lines if "waits for a slot" not in line]
    assert len(told) == 2
    call = waits.partition(",")[0]
    assert re.match(rf"numbers-uring: error: the backend failed: .*{call}: ", told[-1]), told
    expected = {*range(CLIENTS + 1), *range(100, 100 + CLIENTS + 1)}
    assert server.logged_set() == expected
    assert server.reported()[2] == len(expected)


def failing(calls: str, error: str) -> tuple[str, ...]:
    """Return options of strace that make system calls fail, always."""
    return ("-e", f"trace={calls}", "-e", f"inject={calls}:error={error}")


@needs_strace
@pytest.mark.parametrize("kernel", ["auto", "python"])
@pytest.mark.parametrize("error", ["EINTR", "EAGAIN", "EIO"])
def test_receives_that_always_fail_reset_their_client_at_last_and_are_not_spun_on(
    serve: Serve, error: str, kernel: str, tmp_path: Path
) -> None:
    """A ring receives in its own way: see tests/reactor/test_ring_results.py."""
    if (error, kernel) == ("EINTR", "python"):
        pytest.skip("Python itself receives again until it is over: see PEP 475")
    server = serve("--backend", "epoll", "--reactors", "1", "--kernel", kernel)
    trace = tmp_path / "trace"
    with server.connect() as client, server.connect() as other:
        client.sendall(lines([1]))
        wait_until(lambda: server.logged() == [1], "the first number")
        with strace(server, trace, *failing("recvfrom,readv", error)):
            client.sendall(lines([2]))
            with pytest.raises(ConnectionResetError):
                client.recv(1)
        assert 1 <= trace.read_text().count("(INJECTED)") <= RECEIVE_FAILURES_MAX
        other.sendall(lines([3]))
        wait_until(lambda: server.logged() == [1, 3], "the other client's number")
    assert server.stop() == 0
    assert server.stderr.count("cannot receive from a client, disconnecting it: ") == 1


@needs_strace
def test_a_wait_that_is_always_interrupted_is_not_spun_on(serve: Serve, tmp_path: Path) -> None:
    """Those of a ring, and what comes of both at last, are in tests/server/test_ring_faults.py."""
    server = serve("--backend", "epoll", "--reactors", "1")
    waits, _ = WAITS["epoll"]
    trace = tmp_path / "trace"
    with server.connect() as client:
        with strace(server, trace, *failing(waits, "EINTR")):
            client.sendall(lines([1]))
            server.wait_for("epoll_wait fails for now: ")
            begun, begin_s = trace.read_text().count("(INJECTED)"), time.monotonic()
            wait_until(lambda: trace.read_text().count("(INJECTED)") > begun + 20, "some tries")
            assert time.monotonic() - begin_s > 10 * RETRY_S, "it spins"
        wait_until(lambda: server.logged() == [1], "what was sent meanwhile")
    assert server.stop() == 0


@needs_strace
@pytest.mark.parametrize("error", ["ENOMEM", "EIO", "EINTR"])
def test_receives_that_fail_at_a_stop_are_said_and_reset_the_client(
    serve: Serve, backend: str, error: str, tmp_path: Path
) -> None:
    server = serve("--backend", backend, "--reactors", "1")
    with server.connect() as client:
        client.sendall(lines([1]))
        wait_until(lambda: server.logged() == [1], "the first number")
        server.process.send_signal(signal.SIGSTOP)
        client.sendall(lines([2]))
        # A ring that works receives in its own way; one that fails leaves all to the stop.
        fault = ("-e", "trace=recvfrom,io_uring_enter", "-e", f"inject=recvfrom:error={error}")
        broken_ring = ("-e", "inject=io_uring_enter:error=EBUSY")
        with strace(server, tmp_path / "trace", *fault, *broken_ring):
            server.process.send_signal(signal.SIGTERM)
            server.process.send_signal(signal.SIGCONT)
            assert server.wait() == 0
        with pytest.raises(ConnectionResetError):
            client.recv(1)
    # The ring may have been within a call that still received it.
    assert server.logged() in ([1], [1, 2] if backend == "uring" else [1])
    # A ring may also say, once, that it fails for now.
    said = [line for line in server.stderr_lines if "io_uring fails for now: " not in line]
    assert "cannot receive from a client, disconnecting it: " in said[1]
    assert len(said) == 3, server.stderr
    assert len(server.stderr_lines) - len(said) <= 1, server.stderr
