"""A peer of the load generator that a test writes: it does to each client what it is told."""

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from support.waiting import DEADLINE_S


@contextmanager
def peer(serve: Callable[[socket.socket], object]) -> Iterator[int]:
    """A server that does to each client in turn what `serve` says; gives its port."""
    stopping = threading.Event()

    def accept() -> None:
        while not stopping.is_set():
            connection, _ = listener.accept()
            with connection:
                connection.settimeout(DEADLINE_S)
                if not stopping.is_set():
                    serve(connection)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=accept)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            stopping.set()
            socket.create_connection(listener.getsockname(), DEADLINE_S).close()
            thread.join(DEADLINE_S)
            assert not thread.is_alive()


def read_all(connection: socket.socket) -> bytes:
    pieces = []
    while piece := connection.recv(1 << 16):
        pieces.append(piece)
    return b"".join(pieces)
