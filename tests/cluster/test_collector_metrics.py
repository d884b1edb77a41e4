"""Collectors as others see them: metrics and health, and what their service manager is told."""

import json
import platform
import signal
import socket
import subprocess
from collections.abc import Callable
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from numbers_uring import __version__
from numbers_uring.cluster.collector.collector import PartitionCollector
from numbers_uring.cluster.collector.metrics import (
    TABLE,
    CollectorMetrics,
    CollectorsCounters,
    PartitionCounters,
)
from numbers_uring.cluster.collector.state import CollectorsState
from numbers_uring.cluster.partitions import log_name
from numbers_uring.ingest.report import Counts
from numbers_uring.limits import HEARTBEAT_STALE_S
from numbers_uring.metrics.families import TableCollector
from numbers_uring.metrics.health import Health, State
from numbers_uring.system.stopwatch import Stopwatch
from numbers_uring.systemd.notify import ServiceManager
from ports import reserve_port
from support.broker import PARTITIONS, Broker, broker_with_cluster
from support.collectors import (
    collect_arguments,
    collector_process,
    publish,
    sample,
    wait_until_collected,
)
from support.faults import needs_strace, stalled_sync, strace
from support.metrics_client import (
    Samples,
    get,
    health,
    health_reason,
    samples,
    scrape,
    shown_rows,
    state_shown,
)
from support.notify_socket import NotifySocket, told
from support.processes import CommandProcess, assert_one_line_error, run_command
from support.waiting import wait_until

Collect = Callable[..., CommandProcess]

METRICS = ("--metrics", "127.0.0.1:0")
WATCHDOG_S = 0.4
COLLECTOR = "numbers_uring_collector"


# The exposition.

FULL = PartitionCounters(
    unique=1,
    duplicate=2,
    received_messages=3,
    received_bytes=4,
    sequence=5,
    waiting_sequence=6,
    written_bytes=7,
    write_s=8.5,
    sync_s=9.5,
    held_back_s=10.5,
    log_numbers=11,
    lag_messages=12,
    stream_bytes=16,
    stream_bytes_max=17,
    copies=18,
    copies_differing=19,
    report_age_s=20.5,
)


def collected(counters: CollectorsCounters) -> Samples:
    return samples(TableCollector(TABLE, lambda: counters, kernel="k").collect())


def test_each_counter_of_a_collector_has_its_metric() -> None:
    found = collected(
        CollectorsCounters(
            partitions={7: FULL, 8: PartitionCounters()},
            cluster_partitions=9,
            nats_connected=True,
            nats_reconnects=14,
            reports_dropped=15,
            copies_wanted=21,
            state=State.STUCK,
        )
    )
    (info,) = [name for name in found if name.startswith("numbers_uring_info ")]
    assert info.split()[1:] == ["k", platform.python_version(), __version__]
    assert found.pop(info) == 1
    of_8 = {name: found.pop(name) for name in list(found) if name.split()[1:2] == ["8"]}
    assert found == {
        "numbers_uring_state starting": 0,
        "numbers_uring_state ok": 0,
        "numbers_uring_state held back": 0,
        "numbers_uring_state stuck": 1,
        "numbers_uring_state stopping": 0,
        f"{COLLECTOR}_cluster_partitions": 9,
        f"{COLLECTOR}_nats_connected": 1,
        f"{COLLECTOR}_nats_reconnects_total": 14,
        "numbers_uring_reports_dropped_total": 15,
        f"{COLLECTOR}_numbers_total 7 unique": 1,
        f"{COLLECTOR}_numbers_total 7 duplicate": 2,
        f"{COLLECTOR}_received_messages_total 7": 3,
        f"{COLLECTOR}_received_bytes_total 7": 4,
        f"{COLLECTOR}_position 7": 5,
        f"{COLLECTOR}_waiting_sequence 7": 6,
        f"{COLLECTOR}_log_written_bytes_total 7": 7,
        f"{COLLECTOR}_log_write_seconds_total 7": 8.5,
        f"{COLLECTOR}_log_sync_seconds_total 7": 9.5,
        f"{COLLECTOR}_held_back_seconds_total 7": 10.5,
        f"{COLLECTOR}_log_numbers 7": 11,
        f"{COLLECTOR}_lag_messages 7": 12,
        f"{COLLECTOR}_stream_bytes 7": 16,
        f"{COLLECTOR}_stream_bytes_max 7": 17,
        f"{COLLECTOR}_copies 7": 18,
        f"{COLLECTOR}_copies_differing 7": 19,
        f"{COLLECTOR}_report_age_seconds 7": 20.5,
        f"{COLLECTOR}_copies_wanted": 21,
    }
    # What is not known yet is not there; all else is there from the start.
    assert set(of_8.values()) == {0}
    later = ("lag_messages", "stream_bytes", "stream_bytes_max", "copies", "report_age_seconds")
    unknown = {f"{COLLECTOR}_{name} 8" for name in later}
    assert set(of_8) == {name.replace(" 7", " 8") for name in found if " 7" in name} - unknown


