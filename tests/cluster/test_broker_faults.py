"""Faults of the NATS servers themselves: damaged and full disks, one server alone and three.

What was acknowledged is in the logs afterwards, or its loss is named with the sequences of the
messages. A message of these tests brings one number, many times over, so that a few of them fill
the files of a stream.
"""

import json
import os
import re
import shutil
import socket
import threading
from array import array
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

import pytest
from nats.js import JetStreamContext

from numbers_uring.cluster.bucket import CLUSTER_BUCKET
from numbers_uring.cluster.partitions import log_name, range_of, stream_name, subject_name
from support import disks
from support.broker import Broker, broker_group, init
from support.clients import sees_fin
from support.disks import small_disk
from support.logs import lines, logged_once
from support.processes import (
    CommandProcess,
    ServerProcess,
    assert_one_line_error,
    run_command,
)
from support.stores import BLOCK_BYTES, blocks, flip_bit
from support.waiting import wait_until

PARTITIONS = 6
MESSAGE_BYTES = 400_000
MESSAGES = 3 * BLOCK_BYTES // MESSAGE_BYTES // 2
"""A stream's: they fill one file, and half of the next."""

NO_DISKS = disks.lacking()


def numbers_of(partition: int, messages: range) -> list[int]:
    """Return what these messages bring, one number each."""
    first = range_of(partition, PARTITIONS).first
    return [first + message for message in messages]


