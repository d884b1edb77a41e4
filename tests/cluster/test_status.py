"""`cluster status` on real NATS servers: what it shows, and that it names whatever is wrong."""

import fcntl
import json
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from nats.js import JetStreamContext

from numbers_uring.cluster import comparison, problems, status
from numbers_uring.cluster.bucket import Buckets
from numbers_uring.cluster.checkpoints import Point
from numbers_uring.cluster.init import init_cluster
from numbers_uring.cluster.status import ClusterStatus, StatusReader
from numbers_uring.cluster.status_text import as_text, head
from numbers_uring.cluster.streams import stream_info, time_ns
from numbers_uring.cluster.values import Copy, Node, Settings, Skip, Trim
from support.broker import Broker, broker_group, delete_streams, leader
from support.processes import CommandProcess, assert_one_line_error, run_command
from support.waiting import DEADLINE_S, wait_until

PARTITIONS = 2
MESSAGES = 3
NODE = Node(
    run="5e0f", host="host-0", unique=9, duplicate=4, acknowledged=8, in_flight=1, clients=5
)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    with Broker(tmp_path_factory.mktemp("broker")) as shared:
        yield shared


async def created_ns(js: JetStreamContext, partition: int) -> int:
    info = await stream_info(js, f"numbers-{partition}")
    assert info is not None
    return time_ns(info["created"])


async def fill(js: JetStreamContext) -> list[Copy]:
    """Make a cluster without a fault; return its copies: two of each partition."""
    await delete_streams(js)
    await init_cluster(js, PARTITIONS, max_bytes=10_000_000, copies=2, keep_s=3600)
    buckets, copies = Buckets(js), []
    await buckets.put_node(NODE)
    for partition in range(PARTITIONS):
        for _ in range(MESSAGES):
            await js.publish(f"numbers.{partition}", bytes(4))
        for host in ("host-1", "host-2"):
            copies.append(
                Copy(
                    partition=partition,
                    copy=f"c{host[-1]}",
                    run="a1",
                    host=host,
                    log=f"/logs/numbers.{partition}.log",
                    place="here",
                    state="collecting",
                    per_s=1500,
                    stream_created_ns=await created_ns(js, partition),
                    sequence=MESSAGES,
                    message_time_ns=time.time_ns(),
                    log_bytes=20,
                    count=2,
                    sum=7,
                    points=(Point(2, 1, 3), Point(MESSAGES, 2, 7)),
                )
            )
    for copy in copies:
        await buckets.put_copy(copy)
    return copies


Spoil = Callable[[JetStreamContext, Buckets, list[Copy]], Awaitable[object]]


def after(broker: Broker, spoil: Spoil | None = None) -> ClusterStatus:
    """Return the status of a cluster to which this was done."""

    async def run(js: JetStreamContext) -> ClusterStatus:
        copies = await fill(js)
        if spoil is not None:
            await spoil(js, Buckets(js), copies)
        return await StatusReader(js).read()

    return broker.run(run)


def kinds(found: ClusterStatus) -> list[str]:
    return [problem.kind for problem in found.problems]


def status_of(broker: Broker, *options: str) -> subprocess.CompletedProcess[str]:
    return run_command("cluster", "status", "--nats", broker.url, *options)


