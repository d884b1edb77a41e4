"""HTTP of a server, a node or a collector: /metrics, /healthz, and / with a page for a browser."""

import gzip
import json
import platform
import socket
import time
from collections.abc import Callable, Sequence
from http import HTTPStatus
from urllib.parse import parse_qs

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.metrics_core import InfoMetricFamily
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.registry import Collector

from numbers_uring import __version__
from numbers_uring.limits import HTTP_CLIENTS_MAX, HTTP_CLIENTS_MIN
from numbers_uring.metrics.accept import accepted
from numbers_uring.metrics.figures import Snapshot
from numbers_uring.metrics.health import HEALTHY, Health
from numbers_uring.metrics.http import HttpServer
from numbers_uring.metrics.messages import Answer, Request, plain
from numbers_uring.metrics.page import Page, Rows
from numbers_uring.net.listeners import address_text
from numbers_uring.system.descriptors import free_descriptors

_HEALTH_PATH = "/healthz"
_OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"
_PLAIN_TEXT = "text/plain; version=0.0.4; charset=utf-8"
_GZIP_LEVEL = 6


class Exposition:
    """Serves `collector`'s metrics and `health` on `listeners`, which it takes over.

    `rows` puts them into words, for the page. All are read in a thread of its own, whenever a
    client asks. `say` takes a line for the operator. `descriptors_needed` is how many descriptors
    the rest of the process may need: those beyond are for clients of ours. Raises StartError.
    """

    def __init__(
        self,
        listeners: Sequence[socket.socket],
        collector: Collector,
        health: Health,
        rows: Rows,
        *,
        say: Callable[[str], None],
        descriptors_needed: int,
    ) -> None:
        self.urls = [f"http://{address_text(listener)}/metrics" for listener in listeners]
        """Where the metrics are, one for each of the listeners."""
        self._health = health
        # With descriptions, so that ?name[]= can be answered with a part of them.
        self._registry = CollectorRegistry(auto_describe=True)
        self._registry.register(collector)
        ProcessCollector(registry=self._registry)
        self._page = Page(self._snapshot, rows)
        free = free_descriptors(descriptors_needed)
        self._http = HttpServer(
            listeners,
            self._answer,
            say=say,
            urgent={_HEALTH_PATH},
            clients_max=max(HTTP_CLIENTS_MIN, min(HTTP_CLIENTS_MAX, free)),
        )

    def close(self) -> None:
        self._http.close()

    def _answer(self, request: Request) -> Answer:
        if request.path == "/metrics":
            return self._expose(request)
        if request.path == _HEALTH_PATH:
            return _health_answer(self._health)
        if request.path == "/":
            return self._page.answer()
        return plain(HTTPStatus.NOT_FOUND)

    def _snapshot(self) -> Snapshot:
        read_s = time.monotonic()
        used: dict[str, str] = {}
        samples: dict[tuple[str, ...], float] = {}
        for family in self._registry.collect():
            for sample in family.samples:
                if sample.name == "numbers_uring_info":
                    used = sample.labels
                else:
                    labels = (sample.labels[name] for name in sorted(sample.labels))
                    samples[(sample.name, *labels)] = sample.value
        return Snapshot(read_s, self._health.state(), used, samples)

    def _expose(self, request: Request) -> Answer:
        """Return the metrics that are asked for, as the client accepts them."""
        registry = self._registry
        if names := parse_qs(request.query).get("name[]"):
            registry = registry.restricted_registry(names)  # type: ignore[assignment]
        headers = [("Vary", "Accept, Accept-Encoding")]
        if _accepts_openmetrics(request.headers.get("accept", "")):
            body: bytes = generate_openmetrics(registry)  # type: ignore[no-untyped-call]
            headers.append(("Content-Type", _OPENMETRICS))
        else:
            body = generate_latest(registry)
            headers.append(("Content-Type", _PLAIN_TEXT))
        codings = accepted(request.headers.get("accept-encoding", ""))
        if any(coding.name == "gzip" for coding in codings):
            body = gzip.compress(body, _GZIP_LEVEL)
            headers.append(("Content-Encoding", "gzip"))
        return Answer(HTTPStatus.OK, body, headers)


def _accepts_openmetrics(accept: str) -> bool:
    """Return whether a client wants OpenMetrics more than plain text, which all can read.

    So that is what a client gets that names no format, or none that there is.
    """
    for name, parameters in accepted(accept):
        if name == "application/openmetrics-text" and parameters.get("version", "1.0.0") == "1.0.0":
            return True
        if name in {"text/plain", "text/*", "*/*"}:
            return False
    return False


def _health_answer(health: Health) -> Answer:
    state = health.state()
    status = HTTPStatus.OK if state in HEALTHY else HTTPStatus.SERVICE_UNAVAILABLE
    reason = health.reason()
    told = {"status": state, "reason": reason} if reason else {"status": state}
    body = json.dumps(told).encode() + b"\n"
    return Answer(status, body, (("Content-Type", "application/json"),))


def info(**chosen: str) -> InfoMetricFamily:
    """Return the version, and what was chosen for this run."""
    value = {"version": __version__, **chosen, "python": platform.python_version()}
    return InfoMetricFamily("numbers_uring", "Version, and what was chosen for this run", value)