def publish(broker: Broker, partition: int, messages: range) -> list[int]:
    """Publish, and return the sequences that the NATS server has acknowledged."""

    async def send(js: JetStreamContext) -> list[int]:
        acknowledged = []
        for number in numbers_of(partition, messages):
            data = array("I", [number]) * (MESSAGE_BYTES // 4)
            acknowledged.append((await js.publish(subject_name(partition), data.tobytes())).seq)
        return acknowledged

    return broker.run(send)


def flipped_in_the_middle(path: Path) -> None:
    flip_bit(path, path.stat().st_size // 2)


def flipped_in_the_first_header(path: Path) -> None:
    flip_bit(path, 1)


def truncated(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


Damage = Callable[[Path], None]


def damage(broker: Broker, damages: Mapping[int, Damage], block: int) -> None:
    """Damage this file of each of these partitions' streams while their server is down."""
    broker.kill()
    for partition, how in damages.items():
        how(blocks(broker, stream_name(partition))[block])
    broker.start()
    broker.wait_ready()


@pytest.fixture
def collect(tmp_path: Path) -> Iterator[Callable[..., CommandProcess]]:
    """Start collectors that end with the test."""
    with ExitStack() as running:

        def start(url: str, partitions: str, *options: str) -> CommandProcess:
            arguments = ("--nats", url, "--partitions", partitions, "--log-dir", str(tmp_path))
            process = CommandProcess("collect", *arguments, *options)
            running.callback(process.kill)
            process.wait_for("collecting partitions")
            return process

        yield start


def wait_for_log(folder: Path, partition: int, numbers: list[int], process: CommandProcess) -> None:
    path = folder / log_name(partition)
    assert len({*numbers}) == len(numbers)
    try:
        wait_until(
            lambda: path.exists() and path.stat().st_size >= 10 * len(numbers), f"all of {path}"
        )
    except AssertionError as error:
        raise AssertionError(f"{error}: {process.stderr}") from error
    assert logged_once(path) == {*numbers}


def skip(broker: Broker, partition: int, sequences: str) -> None:
    def skips() -> bool:
        # It is refused until the copy has reported that it has not had them.
        done = run_command("cluster", "skip", f"{partition}", sequences, "--nats", broker.url)
        assert done.returncode == 0 or "has passed message" in done.stderr, done.stderr
        return done.returncode == 0

    wait_until(skips, f"the copy to report that it has not had {sequences}")


# One server.


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    with Broker(tmp_path_factory.mktemp("alone")) as broker:
        init(broker.url, partitions=PARTITIONS)
        yield broker


def test_what_a_server_alone_has_lost_is_named_and_an_operator_decides(
    alone: Broker, collect: Callable[..., CommandProcess], tmp_path: Path
) -> None:
    damages = {0: flipped_in_the_middle, 1: flipped_in_the_first_header, 2: truncated}
    other = PARTITIONS - 1
    for partition in damages:
        assert publish(alone, partition, range(MESSAGES))[-1] == MESSAGES
    damage(alone, damages, block=0)
    collector = collect(alone.url, f"0-2,{other}")

    left = {}
    for partition in damages:
        collector.wait_for(f"partition {partition} waits")
        (line,) = re.findall(f"partition {partition} waits: (.*)", collector.stderr)
        assert stream_name(partition) in line
        hint = re.search(rf"'numbers-uring cluster skip {partition} (\d+)-(\d+)'", line)
        assert hint, line
        first, last = int(hint[1]), int(hint[2])
        assert 1 <= first < last < MESSAGES
        skip(alone, partition, f"{first}-{last}")
        numbers = numbers_of(partition, range(MESSAGES))
        left[partition] = numbers[: first - 1] + numbers[last:]

    publish(alone, other, range(1))
    wait_for_log(tmp_path, other, numbers_of(other, range(1)), collector)
    for partition, numbers in left.items():
        wait_for_log(tmp_path, partition, numbers, collector)


def test_sequences_that_a_server_uses_again_are_never_taken_for_the_next_ones(
    alone: Broker, collect: Callable[..., CommandProcess], tmp_path: Path
) -> None:
    partition = 3
    old, new = range(MESSAGES), range(MESSAGES, 2 * MESSAGES)
    log = tmp_path / log_name(partition)
    publish(alone, partition, old)
    collector = collect(alone.url, f"{partition}")
    wait_for_log(tmp_path, partition, numbers_of(partition, old), collector)
    assert collector.stop() == 0
    damage(alone, {partition: flipped_in_the_first_header}, block=-1)

    assert publish(alone, partition, new)[0] < MESSAGES, "no sequence was used again"
    collector = collect(alone.url, f"{partition}")
    collector.wait_for(f"waits: the stream {stream_name(partition)} was put back")
    assert collector.stop() == 0
    assert logged_once(log) == {*numbers_of(partition, old)}

    # What an operator does who has not got the stream of before.
    collector = collect(alone.url, f"{partition}", "--replay")
    wait_for_log(tmp_path, partition, numbers_of(partition, range(2 * MESSAGES)), collector)


def lost_stream(broker: Broker) -> None:
    flip_bit(blocks(broker, stream_name(0))[0].parents[1] / "meta.inf", 100)


def lost_store(broker: Broker) -> None:
    shutil.rmtree(broker.store)


@pytest.mark.parametrize("lose", [lost_stream, lost_store])
def test_a_log_goes_on_with_a_stream_that_was_made_again(
    lose: Callable[[Broker], None], collect: Callable[..., CommandProcess], tmp_path: Path
) -> None:
    with Broker(tmp_path / "broker") as broker:
        init(broker.url, partitions=PARTITIONS)
        publish(broker, 0, range(3))
        collector = collect(broker.url, "0")
        wait_for_log(tmp_path, 0, numbers_of(0, range(3)), collector)
        broker.kill()
        lose(broker)
        broker.start()
        init(broker.url, partitions=PARTITIONS)
        assert collector.wait() == 1, collector.stderr
        assert stream_name(0) in collector.stderr.splitlines()[-1]
        done = run_command(
            *("collect", "--nats", broker.url, "--partitions", "0", "--log-dir", str(tmp_path))
        )
        assert_one_line_error(done, 3, stream_name(0), "--replay")
        publish(broker, 0, range(3, 5))
        collector = collect(broker.url, "0", "--replay")
        wait_for_log(tmp_path, 0, numbers_of(0, range(5)), collector)


@pytest.mark.skipif(bool(NO_DISKS), reason=NO_DISKS)
def test_a_server_whose_disk_was_full_has_everything_after_a_restart(
    collect: Callable[..., CommandProcess], tmp_path: Path
) -> None:
    with (
        small_disk(tmp_path / "broker" / "store", 20_000_000) as disk,
        Broker(tmp_path / "broker") as broker,
    ):
        init(broker.url, partitions=PARTITIONS, max_bytes=4_000_000)
        collector = collect(broker.url, "0")
        with (
            ServerProcess(
                Path("no-log"),
                "--forward",
                broker.url,
                "--partitions",
                str(PARTITIONS),
                has_log=False,
            ) as node,
            node.connect() as client,
        ):
            disk.fill()
            numbers = range(100_000)
            client.sendall(lines(numbers))
            client.shutdown(socket.SHUT_WR)
            wait_until(lambda: "no space left" in broker.log.read_text(), "the full disk")
            disk.free()
            # There is space again, and it does not go on by itself.
            broker.kill()
            broker.start()
            assert sees_fin(client), node.stderr
            wait_for_log(tmp_path, 0, [*numbers], collector)


# Three servers.


BEFORE = range(5_000, 1_000_000_000, 10_000)
"""Numbers of all partitions that were sent while the replicas became more."""


@pytest.fixture(scope="module")
def group(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Broker]]:
    """Three, whose streams had one replica at first, and then three, while a client was sending."""
    with broker_group(tmp_path_factory.mktemp("group")) as brokers:
        url = urls(brokers)
        init(url, "--replicas", "1", partitions=PARTITIONS)
        with (
            ServerProcess(
                Path("no-log"), "--forward", url, "--partitions", str(PARTITIONS), has_log=False
            ) as node,
            node.connect() as client,
        ):
            half = len(BEFORE) // 2
            client.sendall(lines(BEFORE[:half]))
            init(url, "--replicas", "3", partitions=PARTITIONS)
            client.sendall(lines(BEFORE[half:]))
            client.shutdown(socket.SHUT_WR)
            assert sees_fin(client), node.stderr
        wait_for_replicas(brokers)
        yield brokers


def urls(brokers: list[Broker]) -> str:
    return ",".join(broker.url for broker in brokers)


def wait_for_replicas(brokers: list[Broker]) -> None:
    names = [*map(stream_name, range(PARTITIONS)), f"KV_{CLUSTER_BUCKET}"]

    async def are_whole(js: JetStreamContext) -> None:
        for name in names:
            cluster = (await js.stream_info(name)).cluster
            assert cluster is not None
            replicas = cluster.replicas or []
            assert len(replicas) == 2
            assert all(replica.current for replica in replicas)

    for broker in brokers:
        broker.wait_ready()
    wait_until(lambda: brokers[0].tried(are_whole), "all replicas")


def make_leader(broker: Broker, stream: str) -> None:
    request = json.dumps({"placement": {"preferred": broker.name}}).encode()
    pause = threading.Event()

    async def leads(js: JetStreamContext) -> None:
        cluster = (await js.stream_info(stream)).cluster
        assert cluster is not None
        if cluster.leader != broker.name:
            await js._nc.request(f"$JS.API.STREAM.LEADER.STEPDOWN.{stream}", request)
            raise AssertionError

    # One that has to go again at once never gets its replicas whole.
    wait_until(lambda: broker.tried(leads) or pause.wait(0.5), f"{broker.name} to lead {stream}")


def before(partition: int) -> list[int]:
    collected = range_of(partition, PARTITIONS)
    return [number for number in BEFORE if collected.first <= number < collected.end]


def test_more_replicas_cost_no_number_that_is_sent_meanwhile(
    group: list[Broker], collect: Callable[..., CommandProcess], tmp_path: Path
) -> None:
    collector = collect(urls(group), "4-5")
    for partition in (4, 5):
        wait_for_log(tmp_path, partition, before(partition), collector)


def test_three_servers_lose_nothing_that_one_of_them_has_lost(
    group: list[Broker], collect: Callable[..., CommandProcess], tmp_path: Path
) -> None:
    damages = [
        (0, flipped_in_the_middle, 0),
        (1, flipped_in_the_first_header, 0),
        (2, truncated, 0),
        (3, flipped_in_the_middle, -1),
    ]
    broken = group[0]
    for partition, _, _ in damages:
        publish(group[1], partition, range(MESSAGES))
    wait_for_replicas(group)
    broken.stop()
    for partition, how, block in damages:
        how(blocks(broken, stream_name(partition))[block])
    broken.start()
    wait_for_replicas(group)
    for partition in range(3):  # What was in the newest file has come from the others.
        make_leader(broken, stream_name(partition))

    collector = collect(urls(group), "0-3")
    for partition, _, _ in damages:
        numbers = [*numbers_of(partition, range(MESSAGES)), *before(partition)]
        wait_for_log(tmp_path, partition, numbers, collector)

    # The damage stays, until the server gets its streams from the others.
    broken.kill()
    shutil.rmtree(broken.store)
    broken.start()
    wait_for_replicas(group)

    async def read_all(js: JetStreamContext) -> None:
        state = (await js.stream_info(stream)).state
        for sequence in range(1, state.last_seq + 1):
            await js.get_msg(stream, sequence)  # The leader alone answers this.

    for partition, _, _ in damages:
        stream = stream_name(partition)
        make_leader(broken, stream)
        broken.run(read_all)
