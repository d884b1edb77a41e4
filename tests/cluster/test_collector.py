"""Collectors on a NATS server: whatever is killed, full or lost, each number is in the log once."""

import asyncio
import json
import random
import re
import signal
import subprocess
import time
from array import array
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest
from nats.js import JetStreamContext

from numbers_uring.cluster.collector.collector import CONSUMER
from numbers_uring.cluster.partitions import (
    LEASES_BUCKET,
    log_name,
    range_of,
    stream_name,
    subject_name,
)
from support.broker import PARTITIONS, Broker, broker_group, init, leader
from support.collectors import (
    collect_arguments,
    collector_process,
    lag,
    logged,
    publish,
    sample,
    wait_for_lag,
)
from support.faults import needs_strace, strace
from support.logs import REPORT
from support.processes import CommandProcess, assert_one_line_error, run_command
from support.waiting import DEADLINE_S, wait_until


def reported(process: CommandProcess) -> tuple[int, int]:
    """Return the sums of the reports' unique and duplicate numbers."""
    matches = [REPORT.fullmatch(line) for line in process.stdout_lines]
    assert all(matches), process.stdout_lines
    numbers = [(int(match[1]), int(match[2])) for match in matches if match]
    return sum(unique for unique, _ in numbers), sum(duplicate for _, duplicate in numbers)


def test_each_number_is_in_the_log_once_and_counted_and_shown(
    broker: Broker, partition: int, collect: Callable[..., CommandProcess], tmp_path: Path
) -> None:
    numbers = sample(partition, 30_000)
    collector = collect()
    publish(broker, partition, numbers[:20_000], numbers[10_000:], [])
    wait_for_lag(broker, partition)
    done = run_command("cluster", "status", "--json", "--nats", broker.url)
    status = json.loads(done.stdout)["partitions"][partition]
    assert status["lag_messages"] == 0
    assert status["messages"] == 3
    assert str(collector.process.pid) in status["collector"]
    text = run_command("cluster", "status", "--nats", broker.url).stdout
    assert f"partition {partition}: process {collector.process.pid} on" in text
    assert f"partition {PARTITIONS - 1}: no collector" in text
    assert collector.stop(signal.SIGTERM) == 0
    assert logged(tmp_path, partition) == set(numbers)
    assert reported(collector) == (30_000, 10_000)
    assert "stopped by SIGTERM: 30000 numbers written" in collector.stderr
    done = run_command("cluster", "status", "--json", "--nats", broker.url)
    status = json.loads(done.stdout)["partitions"][partition]
    assert (status["collector"], status["numbers"]) == (None, 30_000)


def test_a_second_collector_is_refused_and_may_start_when_the_first_has_stopped(
    broker: Broker, partition: int, collect: Callable[..., CommandProcess], tmp_path: Path
) -> None:
    first = collect()
    publish(broker, partition, sample(partition, 100))
    wait_for_lag(broker, partition)
    other = tmp_path / "other"
    done = run_command(*collect_arguments(broker.url, partition, other))
    assert_one_line_error(done, 3, f"collected by process {first.process.pid}", "free 15 s after")
    done = run_command(*collect_arguments(broker.url, partition, tmp_path))
    assert_one_line_error(done, 3, "another process has locked it")
    assert first.stop(signal.SIGINT) == 0
    # One elsewhere, without the log, makes the same set of the stream.
    second = collect(log_dir=other)
    assert "of 100 once acknowledged: taking in the stream" in second.stderr
    wait_for_lag(broker, partition)
    assert second.stop(signal.SIGTERM) == 0
    assert logged(other, partition) == logged(tmp_path, partition)


@needs_strace
def test_a_kill_between_append_and_acknowledgement_brings_nothing_twice(
    broker: Broker, partition: int, collect: Callable[..., CommandProcess], tmp_path: Path
) -> None:
    numbers = sample(partition, 3000)
    collector = collect()
    kill = ("-e", "trace=fdatasync", "-e", "inject=fdatasync:signal=KILL")
    with strace(collector.process.pid, tmp_path / "trace", *kill):
        publish(broker, partition, numbers[:1000])
        assert collector.process.wait(DEADLINE_S) == -signal.SIGKILL
    assert logged(tmp_path, partition) == set(numbers[:1000])
    assert lag(broker, partition) == 1
    publish(broker, partition, numbers[1000:])
    # The log's lock is its own, so it need not wait for the dead one's lease to run out.
    collector = collect()
    # The one that was not acknowledged comes late, behind those that were sent after it.
    wait_for_lag(broker, partition)
    assert collector.stop(signal.SIGTERM) == 0
    assert logged(tmp_path, partition) == set(numbers)
    assert reported(collector) == (2000, 1000)


