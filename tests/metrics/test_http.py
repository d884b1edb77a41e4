"""The HTTP server: what it answers, and that nobody holds it up."""

import os
import resource
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from http import HTTPStatus
from pathlib import Path

import pytest

from numbers_uring.limits import HTTP_CLIENT_S, HTTP_CLIENTS_MAX, HTTP_REQUEST_BYTES_MAX
from numbers_uring.metrics.http import Answer, HttpServer, Request, not_found, parse_request
from support.waiting import DEADLINE_S, wait_until

BODY = b"x" * 100
LONG = bytes(range(256)) * 16384
"""More than a socket takes at once."""
ENDLESS = bytes(32 * 1024 * 1024)
"""More than both sockets hold: the server can be rid of it only if the client reads."""


def answer(request: Request) -> Answer:
    if request.path == "/fails":
        raise ValueError("no such luck")
    if request.path == "/long":
        return Answer(HTTPStatus.OK, LONG)
    if request.path == "/endless":
        return Answer(HTTPStatus.OK, ENDLESS)
    return Answer(HTTPStatus.OK, BODY) if request.path == "/" else not_found()


class Endpoint:
    def __init__(self) -> None:
        listener = socket.create_server(("127.0.0.1", 0))
        self.address = listener.getsockname()
        self.server = HttpServer([listener], answer)

    def connect(self) -> socket.socket:
        return socket.create_connection(self.address, timeout=DEADLINE_S)

    def ask(self, request: bytes) -> tuple[bytes, bytes]:
        """Return the status line and the body."""
        with self.connect() as client:
            client.sendall(request)
            received = b""
            while data := client.recv(65536):
                received += data
        head, _, body = received.partition(b"\r\n\r\n")
        return head.split(b"\r\n")[0], body

    def get(self, path: bytes = b"/") -> tuple[bytes, bytes]:
        return self.ask(b"GET %b HTTP/1.1\r\nHost: x\r\n\r\n" % path)


@pytest.fixture(scope="module")
def endpoint() -> Iterator[Endpoint]:
    endpoint = Endpoint()
    yield endpoint
    endpoint.server.close()


def is_dropped(client: socket.socket) -> bool:
    try:
        return client.recv(1) == b""
    except ConnectionResetError:
        return True


@pytest.mark.parametrize(
    ("request_bytes", "status", "body"),
    [
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"HTTP/1.1 200 OK", BODY),
        (b"GET / HTTP/1.0\r\n\r\n", b"HTTP/1.1 200 OK", BODY),
        (b"GET http://x/ HTTP/1.1\r\n\r\n", b"HTTP/1.1 200 OK", BODY),
        (b"HEAD / HTTP/1.1\r\n\r\n", b"HTTP/1.1 200 OK", b""),
        (b"GET /x HTTP/1.1\r\n\r\n", b"HTTP/1.1 404 Not Found", b"404 Not Found\n"),
        (
            b"PUT / HTTP/1.1\r\n\r\n",
            b"HTTP/1.1 405 Method Not Allowed",
            b"405 Method Not Allowed\n",
        ),
        (
            b"GET /fails HTTP/1.1\r\n\r\n",
            b"HTTP/1.1 500 Internal Server Error",
            b"500 ValueError('no such luck')\n",
        ),
        (
            b"GET / HTTP/1.1\r\nA: " + b"a" * HTTP_REQUEST_BYTES_MAX,
            b"HTTP/1.1 431 Request Header Fields Too Large",
            b"431 Request Header Fields Too Large\n",
        ),
    ],
)
def test_requests_are_answered(
    endpoint: Endpoint, request_bytes: bytes, status: bytes, body: bytes
) -> None:
    assert endpoint.ask(request_bytes) == (status, body)


@pytest.mark.parametrize(
    "head",
    [
        b"",
        b"GET /",
        b"GET / HTTP/2.0",
        b"GET  / HTTP/1.1",
        b"GET / x HTTP/1.1",
        b"G\xc3\x84T / HTTP/1.1",
        b"GET http://[x/ HTTP/1.1",
        b"123456789\n",
        b"GET / HTTP/1.1\r\n" + b"".join(b"A%d: b\r\n" % i for i in range(200)),
    ],
)
def test_what_is_no_request_is_a_bad_one(endpoint: Endpoint, head: bytes) -> None:
    assert parse_request(head + b"\r\n\r\n") is None
    assert endpoint.ask(head + b"\r\n\r\n")[0] == b"HTTP/1.1 400 Bad Request"


