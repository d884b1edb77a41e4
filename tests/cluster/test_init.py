"""`cluster init` on real NATS servers: makes, checks and grows a cluster, any number of times."""

import asyncio
import subprocess
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from nats.js import JetStreamContext
from nats.js.errors import NotFoundError

from numbers_uring.cluster.bucket import CLUSTER_BUCKET, Buckets, bucket_stream
from numbers_uring.cluster.values import Settings
from support.broker import Broker, broker_group, delete_streams
from support.processes import CommandProcess, assert_one_line_error, run_command
from support.slow_link import slow_link

STREAMS = ["numbers-0", "numbers-1", "numbers-2", "KV_numbers-cluster", "KV_numbers-nodes"]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    with Broker(tmp_path_factory.mktemp("broker")) as shared:
        yield shared


@pytest.fixture
def empty(shared: Broker) -> Broker:
    """A NATS server without any stream."""

    shared.run(delete_streams)
    return shared


def init(broker: Broker, *options: str, partitions: int = 3) -> subprocess.CompletedProcess[str]:
    arguments = ("--nats", broker.url, "--partitions", str(partitions), *options)
    return run_command("cluster", "init", *arguments)


def done(broker: Broker, *options: str) -> str:
    """Run it; return its line, after a check that it has succeeded."""
    ended = init(broker, *options)
    assert ended.returncode == 0, ended.stderr
    return ended.stderr


async def settings(js: JetStreamContext) -> Settings:
    return await Buckets(js).settings()


def config(broker: Broker, stream: str) -> Any:
    async def ask(js: JetStreamContext) -> Any:
        return (await js.stream_info(stream)).config

    return broker.run(ask)


def test_a_cluster_is_made_once_and_what_is_not_given_stays(empty: Broker) -> None:
    line = done(empty, "--max-bytes", "2000000", "--copies", "2", "--keep", "7d")
    assert "ready: 3 partitions, 3 streams created, 0 existed before" in line
    assert "; replicas 1, copies 2, messages are kept for 604800 s" in line
    wanted = Settings(partitions=3, copies=2, keep_s=604800)
    assert empty.run(settings) == wanted
    line = done(empty)
    assert "0 streams created, 3 existed before; replicas 1, copies 2, messages are kept" in line
    assert empty.run(settings) == wanted
    assert_one_line_error(init(empty, partitions=4), 3, "has 3 partitions, not 4")
    for text, keep_s in (("90", 90), ("1.5h", 5400), ("15m", 900), ("2s", 2)):
        assert f"kept for {keep_s} s" in done(empty, "--keep", text)
    assert "copies 2, nothing is trimmed" in done(empty, "--keep", "0")
    assert empty.run(settings) == Settings(partitions=3, copies=2)
    empty.run(lambda js: js.delete_stream("numbers-1"))
    assert "1 stream created, 2 existed before" in done(empty)


def test_the_number_of_partitions_is_refused_before_anything_is_made(empty: Broker) -> None:
    done(empty)
    assert_one_line_error(init(empty, partitions=5), 3, "has 3 partitions, not 5")
    with pytest.raises(NotFoundError):
        config(empty, "numbers-4")


def test_fewer_partitions_than_there_are_streams_are_refused_without_the_bucket(
    empty: Broker,
) -> None:
    done(empty)

    async def lose(js: JetStreamContext) -> None:
        await js.delete_stream(bucket_stream(CLUSTER_BUCKET))

    empty.run(lose)
    assert_one_line_error(init(empty, partitions=2), 3, "there is a stream numbers-2 of a cluster")
    assert "3 partitions, 0 streams created" in done(empty)


@pytest.mark.parametrize(
    "keep", ["-1", "1w", "h", "1h30m", "", "nan", "inf", "1e3", "9999999999", "999999999d"]
)
def test_what_is_no_duration_is_refused(empty: Broker, keep: str) -> None:
    assert_one_line_error(init(empty, "--copies", "1", "--keep", keep), 2, "--keep")


def test_trimming_needs_to_know_how_many_copies_there_are(empty: Broker) -> None:
    assert_one_line_error(init(empty, "--keep", "1h"), 3, "needs --copies")
    done(empty, "--copies", "1", "--keep", "1h")
    assert_one_line_error(init(empty, "--copies", "0"), 3, "needs --copies")


