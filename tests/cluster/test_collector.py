"""Collectors on a NATS server: whatever is killed, full or lost, all have the same log."""

import asyncio
import random
import re
import shutil
import signal
import subprocess
import time
from array import array
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest
from nats.js import JetStreamContext

from numbers_uring.cluster.index import read_index
from numbers_uring.cluster.partitions import (
    index_name,
    log_name,
    stream_name,
    subject_name,
)
from support.broker import Broker, broker_group, broker_with_cluster, init, leader
from support.collectors import (
    collect_arguments,
    collector_process,
    last_sequence,
    logged,
    position,
    publish,
    sample,
    wait_until_collected,
)
from support.faults import needs_strace, strace
from support.logs import REPORT, lines
from support.processes import CommandProcess, assert_one_line_error, run_command
from support.waiting import DEADLINE_S, wait_until


def reported(process: CommandProcess) -> tuple[int, int]:
    """Return the sums of the reports' unique and duplicate numbers."""
    matches = [REPORT.fullmatch(line) for line in process.stdout_lines]
    assert all(matches), process.stdout_lines
    numbers = [(int(match[1]), int(match[2])) for match in matches if match]
    return sum(unique for unique, _ in numbers), sum(duplicate for _, duplicate in numbers)


def same_logs(partition: int, *folders: Path) -> bool:
    return len({(folder / log_name(partition)).read_bytes() for folder in folders}) == 1


def test_each_number_is_in_the_log_once_and_counted(
    broker: Broker, partition: int, collect: Callable[..., CommandProcess], tmp_path: Path
) -> None:
    numbers = sample(partition, 30_000)
    collector = collect()
    publish(broker, partition, numbers[:20_000], numbers[10_000:])
    wait_until_collected(broker, partition, tmp_path)
    assert collector.stop(signal.SIGTERM) == 0
    assert (tmp_path / log_name(partition)).read_bytes() == lines(numbers)
    assert reported(collector) == (30_000, 10_000)
    assert "stopped by SIGTERM: 30000 numbers written" in collector.stderr
    record = read_index(tmp_path / index_name(partition)).records[-1]
    assert (record.sequence, record.count, record.sum) == (2, 30_000, sum(numbers))
    collector = collect()
    assert "with 30000 numbers, started" in collector.stderr
    assert collector.stop(signal.SIGTERM) == 0
    assert reported(collector) == (0, 0)


def test_any_number_of_collectors_have_the_same_log_and_one_folder_has_one(
    broker: Broker, partition: int, collect: Callable[..., CommandProcess], tmp_path: Path
) -> None:
    numbers = sample(partition, 20_000)
    folders = [tmp_path / name for name in ("early", "late", "last")]
    early = collect(log_dir=folders[0])
    for i in range(0, len(numbers), 500):
        publish(broker, partition, numbers[i : i + 600])
        if i == 10_000:
            late = collect(log_dir=folders[1])
    done = run_command(*collect_arguments(broker.url, partition, folders[0]))
    assert_one_line_error(done, 3, "another process has locked it")
    last = collect(log_dir=folders[2])
    for folder, collector in zip(folders, (early, late, last), strict=True):
        wait_until_collected(broker, partition, folder)
        assert collector.stop(signal.SIGINT) == 0
    assert (folders[0] / log_name(partition)).read_bytes() == lines(numbers)
    assert same_logs(partition, *folders)


@needs_strace
@pytest.mark.parametrize("call", ["fdatasync", "fdatasync:when=2", "rename"])
def test_a_kill_between_two_steps_of_a_sync_brings_nothing_twice(
    broker: Broker,
    partition: int,
    collect: Callable[..., CommandProcess],
    tmp_path: Path,
    call: str,
) -> None:
    numbers = sample(partition, 3000)
    collector = collect()
    name, _, when = call.partition(":")
    kill = ("-e", f"trace={name}", "-e", f"inject={name}:signal=KILL{when and ':' + when}")
    with strace(collector.process.pid, tmp_path / "trace", *kill):
        publish(broker, partition, numbers[:1000])
        assert collector.process.wait(DEADLINE_S) == -signal.SIGKILL
    assert logged(tmp_path, partition) == set(numbers[:1000])
    assert position(tmp_path, partition) == 0
    publish(broker, partition, numbers[500:])
    collector = collect()
    wait_until_collected(broker, partition, tmp_path)
    assert collector.stop(signal.SIGTERM) == 0
    assert (tmp_path / log_name(partition)).read_bytes() == lines(numbers)