def test_kills_at_any_moment_under_load_lose_nothing(
    broker: Broker, partition: int, collect: Callable[..., CommandProcess], tmp_path: Path
) -> None:
    seed = random.randrange(2**32)
    chance = random.Random(seed)
    numbers = sample(partition, 400_000)
    messages = [numbers[i : i + 5000] for i in range(0, len(numbers), 4000)]
    rounds = 4
    for number in range(rounds):
        collector = collect()
        publish(broker, partition, *messages[number::rounds])
        goal = chance.randrange(100_000)
        log = tmp_path / log_name(partition)
        wait_until(
            lambda goal=goal, log=log: log.stat().st_size >= goal * 10,  # type: ignore[misc]
            f"the moment to kill, seed {seed}",
        )
        collector.kill()
    collector = collect()
    wait_for_lag(broker, partition)
    assert collector.stop(signal.SIGTERM) == 0
    assert logged(tmp_path, partition) == set(numbers), f"seed {seed}"


@pytest.mark.parametrize("keep", [None, 0, 1234], ids=["removed", "emptied", "cut"])
def test_a_log_that_was_lost_is_made_again_from_the_stream(
    broker: Broker,
    partition: int,
    collect: Callable[..., CommandProcess],
    tmp_path: Path,
    keep: int | None,
) -> None:
    numbers = sample(partition, 2000)
    log = tmp_path / log_name(partition)
    collector = collect()
    publish(broker, partition, numbers[:1500], numbers[500:])
    wait_for_lag(broker, partition)
    assert collector.stop(signal.SIGTERM) == 0
    if keep is None:
        log.unlink()
    else:
        with log.open("r+b") as file:
            file.truncate(keep)
    collector = collect()
    kept = (keep or 0) // 10
    assert f"has {kept} numbers, of 2000 once acknowledged: taking in" in collector.stderr
    wait_for_lag(broker, partition)
    assert collector.stop(signal.SIGTERM) == 0
    assert logged(tmp_path, partition) == set(numbers)
    assert reported(collector)[0] == 2000 - kept


def test_a_lost_log_whose_stream_was_purged_is_refused_unless_asked_for(
    broker: Broker, partition: int, collect: Callable[..., CommandProcess], tmp_path: Path
) -> None:
    numbers = sample(partition, 200)
    collector = collect()
    publish(broker, partition, numbers[:100], numbers[100:])
    wait_for_lag(broker, partition)
    assert collector.stop(signal.SIGTERM) == 0
    broker.run(lambda js: js.purge_stream(stream_name(partition), seq=2))
    (tmp_path / log_name(partition)).unlink()
    done = run_command(*collect_arguments(broker.url, partition, tmp_path))
    assert done.returncode == 3
    assert "has lost messages since: put the log back" in done.stderr
    # That it was refused has not made it forgotten.
    done = run_command(*collect_arguments(broker.url, partition, tmp_path))
    assert done.returncode == 3
    collector = collect("--replay")
    wait_for_lag(broker, partition)
    assert collector.stop(signal.SIGTERM) == 0
    assert logged(tmp_path, partition) == set(numbers[100:])


def test_a_log_removed_under_a_collector_stops_it_and_comes_back_whole(
    broker: Broker, partition: int, collect: Callable[..., CommandProcess], tmp_path: Path
) -> None:
    numbers = sample(partition, 200)
    collector = collect()
    publish(broker, partition, numbers[:100])
    wait_for_lag(broker, partition)
    (tmp_path / log_name(partition)).unlink()
    publish(broker, partition, numbers[100:])
    assert collector.wait() == 4
    assert "was removed, replaced or truncated by another process" in collector.stderr_lines[-1]
    collector = collect()
    wait_for_lag(broker, partition)
    assert collector.stop(signal.SIGTERM) == 0
    assert logged(tmp_path, partition) == set(numbers)


