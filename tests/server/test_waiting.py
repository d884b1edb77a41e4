"""Clients that wait for a slot are counted, and the operator is told of them."""

import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from numbers_uring.addresses import UnixAddress
from numbers_uring.limits import WAITING_LINE_INTERVAL_S, WAITING_LOOK_INTERVAL_S
from numbers_uring.net.listeners import listen_tcp
from numbers_uring.net.unix import listen_unix
from numbers_uring.server.waiting import WaitingClients
from support.metrics_client import scrape
from support.processes import CommandProcess, ServerProcess
from support.waiting import DEADLINE_S, wait_until

Serve = Callable[..., ServerProcess]

WAITING = "numbers_uring_connections_waiting"


class Backlog:
    """A listener, those who wait at it, and a look at them at times of the test's choice."""

    def __init__(self, connections_max: int = 2) -> None:
        (self.listener,) = listen_tcp("127.0.0.1", 0)
        self.now_s = 100.0
        self.connected = connections_max
        self.looks = 0
        self.told: list[str] = []
        self.waiting = WaitingClients(
            [self.listener],
            connections_max=connections_max,
            say=self.told.append,
            clock=lambda: self.now_s,
        )
        self._clients: list[socket.socket] = []

    def arrive(self) -> None:
        address = self.listener.getsockname()
        self._clients.append(socket.create_connection(address, timeout=DEADLINE_S))

    def accept(self) -> None:
        self.listener.accept()[0].close()

    def look(self, after_s: float = WAITING_LOOK_INTERVAL_S) -> int | None:
        def connected() -> int:
            self.looks += 1
            return self.connected

        self.now_s += after_s
        self.waiting.look(connected)
        return self.waiting.clients

    def close(self) -> None:
        for each in (self.listener, *self._clients):
            each.close()


@pytest.fixture
def backlog() -> Iterator[Backlog]:
    backlog = Backlog()
    yield backlog
    backlog.close()


def test_a_line_tells_when_clients_begin_to_wait_and_one_when_none_does(backlog: Backlog) -> None:
    assert backlog.look() == 0
    backlog.arrive()
    assert backlog.look() == 1
    assert backlog.told == ["1 client waits for a slot: --max-clients 2 is reached"]
    backlog.arrive()
    assert backlog.look() == 2
    backlog.accept()
    assert backlog.look() == 1
    backlog.accept()
    assert backlog.look() == 0
    assert backlog.told[1:] == ["no client waits for a slot any more, after 3 s"]


def test_clients_that_come_and_go_are_told_of_rarely(backlog: Backlog) -> None:
    for _ in range(20):
        backlog.arrive()
        assert backlog.look() == 1
        backlog.accept()
        assert backlog.look() == 0
    assert len(backlog.told) == 2
    backlog.arrive()
    assert backlog.look(WAITING_LINE_INTERVAL_S) == 1
    assert len(backlog.told) == 3


def test_a_line_that_is_not_due_is_told_later_if_clients_wait_still(backlog: Backlog) -> None:
    backlog.arrive()
    backlog.look()
    backlog.accept()
    backlog.look()
    backlog.arrive()
    backlog.look()
    assert len(backlog.told) == 2
    backlog.look(WAITING_LINE_INTERVAL_S)
    assert "1 client waits" in backlog.told[2]


def test_who_is_about_to_be_accepted_does_not_wait_for_a_slot(backlog: Backlog) -> None:
    backlog.connected = 1
    backlog.arrive()
    assert backlog.look() == 0
    assert backlog.told == []


def test_a_slot_that_is_free_for_a_moment_does_not_end_the_wait(backlog: Backlog) -> None:
    backlog.arrive()
    backlog.look()
    backlog.connected = 1
    assert backlog.look() == 1
    assert len(backlog.told) == 1
    backlog.accept()
    assert backlog.look() == 0
    assert len(backlog.told) == 2


def test_looks_are_not_more_frequent_than_their_interval(backlog: Backlog) -> None:
    for _ in range(8):
        backlog.look(WAITING_LOOK_INTERVAL_S / 4)
    assert backlog.looks == 2


def test_who_waits_at_a_unix_socket_is_unknown(tmp_path: Path, backlog: Backlog) -> None:
    listener, file = listen_unix(UnixAddress(str(tmp_path / "socket")), mode=0o600, group=None)
    try:
        settings = {"connections_max": 1, "say": pytest.fail}
        assert WaitingClients([listener], **settings).clients is None  # type: ignore[arg-type]
        both = WaitingClients([listener, backlog.listener], **settings)  # type: ignore[arg-type]
        assert both.clients == 0
    finally:
        file.remove()
        listener.close()


# Real servers.


@contextmanager
def clients(server: ServerProcess, count: int) -> Iterator[list[socket.socket]]:
    with ExitStack() as connected:
        yield [connected.enter_context(server.connect()) for _ in range(count)]


@pytest.mark.parametrize("reactors", ["1", "2"])
def test_a_server_counts_them_and_says_so(serve: Serve, backend: str, reactors: str) -> None:
    server = serve(
        *("--backend", backend, "--reactors", reactors, "--max-clients", "2"),
        *("--metrics", "127.0.0.1:0"),
    )
    with clients(server, 2) as served:
        wait_until(lambda: scrape(server)["numbers_uring_connections"] == 2, "both clients")
        assert scrape(server)[WAITING] == 0
        with clients(server, 3):
            wait_until(lambda: scrape(server)[WAITING] == 3, "those who wait")
            server.wait_for("wait for a slot: --max-clients 2 is reached")
            for client in served:
                client.close()
            wait_until(lambda: scrape(server)[WAITING] == 1, "one who still waits")
        wait_until(lambda: scrape(server)[WAITING] == 0, "none who waits")
        server.wait_for("no client waits for a slot any more")
    assert server.terminate() == 0
    assert server.stderr.count("for a slot") == 2


def test_those_who_are_refused_do_not_wait(serve: Serve, backend: str) -> None:
    server = serve(
        *("--backend", backend, "--max-clients", "1", "--when-full", "refuse"),
        *("--metrics", "127.0.0.1:0"),
    )
    with clients(server, 1):
        refused = "numbers_uring_connections_ended_total refused"
        with clients(server, 2):
            wait_until(lambda: scrape(server)[refused] == 2, "the refusals")
        assert scrape(server)[WAITING] == 0
    assert server.stop() == 0
    assert "for a slot" not in server.stderr


def test_a_server_with_unix_sockets_alone_has_no_such_metric(tmp_path: Path) -> None:
    with CommandProcess(
        *("serve", "--listen", f"unix:{tmp_path / 'socket'}", "--metrics", "127.0.0.1:0"),
        *("--log-file", str(tmp_path / "numbers.log")),
    ) as server:
        server.wait_for("listening on")
        assert WAITING not in scrape(server)
        assert server.stop() == 0
