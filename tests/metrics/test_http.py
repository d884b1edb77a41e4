"""The HTTP server: what it answers, that no client keeps another waiting, that no fault ends it."""

import errno
import os
import resource
import signal
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from http import HTTPStatus
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from numbers_uring.errors import StartError
from numbers_uring.limits import HTTP_CLIENT_S, HTTP_REQUEST_BYTES_MAX
from numbers_uring.metrics import http
from numbers_uring.metrics.http import HttpServer
from numbers_uring.metrics.messages import Answer, Request, plain
from support.waiting import DEADLINE_S, wait_until

CLIENTS_MAX = 8
BODY = b"x" * 100
LONG = bytes(range(256)) * 16384
"""More than a socket takes at once."""
ENDLESS = bytes(32 * 1024 * 1024)
"""More than both sockets hold: the server can be rid of it only if the client reads."""


class Endpoint:
    def __init__(self) -> None:
        listener = socket.create_server(("127.0.0.1", 0))
        self.address = listener.getsockname()
        self.warnings: list[str] = []
        self.asked: list[str] = []
        """The paths, in the order in which they were answered."""
        self.server = HttpServer(
            [listener],
            self.answer,
            say=self.warnings.append,
            urgent={"/"},
            clients_max=CLIENTS_MAX,
        )

    def answer(self, request: Request) -> Answer:
        self.asked.append(request.path)
        if request.path == "/fails":
            raise ValueError("no such luck\n\udc80")
        bodies = {"/": BODY, "/long": LONG, "/endless": ENDLESS}
        if request.path in bodies:
            return Answer(HTTPStatus.OK, bodies[request.path])
        return plain(HTTPStatus.NOT_FOUND)

    def connect(self) -> socket.socket:
        return socket.create_connection(self.address, timeout=DEADLINE_S)

    def ask(self, request: bytes) -> tuple[bytes, bytes]:
        """Return the status line and the body."""
        with self.connect() as client:
            client.sendall(request)
            return received(client)

    def get(self, path: bytes = b"/") -> tuple[bytes, bytes]:
        return self.ask(b"GET %b HTTP/1.1\r\nHost: x\r\n\r\n" % path)

    def is_well(self) -> bool:
        return self.get() == (b"HTTP/1.1 200 OK", BODY)


def received(client: socket.socket) -> tuple[bytes, bytes]:
    """Read up to the end, which is no reset; return the status line and the body."""
    data = b"".join(iter(lambda: client.recv(65536), b""))
    head, _, body = data.partition(b"\r\n\r\n")
    return head.split(b"\r\n")[0], body


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    endpoint = Endpoint()
    yield endpoint
    endpoint.server.close()


def is_dropped(client: socket.socket) -> bool:
    try:
        return client.recv(1) == b""
    except ConnectionResetError:
        return True


# Answers.


@pytest.mark.parametrize(
    ("request_bytes", "status", "body"),
    [
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"200 OK", BODY),
        (b"GET / HTTP/1.0\r\n\r\n", b"200 OK", BODY),
        (b"GET / HTTP/1.0\n\n", b"200 OK", BODY),
        (b"\r\nGET /?x HTTP/1.0\n\n", b"200 OK", BODY),
        (b"GET http://x/ HTTP/1.1\r\n\r\n", b"200 OK", BODY),
        (b"HEAD / HTTP/1.1\r\n\r\n", b"200 OK", b""),
        (b"GET /x HTTP/1.1\r\n\r\n", b"404 Not Found", None),
        (b"PUT / HTTP/1.1\r\n\r\n", b"405 Method Not Allowed", None),
        (b"OPTIONS * HTTP/1.1\r\n\r\n", b"405 Method Not Allowed", None),
        (b"GET /fails HTTP/1.1\r\n\r\n", b"500 Internal Server Error", None),
        (b"GET / HTTP/1.1\r\nno colon\r\n\r\n", b"400 Bad Request", None),
        (b"GET /\r\n", b"400 Bad Request", None),
        (b"123456789\n", b"400 Bad Request", None),
        (
            b"GET / HTTP/1.1\r\nA: " + b"a" * HTTP_REQUEST_BYTES_MAX,
            b"431 Request Header Fields Too Large",
            None,
        ),
    ],
)
def test_requests_are_answered(
    endpoint: Endpoint, request_bytes: bytes, status: bytes, body: bytes | None
) -> None:
    found = endpoint.ask(request_bytes)
    assert found[0] == b"HTTP/1.1 " + status
    if body is None:
        assert found[1].startswith(status[:3] + b" ")
    else:
        assert found[1] == body
    assert endpoint.warnings == []


def test_a_request_may_come_in_pieces(endpoint: Endpoint) -> None:
    with endpoint.connect() as client:
        for byte in b"GET /x HTTP/1.1\r\nHost: x\r\n\r\n":
            client.send(bytes([byte]))
        assert received(client)[0] == b"HTTP/1.1 404 Not Found"


def test_a_client_may_close_its_side_behind_the_request(endpoint: Endpoint) -> None:
    with endpoint.connect() as client:
        client.sendall(b"GET / HTTP/1.1\r\n\r\n")
        client.shutdown(socket.SHUT_WR)
        assert received(client) == (b"HTTP/1.1 200 OK", BODY)