def test_kills_at_any_moment_under_load_make_no_difference(
    broker: Broker, partition: int, collect: Callable[..., CommandProcess], tmp_path: Path
) -> None:
    seed = random.randrange(2**32)
    chance = random.Random(seed)
    numbers = sample(partition, 400_000)
    messages = [numbers[i : i + 5000] for i in range(0, len(numbers), 4000)]
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    witness = collect(log_dir=whole)
    rounds = 4
    for number in range(rounds):
        collector = collect(log_dir=killed)
        publish(broker, partition, *messages[number::rounds])
        goal = chance.randrange(100_000)
        log = killed / log_name(partition)
        wait_until(
            lambda goal=goal, log=log: log.stat().st_size >= goal * 10,  # type: ignore[misc]
            f"the moment to kill, seed {seed}",
        )
        collector.kill()
    collector = collect(log_dir=killed)
    for folder, process in ((killed, collector), (whole, witness)):
        wait_until_collected(broker, partition, folder)
        assert process.stop(signal.SIGTERM) == 0
    assert logged(whole, partition) == set(numbers), f"seed {seed}"
    assert same_logs(partition, killed, whole), f"seed {seed}"


def test_a_suspended_collector_takes_nothing_from_another_one(
    broker: Broker, partition: int, collect: Callable[..., CommandProcess], tmp_path: Path
) -> None:
    numbers = sample(partition, 50_000)
    folders = tmp_path / "suspended", tmp_path / "running"
    suspended, running = (collect(log_dir=folder) for folder in folders)
    publish(broker, partition, numbers[:1000])
    suspended.process.send_signal(signal.SIGSTOP)
    publish(broker, partition, *(numbers[i : i + 1000] for i in range(1000, len(numbers), 1000)))
    wait_until_collected(broker, partition, folders[1])
    assert position(folders[0], partition) < last_sequence(broker, partition)
    suspended.process.send_signal(signal.SIGCONT)
    wait_until_collected(broker, partition, folders[0])
    for collector in (suspended, running):
        assert collector.stop(signal.SIGTERM) == 0
    assert (folders[0] / log_name(partition)).read_bytes() == lines(numbers)
    assert same_logs(partition, *folders)


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
    wait_until_collected(broker, partition, tmp_path)
    assert collector.stop(signal.SIGTERM) == 0
    if keep is None:
        log.unlink()
    else:
        with log.open("r+b") as file:
            file.truncate(keep)
    collector = collect()
    assert f"the log {log} has not what its index says of it behind byte 0" in collector.stderr
    wait_until(lambda: log.stat().st_size == 20_000, "the log")
    assert collector.stop(signal.SIGTERM) == 0
    assert log.read_bytes() == lines(numbers)


def test_a_log_without_index_whose_stream_was_purged_is_kept_as_its_line_says(
    broker: Broker, partition: int, collect: Callable[..., CommandProcess], tmp_path: Path
) -> None:
    numbers = sample(partition, 300)
    collector = collect()
    publish(broker, partition, numbers[:100], numbers[100:200])
    wait_until_collected(broker, partition, tmp_path)
    assert collector.stop(signal.SIGTERM) == 0
    broker.run(lambda js: js.purge_stream(stream_name(partition), seq=2))
    (tmp_path / index_name(partition)).unlink()
    collector = collect()
    collector.wait_for("begins at message 2, not 1; start once with --replay, which passes")
    assert collector.stop(signal.SIGTERM) == 0
    publish(broker, partition, numbers[200:])
    collector = collect("--replay")
    wait_until_collected(broker, partition, tmp_path)
    assert collector.stop(signal.SIGTERM) == 0
    assert (tmp_path / log_name(partition)).read_bytes() == lines(numbers)