def test_a_request_is_taken_apart() -> None:
    request = parse_request(b"GET /a/b?c=d&e HTTP/1.1\r\naccept: x\r\n\r\n")
    assert request is not None
    assert request[:3] == ("GET", "/a/b", "c=d&e")
    assert (request.headers.get("Accept"), request.headers.get("Host")) == ("x", None)


def test_a_request_may_come_in_pieces(endpoint: Endpoint) -> None:
    with endpoint.connect() as client:
        for byte in b"GET /x HTTP/1.1\r\nHost: x\r\n\r\n":
            client.send(bytes([byte]))
        assert client.recv(65536).startswith(b"HTTP/1.1 404 ")


def test_clients_that_say_nothing_keep_nobody_from_being_answered(endpoint: Endpoint) -> None:
    with ExitStack() as open_clients:
        silent = [
            open_clients.enter_context(endpoint.connect()) for _ in range(3 * HTTP_CLIENTS_MAX)
        ]
        for _ in range(3):
            assert endpoint.get() == (b"HTTP/1.1 200 OK", BODY)
        # The oldest had to give way.
        assert all(is_dropped(client) for client in silent[: 2 * HTTP_CLIENTS_MAX])


def test_a_client_that_does_not_read_keeps_nobody_from_being_answered(endpoint: Endpoint) -> None:
    with endpoint.connect() as stuck:
        stuck.sendall(b"GET /endless HTTP/1.1\r\n\r\n")
        assert stuck.recv(1) == b"H"
        assert endpoint.get() == (b"HTTP/1.1 200 OK", BODY)


def test_a_long_answer_arrives_whole(endpoint: Endpoint) -> None:
    assert endpoint.get(b"/long")[1] == LONG


def test_a_client_that_takes_too_long_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("numbers_uring.metrics.http.HTTP_CLIENT_S", HTTP_CLIENT_S / 50)
    endpoint = Endpoint()
    with endpoint.connect() as client:
        client.sendall(b"GET / HT")
        assert is_dropped(client)
    endpoint.server.close()


def test_closing_waits_for_nobody_and_leaves_nothing_open() -> None:
    descriptors = Path("/proc/self/fd")
    before = len(list(descriptors.iterdir())), threading.active_count()
    endpoint = Endpoint()
    with endpoint.connect(), endpoint.connect() as stuck:
        stuck.sendall(b"GET /endless HTTP/1.1\r\n\r\n")
        assert stuck.recv(1) == b"H"
        begin_s = time.monotonic()
        endpoint.server.close()
        assert time.monotonic() - begin_s < HTTP_CLIENT_S / 2
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


def test_without_a_descriptor_for_a_client_it_is_answered_later(endpoint: Endpoint) -> None:
    asking = socket.socket()
    asking.settimeout(DEADLINE_S)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    # Descriptors are given from the lowest free number on: this one is the last below the limit.
    resource.setrlimit(resource.RLIMIT_NOFILE, (asking.fileno() + 1, limits[1]))
    try:
        with asking, ExitStack() as taken:
            taken.callback(resource.setrlimit, resource.RLIMIT_NOFILE, limits)
            while (fd := free_descriptor()) is not None:
                taken.callback(os.close, fd)
            asking.connect(endpoint.address)
            asking.sendall(b"GET / HTTP/1.0\r\n\r\n")
            asking.settimeout(0.1)
            with pytest.raises(TimeoutError):
                asking.recv(1)
            taken.close()
            asking.settimeout(DEADLINE_S)
            assert asking.recv(65536).startswith(b"HTTP/1.1 200 OK")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def free_descriptor() -> int | None:
    """Take the lowest free descriptor; None where the limit is reached."""
    try:
        return os.dup(0)
    except OSError:
        return None
