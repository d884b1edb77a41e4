"""Addresses, as they are written on the command line and told to people."""

import os
import socket
from contextlib import suppress
from ipaddress import IPv6Address, ip_address
from typing import Any, NamedTuple

PORT_MAX = 65535
UNIX_PATH_BYTES_MAX = 107
"""sun_path of unix(7), without the NUL at its end."""


class TcpAddress(NamedTuple):
    """A host, which may be a name, and a port; 0 is any free one."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def tcp_address(name: tuple[Any, ...]) -> TcpAddress:
    """Return the address in `name`, which is as socket(7)'s calls give it for IPv4 or IPv6.

    The zone of a link-local address, which these calls give as a number, is added by its name.
    """
    host, port, *rest = name
    scope_id = rest[1] if len(rest) == 2 else 0
    return TcpAddress(host_text(host, scope_id), port)


def host_text(host: str, scope_id: int) -> str:
    """Return `host`, with the zone that `scope_id` stands for behind a `%`; 0 is none."""
    if not scope_id or "%" in host:
        return host
    try:
        zone = socket.if_indextoname(scope_id)
    except OSError:
        # The interface is gone.
        zone = str(scope_id)
    return f"{host}%{zone}"


def host_bytes(host: str) -> bytes | str:
    """Return `host` as socket.getaddrinfo is best given it: as bytes, unless they need a codec.

    For text it loads the codec of international names, which fails where memory is short, and then
    for good: "unknown encoding: idna".
    """
    return host.encode() if host.isascii() else host


class UnixAddress(NamedTuple):
    """The absolute path of a socket file."""

    path: str

    def __str__(self) -> str:
        return f"unix:{self.path}"


Address = TcpAddress | UnixAddress


def parse_address(text: str) -> Address:
    """Return what `HOST:PORT`, `[IPV6]:PORT` or `unix:PATH` names. Raises ValueError."""
    kind, colon, path = text.partition(":")
    if kind == "unix" and colon:
        return _unix_address(path)
    return parse_tcp_address(text)


def parse_tcp_address(text: str) -> TcpAddress:
    """Return what `HOST:PORT` or `[IPV6]:PORT` names. Raises ValueError."""
    host, colon, port = text.rpartition(":")
    if not (colon and port.isascii() and port.isdecimal() and int(port) <= PORT_MAX):
        raise ValueError(f"{text!r} does not end with a port from 0 to {PORT_MAX}")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise ValueError(f"{text!r}: an IPv6 address must be in brackets")
    if not host:
        raise ValueError(f"{text!r} has no host; 0.0.0.0 and [::] stand for every interface")
    return TcpAddress(host, int(port))


def _unix_address(path: str) -> UnixAddress:
    if not path:
        raise ValueError("'unix:' has no path after it")
    # Where the working directory was removed, bind(2) refuses the path as it is.
    with suppress(FileNotFoundError):
        path = os.path.abspath(path)  # noqa: PTH100 - a Path's parts may not be resolved by name alone
    if "\0" in path or len(os.fsencode(path)) > UNIX_PATH_BYTES_MAX:
        raise ValueError(
            f"{path!r} is longer than the {UNIX_PATH_BYTES_MAX} bytes of a socket's path"
        )
    return UnixAddress(path)


class Peer(NamedTuple):
    """Who is at the other end of a connection; a unix socket's client has no host and no port."""

    host: str
    port: int

    def __str__(self) -> str:
        return str(TcpAddress(self.host, self.port)) if self.host else "unix socket"

    @property
    def is_local(self) -> bool:
        """Whether it came by a unix socket, or from a loopback address of this host."""
        if not self.host:
            return True
        address = ip_address(self.host)
        if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
            return address.ipv4_mapped.is_loopback
        return address.is_loopback
