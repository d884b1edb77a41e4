"""The sockets that clients connect to."""

import errno
import os
import socket
import struct
from collections.abc import Collection, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from ipaddress import IPv6Address
from typing import Any

from numbers_uring.addresses import Address, TcpAddress, UnixAddress, host_bytes, tcp_address
from numbers_uring.errors import StartError
from numbers_uring.limits import (
    BACKLOG_CONNECTIONS,
    KEEPALIVE_IDLE_S,
    KEEPALIVE_INTERVAL_S,
    KEEPALIVE_PROBES,
)
from numbers_uring.net.closing import close_all
from numbers_uring.net.unix import SocketFile, listen_unix, try_unix

_LINGER = struct.Struct("ii")
_RESET_AT_CLOSE = _LINGER.pack(1, 0)
CLOSE_WITH_FIN = _LINGER.pack(0, 0)
"""For SO_LINGER of a connection whose close may tell the client that all it sent is stored."""

_INHERITED_OPTIONS: tuple[tuple[int, int, int | bytes], ...] = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_IDLE_S),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEPALIVE_INTERVAL_S),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, KEEPALIVE_PROBES),
    # A byte sent as urgent data is a byte of the stream like any other.
    (socket.SOL_SOCKET, socket.SO_OOBINLINE, 1),
    # A close is a reset, also at the end of the process, unless `CLOSE_WITH_FIN` is set before.
    (socket.SOL_SOCKET, socket.SO_LINGER, _RESET_AT_CLOSE),
)
"""Set on the listener: what connects to it from then on has them from the start."""


_TCPI_UNACKED = struct.Struct("=24xI")
_IPPROTO_MPTCP = 262


def backlog_connections(listener: socket.socket) -> int:
    """Return how many connections wait for accept, or where that is unknown the most that can."""
    clients = clients_in_backlog(listener)
    return BACKLOG_CONNECTIONS if clients is None else clients


def clients_in_backlog(listener: socket.socket) -> int | None:
    """Return how many clients wait for accept; None where that is unknown, as of a unix socket.

    It is tcpi_unacked of a listening TCP socket (tcp_get_info in net/ipv4/tcp.c). MPTCP counts
    other ones there, and some systems know less of TCP_INFO, or nothing. The queue of a unix socket
    is in sock_diag(7) alone, whose sockets a sandbox such as our systemd unit's does not allow.
    """
    if listener.family == socket.AF_UNIX or listener.proto == _IPPROTO_MPTCP:
        return None
    try:
        info = listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCPI_UNACKED.size)
    except OSError:
        return None
    if len(info) < _TCPI_UNACKED.size:
        return None
    (waiting,) = _TCPI_UNACKED.unpack(info)
    return int(waiting)


@dataclass(slots=True)
class Listeners:
    """Listening sockets, and the files by which those of AF_UNIX are found."""

    sockets: list[socket.socket] = field(default_factory=list)
    files: list[SocketFile] = field(default_factory=list)

    def remove_files(self) -> None:
        """Remove the files; to be called before the sockets are closed."""
        for file in self.files:
            file.remove()

    def close(self) -> None:
        """Remove the files and close the sockets; what was closed already does not matter."""
        self.remove_files()
        close_all(*self.sockets)


def listen(addresses: Sequence[Address], *, unix_mode: int, unix_group: str | None) -> Listeners:
    """Bind and listen on all of the addresses, or on none. Raises StartError.

    `[::]` takes IPv4 clients, too, unless an IPv4 address with the same port is among the others.
    """
    with ExitStack() as undo:
        listeners = Listeners()
        undo.callback(listeners.close)
        for address in addresses:
            if isinstance(address, UnixAddress):
                listener, file = listen_unix(address, mode=unix_mode, group=unix_group)
                listeners.sockets.append(listener)
                listeners.files.append(file)
            else:
                beside = _ipv4_ports(addresses, address)
                listeners.sockets += listen_tcp(address.host, address.port, ipv4_ports=beside)
        undo.pop_all()
    return listeners


def try_listening(
    addresses: Sequence[Address], *, unix_group: str | None, metrics: TcpAddress | None = None
) -> None:
    """Raise StartError where `listen` would, after `listen_for_metrics`; nothing is left behind.

    TCP addresses are bound for a moment. Listening on them, too, would let clients connect and then
    reset them; that is done only where two addresses share a port, because bind does not tell.
    """
    tcp = [address for address in addresses if isinstance(address, TcpAddress)]
    ports = [address.port for address in (*tcp, *([metrics] if metrics else [])) if address.port]
    with ExitStack() as bound:
        if metrics is not None and ports.count(metrics.port) > 1:
            # Where that fails, it is not these addresses that are to blame.
            with suppress(StartError):
                for listener in listen_for_metrics(metrics):
                    bound.callback(listener.close)
        for address in addresses:
            if isinstance(address, UnixAddress):
                try_unix(address, group=unix_group)
                continue
            shared = ports.count(address.port) > 1
            for listener in listen_tcp(
                *address, ipv4_ports=_ipv4_ports(addresses, address), bind_only=not shared
            ):
                bound.callback(listener.close)


