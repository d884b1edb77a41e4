"""The metrics: their exposition, and what a real server counts while it is used and misused."""

import gzip
import json
import socket
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from prometheus_client import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from numbers_uring import __version__
from numbers_uring.metrics import END_REASONS, Counters, Metrics, NumbersCollector
from support import DEADLINE_S

FULL = Counters(
    unique=1,
    duplicate=2,
    received_bytes=3,
    accepted=100,
    ended={reason: 4 + i for i, reason in enumerate(END_REASONS)},
    written_bytes=11,
    write_s=12.5,
    sync_s=13.5,
    held_back_s=14.5,
    reports_dropped=15,
)

Samples = dict[str, float]
"""By name and label values, such as `numbers_uring_numbers_total unique`."""


def samples(families: Iterable[Metric]) -> Samples:
    found = {}
    for family in families:
        for sample in family.samples:
            found[" ".join([sample.name, *sample.labels.values()])] = sample.value
    return found


def collected(counters: Counters) -> Samples:
    collector = NumbersCollector(lambda: counters, backend="b", kernel="k", connections_max=7)
    return samples(collector.collect())


def test_each_counter_has_its_metric() -> None:
    found = collected(FULL)
    (info,) = [name for name in found if name.startswith("numbers_uring_info ")]
    assert info.split()[1:4] == [__version__, "b", "k"]
    assert found.pop(info) == 1
    assert found == {
        "numbers_uring_numbers_total unique": 1,
        "numbers_uring_numbers_total duplicate": 2,
        "numbers_uring_received_bytes_total": 3,
        "numbers_uring_connections": 100 - sum(range(4, 11)),
        "numbers_uring_connections_max": 7,
        "numbers_uring_connections_accepted_total": 100,
        "numbers_uring_connections_ended_total eof": 4,
        "numbers_uring_connections_ended_total invalid": 5,
        "numbers_uring_connections_ended_total incomplete": 6,
        "numbers_uring_connections_ended_total reset": 7,
        "numbers_uring_connections_ended_total idle": 8,
        "numbers_uring_connections_ended_total refused": 9,
        "numbers_uring_connections_ended_total stop": 10,
        "numbers_uring_log_written_bytes_total": 11,
        "numbers_uring_log_write_seconds_total": 12.5,
        "numbers_uring_log_sync_seconds_total": 13.5,
        "numbers_uring_held_back_seconds_total": 14.5,
        "numbers_uring_reports_dropped_total": 15,
    }


def test_every_series_is_there_from_the_start() -> None:
    assert collected(Counters()).keys() == collected(FULL).keys()


# The endpoint, without a server behind it.


@contextmanager
def endpoint() -> Iterator[str]:
    listener = socket.create_server(("127.0.0.1", 0))
    metrics = Metrics([listener], backend="epoll", kernel="avx2", connections_max=5)
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        metrics.close()


def get(url: str, **headers: str) -> tuple[int, bytes, dict[str, str]]:
    request = urllib.request.Request(
        url, headers={k.replace("_", "-"): v for k, v in headers.items()}
    )
    try:
        with urllib.request.urlopen(request, timeout=DEADLINE_S) as answer:
            return answer.status, answer.read(), dict(answer.headers)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read(), dict(error.headers)


def test_the_format_and_the_compression_are_what_the_scraper_accepts() -> None:
    with endpoint() as url:
        _, plain, headers = get(f"{url}/metrics")
        assert headers["Content-Type"].startswith("text/plain; version=0.0.4")
        text = samples(parse_text(plain.decode()))
        _, zipped, headers = get(f"{url}/metrics", Accept_Encoding="gzip")
        assert headers["Content-Encoding"] == "gzip"
        assert samples(parse_text(gzip.decompress(zipped).decode())).keys() == text.keys()
        _, modern, headers = get(f"{url}/metrics", Accept="application/openmetrics-text")
        assert headers["Content-Type"].startswith("application/openmetrics-text")
        families = parse_openmetrics(modern.decode())  # type: ignore[no-untyped-call]
        assert samples(families).keys() == text.keys()
        _, some, _ = get(f"{url}/metrics?name[]=numbers_uring_connections")
        assert "numbers_uring_connections" in samples(parse_text(some.decode()))
        assert b"process_" not in some
    assert {"process_cpu_seconds_total", "process_resident_memory_bytes", "process_open_fds"} < set(
        text
    )
    assert all(
        value == 0
        for name, value in text.items()
        if name.endswith("_total") and "numbers_uring" in name
    )


def test_a_server_that_is_not_ready_is_starting() -> None:
    with endpoint() as url:
        status, body, headers = get(f"{url}/healthz")
        assert (status, json.loads(body)) == (503, {"status": "starting"})
        assert headers["Content-Type"] == "application/json"
        assert get(f"{url}/")[0] == 404
