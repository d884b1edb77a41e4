"""TCP ports for programs that have to be told one before they listen.

A port that is bound, closed and then used can be given to any other program in between. These come
from outside the range in which Linux gives out ports by itself, and each is reserved until this
process ends, by an abstract unix socket with its number: so no two of our processes use the same.
"""

import errno
import socket
from pathlib import Path

_FIRST, _END = 10_000, 60_000
_reservations: list[socket.socket] = []


def reserve_port() -> int:
    """Return a port that no program listens on, and that is not given out again."""
    ephemeral = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()
    lowest, highest = map(int, ephemeral)
    for port in range(_FIRST, _END):
        if not lowest <= port <= highest and _reserve(port):
            return port
    raise RuntimeError("every port outside ip_local_port_range is in use")


def _reserve(port: int) -> bool:
    reservation = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        reservation.bind(f"\0numbers-uring-port-{port}")
        # Another program may have been told to listen there.
        for family, host in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):
            with socket.socket(family) as trial:
                trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                trial.bind((host, port))
    except OSError as error:
        reservation.close()
        if error.errno != errno.EADDRINUSE:
            raise
        return False
    _reservations.append(reservation)
    return True
