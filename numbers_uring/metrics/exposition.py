"""Metrics and health over HTTP: /metrics and /healthz, of whoever has counters and a loop."""

import json
import platform
import socket
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any

from prometheus_client import CollectorRegistry, ProcessCollector, make_wsgi_app
from prometheus_client.metrics_core import CounterMetricFamily, InfoMetricFamily
from prometheus_client.registry import Collector

from numbers_uring import __version__
from numbers_uring.metrics.health import HEALTHY, Health
from numbers_uring.metrics.http import Answer, HttpServer, Request, not_found
from numbers_uring.net.listeners import address_text


class Exposition:
    """Serves `collector`'s metrics and `health` on `listeners`, which it takes over.

    Both are asked in a thread of its own, whenever a client asks.
    """

    def __init__(
        self, listeners: Sequence[socket.socket], collector: Collector, health: Health
    ) -> None:
        self.urls = [f"http://{address_text(listener)}/metrics" for listener in listeners]
        """Where the metrics are, one for each of the listeners."""
        self._health = health
        # With descriptions, so that ?name[]= can be answered with a part of them.
        registry = CollectorRegistry(auto_describe=True)
        registry.register(collector)
        ProcessCollector(registry=registry)
        self._app = make_wsgi_app(registry)
        self._http = HttpServer(listeners, self._answer)

    def close(self) -> None:
        self._http.close()

    def _answer(self, request: Request) -> Answer:
        if request.path == "/metrics":
            return self._expose(request)
        if request.path == "/healthz":
            return _health_answer(self._health)
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

        body = b"".join(self._app(environ, start_response))
        return Answer(status, body, headers)


def _health_answer(health: Health) -> Answer:
    state = health.state()
    status = HTTPStatus.OK if state in HEALTHY else HTTPStatus.SERVICE_UNAVAILABLE
    body = json.dumps({"status": state}).encode() + b"\n"
    return Answer(status, body, (("Content-Type", "application/json"),))


# What all of us tell.


def info(**ways: str) -> InfoMetricFamily:
    """Return the version, and `ways` of working that were chosen."""
    value = {"version": __version__, **ways, "python": platform.python_version()}
    return InfoMetricFamily("numbers_uring", "Version and ways of working", value=value)


def dropped_reports(count: int) -> CounterMetricFamily:
    """Return how many reports went nowhere."""
    return CounterMetricFamily(
        "numbers_uring_reports_dropped",
        "Reports that nobody read, each folded into the next",
        count,
    )