def test_a_cluster_without_a_fault_is_shown_and_is_no_failure(shared: Broker) -> None:
    async def more(_: JetStreamContext, buckets: Buckets, copies: list[Copy]) -> None:
        skip = Skip(
            partition=1,
            sequence=2,
            last_sequence=2,
            stream_created_ns=copies[-1].stream_created_ns,
            by="me",
            why="it is lost",
        )
        await buckets.put_skip(skip)
        await buckets.put_skip(replace(skip, sequence=1, last_sequence=1, stream_created_ns=5))
        await buckets.put_trim(0, Trim(2, copies[0].stream_created_ns))

    after(shared, more)
    done = status_of(shared)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    lines = done.stdout.splitlines()
    assert lines[-1] == "no problems"
    assert max(map(len, lines)) <= 80
    for words in (
        "5e0f              host-0                  5            8          1  running",
        "partition 1: 2 numbers, last message 3, 0.0 MB (0% full)",
        "  c2           host-2         at 3          lag 0         1.5 k/s  collecting",
        "cluster: 2 of 2 partitions collected, 1 node",
        "         replicas 1, copies 2, keep 3600 s",
        "         4 numbers, 3.0 k/s, lag 0 messages",
    ):
        assert words in lines
    done = status_of(shared, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    assert (found["ok"], found["problems"]) == (True, [])
    assert found["settings"] == {"partitions": 2, "replicas": 1, "copies": 2, "keep_s": 3600}
    (node,) = found["nodes"]
    assert (node["run"], node["state"], node["clients"]) == ("5e0f", "running", 5)
    first, second = found["partitions"]
    assert (first["trim_announced"], second["skipped"]) == (2, [[2, 2]])
    assert first["stream"]["last_sequence"] == MESSAGES
    assert [copy["lag_messages"] for copy in first["copies"]] == [0, 0]
    assert [copy["host"] for copy in first["copies"]] == ["host-1", "host-2"]
    assert found["totals"]["numbers"] == 4
    assert found["totals"]["copies"] == 4


def _copy(**changes: Any) -> Spoil:
    """Change what the first copy reports."""

    async def spoil(_: JetStreamContext, buckets: Buckets, copies: list[Copy]) -> None:
        await buckets.put_copy(replace(copies[0], **changes))

    return spoil


def _edit(stream: str, **changes: Any) -> Spoil:
    """Change the configuration of a stream."""

    async def spoil(js: JetStreamContext, _: Buckets, __: list[Copy]) -> None:
        config = (await js.stream_info(stream)).config
        for name, value in changes.items():
            setattr(config, name, value)
        await js.update_stream(config)

    return spoil


async def _lose_a_stream(js: JetStreamContext, _: Buckets, __: list[Copy]) -> None:
    await js.delete_stream("numbers-1")


async def _lose_a_bucket(js: JetStreamContext, _: Buckets, __: list[Copy]) -> None:
    await js.delete_stream("KV_numbers-nodes")


async def _fill_a_stream(js: JetStreamContext, buckets: Buckets, copies: list[Copy]) -> None:
    for _ in range(9):
        await js.publish("numbers.0", bytes(950_000))
    for copy in copies[:2]:
        await buckets.put_copy(replace(copy, sequence=MESSAGES + 9))


async def _renew_a_stream(js: JetStreamContext, _: Buckets, __: list[Copy]) -> None:
    config = (await js.stream_info("numbers-1")).config
    await js.delete_stream("numbers-1")
    await js.add_stream(config)


async def _forget(_: JetStreamContext, buckets: Buckets, __: list[Copy]) -> None:
    await buckets.forget_copy(1, "c2")


async def _garble(js: JetStreamContext, _: Buckets, __: list[Copy]) -> None:
    await js.publish("$KV.numbers-cluster.v1.copy.0.c9", b"{")
    await js.publish("$KV.numbers-nodes.v1.n9", b"[]")


LOG = "partition 0: copy c1 (/logs/numbers.0.log on host-1)"


@pytest.mark.parametrize(
    ("spoil", "kind", "words"),
    [
        (_copy(waits="message 7 is missing"), "copy_waits", f"{LOG} waits: message 7 is missing"),
        (_copy(state="no space"), "copy_full", f"{LOG} waits: its disk has no space"),
        (
            _copy(points=(Point(2, 1, 4),)),
            "copies_differ",
            f"{LOG} and copy c2 (/logs/numbers.0.log on host-2) differ: equal up to message 0 of "
            "the stream numbers-0, different at message 2",
        ),
        (_copy(state="stopped"), "copies_missing", "partition 0 has 1 of 2 copies running"),
        (_forget, "copies_missing", "partition 1 has 1 of 2 copies running"),
        (_copy(stream_created_ns=5), "copy_foreign", f"{LOG} is of another stream of the same"),
        (
            _copy(sequence=MESSAGES + 4),
            "stream_went_back",
            f"{LOG} has taken in message 7, and the stream numbers-0 ends at 3",
        ),
        (_fill_a_stream, "stream_full", "the stream numbers-0 is 86% full: 'numbers-uring cluster"),
        (
            _lose_a_bucket,
            "stream_missing",
            "the bucket numbers-nodes is missing: run 'numbers-uring cluster init'",
        ),
        (
            _lose_a_stream,
            "stream_missing",
            "the stream numbers-1 is missing: run 'numbers-uring cluster init'",
        ),
        (_renew_a_stream, "copy_foreign", "is of another stream of the same name"),
        (
            _edit("numbers-1", discard="old"),
            "setting",
            "the stream numbers-1 has discard old but needs new: 'nats stream edit numbers-1",
        ),
        (
            _edit("KV_numbers-nodes", max_age=300),
            "setting",
            "the bucket numbers-nodes has max_age 300 s but needs 3600 s: 'nats stream edit",
        ),
        (_garble, "unreadable", "the value of v1.copy.0.c9 in the bucket numbers-cluster makes"),
    ],
    ids=lambda value: value if isinstance(value, str) and " " not in value else "",
)
def test_what_is_wrong_is_named_and_is_a_failure(
    shared: Broker, spoil: Spoil, kind: str, words: str
) -> None:
    found = after(shared, spoil)
    assert set(kinds(found)) == {kind}
    assert any(words in problem.text for problem in found.problems), found.problems
    done = status_of(shared)
    assert done.returncode == 1
    assert any(line.startswith(f"problem: {words[:30]}") for line in done.stdout.splitlines()) or (
        words in done.stdout
    )
    done = status_of(shared, "--json")
    assert done.returncode == 1
    assert json.loads(done.stdout)["ok"] is False


def test_without_a_cluster_nothing_is_shown(shared: Broker) -> None:
    after(shared)
    shared.run(lambda js: js.delete_stream("KV_numbers-cluster"))
    assert_one_line_error(status_of(shared), 3, "run 'numbers-uring cluster init'")
    assert_one_line_error(status_of(shared, "--watch"), 3, "run 'numbers-uring cluster init'")


def test_nodes_and_copies_that_died_are_gone(
    shared: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(problems, "NODE_GONE_S", 0.0)
    found = after(shared)
    assert kinds(found) == ["node_gone"]
    assert found.problems[0].text == "node 5e0f on host-0 has not reported for 0 s"
    assert "gone, 0 s ago" in as_text(found)
    assert found.as_json()["nodes"][0]["state"] == "gone"
    assert "0 nodes and 1 gone" in as_text(found)
    monkeypatch.undo()
    monkeypatch.setattr(comparison, "COPY_GONE_S", -1.0)
    found = after(shared)
    assert kinds(found) == ["copies_missing"] * PARTITIONS + ["copy_gone"] * 2 * PARTITIONS
    assert found.problems[-1].text.endswith("on host-2) has not reported for 0 s")


def test_a_copy_is_behind_when_it_lacks_an_old_message(
    shared: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def spoil(_: JetStreamContext, buckets: Buckets, copies: list[Copy]) -> None:
        # The one is behind a message that came long ago, and lacks new ones.
        await buckets.put_copy(replace(copies[0], sequence=1, message_time_ns=10**9))
        await buckets.put_copy(replace(copies[1], sequence=1, message_time_ns=10**9, per_s=0))

    found = after(shared, spoil)
    assert kinds(found) == []
    assert [each.lag_messages for each in found.partitions[0].copies] == [2, 2]
    assert found.totals["lag_messages"] == 2
    for module in (problems, status):
        monkeypatch.setattr(module, "COPY_BEHIND_S", 1e-6)
    found = after(shared, spoil)
    assert kinds(found) == ["copy_behind", "copy_behind"]
    assert f"{LOG} is 2 messages behind, the first of them from 0 s ago, and takes in 1.5 k/s" in (
        found.problems[0].text
    )
    assert found.problems[1].text.endswith("and takes in nothing")


def test_many_problems_of_one_kind_are_few_lines(shared: Broker) -> None:
    async def run(js: JetStreamContext) -> ClusterStatus:
        await delete_streams(js)
        await init_cluster(js, 40, max_bytes=2_000_000)
        return await StatusReader(js).read()

    found = shared.run(run)
    assert kinds(found) == ["copies_missing"] * 40
    assert head(found)[-2:] == [
        "problem: partition 9 has 0 of 1 copies running",
        "problem: 30 more like the last one",
    ]
    assert len(found.as_json()["problems"]) == 40


def test_replicas_that_are_away_and_streams_without_a_leader_are_named(tmp_path: Path) -> None:
    async def make(js: JetStreamContext) -> None:
        await init_cluster(js, 2, replicas=3, max_bytes=10_000_000)
        config = (await js.stream_info("numbers-0")).config
        await js.delete_stream("numbers-0")
        config.num_replicas = 1
        await js.add_stream(config)

    def lines(broker: Broker) -> list[str]:
        return status_of(broker).stdout.splitlines()

    with broker_group(tmp_path) as brokers:
        brokers[0].run(make)
        assert (
            "problem: the stream numbers-0 has num_replicas 1 but needs 3: 'numbers-uring cluster "
            "init' makes it grow"
        ) in lines(brokers[0])
        victim = leader(brokers, "numbers-0")
        victim.kill()
        other = next(each for each in brokers if each is not victim)
        for problem in (
            f"problem: the stream numbers-1: the replica on {victim.name} is silent",
            f"problem: the bucket numbers-cluster: the replica on {victim.name} is silent",
            "problem: the stream numbers-0 has no leader, or does not answer: are its servers up?",
        ):
            wait_until(partial(_is_in, problem, lambda: lines(other)), problem)
        done = status_of(other, "--json")
        assert done.returncode == 1
        stream = json.loads(done.stdout)["partitions"][0]["stream"]
        assert (stream["answers"], stream["leader"]) == (False, None)


def _is_in(line: str, read: Callable[[], list[str]]) -> bool:
    return line in read()


# Watching.


def test_a_watched_status_follows_the_other_until_a_signal(shared: Broker) -> None:
    after(shared)
    arguments = ("cluster", "status", "--nats", shared.url, "--watch", "0.1")
    for number in (signal.SIGINT, signal.SIGTERM):
        with CommandProcess(*arguments) as watching:
            wait_until(partial(_has_blocks, watching, 3), "three statuses")
            assert watching.stop(number) == 0
            assert watching.stderr_lines == []
            assert "\x1b" not in "".join(watching.stdout_lines)


def _has_blocks(watching: CommandProcess, count: int) -> bool:
    return _blocks(watching) >= count


def _blocks(watching: CommandProcess) -> int:
    return watching.stdout_lines.count("no problems")


def test_a_watched_status_in_json_is_one_line_each_time(shared: Broker) -> None:
    after(shared)
    options = ("--watch", "0.1", "--json")
    with CommandProcess("cluster", "status", "--nats", shared.url, *options) as watching:
        wait_until(lambda: len(watching.stdout_lines) >= 2, "two statuses")
        shared.run(lambda js: js.delete_stream("numbers-1"))
        wait_until(
            lambda: json.loads(watching.stdout_lines[-1])["ok"] is False, "the missing stream"
        )
        assert watching.stop(signal.SIGINT) == 0
    assert all(json.loads(line)["settings"] for line in watching.stdout_lines)


def test_a_watched_status_is_redrawn_on_a_terminal(shared: Broker) -> None:
    after(shared)
    reader, writer = pty.openpty()
    fcntl.ioctl(writer, termios.TIOCSWINSZ, struct.pack("HHHH", 5, 30, 0, 0))
    command = ("-m", "numbers_uring", "cluster", "status", "--nats", shared.url, "--watch=0.1")
    with closing(os.fdopen(reader, "rb", buffering=0)) as screen:
        watching = subprocess.Popen([sys.executable, *command], stdout=writer)
        try:
            os.close(writer)
            seen = b""
            while seen.count(b"\x1b[H\x1b[2J") < 3:
                seen += screen.read(4096)
            watching.send_signal(signal.SIGINT)
            assert watching.wait(DEADLINE_S) == 0
        finally:
            watching.kill()
            watching.wait()
    screens = seen.decode().split("\x1b[H\x1b[2J")
    assert screens[1].splitlines()[0] == "cluster: 2 of 2 partitions col"
    assert len(screens[1].splitlines()) == 4


def test_a_watched_status_outlives_the_nats_server_and_ends_with_its_reader(
    tmp_path: Path,
) -> None:
    with Broker(tmp_path) as broker:
        after(broker)
        arguments = ("cluster", "status", "--nats", broker.url, "--watch", "0.1")
        with CommandProcess(*arguments) as watching:
            wait_until(lambda: _blocks(watching) >= 1, "a status")
            broker.kill()
            watching.wait_for("lost the connection")
            broker.start()
            watching.wait_for("reconnected")
            before = _blocks(watching)
            wait_until(lambda: _blocks(watching) > before, "another status")
            assert watching.stop(signal.SIGINT) == 0
        reader, writer = os.pipe()
        with CommandProcess(*arguments, stdout=writer) as watching:
            os.close(writer)
            os.close(reader)
            assert watching.wait() == 3
            assert watching.stderr_lines[-1].endswith("standard output: Broken pipe")


def test_a_watched_status_without_a_standard_output_ends_at_once(shared: Broker) -> None:
    after(shared)
    command = (sys.executable, "-m", "numbers_uring", "cluster", "status", "--watch")
    done = subprocess.run(
        ["bash", "-c", 'exec "$@" >&-', "bash", *command, "--nats", shared.url],
        check=False,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
    )
    assert_one_line_error(done, 3, "cannot write to standard output: it is closed")


def test_settings_are_shown_as_they_are(shared: Broker) -> None:
    async def spoil(_: JetStreamContext, buckets: Buckets, __: list[Copy]) -> None:
        await buckets.put_settings(Settings(partitions=PARTITIONS, copies=3), new=False)

    found = after(shared, spoil)
    assert kinds(found) == ["copies_missing"] * PARTITIONS
    assert found.problems[0].text == "partition 0 has 2 of 3 copies running"
    assert "copies 3, no trimming" in as_text(found)