def test_a_lost_log_whose_stream_was_purged_waits_unless_the_rest_is_asked_for(
    broker: Broker, partition: int, collect: Callable[..., CommandProcess], tmp_path: Path
) -> None:
    numbers = sample(partition, 200)
    collector = collect()
    publish(broker, partition, numbers[:100], numbers[100:])
    wait_until_collected(broker, partition, tmp_path)
    assert collector.stop(signal.SIGTERM) == 0
    broker.run(lambda js: js.purge_stream(stream_name(partition), seq=2))
    whole = (tmp_path / log_name(partition)).read_bytes()
    (tmp_path / log_name(partition)).unlink()
    collector = collect()
    collector.wait_for(f"the stream {stream_name(partition)} begins at message 2, not 1")
    assert collector.stop(signal.SIGTERM) == 0
    # A log that is put back is as good as before: its index was not touched.
    (tmp_path / log_name(partition)).write_bytes(whole)
    publish(broker, partition, numbers)
    collector = collect()
    wait_until_collected(broker, partition, tmp_path)
    assert collector.stop(signal.SIGTERM) == 0
    assert (tmp_path / log_name(partition)).read_bytes() == lines(numbers)
    (tmp_path / log_name(partition)).unlink()
    collector = collect("--replay")
    assert "keeps its 0 numbers: taking in the stream" in collector.stderr
    wait_until_collected(broker, partition, tmp_path)
    assert collector.stop(signal.SIGTERM) == 0
    assert (tmp_path / log_name(partition)).read_bytes() == lines(numbers[100:] + numbers[:100])


def test_another_stream_of_the_same_name_is_refused_unless_asked_for(
    broker: Broker, partition: int, collect: Callable[..., CommandProcess], tmp_path: Path
) -> None:
    numbers = sample(partition, 300)
    collector = collect()
    publish(broker, partition, numbers[:200])
    wait_until_collected(broker, partition, tmp_path)

    async def make_again(js: JetStreamContext) -> None:
        config = (await js.stream_info(stream_name(partition))).config
        await js.delete_stream(stream_name(partition))
        await js.add_stream(config)

    broker.run(make_again)
    publish(broker, partition, numbers[100:])
    assert collector.wait() == 1
    assert "was deleted and made again: its log is of another one" in collector.stderr_lines[-1]
    done = run_command(*collect_arguments(broker.url, partition, tmp_path))
    assert_one_line_error(done, 3, "is of another stream", "--replay keeps the numbers")
    collector = collect("--replay")
    wait_until_collected(broker, partition, tmp_path)
    assert collector.stop(signal.SIGTERM) == 0
    assert (tmp_path / log_name(partition)).read_bytes() == lines(numbers)
    assert reported(collector) == (100, 100)


@pytest.mark.parametrize("used_again", [0, 1, 3])
def test_a_stream_that_was_put_back_is_waited_for_or_read_anew_if_asked_for(
    tmp_path: Path, used_again: int
) -> None:
    numbers = 1000
    a, b, c = ([numbers + 10 * each] for each in range(3))
    store, saved = tmp_path / "broker" / "store", tmp_path / "saved"
    with broker_with_cluster(tmp_path / "broker", partitions=1) as broker:

        def collect(*options: str) -> CommandProcess:
            return collector_process(broker.url, 0, tmp_path, *options)

        publish(broker, 0, a)
        broker.stop()
        shutil.copytree(store, saved)
        broker.start()
        publish(broker, 0, b)
        with collect() as collector:
            wait_until_collected(broker, 0, tmp_path)
            assert collector.stop(signal.SIGTERM) == 0
        broker.stop()
        shutil.rmtree(store)
        shutil.copytree(saved, store)
        broker.start()
        publish(broker, 0, *([c[0] + each] for each in range(used_again)))
        with collect() as collector:
            collector.wait_for("partition 0 waits: the stream numbers-0 was put back: it")
            assert collector.stop(signal.SIGTERM) == 0
        assert (tmp_path / log_name(0)).read_bytes() == lines([*a, *b])
        with collect("--replay") as collector:
            collector.wait_for("keeps its 2 numbers: taking in the stream numbers-0 from its first")
            wait_until_collected(broker, 0, tmp_path)
            assert collector.stop(signal.SIGTERM) == 0
        expected = [*a, *b, *(c[0] + each for each in range(used_again))]
        assert (tmp_path / log_name(0)).read_bytes() == lines(expected)
        # From there on all is as ever, also with --replay.
        publish(broker, 0, [c[0] + 5])
        with collect("--replay") as collector:
            wait_until_collected(broker, 0, tmp_path)
            assert collector.stop(signal.SIGTERM) == 0
            assert "keeps" not in collector.stderr
        assert (tmp_path / log_name(0)).read_bytes() == lines([*expected, c[0] + 5])