def test_a_client_that_still_sends_its_body_reads_the_answer(endpoint: Endpoint) -> None:
    """To close at once would be a reset, and that can cost the client what it has not read yet."""
    with endpoint.connect() as client:
        client.sendall(b"POST / HTTP/1.1\r\nContent-Length: 100000\r\n\r\n")
        wait_until(lambda: client.recv(5, socket.MSG_PEEK) == b"HTTP/", "the answer")
        for _ in range(20):
            client.sendall(bytes(5000))
        client.shutdown(socket.SHUT_WR)
        assert received(client)[0] == b"HTTP/1.1 405 Method Not Allowed"


def test_a_long_answer_arrives_whole(endpoint: Endpoint) -> None:
    assert endpoint.get(b"/long")[1] == LONG


def test_what_is_urgent_is_answered_first_and_equal_requests_once(endpoint: Endpoint) -> None:
    # All requests are there before the thread accepts: it is busy with another answer until then.
    busy, go_on = threading.Event(), threading.Event()
    answer = endpoint.server._answer

    def slow(request: Request) -> Answer:
        if request.path == "/slow":
            busy.set()
            assert go_on.wait(DEADLINE_S)
        return answer(request)

    endpoint.server._answer = slow
    with ExitStack() as clients:
        first = clients.enter_context(endpoint.connect())
        first.sendall(b"GET /slow HTTP/1.1\n\n")
        assert busy.wait(DEADLINE_S)
        asking = []
        for path in (b"/x", b"/x", b"/", b"/x"):
            asking.append(clients.enter_context(endpoint.connect()))
            asking[-1].sendall(b"GET %b HTTP/1.1\n\n" % path)
        go_on.set()
        found = [received(client)[0] for client in asking]
    assert [status.split()[1] for status in found] == [b"404", b"404", b"200", b"404"]
    assert endpoint.asked == ["/slow", "/", "/x"]


# Clients that are slow, or many.

ABUSES: dict[str, bytes] = {
    "silent": b"",
    "half a request": b"GET / HT",
    "a first line": b"GET / HTTP/1.1\r\n",
    "not reading": b"GET /endless HTTP/1.1\r\n\r\n",
    "sending on": b"POST / HTTP/1.1\r\n\r\n",
}


@pytest.mark.parametrize("sent", ABUSES.values(), ids=ABUSES)
def test_clients_that_stay_keep_no_one_from_being_answered(endpoint: Endpoint, sent: bytes) -> None:
    with ExitStack() as clients:
        abusing = []
        for _ in range(5):
            for _ in range(CLIENTS_MAX):
                abusing.append(clients.enter_context(endpoint.connect()))
                abusing[-1].sendall(sent)
            assert endpoint.is_well()
        if not sent.startswith(b"GET /endless") and not sent.startswith(b"POST"):
            assert all(is_dropped(client) for client in abusing[: 4 * CLIENTS_MAX])
    assert endpoint.warnings == []


def test_clients_that_reset_their_connections_harm_no_one(endpoint: Endpoint) -> None:
    for sent in ABUSES.values():
        for _ in range(CLIENTS_MAX):
            client = endpoint.connect()
            client.sendall(sent)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            client.close()
        assert endpoint.is_well()
    assert endpoint.warnings == []


def test_a_client_that_takes_too_long_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "HTTP_CLIENT_S", HTTP_CLIENT_S / 50)
    endpoint = Endpoint()
    with endpoint.connect() as client:
        client.sendall(b"GET / HT")
        assert is_dropped(client)
    endpoint.server.close()


def test_closing_waits_for_no_one_and_leaves_nothing_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("numbers_uring.metrics.http.HTTP_CLIENT_S", 2 * DEADLINE_S)
    descriptors = Path("/proc/self/fd")
    before = len(list(descriptors.iterdir())), threading.active_count()
    endpoint = Endpoint()
    with endpoint.connect(), endpoint.connect() as stuck:
        stuck.sendall(b"GET /endless HTTP/1.1\r\n\r\n")
        assert stuck.recv(1) == b"H"
        begin_s = time.monotonic()
        endpoint.server.close()
        assert time.monotonic() - begin_s < DEADLINE_S
    assert (len(list(descriptors.iterdir())), threading.active_count()) == before
    with pytest.raises(ConnectionRefusedError):
        endpoint.connect()


def test_signals_stay_the_main_threads(endpoint: Endpoint) -> None:
    caught: list[int] = []
    before = signal.signal(signal.SIGUSR2, lambda number, _: caught.append(number))
    try:
        (thread,) = [thread for thread in threading.enumerate() if thread.name == "metrics"]
        status = Path(f"/proc/self/task/{thread.native_id}/status").read_text()
        blocked = int(status.split("SigBlk:")[1].split()[0], 16)
        assert blocked & 1 << (signal.SIGUSR2 - 1)
        os.kill(os.getpid(), signal.SIGUSR2)
        wait_until(lambda: caught, "the signal")
    finally:
        signal.signal(signal.SIGUSR2, before)


