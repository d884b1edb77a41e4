"""Servers that accept a connection and then do something else than a NATS server would."""

import asyncio
import signal
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from numbers_uring.cluster import client as client_module
from numbers_uring.cluster import connection
from numbers_uring.cluster.connection import connected, jetstream
from numbers_uring.config import BrokerAccess
from numbers_uring.errors import StartError
from numbers_uring.limits import BROKER_CONNECT_S
from support.broker import Broker
from support.processes import CommandProcess
from support.waiting import DEADLINE_S

INFO = b'INFO {"server_id":"x","version":"2.15.0","max_payload":1048576,"headers":true%b}\r\n'


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (
            OSError(111, "Connect call failed ('127.0.0.1', 4222)"),
            "Connection refused",
        ),
        (
            OSError(
                "Multiple exceptions: [Errno 111] Connect call failed ('::1', 4222, 0, 0), "
                "[Errno 111] Connect call failed ('127.0.0.1', 4222)"
            ),
            "Connection refused",
        ),
        (socket.gaierror(-2, "Name or service not known"), "Name or service not known"),
        (
            ssl.SSLError(1, "[SSL: WRONG_VERSION_NUMBER] wrong version number (_ssl.c:1006)"),
            "wrong version number",
        ),
        (OSError(), "OSError"),
        (TimeoutError(), "no answer"),
        (Exception("nats: 'Authorization Violation'"), "Authorization Violation"),
    ],
    ids=str,
)
def test_an_error_is_told_in_words_and_without_what_python_adds(
    error: Exception, words: str
) -> None:
    assert connection.reason_text(error) == words


def says_nothing(peer: socket.socket) -> None:
    peer.recv(1)


def talks_without_end(peer: socket.socket) -> None:
    while True:
        peer.sendall(b"x" * 65536)


def hangs_in_the_tls_handshake(peer: socket.socket) -> None:
    peer.sendall(INFO % b',"tls_required":true')
    while peer.recv(65536):
        pass


def does_not_answer_the_first_ping(peer: socket.socket) -> None:
    peer.sendall(INFO % b"")
    while peer.recv(65536):
        pass


def says_what_is_no_json(peer: socket.socket) -> None:
    peer.sendall(b"INFO \xff{\r\n")
    peer.recv(1)


def hangs_up(peer: socket.socket) -> None:
    del peer


STRANGE = [
    says_nothing,
    talks_without_end,
    hangs_in_the_tls_handshake,
    does_not_answer_the_first_ping,
    says_what_is_no_json,
    hangs_up,
]


class StrangeServer:
    """Does the same with each connection; `met` is how many there were."""

    def __init__(self, stack: ExitStack, act: Callable[[socket.socket], None]) -> None:
        self._act = act
        self._listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        self._stack = stack
        self.url = f"nats://127.0.0.1:{self._listener.getsockname()[1]}"
        self.met = 0
        stack.callback(self._listener.shutdown, socket.SHUT_RDWR)
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                peer, _ = self._listener.accept()
                self.met += 1
                threading.Thread(target=self._meet, args=(peer,), daemon=True).start()

    def _meet(self, peer: socket.socket) -> None:
        with peer, suppress(OSError):
            self._act(peer)


@pytest.fixture
def strange(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[StrangeServer]]:
    monkeypatch.setattr(client_module, "BROKER_CONNECT_S", 0.2)
    monkeypatch.setattr(client_module, "BROKER_RECONNECT_S", 0.01)
    with ExitStack() as stack:
        yield [StrangeServer(stack, act) for act in STRANGE]


async def _answers(client: object) -> bool:
    return bool(await jetstream(client).account_info())  # type: ignore[arg-type]


def test_servers_that_are_none_are_passed_over_at_the_start_and_at_a_reconnect(
    tmp_path: Path, strange: list[StrangeServer]
) -> None:
    with Broker(tmp_path) as broker:
        urls = ",".join([*(each.url for each in strange), broker.url])
        said: list[str] = []

        async def live() -> None:
            async with (
                asyncio.timeout(DEADLINE_S),
                connected(urls, "tests", access=BrokerAccess(), say=said.append) as client,
            ):
                assert await _answers(client)
                for each in strange:
                    each.met = 0
                broker.kill()
                while not all(each.met for each in strange):
                    await asyncio.sleep(0.01)
                await asyncio.to_thread(broker.start)
                while not any("reconnected" in line for line in said):
                    await asyncio.sleep(0.01)
                assert await _answers(client)

        asyncio.run(live())


