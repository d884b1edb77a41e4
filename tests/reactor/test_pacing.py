import math
import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from numbers_uring.config import WhenFull
from numbers_uring.ingest.intake import Intake
from numbers_uring.ingest.native import variants
from numbers_uring.limits import (
    BATCH_BYTES,
    BITMAP_BYTES,
    PACING_CHUNK_BYTES,
    PACING_INTERVAL_S,
    PACING_PASSES,
    PACING_PAUSE_S_MIN,
    PACING_PERIOD_S,
    PACING_SIGNS,
)
from numbers_uring.net.listeners import listen_tcp
from numbers_uring.reactor import pacing
from numbers_uring.reactor.contract import Kind, Reactor
from numbers_uring.reactor.epoll import EpollReactor
from numbers_uring.reactor.pacing import Pacing
from numbers_uring.reactor.uring import UringReactor
from support.logs import lines
from support.waiting import DEADLINE_S


class Stream:
    """Passes that take some time each, and the pauses before them."""

    def __init__(self) -> None:
        self.pacing = Pacing()
        self.now_s = 1000.0

    def passes(
        self, count: int, *, apart_s: float, packets: int, size: int, others: int = 0
    ) -> list[float]:
        paused_s = []
        for _ in range(count):
            paused_s.append(self.pacing.pause_s(self.now_s))
            self.now_s += apart_s + paused_s[-1]
            self.pacing.note_pass(self.now_s, packets, packets * size, others)
        return paused_s


def test_a_rush_of_tiny_packets_is_paced_after_its_first_passes() -> None:
    paused_s = Stream().passes(PACING_SIGNS + 10, apart_s=PACING_INTERVAL_S / 2, packets=5, size=10)
    # The first pass follows nothing, and the first paced one nothing that was paced.
    assert paused_s[: PACING_SIGNS + 2] == [0.0] * (PACING_SIGNS + 2)
    assert paused_s[PACING_SIGNS + 2 :] == pytest.approx(
        [PACING_PERIOD_S - PACING_INTERVAL_S / 2] * 8
    )


def test_passes_that_are_paced_begin_a_period_apart_whatever_they_take() -> None:
    stream = Stream()
    stream.passes(PACING_SIGNS + 2, apart_s=1e-6, packets=5, size=10)
    for share in (0.1, 0.9, 0.5):
        taken_s = PACING_PERIOD_S * share
        paused_s = stream.passes(2, apart_s=taken_s, packets=5, size=10)[1]
        assert paused_s + taken_s == pytest.approx(PACING_PERIOD_S)


def test_a_pass_that_takes_longer_than_a_period_has_no_pause_behind_it() -> None:
    for taken_s in (PACING_PERIOD_S - PACING_PAUSE_S_MIN / 2, PACING_PERIOD_S * 20):
        packets = math.ceil(2 * taken_s / PACING_INTERVAL_S)
        assert not any(Stream().passes(500, apart_s=taken_s, packets=packets, size=10))


def test_a_rush_is_looked_at_anew_from_time_to_time() -> None:
    paused_s = Stream().passes(1000, apart_s=PACING_INTERVAL_S / 2, packets=5, size=10)
    rest = [bool(each) for each in paused_s[PACING_SIGNS + 1 :]]
    period = [*[True] * PACING_PASSES, *[False] * PACING_SIGNS]
    assert rest == [False, *(period * 20)[1 : len(rest)]]


def test_a_stream_with_pauses_is_never_paced() -> None:
    paused_s = Stream().passes(500, apart_s=PACING_INTERVAL_S * 1.01, packets=1, size=10)
    assert not any(paused_s)


def test_large_pieces_are_never_paced() -> None:
    paused_s = Stream().passes(500, apart_s=1e-6, packets=5, size=PACING_CHUNK_BYTES)
    assert not any(paused_s)


def test_a_rush_that_ends_is_paced_no_more() -> None:
    stream = Stream()
    stream.passes(PACING_SIGNS + 5, apart_s=PACING_INTERVAL_S / 2, packets=5, size=10)
    # The pass behind a pause found no packet, and may have had to wait for long.
    stream.passes(1, apart_s=1.0, packets=0, size=0)
    assert not any(stream.passes(100, apart_s=PACING_INTERVAL_S * 2, packets=1, size=10))