def test_a_log_removed_under_a_collector_stops_it_and_comes_back_whole(
    broker: Broker, partition: int, collect: Callable[..., CommandProcess], tmp_path: Path
) -> None:
    numbers = sample(partition, 200)
    collector = collect()
    publish(broker, partition, numbers[:100])
    wait_until_collected(broker, partition, tmp_path)
    (tmp_path / log_name(partition)).unlink()
    publish(broker, partition, numbers[100:])
    assert collector.wait() == 4
    assert "was removed, replaced or changed by another process" in collector.stderr_lines[-1]
    collector = collect()
    wait_until_collected(broker, partition, tmp_path)
    assert collector.stop(signal.SIGTERM) == 0
    assert logged(tmp_path, partition) == set(numbers)


@pytest.mark.parametrize(
    "damage", [b"12345", b"no number\n", bytes(5000)], ids=["torn", "bad line", "zeros"]
)
def test_what_a_power_cut_leaves_is_cut_off_when_the_stream_goes_on(
    broker: Broker,
    partition: int,
    collect: Callable[..., CommandProcess],
    tmp_path: Path,
    damage: bytes,
) -> None:
    numbers = sample(partition, 200)
    log = tmp_path / log_name(partition)
    collector = collect()
    publish(broker, partition, numbers[:100])
    wait_until_collected(broker, partition, tmp_path)
    collector.kill()
    with log.open("ab") as file:
        file.write(damage)
    collector = collect()
    collector.wait_for(f"has {len(damage)} bytes that no message of its stream has brought")
    publish(broker, partition, numbers)
    collector.wait_for(f"ended with {len(damage)} damaged bytes")
    wait_until_collected(broker, partition, tmp_path)
    assert collector.stop(signal.SIGTERM) == 0
    assert log.read_bytes() == lines(numbers)
    assert reported(collector) == (100, 100)


def test_a_log_from_elsewhere_ends_the_run_as_it_is(
    broker: Broker, partition: int, collect: Callable[..., CommandProcess], tmp_path: Path
) -> None:
    numbers = sample(partition, 200)
    publish(broker, partition, numbers[:100])
    log = tmp_path / log_name(partition)
    log.write_bytes(lines([*numbers[:50], numbers[150], *numbers[51:100]]))
    before = log.read_bytes()
    done = run_command(*collect_arguments(broker.url, partition, tmp_path))
    assert done.returncode == 4
    assert f"the log {log} has another number at byte 500 than its stream" in done.stderr
    assert log.read_bytes() == before


def test_a_full_disk_holds_the_stream_back_and_loses_nothing(
    broker: Broker, partition: int, collect: Callable[..., CommandProcess], small_disk: Path
) -> None:
    numbers = sample(partition, 150_000)
    collector = collect(log_dir=small_disk)
    publish(broker, partition, numbers[:75_000], numbers[75_000:])
    collector.wait_for("no space for the log")
    # Stopped while it waits, it has recorded nothing that is not on file.
    assert collector.stop(signal.SIGTERM) == 0
    collector = collect(log_dir=small_disk)
    collector.wait_for("no space for the log")
    subprocess.run(["mount", "-o", "remount,size=8m", str(small_disk)], check=True)
    collector.wait_for("there is space for the log")
    wait_until_collected(broker, partition, small_disk)
    assert collector.stop(signal.SIGTERM) == 0
    assert (small_disk / log_name(partition)).read_bytes() == lines(numbers)


def test_a_nats_server_that_comes_back_finds_the_collector_waiting(tmp_path: Path) -> None:
    numbers = sample(0, 200)
    with Broker(tmp_path / "broker") as broker, ExitStack() as running:
        done = run_command(*collect_arguments(broker.url, 0, tmp_path))
        assert_one_line_error(done, 3, "no cluster yet", "cluster init")
        init(broker.url)
        collector = running.enter_context(collector_process(broker.url, 0, tmp_path))
        publish(broker, 0, numbers[:100])
        wait_until_collected(broker, 0, tmp_path)
        broker.kill()
        collector.wait_for("lost the connection to the NATS server")
        done = run_command(*collect_arguments(broker.url, 1, tmp_path))
        assert_one_line_error(done, 3, "cannot reach the NATS server at nats://127.0.0.1:")
        broker.start()
        publish(broker, 0, numbers[100:])
        wait_until_collected(broker, 0, tmp_path)
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
        wait_until_collected(others[0], 0, tmp_path)
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
    assert_one_line_error(done, 3, f"--partitions {partition} needs 52 file descriptors", "45")
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