def test_collectors_that_are_not_ready_are_starting_with_every_counter_at_zero() -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    metrics = CollectorMetrics(
        [listener], [3, 5], kernel="avx2", say=pytest.fail, descriptors_needed=100
    )
    try:
        url = metrics.urls[0].removesuffix("/metrics")
        status, body, _ = get(f"{url}/healthz")
        assert (status, json.loads(body)) == (503, {"status": "starting"})
        text = get(f"{url}/metrics")[1].decode()
        shown = shown_rows(url)
    finally:
        metrics.close()
    for partition in (3, 5):
        assert f'{COLLECTOR}_numbers_total{{partition="{partition}",result="unique"}} 0.0' in text
    assert f"{COLLECTOR}_nats_connected 0.0" in text
    assert [title for title in shown if "partition" in title] == ["partition 3", "partition 5"]
    assert shown["state"].startswith("starting, ")
    assert shown["NATS server"].startswith("not connected, ")


# How they are.


class Manager:
    """Counts heartbeats, and keeps the last status."""

    heartbeat_interval_s = 15.0
    heartbeats = 0
    text = ""

    def heartbeat(self) -> None:
        self.heartbeats += 1

    def ready(self, text: str) -> None:
        self.text = text

    status = ready


def test_a_thread_that_is_in_one_step_for_long_makes_the_collectors_stuck() -> None:
    def collector(partition: int) -> Any:
        reader = SimpleNamespace(waits=None)
        return SimpleNamespace(
            partition=partition, step_s=None, out_of_space=Stopwatch(), reader=reader
        )

    collectors = [collector(0), collector(1)]
    client = SimpleNamespace(is_connected=True)
    manager, now_s = Manager(), 1000.0
    watched = Health(lambda: now_s)
    stopped: list[bool] = []
    state = CollectorsState(
        "partitions 0-1",
        cast("list[PartitionCollector]", collectors),
        cast("Any", client),
        cast("ServiceManager", manager),
        watched,
        counts=lambda: Counts(1, 2),
        stopped=lambda: bool(stopped),
        clock=lambda: now_s,
    )
    state.ready()
    assert manager.text == "Collecting partitions 0-1; 1 unique, 2 duplicates"
    state.heartbeat()
    assert (watched.state(), manager.heartbeats) == (State.OK, 1)
    collectors[1].step_s = now_s
    now_s += HEARTBEAT_STALE_S + 0.1
    state.heartbeat()
    assert (watched.state(), manager.heartbeats) == (State.STUCK, 2)
    now_s += manager.heartbeat_interval_s
    state.heartbeat()
    assert (watched.state(), manager.heartbeats) == (State.STUCK, 2)
    # Once it gets through, or waits for space, which is tried again and again, all is well.
    collectors[1].step_s = None
    collectors[1].out_of_space.start()
    state.heartbeat()
    assert (watched.state(), manager.heartbeats) == (State.HELD_BACK, 3)
    state.refresh()
    counted = "1 unique, 2 duplicates, 0 /s"
    assert manager.text == f"No space for a log, collecting partitions 0-1; {counted}"
    collectors[1].out_of_space.stop()
    assert watched.state() is State.OK
    client.is_connected = False
    assert watched.state() is State.HELD_BACK
    state.send_changed()
    assert manager.text.startswith("The NATS server does not answer, collecting partitions 0-1; ")
    client.is_connected = True
    # One that waits for a message is no reason to hold the others back.
    collectors[1].reader.waits = SimpleNamespace(first_sequence=17)
    assert watched.state() is State.OK
    state.send_changed()
    assert manager.text.startswith("Partition 1 waits at message 17, collecting partitions 0-1; ")
    collectors[0].reader.waits = SimpleNamespace(first_sequence=5)
    assert state.text.startswith("Partition 0 waits at message 5 and 1 more, collecting ")
    client.is_connected = False
    state.send_changed()
    client.is_connected = True
    stopped.append(True)
    assert watched.state() is State.STOPPING
    state.refresh()
    assert "NATS server" in manager.text, "the text of the stop is not overwritten"


