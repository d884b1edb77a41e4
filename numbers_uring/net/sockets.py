"""Connected sockets, by their descriptors: see native/net/sockets.h."""

import socket
import struct
from typing import Any

from numbers_uring._native import ffi, lib
from numbers_uring.addresses import Peer, host_text

_FAMILY = struct.Struct("=H")
_PORT = struct.Struct("!2xH")
"""Where sockaddr_in and sockaddr_in6 have them; their hosts are 4 and 8 bytes from the start."""
_SCOPE_ID = struct.Struct("=24xI")
"""Of sockaddr_in6."""


class PeerAddress:
    """What C writes the address of a client to."""

    def __init__(self) -> None:
        self.pointer: Any = ffi.new("uint8_t[]", lib.NU_PEER_BYTES)
        self._bytes: Any = ffi.buffer(self.pointer)

    def copy(self) -> bytes:
        """Return the address, for `peer_of`."""
        return self._bytes[:]  # type: ignore[no-any-return]


def peer_of(address: bytes) -> Peer:
    """Return who has this address."""
    family, port = _FAMILY.unpack_from(address)[0], _PORT.unpack_from(address)[0]
    if family == socket.AF_INET:
        return Peer(socket.inet_ntop(family, address[4:8]), port)
    if family == socket.AF_INET6:
        (scope_id,) = _SCOPE_ID.unpack_from(address)
        return Peer(host_text(socket.inet_ntop(family, address[8:24]), scope_id), port)
    return Peer("", 0)


def close(fd: int, *, orderly: bool) -> None:
    """Close a connection: its client sees a reset, or with `orderly` a FIN."""
    lib.nu_close(fd, orderly)
