"""A real server whose thread for the metrics is hit by failing system calls; numbers go on."""

import re
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from support.faults import needs_strace
from support.logs import lines
from support.metrics_client import health, url_of
from support.processes import ServerProcess
from support.waiting import DEADLINE_S, wait_until

Serve = Callable[..., ServerProcess]

FAULTS = [
    ("epoll_wait", "ENOMEM"),
    ("epoll_wait", "EINTR"),
    ("epoll_ctl", "ENOSPC"),
    ("accept4", "EMFILE"),
    ("accept4", "EPERM"),
    ("accept4", "ECONNABORTED"),
    ("recvfrom", "ENOMEM"),
    ("recvfrom", "EINTR"),
    ("sendto", "ENOMEM"),
    ("setsockopt", "ENOMEM"),
]
EPOLL_WAITS = {"232", "281", "22"}
"""epoll_wait and epoll_pwait of x86-64, epoll_pwait of others."""

TRIES_MAX = 1000
"""Of a call within a second or so; a spin would make many more."""


def metrics_thread(server: ServerProcess) -> int:
    """Return the thread beside the reactor's that waits in epoll."""

    def waiting() -> list[int]:
        tasks = Path(f"/proc/{server.process.pid}/task").iterdir()
        return [
            int(task.name)
            for task in tasks
            if int(task.name) != server.process.pid
            and (task / "syscall").read_text().split()[0] in EPOLL_WAITS
        ]

    wait_until(lambda: len(waiting()) == 1, "the thread")
    return waiting()[0]


@contextmanager
def failing(thread: int, call: str, error: str, when: str, trace: Path) -> Iterator[None]:
    """Make `call` fail in that thread alone."""
    command = ["strace", "-o", str(trace), "-e", f"trace={call}"]
    inject = f"inject={call}:error={error}:when={when}"
    tracer = subprocess.Popen(
        [*command, "-e", inject, "-p", str(thread)], stderr=subprocess.PIPE, text=True
    )
    assert tracer.stderr is not None
    try:
        assert "attached" in tracer.stderr.readline()
        yield
    finally:
        tracer.terminate()
        tracer.wait(DEADLINE_S)
        tracer.stderr.close()


def ask(server: ServerProcess) -> None:
    """Ask for the health at once, and slowly; what comes of it does not matter."""
    url = urlsplit(url_of(server))
    for pieces in ([b"GET /healthz HTTP/1.0\n\n"], [b"GET /he", b"althz HTTP/1.0\n\n"]):
        with (
            suppress(OSError),
            socket.create_connection(
                (str(url.hostname), int(url.port or 0)), timeout=0.3
            ) as client,
        ):
            for piece in pieces:
                client.sendall(piece)
                with suppress(TimeoutError):
                    client.recv(100)


@needs_strace
@pytest.mark.parametrize("when", ["1", "1+"], ids=["once", "for ever"])
@pytest.mark.parametrize(("call", "error"), FAULTS)
def test_a_failing_call_costs_a_client_at_most_and_numbers_go_on(
    serve: Serve, call: str, error: str, when: str, tmp_path: Path
) -> None:
    server = serve("--metrics", "127.0.0.1:0", "--reactors", "1")
    trace = tmp_path / "trace"
    with failing(metrics_thread(server), call, error, when, trace):
        ask(server)
        server.send(lines(range(100)))
        wait_until(lambda: server.logged_set() == set(range(100)), "the numbers")
        if when == "1+" and error == "EINTR":
            # Python repeats it for ever, and the stop does not wait for that.
            assert server.stop() == 0
            return
    assert trace.read_text().count("INJECTED") < TRIES_MAX
    wait_until(lambda: health(server) == (200, "ok"), "the health")
    assert server.stop() == 0
    assert server.logged_set() == set(range(100))
    assert "Traceback" not in server.stderr
    warnings = [line for line in server.stderr_lines if re.search("the metrics port", line)]
    assert len(server.stderr_lines) == 2 + len(warnings) <= 3