def test_a_torn_tail_is_cut_and_a_bad_line_refused(
    broker: Broker, partition: int, collect: Callable[..., CommandProcess], tmp_path: Path
) -> None:
    numbers = sample(partition, 200)
    log = tmp_path / log_name(partition)
    collector = collect()
    publish(broker, partition, numbers[:100])
    wait_for_lag(broker, partition)
    assert collector.stop(signal.SIGTERM) == 0
    with log.open("ab") as file:
        file.write(b"12345")
    collector = collect()
    assert "a torn tail of 5 bytes cut off" in collector.stderr
    publish(broker, partition, numbers)
    wait_for_lag(broker, partition)
    assert collector.stop(signal.SIGTERM) == 0
    assert logged(tmp_path, partition) == set(numbers)
    assert reported(collector) == (100, 100)
    good = log.read_bytes()
    collected = range_of(partition, PARTITIONS)
    elsewhere = collected.first - 1 if collected.first else collected.end
    for bad, words in (
        (b"no number\n", "the line at byte 2000 is not a number"),
        (b"%09d\n" % elsewhere, "numbers of another partition"),
    ):
        log.write_bytes(good + bad)
        done = run_command(*collect_arguments(broker.url, partition, tmp_path))
        assert done.returncode == 3
        assert words in done.stderr.splitlines()[-1]
        assert log.read_bytes() == good + bad


def test_a_full_disk_holds_the_stream_back_and_loses_nothing(
    broker: Broker, partition: int, collect: Callable[..., CommandProcess], small_disk: Path
) -> None:
    numbers = sample(partition, 150_000)
    collector = collect(log_dir=small_disk)
    publish(broker, partition, numbers[:75_000], numbers[75_000:])
    collector.wait_for("no space for the log")
    assert lag(broker, partition) > 0
    # Stopped while it waits, it has acknowledged nothing that is not on file.
    assert collector.stop(signal.SIGTERM) == 0
    collector = collect(log_dir=small_disk)
    collector.wait_for("no space for the log")
    subprocess.run(["mount", "-o", "remount,size=8m", str(small_disk)], check=True)
    collector.wait_for("there is space for the log")
    wait_for_lag(broker, partition)
    assert collector.stop(signal.SIGTERM) == 0
    assert logged(small_disk, partition) == set(numbers)


@pytest.mark.parametrize("kind", ["torn", "foreign", "long"])
def test_a_message_that_is_no_batch_stops_the_collector_which_names_it(
    broker: Broker,
    partition: int,
    collect: Callable[..., CommandProcess],
    tmp_path: Path,
    kind: str,
) -> None:
    numbers = sample(partition, 100)
    bad = {
        "torn": b"12345",
        "foreign": array("I", [*numbers, range_of(partition, PARTITIONS).end]).tobytes(),
        "long": bytes(1024 * 1024 - 3),
    }[kind]
    collector = collect()
    publish(broker, partition, numbers[:50], bad, numbers[50:])
    assert collector.wait() == 1
    assert f"error: message 2 of the stream {stream_name(partition)} " in collector.stderr_lines[-1]
    assert logged(tmp_path, partition) == set(numbers[:50])
    if kind != "foreign":
        return  # Once is enough of what comes now: redelivery takes its time.
    broker.run(lambda js: js.delete_msg(stream_name(partition), 2))
    collector = collect()
    wait_for_lag(broker, partition)
    assert collector.stop(signal.SIGTERM) == 0
    assert logged(tmp_path, partition) == set(numbers)


def test_a_collector_whose_lease_was_taken_stops(
    broker: Broker, partition: int, collect: Callable[..., CommandProcess], tmp_path: Path
) -> None:
    collector = collect()

    async def take(js: JetStreamContext) -> None:
        bucket = await js.key_value(LEASES_BUCKET)
        await bucket.put(str(partition), b'{"collector": "another", "run": "x"}')

    broker.run(take)
    assert collector.wait() == 1
    assert f"partition {partition} is collected by another now" in collector.stderr_lines[-1]
    publish(broker, partition, sample(partition, 10))
    assert logged(tmp_path, partition) == set()


def test_a_consumer_that_was_deleted_is_made_anew(
    broker: Broker, partition: int, collect: Callable[..., CommandProcess], tmp_path: Path
) -> None:
    numbers = sample(partition, 100)
    collector = collect()
    publish(broker, partition, numbers[:50])
    wait_for_lag(broker, partition)
    broker.run(lambda js: js.delete_consumer(stream_name(partition), CONSUMER))
    collector.wait_for("was deleted: taking in the stream from its start")
    publish(broker, partition, numbers[50:])
    wait_for_lag(broker, partition)
    assert collector.stop(signal.SIGTERM) == 0
    assert logged(tmp_path, partition) == set(numbers)