def test_streams_get_more_room_but_not_less(empty: Broker) -> None:
    done(empty, "--max-bytes", "2000000")
    assert "3 of them changed" in done(empty, "--max-bytes", "3000000")
    assert config(empty, "numbers-2").max_bytes == 3000000
    assert "changed" not in done(empty, "--max-bytes", "3000000")
    ended = init(empty, "--max-bytes", "2000000")
    assert_one_line_error(
        ended, 3, "max_bytes 3000000, not 2000000", "nats stream edit numbers-0 --max-bytes 2000000"
    )


def test_what_we_do_not_know_of_a_configuration_is_kept(empty: Broker) -> None:
    async def describe(js: JetStreamContext) -> None:
        there = (await js.stream_info("numbers-0")).config
        there.description, there.metadata = "mine", {"owner": "me"}
        await js.update_stream(there)

    done(empty, "--max-bytes", "2000000")
    empty.run(describe)
    done(empty, "--max-bytes", "3000000")
    there = config(empty, "numbers-0")
    assert (there.description, there.metadata["owner"]) == ("mine", "me")


def test_two_at_the_same_time_make_one_cluster(empty: Broker) -> None:
    arguments = ("cluster", "init", "--nats", empty.url, "--partitions", "3", "--copies", "1")
    with CommandProcess(*arguments) as one, CommandProcess(*arguments) as other:
        codes = {one.wait(), other.wait()}
        lines = one.stderr_lines + other.stderr_lines
        assert len(lines) == 2
        assert codes <= {0, 3}, lines
    assert empty.run(settings) == Settings(partitions=3, copies=1)
    assert "0 streams created" in done(empty)


def test_many_streams_are_made_and_checked_far_away(empty: Broker) -> None:
    partitions, delay_s = 256, 0.05
    with slow_link(empty.port, delay_s) as port:
        for created in (partitions, 0):
            began_s = time.monotonic()
            ended = run_command(
                *("cluster", "init", "--nats", f"nats://127.0.0.1:{port}"),
                *("--partitions", str(partitions), "--max-bytes", "2000000"),
            )
            took_s = time.monotonic() - began_s
            assert ended.returncode == 0, ended.stderr
            assert f"{created} streams created" in ended.stderr
            # One request after the other would be twice or three times that.
            assert took_s < partitions * 2 * delay_s


def test_replicas_grow_and_are_waited_for(tmp_path: Path) -> None:
    messages = 200

    async def fill(js: JetStreamContext) -> None:
        await asyncio.gather(
            *(js.publish("numbers.1", bytes(100_000)) for _ in range(messages)),
        )

    async def check(js: JetStreamContext, replicas: int) -> None:
        for name in STREAMS:
            info = await js.stream_info(name)
            assert info.config.num_replicas == replicas
            assert info.cluster is not None
            others = info.cluster.replicas or []
            assert len(others) == replicas - 1
            assert all(each.current and not each.offline for each in others), (name, others)
        assert (await js.stream_info("numbers-1")).state.messages == messages

    with broker_group(tmp_path, 5) as brokers:
        first = brokers[0]
        done(first, "--max-bytes", "100000000")
        first.run(fill)
        for replicas in (3, 5):
            line = done(first, "--replicas", str(replicas))
            assert f"3 of them changed; replicas {replicas}" in line
            first.run(partial(check, replicas=replicas))
        assert "existed before; replicas 5" in done(first)
        assert_one_line_error(
            init(first, "--replicas", "3"),
            3,
            "has num_replicas 5, not 3, and is not made smaller",
            "--replicas 3' does that",
        )
        # A server that is away is no reason to wait, or to fail.
        brokers[4].kill()
        assert "copies 1" in done(first, "--copies", "1")


def test_more_replicas_than_servers_are_refused_and_change_nothing(empty: Broker) -> None:
    done(empty)
    assert_one_line_error(init(empty, "--replicas", "3"), 3, "cannot make the cluster's buckets: ")
    assert config(empty, "numbers-0").num_replicas == 1
