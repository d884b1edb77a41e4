"""The sockets that clients connect to."""

import socket
import struct

from numbers_uring.config import (
    BACKLOG_CONNECTIONS,
    KEEPALIVE_IDLE_S,
    KEEPALIVE_INTERVAL_S,
    KEEPALIVE_PROBES,
    StartError,
)

_INHERITED_OPTIONS = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_IDLE_S),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEPALIVE_INTERVAL_S),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, KEEPALIVE_PROBES),
    # A byte sent as urgent data is a byte of the stream like any other.
    (socket.SOL_SOCKET, socket.SO_OOBINLINE, 1),
)
"""Set on the listener: what it accepts has them from the start."""


_TCPI_UNACKED = struct.Struct("=24xI")


def backlog_connections(listener: socket.socket) -> int:
    """Return how many connections wait for accept.

    That is tcpi_unacked of a listening socket (tcp_get_info in net/ipv4/tcp.c).
    """
    info = listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCPI_UNACKED.size)
    (waiting,) = _TCPI_UNACKED.unpack(info)
    return int(waiting)


def listen(host: str, port: int) -> list[socket.socket]:
    """Bind and listen on every address that `host` stands for.

    With port 0 the system chooses one, the same for all addresses. Raises StartError.
    """
    listeners: list[socket.socket] = []
    try:
        for family, address in _addresses(host, port):
            if listeners and port == 0:
                first_port = listeners[0].getsockname()[1]
                listeners.append(_listen_on(family, (address[0], first_port, *address[2:])))
            else:
                listeners.append(_listen_on(family, address))
    except StartError:
        for listener in listeners:
            listener.close()
        raise
    return listeners


def _addresses(host: str, port: int) -> list[tuple[socket.AddressFamily, tuple[str, int]]]:
    try:
        found = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP, flags=socket.AI_PASSIVE
        )
    except (socket.gaierror, UnicodeError) as error:
        reason = error.strerror if isinstance(error, socket.gaierror) else error
        raise StartError(f"cannot listen on host {host!r}: {reason}") from error
    # A name may be listed twice for the same address.
    return list(dict.fromkeys((family, address) for family, _, _, _, address in found))  # type: ignore[misc]


def _listen_on(family: socket.AddressFamily, address: tuple[str, int]) -> socket.socket:
    listener = None
    try:
        listener = socket.socket(family, socket.SOCK_STREAM)
        # A restart must not wait for the last run's connections to leave TIME_WAIT.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        for level, option, value in _INHERITED_OPTIONS:
            listener.setsockopt(level, option, value)
        listener.bind(address)
        # With SO_REUSEADDR two sockets may bind to one port; only one of them may listen.
        listener.listen(BACKLOG_CONNECTIONS)
    except OSError as error:
        if listener is not None:
            listener.close()
        raise StartError(
            f"cannot listen on {_join(address[0], address[1])}: {error.strerror}"
        ) from error
    return listener


def _join(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def address_text(listener: socket.socket) -> str:
    """Return the listener's address as HOST:PORT, an IPv6 host in brackets."""
    host, port = listener.getsockname()[:2]
    return _join(host, port)