def test_before_the_nats_server_has_answered_it_is_starting(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{reserve_port()}"
        url = f"nats://127.0.0.1:{silent.getsockname()[1]}"
        arguments = collect_arguments(url, 0, tmp_path / "logs")
        with CommandProcess(*arguments, "--metrics", address):

            def answers() -> bool:
                try:
                    status, body, _ = get(f"http://{address}/healthz")
                except OSError:
                    return False
                assert (status, json.loads(body)) == (503, {"status": "starting"})
                return True

            wait_until(answers, "the metrics")
            _, body, _ = get(f"http://{address}/metrics")
            assert f'{COLLECTOR}_log_numbers{{partition="0"}} 0.0'.encode() in body


def wait_for(process: CommandProcess, name: str, value: float) -> None:
    wait_until(lambda: scrape(process).get(name) == value, f"{name} to be {value}")


def test_what_a_collector_takes_in_is_counted_and_what_it_had_is_known(
    broker: Broker, partition: int, collect: Collect
) -> None:
    numbers = sample(partition, 3000)
    publish(broker, partition, numbers[:2000], numbers[1000:])
    collector = collect(*METRICS)
    assert health(collector) == (200, "ok")
    wait_for(collector, f"{COLLECTOR}_position {partition}", 2)
    found = scrape(collector)
    expected = {
        f"{COLLECTOR}_cluster_partitions": PARTITIONS,
        f"{COLLECTOR}_nats_connected": 1,
        f"{COLLECTOR}_nats_reconnects_total": 0,
        f"{COLLECTOR}_numbers_total {partition} unique": 3000,
        f"{COLLECTOR}_numbers_total {partition} duplicate": 1000,
        f"{COLLECTOR}_received_messages_total {partition}": 2,
        f"{COLLECTOR}_received_bytes_total {partition}": 4 * 4000,
        f"{COLLECTOR}_lag_messages {partition}": 0,
        f"{COLLECTOR}_log_written_bytes_total {partition}": 10 * 3000,
        f"{COLLECTOR}_log_numbers {partition}": 3000,
        f"{COLLECTOR}_held_back_seconds_total {partition}": 0,
    }
    assert {name: found[name] for name in expected} == expected
    assert found[f"{COLLECTOR}_log_write_seconds_total {partition}"] > 0
    assert found[f"{COLLECTOR}_log_sync_seconds_total {partition}"] > 0
    assert collector.stop(signal.SIGTERM) == 0
    collector = collect(*METRICS)
    found = scrape(collector)
    assert found[f"{COLLECTOR}_log_numbers {partition}"] == 3000
    assert found[f"{COLLECTOR}_numbers_total {partition} unique"] == 0
    assert collector.stop(signal.SIGTERM) == 0


def test_a_nats_server_that_is_away_holds_a_healthy_collector_back(
    tmp_path: Path, manager: NotifySocket
) -> None:
    folder = tmp_path / "broker"
    with broker_with_cluster(folder, partitions=1) as broker, ExitStack() as running:
        collector = running.enter_context(
            collector_process(
                broker.url, 0, tmp_path, *METRICS, environment=told(manager, WATCHDOG_S)
            )
        )
        broker.kill()
        wait_for(collector, f"{COLLECTOR}_nats_connected", 0)
        assert health(collector) == (200, "held back")
        assert health_reason(collector) == "The NATS server does not answer"
        assert state_shown(collector) == "held back"
        manager.wait_for("STATUS", "The NATS server does not answer, collecting partitions 0; ")
        manager.wait_for("WATCHDOG", "1", count=len(manager.values("WATCHDOG")) + 6)
        broker.start()
        wait_for(collector, f"{COLLECTOR}_nats_reconnects_total", 1)
        wait_until(lambda: health(collector) == (200, "ok"), "the NATS server to be back")
        manager.wait_for("STATUS", "Collecting partitions 0; ")
        assert collector.stop(signal.SIGTERM) == 0


@needs_strace
def test_a_stop_of_a_collector_is_seen_as_long_as_it_lasts(
    broker: Broker, partition: int, collect: Collect, tmp_path: Path
) -> None:
    collector = collect(*METRICS)
    with stalled_sync(collector.process.pid, tmp_path / "trace") as sync_has_begun:
        publish(broker, partition, sample(partition, 10))
        wait_until(sync_has_begun, "the sync")
        collector.process.send_signal(signal.SIGTERM)
        wait_until(lambda: health(collector) == (503, "stopping"), "the stop")
        assert collector.wait() == 0


# Errors where metrics are not available.


def test_a_port_in_use_is_said_and_nothing_made(
    broker: Broker, partition: int, tmp_path: Path
) -> None:
    logs = tmp_path / "logs"
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"127.0.0.1:{other.getsockname()[1]}"
        done = run_command(*collect_arguments(broker.url, partition, logs), "--metrics", address)
    assert_one_line_error(done, 3, "--metrics", address, "Address already in use")
    assert not logs.exists()


def test_without_the_library_it_is_named_and_not_needed_where_not_asked_for(
    broker: Broker, partition: int, collect: Collect, tmp_path: Path
) -> None:
    (tmp_path / "prometheus_client.py").write_text("raise ModuleNotFoundError('not installed')")
    environment = {"PYTHONPATH": str(tmp_path)}
    logs = tmp_path / "logs"
    arguments = (*collect_arguments(broker.url, partition, logs), *METRICS)
    done = run_command(*arguments, environment=environment)
    assert_one_line_error(done, 3, "prometheus-client", "pip install 'numbers-uring[metrics]'")
    assert not logs.exists()
    collector = collect(environment=environment)
    assert "metrics" not in collector.stderr
    assert collector.stop(signal.SIGTERM) == 0


def test_what_is_no_address_is_wrong_usage(tmp_path: Path) -> None:
    done = run_command("collect", "--partitions=0", f"--log-dir={tmp_path}", "--metrics", "4001")
    assert_one_line_error(done, 2, "--metrics", "collect --help")


# The service manager.


def test_a_collector_tells_its_manager_when_it_is_ready_and_when_it_stops(
    broker: Broker, partition: int, collect: Collect, tmp_path: Path, manager: NotifySocket
) -> None:
    collector = collect("--report-interval", "0.1", environment=told(manager))
    manager.wait_for("READY", "1")
    resumed, ready = manager.messages[1:3]
    assert manager.messages[0] == {"STATUS": "Starting"}
    assert resumed["STATUS"].startswith(f"resumed {tmp_path / log_name(partition)}: 0 numbers")
    assert int(resumed["EXTEND_TIMEOUT_USEC"]) > 0
    assert ready == {
        "READY": "1",
        "STATUS": f"Collecting partitions {partition}; 0 unique, 0 duplicates",
    }
    publish(broker, partition, sample(partition, 100), sample(partition, 100))
    manager.wait_for("STATUS", f"Collecting partitions {partition}; 100 unique, 100 duplicates, ")
    assert collector.stop(signal.SIGTERM) == 0
    assert manager.values("READY") == ["1"]
    assert manager.values("STOPPING") == ["1"]
    stopping, last = manager.messages[-2:]
    assert stopping.keys() == {"STOPPING", "STATUS", "EXTEND_TIMEOUT_USEC"}
    assert last["STATUS"].startswith("stopped by SIGTERM: 100 numbers written to ")


def test_a_collector_that_cannot_go_on_tells_why(
    broker: Broker, partition: int, collect: Collect, tmp_path: Path, manager: NotifySocket
) -> None:
    collector = collect()
    done = run_command(
        *collect_arguments(broker.url, partition, tmp_path), environment=told(manager)
    )
    assert_one_line_error(done, 3, "another process has locked it")
    assert manager.values("READY") == []
    said = done.stderr.splitlines()[-1].removeprefix("numbers-uring: error: ")
    assert manager.values("STATUS")[-1] == said
    assert collector.stop(signal.SIGTERM) == 0
    collector = collect(environment=told(manager))
    (tmp_path / log_name(partition)).unlink()
    publish(broker, partition, sample(partition, 10))
    assert collector.wait() == 4
    assert manager.values("STOPPING") == ["1"]
    error = collector.stderr_lines[-1].removeprefix("numbers-uring: error: ")
    assert "was removed" in error
    assert manager.values("STATUS")[-1] == error


def test_the_watchdog_is_fed_and_the_collector_healthy_while_there_is_no_space(
    broker: Broker, partition: int, collect: Collect, small_disk: Path, manager: NotifySocket
) -> None:
    held_back = f"{COLLECTOR}_held_back_seconds_total {partition}"
    collector = collect(*METRICS, log_dir=small_disk, environment=told(manager, WATCHDOG_S))
    publish(broker, partition, sample(partition, 120_000))
    manager.wait_for("STATUS", f"No space for a log, collecting partitions {partition}; ")
    assert health(collector) == (200, "held back")
    assert health_reason(collector) == "No space for a log"
    first = scrape(collector)[held_back]
    manager.wait_for("WATCHDOG", "1", count=len(manager.values("WATCHDOG")) + 6)
    assert scrape(collector)[held_back] > first
    assert scrape(collector)[f"{COLLECTOR}_position {partition}"] == 0
    subprocess.run(["mount", "-o", "remount,size=8m", str(small_disk)], check=True)
    wait_until_collected(broker, partition, small_disk)
    wait_until(lambda: health(collector) == (200, "ok"), "space")
    found = scrape(collector)
    assert found[f"{COLLECTOR}_log_written_bytes_total {partition}"] == 1_200_000
    assert scrape(collector)[held_back] == found[held_back]
    assert collector.stop(signal.SIGTERM) == 0


@needs_strace
def test_a_collector_that_is_stuck_in_a_sync_feeds_nothing(
    broker: Broker, partition: int, collect: Collect, tmp_path: Path, manager: NotifySocket
) -> None:
    stuck_s = 2
    collector = collect(environment=told(manager, WATCHDOG_S))
    slow = ("-e", "trace=fdatasync", "-e", f"inject=fdatasync:delay_enter={stuck_s}s")
    with strace(collector.process.pid, tmp_path / "trace", *slow):
        manager.wait_for("WATCHDOG", "1", count=2)
        publish(broker, partition, sample(partition, 10))
        wait_until_collected(broker, partition, tmp_path)
        manager.wait_for("WATCHDOG", "1", count=len(manager.values("WATCHDOG")) + 2)
    times_s = manager.times_s("WATCHDOG")
    longest_s = max(later_s - sooner_s for sooner_s, later_s in pairwise(times_s))
    assert longest_s > stuck_s - 2 * WATCHDOG_S
    assert collector.stop(signal.SIGTERM) == 0
