"""What a client of the server does and sees."""

import socket
from contextlib import suppress

from support.logs import lines
from support.waiting import DEADLINE_S


def sees_fin(client: socket.socket) -> bool:
    """Wait until the server closes the connection; return whether with a FIN, not with a reset."""
    client.settimeout(DEADLINE_S)
    try:
        assert client.recv(1) == b"", "the server says something"
    except ConnectionResetError:
        return False
    return True


def is_closed(client: socket.socket) -> bool:
    """Wait until the server closes the connection; return False if it sends something instead."""
    client.settimeout(DEADLINE_S)
    try:
        return client.recv(1) == b""
    except ConnectionResetError:
        # Data that was sent after the line that ended the connection is answered with a reset.
        return True


def flood(client: socket.socket, begin: int, numbers: int = 100_000_000) -> None:
    """Send ascending numbers, until the server closes the connection or they are all sent."""
    with suppress(OSError):
        for first in range(begin, begin + numbers, 20_000):
            client.sendall(lines(range(first, first + 20_000)))