def test_clients_that_come_and_leave_begin_no_pacing() -> None:
    stream = Stream()
    for _ in range(100):
        assert not any(stream.passes(PACING_SIGNS - 1, apart_s=1e-6, packets=3, size=10))
        assert not any(stream.passes(1, apart_s=1e-6, packets=3, size=10, others=1))


def test_beside_a_rush_clients_may_come_and_leave() -> None:
    stream = Stream()
    stream.passes(PACING_SIGNS + 2, apart_s=1e-6, packets=5, size=10)
    assert all(stream.passes(PACING_PASSES - 2, apart_s=1e-6, packets=5, size=10, others=2))


def test_an_idle_stream_is_delayed_by_less_than_a_millisecond() -> None:
    assert PACING_PERIOD_S < 0.001


@pytest.fixture
def pauses_s(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses that a reactor is told to make; it makes none, and each pass follows at once."""
    told_s: list[float] = []
    pause_s = Pacing.pause_s

    def tell(self: Pacing, now_s: float) -> float:
        told_s.append(pause_s(self, now_s))
        return 0.0

    monkeypatch.setattr(Pacing, "pause_s", tell)
    monkeypatch.setattr(pacing, "PACING_INTERVAL_S", DEADLINE_S)
    return told_s


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


class Paced:
    """A reactor, with or without compiled passes, and its clients."""

    def __init__(self, backend: str, stack: ExitStack, *, compiled: bool) -> None:
        (listener,) = listen_tcp("127.0.0.1", 0)
        self._stack = stack
        self._address = listener.getsockname()
        self._wakeup_fd = os.eventfd(0)
        stack.callback(os.close, self._wakeup_fd)
        make: type[EpollReactor | UringReactor] = {"epoll": EpollReactor, "uring": UringReactor}[
            backend
        ]
        self.reactor: Reactor = make(
            [listener],
            self._wakeup_fd,
            connections_max=2,
            when_full=WhenFull.WAIT,
            warn=print,
        )
        stack.callback(self.reactor.close)
        if compiled:
            arena, bitmap = self.reactor.arena, bytearray(BITMAP_BYTES)
            self._intake = Intake(
                variants()[0], arena, bitmap, connections_max=2, batch_bytes=BATCH_BYTES
            )
            self.reactor.take_in(self._intake)

    def client(self) -> socket.socket:
        client = socket.create_connection(self._address, timeout=DEADLINE_S)
        return self._stack.enter_context(client)

    def turn_until(self, *kinds: Kind) -> None:
        kind = None
        while kind not in kinds:
            for kind, connection, _, _ in self.reactor.wait(DEADLINE_S):
                if kind == Kind.CLOSED:
                    self.reactor.finish_close(connection, orderly=True)


@pytest.mark.parametrize("compiled", [False, True])
def test_short_connections_one_after_the_other_wait_for_no_pause(
    backend: str, stack: ExitStack, pauses_s: list[float], *, compiled: bool
) -> None:
    paced = Paced(backend, stack, compiled=compiled)
    for number in range(2 * PACING_SIGNS):
        client = paced.client()
        paced.turn_until(Kind.OPENED)
        client.sendall(lines([number]))
        paced.turn_until(Kind.RECEIVED, Kind.TAKEN)
        client.shutdown(socket.SHUT_WR)
        paced.turn_until(Kind.CLOSED)
        assert client.recv(1) == b""
    assert not any(pauses_s)


@pytest.mark.parametrize("compiled", [False, True])
def test_packets_of_a_connection_that_stays_are_paced(
    backend: str, stack: ExitStack, pauses_s: list[float], *, compiled: bool
) -> None:
    paced = Paced(backend, stack, compiled=compiled)
    client = paced.client()
    paced.turn_until(Kind.OPENED)
    for number in range(PACING_SIGNS + 3):
        client.sendall(lines([number]))
        paced.turn_until(Kind.RECEIVED, Kind.TAKEN)
    assert any(pauses_s)
