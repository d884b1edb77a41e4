"""What only the reactor over epoll has to bear: a failing epoll_ctl(2); and its order of a pass."""

import errno
import os
import select
import socket
import time
from contextlib import ExitStack

import pytest

from numbers_uring.config import WhenFull
from numbers_uring.limits import DRAIN_S
from numbers_uring.net.listeners import listen_tcp
from numbers_uring.reactor.contract import Kind
from numbers_uring.reactor.epoll import EpollReactor
from support.logs import lines
from support.waiting import DEADLINE_S

_EPOLL = select.epoll


class _KeepsOne:
    """An epoll that fails to take out one descriptor, of those in `kept`."""

    kept: set[int]

    def __init__(self) -> None:
        self._epoll = _EPOLL()
        self.register = self._epoll.register
        self.poll = self._epoll.poll
        self.fileno = self._epoll.fileno
        self.close = self._epoll.close

    def unregister(self, fd: int | socket.socket) -> None:
        number = fd if isinstance(fd, int) else fd.fileno()
        if number in self.kept:
            raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
        self._epoll.unregister(fd)


def _reactor(stack: ExitStack) -> tuple[EpollReactor, tuple[str, int], int]:
    """Return one of three connections, its address, and the write end of its wake-up pipe."""
    wakeup_read, wakeup_write = os.pipe2(os.O_NONBLOCK)
    stack.callback(os.close, wakeup_read)
    stack.callback(os.close, wakeup_write)
    (listener,) = listen_tcp("127.0.0.1", 0)
    address = listener.getsockname()
    reactor = EpollReactor(
        [listener], wakeup_read, connections_max=3, when_full=WhenFull.WAIT, warn=print
    )
    stack.callback(reactor.close)
    return reactor, address, wakeup_write


def test_a_drain_ends_where_a_descriptor_cannot_be_taken_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(select, "epoll", _KeepsOne)
    _KeepsOne.kept = set()
    with ExitStack() as stack:
        reactor, address, wakeup_write = _reactor(stack)
        released = stack.enter_context(socket.create_connection(address, DEADLINE_S))
        released.sendall(lines([1]))
        end_s = time.monotonic() + DEADLINE_S
        failures: list[OSError] = []
        while not failures:
            assert time.monotonic() < end_s
            for kind, connection, _, _ in reactor.wait(0.1):
                if kind == Kind.OPENED:
                    _KeepsOne.kept = set(range(wakeup_write + 1, 1000))
                    try:
                        reactor.release(connection)
                    except OSError as error:
                        # As long as this is known, so is the socket, and it stays open.
                        failures.append(error)
                    _KeepsOne.kept = set()
        stays = stack.enter_context(socket.create_connection(address, DEADLINE_S))
        stays.sendall(lines([2]))
        begin_s = time.monotonic()
        for kind, connection, _, _ in reactor.drain(begin_s + DRAIN_S):
            if kind == Kind.CLOSED:
                reactor.finish_close(connection, orderly=True)
        assert time.monotonic() - begin_s < DEADLINE_S / 2
        assert stays.recv(1) == b""


def test_a_client_is_accepted_behind_the_append_of_what_came_in_the_same_pass() -> None:
    """And with the next pass, whatever comes meanwhile."""
    with ExitStack() as stack:
        reactor, address, _ = _reactor(stack)
        first = stack.enter_context(socket.create_connection(address, DEADLINE_S))
        assert [kind for kind, *_ in reactor.wait(DEADLINE_S)] == [Kind.OPENED]
        first.sendall(lines([1]))
        stack.enter_context(socket.create_connection(address, DEADLINE_S))
        assert [kind for kind, *_ in reactor.wait(DEADLINE_S)] == [Kind.RECEIVED]
        first.sendall(lines([2]))
        found = [kind for kind, *_ in reactor.wait(DEADLINE_S)]
        assert found == [Kind.OPENED, Kind.RECEIVED]
