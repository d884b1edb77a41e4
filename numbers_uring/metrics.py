"""The server's counters for Prometheus, and its health, over HTTP.

Counters are read when somebody asks; the reactor does nothing for it. The only room that needs the
prometheus-client library.
"""

import json
import platform
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

from prometheus_client import CollectorRegistry, ProcessCollector, make_wsgi_app
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from numbers_uring import __version__
from numbers_uring.config import LINE_BYTES
from numbers_uring.health import HEALTHY, Health
from numbers_uring.http_server import Answer, HttpServer, Request, not_found
from numbers_uring.listeners import address_text
from numbers_uring.reactor import Reactor
from numbers_uring.server import Server
from numbers_uring.sink import Forwarded, Sink

END_REASONS = ("eof", "invalid", "incomplete", "reset", "idle", "refused", "stop")


@dataclass(frozen=True, slots=True, kw_only=True)
class Counters:
    """All of them at one moment, since the start of the run."""

    unique: int = 0
    duplicate: int = 0
    received_bytes: int = 0
    accepted: int = 0
    """Those that were refused included."""
    ended: Mapping[str, int] = field(default_factory=dict)
    """By END_REASONS; one that is not there is 0."""
    written_bytes: int = 0
    write_s: float = 0
    sync_s: float = 0
    held_back_s: float = 0
    reports_dropped: int = 0
    forwarded: Forwarded | None = None
    """Of a server that has an engine in the place of a log."""


def counters(server: Server, reactor: Reactor, sink: Sink) -> Counters:
    """Read the counters of a running server, from any thread."""
    counts, statistics = server.counts, server.statistics
    refused = reactor.refused
    forwarded = sink.forwarded
    # Ends before beginnings, so that never more have ended than were accepted.
    ended = {**statistics.ended, "refused": refused}
    return Counters(
        unique=counts.unique,
        duplicate=counts.duplicate,
        received_bytes=statistics.received_bytes,
        accepted=statistics.accepted + refused,
        ended=ended,
        written_bytes=0 if forwarded is not None else sink.written_lines * LINE_BYTES,
        write_s=0 if forwarded is not None else sink.write_s,
        sync_s=sink.sync_s,
        held_back_s=server.held_back_s,
        reports_dropped=statistics.reports_dropped,
        forwarded=forwarded,
    )


class NumbersCollector(Collector):
    """The metrics that docs/metrics.md lists, made of what `read` returns."""

    def __init__(
        self, read: Callable[[], Counters], *, backend: str, kernel: str, connections_max: int
    ) -> None:
        self.read = read
        self._connections_max = connections_max
        self._info = {
            "version": __version__,
            "backend": backend,
            "kernel": kernel,
            "python": platform.python_version(),
        }

    def collect(self) -> Iterator[Metric]:
        now = self.read()
        yield InfoMetricFamily("numbers_uring", "Version and ways of working", value=self._info)
        numbers = CounterMetricFamily(
            "numbers_uring_numbers", "Numbers taken in, by what they were", labels=["result"]
        )
        numbers.add_metric(["unique"], now.unique)
        numbers.add_metric(["duplicate"], now.duplicate)
        yield numbers
        yield CounterMetricFamily(
            "numbers_uring_received_bytes", "Bytes received from clients", now.received_bytes
        )
        yield GaugeMetricFamily(
            "numbers_uring_connections",
            "Connections at the moment",
            now.accepted - sum(now.ended.values()),
        )
        yield GaugeMetricFamily(
            "numbers_uring_connections_max", "Clients served at once", self._connections_max
        )
        yield CounterMetricFamily(
            "numbers_uring_connections_accepted",
            "Connections accepted, those included that were refused",
            now.accepted,
        )
        ended = CounterMetricFamily(
            "numbers_uring_connections_ended", "Connections that ended, by why", labels=["reason"]
        )
        for reason in END_REASONS:
            ended.add_metric([reason], now.ended.get(reason, 0))
        yield ended
        yield CounterMetricFamily(
            "numbers_uring_log_written_bytes",
            "Bytes of lines written to the log",
            now.written_bytes,
        )
        yield CounterMetricFamily(
            "numbers_uring_log_write_seconds", "Time spent writing the log", now.write_s
        )
        yield CounterMetricFamily(
            "numbers_uring_log_sync_seconds", "Time spent in syncs of the log", now.sync_s
        )
        yield CounterMetricFamily(
            "numbers_uring_held_back_seconds",
            "Time in which clients were held back because the log, or the engine, had no space",
            now.held_back_s,
        )
        yield CounterMetricFamily(
            "numbers_uring_reports_dropped",
            "Reports that nobody read, each folded into the next",
            now.reports_dropped,
        )
        if now.forwarded is not None:
            yield from _forward_metrics(now.forwarded)


