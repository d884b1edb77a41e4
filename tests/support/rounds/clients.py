"""Clients that send all the time, to whatever node is there, and note how each connection ended."""

import random
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal

from numbers_uring.limits import NUMBERS
from support.logs import lines
from support.waiting import wait_until

CHUNK_NUMBERS = 100
PAUSE_S = 0.02
"""Of each client: it goes on all the time, and leaves time to look at every number at the end."""

CHUNKS_MAX = 25
"""Of a connection: they end often, so that faults meet them at each stage."""

REPEATS = 0.2
"""The part of the chunks that another client has sent, or sends."""

CLOSED_S = 90.0
"""For a node to close a connection, whatever happens to its NATS servers meanwhile."""

_STEP = 387_420_489
"""Has no factor in common with NUMBERS: so a number comes again only when all have come."""

_TCP_CLOSE = 7


def numbers_of(places: range) -> Iterator[int]:
    """Yield numbers of all partitions, others for each place."""
    return (place * _STEP % NUMBERS for place in places)


class Source:
    """Hands out places, each once, to all clients."""

    def __init__(self) -> None:
        self._used = 0
        self._lock = threading.Lock()

    def take(self, chance: random.Random) -> range:
        with self._lock:
            first = self._used
            if chance.random() < REPEATS:
                first = chance.randrange(self._used + 1)
            self._used = max(self._used, first + CHUNK_NUMBERS)
        return range(first, first + CHUNK_NUMBERS)


@dataclass
class Session:
    """A connection of a client."""

    node: str
    sent: list[range] = field(default_factory=list)
    """All that may have come."""
    end: Literal["", "fin", "reset", "silence"] = ""
    """A `fin` says that all of it is acknowledged."""


class Client:
    """Sends in one session after the other until it is told to leave.

    `connect` makes a connection to a node, and gives that a name; it raises OSError where there is
    none at the moment. `closed` is called at once when a connection has ended with a FIN.
    """

    def __init__(
        self,
        connect: Callable[[], tuple[str, socket.socket]],
        closed: Callable[[], object],
        source: Source,
        seed: int,
    ) -> None:
        self.sessions: list[Session] = []
        self._connect = connect
        self._closed = closed
        self._source = source
        self._chance = random.Random(seed)
        self._leaving = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._leaving.is_set():
            try:
                node, connection = self._connect()
            except OSError:
                self._leaving.wait(PAUSE_S)
                continue
            self.sessions.append(Session(node))
            with connection:
                self._send(connection, self.sessions[-1])

    def _send(self, connection: socket.socket, session: Session) -> None:
        connection.settimeout(CLOSED_S)
        try:
            for _ in range(self._chance.randrange(1, CHUNKS_MAX)):
                chunk = self._source.take(self._chance)
                session.sent.append(chunk)
                connection.sendall(lines(numbers_of(chunk)))
                if self._leaving.wait(PAUSE_S):
                    break
            connection.shutdown(socket.SHUT_WR)
            assert connection.recv(1) == b"", "the server spoke"
            self._closed()
            session.end = "fin" if _answered(connection) else "reset"
        except TimeoutError:
            session.end = "silence"
        except OSError:
            session.end = "reset"

    def leave(self) -> None:
        self._leaving.set()

    def wait(self) -> None:
        self._thread.join(CLOSED_S + 10)
        assert not self._thread.is_alive(), "a client can't get rid of its numbers"


def _answered(connection: socket.socket) -> bool:
    """Return whether the node has read everything, now that its FIN has come.

    Where it closes at the same moment as the client, what is then under way comes too late, and is
    answered with a reset, behind the FIN.
    """

    def state() -> int:
        return connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]

    wait_until(lambda: state() == _TCP_CLOSE, "the end of a connection")
    return connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
