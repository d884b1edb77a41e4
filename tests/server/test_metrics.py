"""The metrics: their exposition, and what a real server counts while it is used and misused."""

import gzip
import json
import os
import platform
import signal
import socket
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from numbers_uring import __version__
from numbers_uring.limits import HTTP_CLIENT_S
from numbers_uring.load.model import LoadParameters, Mix
from numbers_uring.load.run import run_load
from numbers_uring.log.sink import Forwarded
from numbers_uring.metrics.families import Row, TableCollector
from numbers_uring.metrics.health import State
from numbers_uring.server.metrics import NODE_TABLE, TABLE, Counters, Metrics
from numbers_uring.server.statistics import END_REASONS
from ports import reserve_port
from support.clients import is_closed
from support.faults import needs_strace, strace
from support.logs import lines
from support.metrics_client import (
    Samples,
    get,
    health,
    health_reason,
    samples,
    scrape,
    state_shown,
    url_of,
)
from support.processes import ServerProcess, assert_one_line_error, run_command
from support.waiting import DEADLINE_S, wait_until

Serve = Callable[..., ServerProcess]

FULL = Counters(
    connections_max=7,
    state=State.HELD_BACK,
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
    waiting=16,
)


def collected(counters: Counters) -> Samples:
    return samples(TableCollector(TABLE, lambda: counters, backend="b", kernel="k").collect())


def test_each_counter_has_its_metric() -> None:
    found = collected(FULL)
    (info,) = [name for name in found if name.startswith("numbers_uring_info ")]
    assert info.split()[1:] == ["b", "k", platform.python_version(), __version__]
    assert found.pop(info) == 1
    assert found == {
        "numbers_uring_state starting": 0,
        "numbers_uring_state ok": 0,
        "numbers_uring_state held back": 1,
        "numbers_uring_state stuck": 0,
        "numbers_uring_state stopping": 0,
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
        "numbers_uring_connections_waiting": 16,
    }


def test_a_node_has_those_of_a_server_and_what_it_forwards() -> None:
    node = replace(FULL, forwarded=Forwarded(16, 17, 18, 19))
    found = samples(TableCollector(NODE_TABLE, lambda: node, backend="b", kernel="k").collect())
    assert found == collected(FULL) | {
        "numbers_uring_forward_acknowledged_total": 16,
        "numbers_uring_forward_in_flight": 17,
        "numbers_uring_forward_resent_total": 18,
        "numbers_uring_forward_published_bytes_total": 19,
    }


@pytest.mark.parametrize("table", [TABLE, NODE_TABLE], ids=["server", "node"])
def test_every_series_is_there_from_the_start(table: Sequence[Row[Counters]]) -> None:
    def series(counters: Counters) -> set[str]:
        return set(samples(TableCollector(table, lambda: counters).collect()))

    assert series(Counters(connections_max=7)) == series(FULL)


# The endpoint, without a server behind it.


@contextmanager
def endpoint() -> Iterator[str]:
    listener = socket.create_server(("127.0.0.1", 0))
    metrics = Metrics(
        [listener],
        backend="epoll",
        kernel="avx2",
        connections_max=5,
        forwards=False,
        say=pytest.fail,
        descriptors_needed=100,
    )
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        metrics.close()


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
        assert get(f"{url}/other")[0] == 404


# A real server.


def wait_for(server: ServerProcess, name: str, value: float) -> None:
    wait_until(lambda: scrape(server)[name] == value, f"{name} to be {value}")


ENDED = "numbers_uring_connections_ended_total"


def test_what_clients_do_is_counted(serve: Serve, backend: str) -> None:
    server = serve(
        *("--backend", backend, "--metrics", "127.0.0.1:0"),
        *("--max-clients", "2", "--when-full", "refuse"),
    )
    assert health(server) == (200, "ok")
    server.send(lines([1, 2, 1]))
    wait_for(server, f"{ENDED} eof", 1)
    with server.connect() as client:
        client.sendall(lines([2]) + b"bad\n")
        assert is_closed(client)
    wait_for(server, f"{ENDED} invalid", 1)
    server.send(b"12345")
    wait_for(server, f"{ENDED} incomplete", 1)
    with server.connect() as client:
        client.sendall(lines([3]))
        wait_for(server, "numbers_uring_numbers_total unique", 3)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    wait_for(server, f"{ENDED} reset", 1)
    with server.connect(), server.connect():
        wait_for(server, "numbers_uring_connections", 2)
        # The reset may come before the connection is known here.
        with suppress(ConnectionResetError), server.connect() as third:
            assert is_closed(third)
        wait_for(server, f"{ENDED} refused", 1)
    wait_for(server, f"{ENDED} eof", 3)

    found = scrape(server)
    (info,) = [name for name in found if name.startswith("numbers_uring_info ")]
    assert info.split()[1] == backend
    expected = {
        "numbers_uring_numbers_total unique": 3,
        "numbers_uring_numbers_total duplicate": 2,
        "numbers_uring_received_bytes_total": 5 * 10 + len(b"bad\n12345"),
        "numbers_uring_connections": 0,
        "numbers_uring_connections_max": 2,
        "numbers_uring_connections_accepted_total": 7,
        "numbers_uring_log_written_bytes_total": 3 * 10,
        "numbers_uring_held_back_seconds_total": 0,
        "numbers_uring_reports_dropped_total": 0,
        f"{ENDED} idle": 0,
        f"{ENDED} stop": 0,
    }
    assert {name: found[name] for name in expected} == expected
    assert 0 < found["numbers_uring_log_write_seconds_total"] < DEADLINE_S
    assert found["process_resident_memory_bytes"] > 125_000_000
    assert server.terminate() == 0


