"""A real server whose metrics port is abused: probes are answered, and the reactor keeps going."""

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from numbers_uring.limits import HTTP_BURST_S, HTTP_SHARE
from support.logs import lines
from support.metrics_client import get, health, url_of
from support.processes import ServerProcess
from support.waiting import DEADLINE_S, wait_until

Serve = Callable[..., ServerProcess]
Address = tuple[str, int]

METRICS = ("--metrics", "127.0.0.1:0")
PROBE = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"


def address_of(server: ServerProcess) -> Address:
    url = urlsplit(url_of(server))
    return str(url.hostname), int(url.port or 0)


def probe_s(address: Address) -> float:
    """Return how long a probe takes, which has to succeed."""
    begin_s = time.monotonic()
    with socket.create_connection(address, timeout=DEADLINE_S) as client:
        client.sendall(PROBE)
        answer = b"".join(iter(lambda: client.recv(4096), b""))
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    return time.monotonic() - begin_s


def connect(address: Address, into: ExitStack) -> socket.socket:
    """Begin to connect, and wait for nothing."""
    client = into.enter_context(socket.socket())
    client.setblocking(False)
    client.connect_ex(address)
    return client


@contextmanager
def repeated(step: Callable[[], None]) -> Iterator[None]:
    """Do it again and again in a thread until the context is left."""
    ended = threading.Event()

    def run() -> None:
        while not ended.is_set():
            with suppress(OSError):
                step()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(DEADLINE_S)


def metrics_thread_s(server: ServerProcess) -> float:
    """Return the processor time of all threads but the reactor's."""
    used_s = 0.0
    for task in Path(f"/proc/{server.process.pid}/task").iterdir():
        fields = (task / "stat").read_text().rsplit(")", 1)[1].split()
        if int(task.name) != server.process.pid:
            used_s += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return used_s


# Without a look at the clock.


def test_a_probe_is_answered_beside_idle_connections(serve: Serve) -> None:
    server = serve(*METRICS)
    address = address_of(server)
    with ExitStack() as clients:
        for _ in range(1500):
            connect(address, clients)
        assert health(server) == (200, "ok")
        server.send(lines(range(1000)))
        wait_until(lambda: server.logged_set() == set(range(1000)), "the numbers")
    assert server.terminate() == 0
    assert len(server.stderr_lines) == 2, "a start line and an end line"


@pytest.mark.parametrize(
    ("accept", "content_type"),
    [
        ('application/openmetrics-text; version="1.0.0"', "application/openmetrics-text"),
        ("application/openmetrics-text;version=1.0.0", "application/openmetrics-text"),
        ("application/openmetrics-text", "application/openmetrics-text"),
        ("application/openmetrics-text; version=0.0.1", "text/plain"),
        ("application/openmetrics-text; version=x", "text/plain"),
        ("application/openmetrics-text;q=0.4, text/plain;q=0.5", "text/plain"),
        ("application/openmetrics-text;q=0", "text/plain"),
        (
            "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,"
            "application/openmetrics-text;version=0.0.1;q=0.5,"
            "text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,*/*;q=0.2",
            "application/openmetrics-text",
        ),
        ('text/plain; version="0.0.4"', "text/plain"),
        ('text/plain; version="1.0.0"', "text/plain"),
        ("text/plain; version=what", "text/plain"),
        ("text/html, */*;q=0.8", "text/plain"),
        ("application/json", "text/plain"),
        (';q=",,;"=', "text/plain"),
        ("", "text/plain"),
    ],
)
def test_metrics_come_in_a_format_that_is_accepted_and_else_as_text(
    shared_server: ServerProcess, accept: str, content_type: str
) -> None:
    status, body, headers = get(f"{url_of(shared_server)}/metrics", Accept=accept)
    assert status == 200
    assert headers["Content-Type"].startswith(f"{content_type}; version=")
    assert body.endswith(b"# EOF\n") == (content_type == "application/openmetrics-text")


@pytest.mark.parametrize(
    ("accept", "zipped"),
    [("gzip", True), ("br, GZIP;q=0.5", True), ("gzip;q=0", False), ("br", False), ("", False)],
)
def test_metrics_are_compressed_where_that_is_accepted(
    shared_server: ServerProcess, accept: str, zipped: bool
) -> None:
    _, body, headers = get(f"{url_of(shared_server)}/metrics", Accept_Encoding=accept)
    assert (headers.get("Content-Encoding") == "gzip") is zipped
    assert body.startswith(b"\x1f\x8b") is zipped


@pytest.fixture(scope="module")
def shared_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    log_path = tmp_path_factory.mktemp("server") / "numbers.log"
    with ServerProcess(log_path, *METRICS) as server:
        yield server


# Measured.

ABUSES: dict[str, tuple[int, bytes]] = {
    "idle": (1500, b""),
    "burst": (4000, b""),
    "half requests": (1500, b"GET /healthz HT"),
    "not reading": (1500, b"GET /metrics HTTP/1.1\r\n\r\n"),
}


@pytest.mark.alone
@pytest.mark.parametrize(("connections", "sent"), ABUSES.values(), ids=ABUSES)
def test_a_probe_takes_less_than_a_second_beside_many_connections(
    serve: Serve, connections: int, sent: bytes
) -> None:
    server = serve(*METRICS)
    address = address_of(server)
    with ExitStack() as clients:
        for _ in range(connections):
            client = connect(address, clients)
            if sent:
                with suppress(OSError):
                    client.send(sent)
        assert max(probe_s(address) for _ in range(20)) < 1
    assert server.stop() == 0


@pytest.mark.alone
@pytest.mark.parametrize(
    "sent",
    [b"", b"GET /he", b"GET /metrics HTTP/1.1\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n"],
    ids=repr,
)
def test_beside_a_flood_probes_are_answered_and_the_thread_keeps_to_its_share(
    serve: Serve, sent: bytes
) -> None:
    server = serve(*METRICS)
    address = address_of(server)

    def flood() -> None:
        with socket.create_connection(address, timeout=1) as client:
            client.send(sent)

    def chatter() -> None:
        for client in slow:
            client.send(b"a")

    with ExitStack() as clients, repeated(flood):
        slow = [connect(address, clients) for _ in range(100)]
        with repeated(chatter):
            probe_s(address)
            begin_s, before_s = time.monotonic(), metrics_thread_s(server)
            probes_s = []
            while time.monotonic() - begin_s < 1.5:
                probes_s.append(probe_s(address))
            passed_s, used_s = time.monotonic() - begin_s, metrics_thread_s(server) - before_s
    # Where Linux has no room for a connection, the client's host tries again after 1 and 3 seconds.
    assert sorted(probes_s)[len(probes_s) // 2] < 1
    assert max(probes_s) < 4
    assert used_s <= HTTP_BURST_S + 1.5 * HTTP_SHARE * passed_s
    assert server.stop() == 0