# Faults of the system.


class Failing:
    """Stands in for a part of the server: each Nth call of `name` fails."""

    def __init__(self, part: Any, name: str, error: BaseException, times: "Iterator[int]") -> None:
        self._part, self._name, self._error, self._times = part, name, error, times
        self.failures = 0

    def __getattr__(self, name: str) -> Any:
        if name != self._name:
            return getattr(self._part, name)

        def call(*arguments: Any) -> Any:
            if next(self._times, None) is None:
                return getattr(self._part, name)(*arguments)
            self.failures += 1
            raise self._error

        return call


ERRORS = [OSError(errno.ENOMEM, "Cannot allocate memory"), MemoryError(), RuntimeError("?")]


@pytest.mark.parametrize("error", ERRORS, ids=repr)
@pytest.mark.parametrize("name", ["poll", "register"])
def test_a_failure_of_epoll_costs_a_client_at_most(
    endpoint: Endpoint, name: str, error: Exception
) -> None:
    failing = Failing(endpoint.server._epoll, name, error, iter(range(3)))
    endpoint.server._epoll = failing  # type: ignore[assignment]
    for _ in range(6):
        try:
            with endpoint.connect() as client:
                # Slow, so that epoll is asked for it.
                client.sendall(b"GET / HT")
                time.sleep(0.02)
                client.sendall(b"TP/1.0\n\n")
                client.recv(100)
        except ConnectionError:
            assert name == "register"
    wait_until(lambda: failing.failures == 3, "the failures")
    assert endpoint.is_well()
    assert len(endpoint.warnings) <= 1


@pytest.mark.parametrize("number", [errno.EPERM, errno.ECONNABORTED, errno.EINVAL, errno.ENOMEM])
def test_an_accept_that_fails_is_tried_again_without_a_spin(
    endpoint: Endpoint, number: int
) -> None:
    ((fd, listener),) = endpoint.server._listeners.items()
    failing = Failing(listener, "accept", OSError(number, os.strerror(number)), count())
    endpoint.server._listeners[fd] = failing  # type: ignore[assignment]
    with endpoint.connect() as client:
        client.sendall(b"GET / HTTP/1.0\n\n")
        wait_until(lambda: endpoint.warnings, "the warning")
        begin_s, before = time.monotonic(), failing.failures
        time.sleep(0.3)
        tried = (failing.failures - before) / (time.monotonic() - begin_s)
        assert tried < 1000
        endpoint.server._listeners[fd] = listener
        assert received(client) == (b"HTTP/1.1 200 OK", BODY)
    assert endpoint.warnings == [
        f"the metrics port cannot accept connections: {os.strerror(number)}; retrying"
    ]


@pytest.mark.parametrize("answering", [True, False])
def test_out_of_descriptors_clients_are_answered_one_after_another(
    endpoint: Endpoint, answering: bool
) -> None:
    """With the descriptor in reserve, and those of clients that were there before."""
    with ExitStack() as clients:
        for _ in range(0 if answering else 3):
            clients.enter_context(endpoint.connect()).sendall(b"GET")
        asking = [socket.socket() for _ in range(5)]
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        taken = take_all_descriptors(asking[-1].fileno() + 1, hard)
        try:
            for client in asking:
                client.settimeout(DEADLINE_S)
                client.connect(endpoint.address)
                client.sendall(b"GET / HTTP/1.0\r\n\r\n")
                assert received(client) == (b"HTTP/1.1 200 OK", BODY)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            for fd in taken:
                os.close(fd)
            for client in asking:
                client.close()
    assert endpoint.is_well()


def take_all_descriptors(limit: int, hard: int) -> list[int]:
    """Lower the limit, and take what is free below it."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    taken = []
    while True:
        try:
            taken.append(os.dup(0))
        except OSError:
            return taken


@pytest.mark.parametrize("call", [1, 2])
def test_without_descriptors_for_itself_it_does_not_start(
    call: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, eventfd = count(1), os.eventfd

    def fail(*arguments: int) -> int:
        if next(calls) == call:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return eventfd(*arguments)

    monkeypatch.setattr(os, "eventfd", fail)
    before = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(StartError, match="cannot serve metrics: Too many open files"):
        Endpoint()
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_thread_that_ends_says_so_and_clients_are_refused(
    endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    failing = Failing(endpoint.server._epoll, "poll", SystemExit(), count())
    endpoint.server._epoll = failing  # type: ignore[assignment]
    with endpoint.connect() as client:
        client.sendall(b"GET / HT")
        assert is_dropped(client)
    wait_until(lambda: endpoint.warnings, "the warning")
    assert "no longer served" in endpoint.warnings[0]
    with pytest.raises(ConnectionRefusedError):
        endpoint.connect()


def test_closing_ends_though_the_thread_cannot_be_woken(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    endpoint = Endpoint()
    with monkeypatch.context() as patched:
        patched.setattr(os, "eventfd_write", refuse)
        endpoint.server.close()
    endpoint.server.close()
    with pytest.raises(ConnectionError):
        endpoint.connect()