def test_idle_clients_and_dropped_reports_are_counted(serve: Serve, backend: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    server = serve(
        *("--backend", backend, "--metrics", "127.0.0.1:0"),
        *("--idle-timeout", "0.1", "--report-interval", "0.1"),
        stdout=writer,
    )
    os.close(writer)
    with server.connect() as client:
        assert is_closed(client)
    wait_for(server, f"{ENDED} idle", 1)
    wait_until(lambda: scrape(server)["numbers_uring_reports_dropped_total"] > 1, "the reports")
    assert server.terminate() == 0


@needs_strace
def test_a_stop_is_seen_as_long_as_it_lasts(serve: Serve, backend: str, tmp_path: Path) -> None:
    """The sync of the log is slowed down from outside, as by a disk that is busy."""
    server = serve("--backend", backend, "--metrics", "127.0.0.1:0")
    with (
        server.connect(),
        strace(
            server,
            tmp_path / "trace",
            *("-e", "trace=fdatasync", "-e", "inject=fdatasync:delay_enter=1s"),
        ),
    ):
        wait_for(server, "numbers_uring_connections", 1)
        server.process.send_signal(signal.SIGTERM)
        wait_for(server, f"{ENDED} stop", 1)
        assert health(server) == (503, "stopping")
        assert server.wait() == 0


def test_time_without_space_is_counted_and_healthy(backend: str, small_disk: Path) -> None:
    filler = small_disk / "filler"
    filler.write_bytes(b"x" * 900_000)
    options = ("--backend", backend, "--metrics", "127.0.0.1:0")
    held_back = "numbers_uring_held_back_seconds_total"
    with (
        ServerProcess(small_disk / "numbers.log", *options) as server,
        server.connect() as client,
    ):
        client.sendall(lines(range(60_000)))
        wait_until(lambda: health(server) == (200, "held back"), "the full disk")
        assert (health_reason(server), state_shown(server)) == ("No space for the log", "held back")
        first = scrape(server)[held_back]
        wait_until(lambda: scrape(server)[held_back] > first, "time to pass")
        assert scrape(server)["numbers_uring_log_written_bytes_total"] < 600_000
        filler.unlink()
        wait_until(lambda: health(server) == (200, "ok"), "the rest")
        assert (health_reason(server), state_shown(server)) == (None, "ok")
        found = scrape(server)
        assert found["numbers_uring_log_written_bytes_total"] == 600_000
        assert scrape(server)[held_back] == found[held_back] < DEADLINE_S
        assert server.terminate() == 0


def test_counters_only_grow_under_a_flood_and_end_at_what_was_sent(
    serve: Serve, backend: str
) -> None:
    server = serve("--backend", backend, "--metrics", "127.0.0.1:0")
    parameters = LoadParameters(port=server.port, numbers=20_000_000, mix=Mix.DUPLICATE)
    with ThreadPoolExecutor() as pool:
        load = pool.submit(run_load, parameters)
        scrapes = [scrape(server)]
        while not load.done():
            scrapes.append(scrape(server))
    wait_for(server, "numbers_uring_connections", 0)
    scrapes.append(scrape(server))
    assert len(scrapes) > 5
    for before, after in pairwise(scrapes):
        counters = [name for name in after if name.split()[0].endswith("_total")]
        assert all(after[name] >= before[name] for name in counters)
    last = scrapes[-1]
    unique, duplicate = (
        last[f"numbers_uring_numbers_total {kind}"] for kind in ("unique", "duplicate")
    )
    assert unique + duplicate == 20_000_000
    assert last["numbers_uring_received_bytes_total"] == 200_000_000
    assert last["numbers_uring_log_written_bytes_total"] == 10 * unique
    assert server.terminate() == 0
    assert server.reported() == (unique, duplicate, unique)


@pytest.mark.alone
def test_a_scraper_that_is_stuck_does_not_delay_a_stop(serve: Serve) -> None:
    server = serve("--metrics", "127.0.0.1:0")
    address = urlsplit(url_of(server))
    stuck = [
        socket.create_connection((str(address.hostname), int(address.port or 0))) for _ in range(3)
    ]
    stuck[0].sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
    stuck[1].sendall(b"GET /metr")
    begin_s = time.monotonic()
    assert server.stop() == 0
    assert time.monotonic() - begin_s < HTTP_CLIENT_S / 2
    for client in stuck:
        client.close()


@needs_strace
def test_during_a_long_resume_it_is_starting(serve: Serve, tmp_path: Path) -> None:
    """Reading the log is slowed down from outside."""
    (tmp_path / "numbers.log").write_bytes(lines(range(10)))
    trace = tmp_path / "trace"
    trace.touch()
    address = f"127.0.0.1:{reserve_port()}"
    slowed = ["strace", "-D", "-f", "-o", str(trace)]
    slowed += ["-e", "trace=preadv,preadv2", "-e", "inject=preadv,preadv2:delay_enter=1s"]
    with ThreadPoolExecutor() as pool:
        started = pool.submit(serve, "--resume", "--metrics", address, prefix=slowed)
        wait_until(lambda: "preadv" in trace.read_text(), "the log to be read")
        status, body, _ = get(f"http://{address}/healthz")
        assert (status, json.loads(body)) == (503, {"status": "starting"})
        server = started.result(DEADLINE_S)
    assert "resumed" in server.stderr
    assert health(server) == (200, "ok")
    assert server.terminate() == 0


def test_ipv6_and_names_work(serve: Serve) -> None:
    server = serve("--metrics", "[::1]:0")
    assert url_of(server).startswith("http://[::1]:")
    assert health(server) == (200, "ok")
    assert server.terminate() == 0
    server = serve("--metrics", "localhost:0")
    assert health(server) == (200, "ok")
    assert server.terminate() == 0


# Errors where metrics are not available.


@pytest.mark.parametrize(
    "address", ["4001", "localhost", ":4001", "::1:4001", "127.0.0.1:65536", "x:y"]
)
def test_what_is_no_address_is_wrong_usage(address: str, tmp_path: Path) -> None:
    done = run_command("serve", "--metrics", address, cwd=tmp_path)
    assert_one_line_error(done, 2, "--metrics", "--help")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("host", ["no.such.host.invalid", "1.2.3.4"])
def test_a_host_that_is_not_here_is_said(host: str, tmp_path: Path) -> None:
    done = run_command("serve", "--port", "0", "--metrics", f"{host}:0", cwd=tmp_path)
    assert_one_line_error(done, 3, "--metrics", "cannot listen on", host)
    assert list(tmp_path.iterdir()) == []


def test_a_port_in_use_is_said_and_the_log_left_as_it_is(tmp_path: Path) -> None:
    log = tmp_path / "numbers.log"
    log.write_bytes(lines(range(10)))
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"127.0.0.1:{other.getsockname()[1]}"
        done = run_command("serve", "--port", "0", "--log-file", str(log), "--metrics", address)
    assert_one_line_error(done, 3, "--metrics", address, "Address already in use")
    assert log.read_bytes() == lines(range(10))


def test_without_the_library_it_is_named_and_the_log_left_as_it_is(tmp_path: Path) -> None:
    log = tmp_path / "numbers.log"
    log.write_bytes(lines(range(10)))
    (tmp_path / "prometheus_client.py").write_text("raise ModuleNotFoundError('not installed')")
    arguments = ["serve", "--port", "0", "--log-file", str(log), "--metrics", "127.0.0.1:0"]
    environment = {"PYTHONPATH": str(tmp_path)}
    done = run_command(*arguments, environment=environment)
    assert_one_line_error(done, 3, "prometheus-client", "pip install 'numbers-uring[metrics]'")
    assert log.read_bytes() == lines(range(10))


def test_without_memory_for_a_thread_that_is_said_and_the_log_left_as_it_is(tmp_path: Path) -> None:
    log = tmp_path / "numbers.log"
    log.write_bytes(lines(range(10)))
    arguments = ["serve", "--port", "0", "--log-file", str(log), "--metrics", "127.0.0.1:0"]
    # A thread's stack is as large as the limit of the stack says.
    limits = ["prlimit", f"--as={400 * 2**20}", f"--stack={2**30}:"]
    done = run_command(*arguments, prefix=limits)
    assert_one_line_error(done, 3, "cannot start a thread for the", "memory")
    assert log.read_bytes() == lines(range(10))


def test_without_the_option_the_library_is_not_needed(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "prometheus_client.py").write_text("raise ModuleNotFoundError('not installed')")
    server = serve(environment={"PYTHONPATH": str(tmp_path)})
    assert "metrics" not in server.stderr
    assert server.terminate() == 0