def test_a_nats_server_that_comes_back_finds_the_collector_waiting(tmp_path: Path) -> None:
    numbers = sample(0, 200)
    with Broker(tmp_path / "broker") as broker, ExitStack() as running:
        done = run_command(*collect_arguments(broker.url, 0, tmp_path))
        assert_one_line_error(done, 3, "no cluster yet", "cluster init")
        init(broker.url)
        collector = running.enter_context(collector_process(broker.url, 0, tmp_path))
        publish(broker, 0, numbers[:100])
        wait_for_lag(broker, 0)
        broker.kill()
        collector.wait_for("lost the connection to the NATS server")
        done = run_command(*collect_arguments(broker.url, 1, tmp_path))
        assert_one_line_error(done, 3, "cannot reach the NATS server at nats://127.0.0.1:")
        broker.start()
        publish(broker, 0, numbers[100:])
        wait_for_lag(broker, 0)
        assert collector.stop(signal.SIGTERM) == 0
        assert logged(tmp_path, 0) == set(numbers)
        assert "reconnected to the NATS server" in collector.stderr
        # Without a NATS server, a stop does not wait for it for long.
        collector = running.enter_context(collector_process(broker.url, 0, tmp_path))
        broker.kill()
        collector.wait_for("lost the connection to the NATS server")
        assert collector.stop(signal.SIGTERM) == 0


def test_the_death_of_a_streams_leader_loses_nothing(tmp_path: Path) -> None:
    numbers = sample(0, 60_000)
    with broker_group(tmp_path) as brokers, ExitStack() as running:
        urls = ",".join(broker.url for broker in brokers)
        # Of fewer partitions: the first one has all numbers of the first of many.
        init(urls, "--replicas", "3", partitions=2)
        collector = running.enter_context(collector_process(urls, 0, tmp_path))
        first = leader(brokers, stream_name(0))
        others = [broker for broker in brokers if broker is not first]
        publish(others[0], 0, numbers[:30_000])
        first.kill()

        async def send(js: JetStreamContext) -> None:
            for i in range(30_000, len(numbers), 1000):
                data = array("I", numbers[i : i + 1000]).tobytes()
                await publish_until_acknowledged(js, data, f"test-{i}")

        others[0].run(send)
        wait_for_lag(others[0], 0)
        assert collector.stop(signal.SIGTERM) == 0
        assert logged(tmp_path, 0) == set(numbers)


async def publish_until_acknowledged(js: JetStreamContext, data: bytes, message_id: str) -> None:
    end_s = time.monotonic() + DEADLINE_S
    while time.monotonic() < end_s:
        try:
            headers = {"Nats-Msg-Id": message_id}
            await js.publish(subject_name(0), data, headers=headers, timeout=2)
        except Exception:  # no leader, no answer, no responder: whatever comes in between
            await asyncio.sleep(0.2)
        else:
            return
    raise AssertionError("the NATS server did not come back")


def test_descriptors_for_all_logs_are_taken_or_their_lack_said(
    broker: Broker, partition: int, tmp_path: Path
) -> None:
    arguments = collect_arguments(broker.url, partition, tmp_path / "logs")
    done = run_command(*arguments, prefix=["prlimit", "--nofile=40:45"])
    assert_one_line_error(done, 3, f"--partitions {partition} needs 49 file descriptors", "45")
    assert not (tmp_path / "logs").exists()
    prefix = ["prlimit", "--nofile=40:4096"]
    with collector_process(broker.url, partition, tmp_path, prefix=prefix) as collector:
        limits = Path(f"/proc/{collector.process.pid}/limits").read_text()
        assert re.search(r"^Max open files +4096 ", limits, re.MULTILINE)
        assert collector.stop(signal.SIGTERM) == 0


def test_wrong_usage_is_one_line(tmp_path: Path) -> None:
    directory = ("--log-dir", str(tmp_path))
    for partitions in ("", "3-1", "1024"):
        done = run_command("collect", f"--partitions={partitions}", *directory)
        assert_one_line_error(done, 2, "--partitions")
    assert_one_line_error(run_command("collect", "--partitions", "0"), 2, "--log-dir")


@pytest.mark.parametrize(
    "limits",
    [
        ["--as=100000000"],
        ["--as=140000000"],
        ["--as=180000000"],
        ["--as=400000000", "--stack=1073741824:"],
    ],
)
def test_too_little_memory_is_one_line(broker: Broker, limits: list[str], tmp_path: Path) -> None:
    arguments = collect_arguments(broker.url, 0, tmp_path / "logs")
    done = run_command(*arguments, prefix=["prlimit", *limits])
    assert_one_line_error(done, 3)
    assert re.search("not enough memory|too little memory", done.stderr)
