"""Reads the figures of a server, or of a node, from its metrics port.

The few lines of text that are needed are parsed here instead of by prometheus_client.parser: the
host of an operator who looks at a server from elsewhere then needs no extra of this package.
"""

import json
import re
import socket
import time
from http.client import HTTPConnection, HTTPException
from typing import Any

from numbers_uring.addresses import TcpAddress
from numbers_uring.errors import StartError
from numbers_uring.limits import SCRAPE_BYTES_MAX, SCRAPE_S
from numbers_uring.metrics.figures import COLLECTOR, Figures, Snapshot, figures

_SAMPLE = re.compile(r"^([a-z_]+)(?:\{([^}\n]*)\})? (\S+)$", re.MULTILINE)
_LABEL = re.compile(r'([a-z_]+)="([^"]*)"')
_STATE = re.compile(r"[a-z ]{1,20}")


def scrape(address: TcpAddress) -> Figures:
    """Return the figures of the server whose metrics are at `address`. Raises StartError."""
    text = _get(address, "/metrics")
    read_s = time.monotonic()
    samples: dict[tuple[str, ...], float] = {}
    info: dict[str, str] = {}
    try:
        for name, text_of_labels, value in _SAMPLE.findall(text):
            labels = dict(_LABEL.findall(text_of_labels))
            if name == "numbers_uring_info":
                info = labels
            else:
                samples[(name, *labels.values())] = float(value)
        return figures(Snapshot(read_s, _state(address), info, samples))
    except (KeyError, ValueError, OverflowError, RecursionError) as error:
        if (f"{COLLECTOR}_cluster_partitions",) in samples:
            raise StartError(
                f"{address} has the metrics of collectors: see 'numbers-uring cluster status'"
            ) from error
        raise StartError(f"{address} has no metrics of a numbers-uring server") from error


def _state(address: TcpAddress) -> str:
    """Return the state. Raises StartError, ValueError and KeyError."""
    answer = json.loads(_get(address, "/healthz"))
    state = answer.get("status") if isinstance(answer, dict) else None
    if not (isinstance(state, str) and _STATE.fullmatch(state)):
        raise ValueError("no state")
    return state


def _get(address: TcpAddress, path: str) -> str:
    """Return the body of the answer, whatever its status. Raises StartError."""
    connection = HTTPConnection(address.host, address.port, timeout=SCRAPE_S)
    try:
        connection.connect()
        connection.sock = _BoundedSocket(connection.sock.detach(), SCRAPE_S)
        connection.request("GET", path, headers={"Accept": "text/plain"})
        return connection.getresponse().read(SCRAPE_BYTES_MAX).decode(errors="replace")
    except (OSError, HTTPException, UnicodeError, ValueError) as error:
        if isinstance(error, OSError):
            reason = error.strerror or str(error)
        elif isinstance(error, HTTPException):
            reason = "its answer is not HTTP"
        else:
            reason = "this is no name of a host"
        raise StartError(f"cannot read the metrics at {address}: {reason}") from error
    finally:
        connection.close()


class _BoundedSocket(socket.socket):
    """A connection that ends by itself: a timeout alone would start anew with each byte."""

    def __init__(self, fd: int, time_s: float) -> None:
        super().__init__(fileno=fd)
        self._end_s = time.monotonic() + time_s

    def recv_into(self, *arguments: Any) -> int:
        left_s = self._end_s - time.monotonic()
        if left_s <= 0:
            raise TimeoutError("timed out")
        self.settimeout(left_s)
        return super().recv_into(*arguments)
