"""Reads the figures of a server, or of a node, from its metrics port.

The few lines of text that are needed are parsed here instead of by prometheus_client.parser: the
host of an operator who looks at a server from elsewhere then needs no extra of this package.
"""

import json
import re
import time
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException

from numbers_uring.addresses import TcpAddress
from numbers_uring.errors import StartError
from numbers_uring.limits import SCRAPE_BYTES_MAX, SCRAPE_S

_SAMPLE = re.compile(r"^([a-z_]+)(?:\{([^}\n]*)\})? (\S+)$", re.MULTILINE)
_LABEL = re.compile(r'([a-z_]+)="([^"]*)"')
_STATE = re.compile(r"[a-z ]{1,20}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What one scrape has found; None is what this server does not tell."""

    read_s: float
    """When, on the monotonic clock."""
    state: str
    """As /healthz names it."""
    version: str
    backend: str
    kernel: str
    uptime_s: float | None
    unique: int
    duplicate: int
    received_bytes: int
    connections: int
    connections_max: int
    connections_waiting: int | None
    accepted: int
    held_back_s: float
    log_written_bytes: int
    acknowledged: int | None
    """Numbers, only of a node, as the next one."""
    in_flight: int | None

    @property
    def numbers(self) -> int:
        return self.unique + self.duplicate


def scrape(address: TcpAddress) -> Figures:
    """Return the figures of the server whose metrics are at `address`. Raises StartError."""
    text = _get(address, "/metrics")
    read_s = time.monotonic()
    samples: dict[str, float] = {}
    info: dict[str, str] = {}
    try:
        for name, labels, value in _SAMPLE.findall(text):
            if name == "numbers_uring_info":
                info = dict(_LABEL.findall(labels))
            else:
                result = dict(_LABEL.findall(labels)).get("result", "")
                samples[f"{name} {result}".rstrip()] = float(value)
        return _figures(read_s, samples, info, _state(address))
    except (KeyError, ValueError, OverflowError, RecursionError) as error:
        if "numbers_uring_collector_cluster_partitions" in samples:
            raise StartError(
                f"{address} has the metrics of collectors: see 'numbers-uring cluster status'"
            ) from error
        raise StartError(f"{address} has no metrics of a numbers-uring server") from error


def _figures(read_s: float, samples: dict[str, float], info: dict[str, str], state: str) -> Figures:
    def maybe(name: str) -> int | None:
        return int(samples[name]) if name in samples else None

    started_s = samples.get("process_start_time_seconds")
    return Figures(
        read_s=read_s,
        state=state,
        version=info["version"],
        backend=info["backend"],
        kernel=info["kernel"],
        uptime_s=None if started_s is None else max(time.time() - started_s, 0.0),
        unique=int(samples["numbers_uring_numbers_total unique"]),
        duplicate=int(samples["numbers_uring_numbers_total duplicate"]),
        received_bytes=int(samples["numbers_uring_received_bytes_total"]),
        connections=int(samples["numbers_uring_connections"]),
        connections_max=int(samples["numbers_uring_connections_max"]),
        connections_waiting=maybe("numbers_uring_connections_waiting"),
        accepted=int(samples["numbers_uring_connections_accepted_total"]),
        held_back_s=samples["numbers_uring_held_back_seconds_total"],
        log_written_bytes=int(samples["numbers_uring_log_written_bytes_total"]),
        acknowledged=maybe("numbers_uring_forward_acknowledged_total"),
        in_flight=maybe("numbers_uring_forward_in_flight"),
    )


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
        connection.request("GET", path, headers={"Accept": "text/plain"})
        return connection.getresponse().read(SCRAPE_BYTES_MAX).decode(errors="replace")
    except (OSError, HTTPException, UnicodeError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise StartError(f"cannot read the metrics at {address}: {reason}") from error
    finally:
        connection.close()