def listen_for_metrics(address: TcpAddress, *, bind_only: bool = False) -> list[socket.socket]:
    """Do as `listen_tcp`; an error says what it was for."""
    try:
        return listen_tcp(*address, bind_only=bind_only)
    except StartError as error:
        raise StartError(f"--metrics: {error}") from error


def _ipv4_ports(addresses: Sequence[Address], but: TcpAddress) -> set[int]:
    """Return the ports of the IPv4 addresses in `addresses`, those of `but` left out.

    A host that can't be resolved has none here; listening on it says why.
    """
    ports = set()
    for address in addresses:
        if isinstance(address, TcpAddress) and address != but:
            with suppress(StartError):
                families = {family for family, _ in _addresses(*address)}
                if socket.AF_INET in families:
                    ports.add(address.port)
    return ports


def listen_tcp(
    host: str, port: int, *, ipv4_ports: Collection[int] = (), bind_only: bool = False
) -> list[socket.socket]:
    """Bind, and unless `bind_only`, listen on every address of `host` that this machine has.

    `ipv4_ports` are the ports that the caller listens on with IPv4 besides: there, `::` is IPv6
    alone.

    A name like localhost often stands for an IPv6 address, too, where IPv6 is turned off: what is
    missing is passed over as long as another is there. With port 0 the system chooses one, the same
    for all addresses. Raises StartError.
    """
    listeners: list[socket.socket] = []
    missing: StartError | None = None
    try:
        found = _addresses(host, port)
        both = port in ipv4_ports or any(family == socket.AF_INET for family, _ in found)
        for family, address in found:
            chosen = _name(listeners[0])[1] if listeners and port == 0 else address[1]
            complete = (address[0], chosen, *address[2:])
            try:
                listeners.append(
                    _listen_on(family, complete, ipv4_besides=both, bind_only=bind_only)
                )
            except StartError as error:
                if not _is_missing(error.__cause__):
                    raise
                missing = missing or error
        if not listeners and missing is not None:
            raise missing
    except StartError:
        close_all(*listeners)
        raise
    return listeners


def _is_missing(cause: BaseException | None) -> bool:
    return isinstance(cause, OSError) and cause.errno in {errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT}


def _addresses(host: str, port: int) -> list[tuple[socket.AddressFamily, tuple[str, int]]]:
    try:
        found = socket.getaddrinfo(
            host_bytes(host),
            port,
            type=socket.SOCK_STREAM,
            proto=socket.IPPROTO_TCP,
            flags=socket.AI_PASSIVE,
        )
    except (OSError, UnicodeError, LookupError) as error:
        # For an international name Python needs the codec idna, which may be lacking.
        reason = error.strerror if isinstance(error, OSError) else error
        raise StartError(f"cannot listen on host {host!r}: {reason}") from error
    # A name may be listed twice for the same address.
    return list(dict.fromkeys((family, address) for family, _, _, _, address in found))  # type: ignore[misc]


def _listen_on(
    family: socket.AddressFamily,
    address: tuple[str, int],
    *,
    ipv4_besides: bool,
    bind_only: bool,
) -> socket.socket:
    listener = None
    try:
        listener = socket.socket(family, socket.SOCK_STREAM)
        if family == socket.AF_INET6:
            # Always set: the default is a sysctl, net.ipv6.bindv6only.
            alone = not _takes_ipv4(address[0], ipv4_besides=ipv4_besides)
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, alone)
        # A restart must not wait for the last run's connections to leave TIME_WAIT.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        set_options(listener)
        listener.bind(address)
        # With SO_REUSEADDR two sockets may bind to one port; only one of them may listen.
        if not bind_only:
            listener.listen(BACKLOG_CONNECTIONS)
    except OSError as error:
        if listener is not None:
            listener.close()
        raise StartError(f"cannot listen on {tcp_address(address)}: {error.strerror}") from error
    return listener


def _takes_ipv4(host: str, *, ipv4_besides: bool) -> bool:
    address = IPv6Address(host)
    return address.ipv4_mapped is not None or (address.is_unspecified and not ipv4_besides)


def set_options(listener: socket.socket) -> None:
    """Set the options that accepted connections inherit. Raises OSError.

    An option that the protocol does not have is left out: MPTCP knows no urgent data, and a unix
    socket has none of them because its peers cannot vanish unnoticed.
    """
    if listener.family != socket.AF_UNIX:
        for level, option, value in _INHERITED_OPTIONS:
            try:
                listener.setsockopt(level, option, value)
            except OSError as error:
                if error.errno not in {errno.EOPNOTSUPP, errno.ENOPROTOOPT}:
                    raise


def address_text(listener: socket.socket) -> str:
    """Return the listener's address as HOST:PORT, an IPv6 host in brackets, or as unix:PATH.

    A link-local address has its zone behind a `%`. An abstract name, which only a service manager
    passes on, has an @ in front. Raises StartError.
    """
    name = _name(listener)
    if listener.family == socket.AF_UNIX:
        return str(UnixAddress(os.fsdecode(name).replace("\0", "@")))
    return str(tcp_address(name))


def _name(listener: socket.socket) -> Any:
    """Return what the system calls the listener. Raises StartError."""
    try:
        return listener.getsockname()
    except OSError as error:
        raise StartError(f"cannot read the address of a listener: {error.strerror}") from error