@pytest.mark.parametrize("accepts", [False, True])
def test_a_name_whose_first_address_does_not_answer_is_tried_at_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, accepts: bool
) -> None:
    monkeypatch.setattr(client_module, "BROKER_CONNECT_S", 0.4)
    monkeypatch.setattr(client_module, "BROKER_RECONNECT_S", 0.01)
    resolve = socket.getaddrinfo

    def resolve_both(name: str, port: int, *arguments: object, **options: int) -> list[object]:
        names = ["127.0.0.2", "127.0.0.1"] if name == "both" else [name]
        return [found for each in names for found in resolve(each, port, type=socket.SOCK_STREAM)]

    monkeypatch.setattr(socket, "getaddrinfo", resolve_both)

    async def start(url: str) -> None:
        async with connected(url, "tests", access=BrokerAccess()) as client:
            assert await _answers(client)

    with Broker(tmp_path) as broker, ExitStack() as stack:
        listener = socket.create_server(("127.0.0.2", broker.port), backlog=0)
        stack.callback(listener.close)
        while not accepts:
            waits = stack.enter_context(socket.socket())
            waits.settimeout(0.1)
            try:
                waits.connect(listener.getsockname())
            except TimeoutError:
                break
        asyncio.run(start(f"nats://both:{broker.port}"))


def test_servers_that_are_none_end_a_start_in_time(
    monkeypatch: pytest.MonkeyPatch, strange: list[StrangeServer]
) -> None:
    monkeypatch.setattr(connection, "BROKER_START_S", 0.5)
    monkeypatch.setattr(connection, "BROKER_CONNECT_S", 0.2)

    async def start(url: str) -> None:
        async with asyncio.timeout(DEADLINE_S), connected(url, "tests", access=BrokerAccess()):
            raise AssertionError("it is connected")

    for each in strange:
        with pytest.raises(StartError, match="cannot reach the NATS server at") as raised:
            asyncio.run(start(each.url))
        assert "TimeoutError" not in str(raised.value)
    for each in strange:
        assert each.met > 0


def answers_pings_alone(peer: socket.socket) -> None:
    peer.sendall(INFO % b"")
    while received := peer.recv(65536):
        peer.sendall(b"PONG\r\n" * received.count(b"PING\r\n"))


NODE = ("serve", "--port", "0", "--partitions", "1", "--forward")
COLLECTOR = ("collect", "--log-dir", "logs", "--partitions", "0", "--nats")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda each: each.name)
@pytest.mark.parametrize("command", [NODE, COLLECTOR], ids=lambda command: command[0])
@pytest.mark.parametrize("act", [says_nothing, answers_pings_alone])
def test_a_start_that_waits_for_the_nats_server_is_stopped_at_once(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    act: Callable[[socket.socket], None],
    command: tuple[str, ...],
    number: signal.Signals,
) -> None:
    monkeypatch.chdir(tmp_path)
    waiting = threading.Event()

    def meet(peer: socket.socket) -> None:
        if act is says_nothing:
            waiting.set()
        act(Watched(peer))  # type: ignore[arg-type]

    class Watched:
        def __init__(self, peer: socket.socket) -> None:
            self.sendall = peer.sendall
            self._peer = peer

        def recv(self, size: int) -> bytes:
            received = self._peer.recv(size)
            if b"$JS.API" in received:
                waiting.set()
            return received

    with ExitStack() as stack:
        server = StrangeServer(stack, meet)
        process = stack.enter_context(CommandProcess(*command, server.url))
        assert waiting.wait(DEADLINE_S)
        begin_s = time.monotonic()
        assert process.stop(number) == 0
        # What it waits for takes longer.
        assert time.monotonic() - begin_s < BROKER_CONNECT_S
    assert process.stderr == ""


def test_a_start_ends_in_time_although_the_client_loses_a_cancellation(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As asyncio.wait_for does up to Python 3.11, where something comes at that moment."""
    monkeypatch.setattr(connection, "BROKER_START_S", 0)

    async def connect(*_: object, **__: object) -> None:
        with suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        await asyncio.Event().wait()

    monkeypatch.setattr(client_module.BoundedClient, "connect", connect)

    async def start() -> None:
        async with asyncio.timeout(DEADLINE_S), connected("nats://x", "t", access=BrokerAccess()):
            raise AssertionError("it is connected")

    with pytest.raises(StartError, match="cannot reach the NATS server at nats://x: no answer"):
        asyncio.run(start())