def _forward_metrics(forwarded: Forwarded) -> Iterator[Metric]:
    yield CounterMetricFamily(
        "numbers_uring_forward_acknowledged",
        "Numbers that the engine has acknowledged",
        forwarded.acknowledged,
    )
    yield GaugeMetricFamily(
        "numbers_uring_forward_in_flight",
        "Numbers taken in that are not acknowledged yet",
        forwarded.in_flight,
    )
    yield CounterMetricFamily(
        "numbers_uring_forward_resent",
        "Batches published once more because they were not acknowledged",
        forwarded.resent,
    )
    yield CounterMetricFamily(
        "numbers_uring_forward_published_bytes",
        "Bytes of batches published, those included that were sent again",
        forwarded.published_bytes,
    )


class Metrics:
    """Serves /metrics and /healthz on `listeners`, which it takes over.

    Until `watch` the server counts as starting, and all counters are 0.
    """

    def __init__(
        self,
        listeners: Sequence[socket.socket],
        *,
        backend: str,
        kernel: str,
        connections_max: int,
    ) -> None:
        self.health = Health()
        self.urls = [f"http://{address_text(listener)}/metrics" for listener in listeners]
        """Where the metrics are, one for each of the listeners."""
        self._collector = NumbersCollector(
            Counters, backend=backend, kernel=kernel, connections_max=connections_max
        )
        # With descriptions, so that ?name[]= can be answered with a part of them.
        registry = CollectorRegistry(auto_describe=True)
        registry.register(self._collector)
        ProcessCollector(registry=registry)
        self._exposition = make_wsgi_app(registry)
        self._http = HttpServer(listeners, self._answer)

    def watch(self, server: Server, reactor: Reactor, sink: Sink) -> None:
        """Tell of this server from now on."""
        self._collector.read = lambda: counters(server, reactor, sink)
        self.health.watch(server)

    def close(self) -> None:
        self._http.close()

    def _answer(self, request: Request) -> Answer:
        if request.path == "/metrics":
            return self._expose(request)
        if request.path == "/healthz":
            return _health_answer(self.health)
        return not_found()

    def _expose(self, request: Request) -> Answer:
        """Let the library choose the format and the compression by what the client accepts."""
        environ = {
            "REQUEST_METHOD": "GET",
            "PATH_INFO": request.path,
            "QUERY_STRING": request.query,
            "HTTP_ACCEPT": request.headers.get("Accept", ""),
            "HTTP_ACCEPT_ENCODING": request.headers.get("Accept-Encoding", ""),
        }
        status, headers = HTTPStatus.OK, [("Vary", "Accept, Accept-Encoding")]

        def start_response(status_line: str, more: list[tuple[str, str]], *_: Any) -> Any:
            nonlocal status
            status = HTTPStatus(int(status_line.split(maxsplit=1)[0]))
            headers.extend(more)

        body = b"".join(self._exposition(environ, start_response))
        return Answer(status, body, headers)


def _health_answer(health: Health) -> Answer:
    state = health.state()
    status = HTTPStatus.OK if state in HEALTHY else HTTPStatus.SERVICE_UNAVAILABLE
    body = json.dumps({"status": state}).encode() + b"\n"
    return Answer(status, body, (("Content-Type", "application/json"),))
