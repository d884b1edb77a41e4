"""The streams and buckets of a cluster on a real NATS server: checked for each setting."""

from typing import Any

import pytest
from nats.js import JetStreamContext
from nats.js.api import (
    DiscardPolicy,
    RetentionPolicy,
    StorageType,
    StreamSource,
    SubjectTransform,
)

from numbers_uring.cluster.connection import url_text
from numbers_uring.cluster.init import init_cluster
from numbers_uring.cluster.streams import check_streams
from numbers_uring.errors import StartError
from support.broker import Broker
from support.processes import assert_one_line_error, run_command

PARTITIONS = 3


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("subjects", ["numbers.1", "more"]),
        ("storage", StorageType.MEMORY),
        ("retention", RetentionPolicy.WORK_QUEUE),
        ("discard", DiscardPolicy.OLD),
        ("no_ack", True),
        ("max_age", 3600),
        ("max_msgs", 1000),
        ("max_msgs_per_subject", 1000),
        ("duplicate_window", 30.0),
        ("persist_mode", "async"),
        ("max_consumers", 5),
        ("max_msg_size", 200_000),
        ("sources", [StreamSource(name="KV_numbers-nodes")]),
        ("subject_transform", SubjectTransform(src="numbers.1", dest="numbers.else")),
        ("allow_direct", False),
        ("deny_purge", True),
        ("allow_rollup_hdrs", True),
        ("allow_msg_ttl", True),
    ],
)
def test_a_setting_that_breaks_the_promise_is_named(cluster: Broker, name: str, value: Any) -> None:
    async def spoil(js: JetStreamContext) -> None:
        config = (await js.stream_info("numbers-1")).config
        await js.delete_stream("numbers-1")
        setattr(config, name, value)
        await js.add_stream(config)
        with pytest.raises(StartError, match=rf"^the stream numbers-1 has {name} .* 'nats stream "):
            await check_streams(js, PARTITIONS)
        if name == "allow_direct":
            await init_cluster(js, PARTITIONS)
            await check_streams(js, PARTITIONS)
            return
        with pytest.raises(StartError, match=rf"^the stream numbers-1 has {name} "):
            await init_cluster(js, PARTITIONS)

    cluster.run(spoil)


@pytest.mark.parametrize("bucket", ["numbers-cluster", "numbers-nodes"])
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("storage", StorageType.MEMORY),
        ("max_age", 77),
        ("max_msgs_per_subject", 5),
        ("max_bytes", 100_000),
        ("max_msgs", 5),
        ("no_ack", True),
        ("allow_direct", False),
    ],
)
def test_a_setting_of_a_bucket_that_breaks_the_promise_is_named(
    cluster: Broker, bucket: str, name: str, value: Any
) -> None:
    async def spoil(js: JetStreamContext) -> None:
        config = (await js.stream_info(f"KV_{bucket}")).config
        await js.delete_stream(f"KV_{bucket}")
        config.duplicate_window = 5.0
        setattr(config, name, value)
        await js.add_stream(config)
        if name == "allow_direct":
            await init_cluster(js, PARTITIONS)
            assert (await js.stream_info(f"KV_{bucket}")).config.allow_direct
            return
        with pytest.raises(StartError, match=rf"^the bucket {bucket} has {name} .*: 'nats "):
            await init_cluster(js, PARTITIONS)

    cluster.run(spoil)


def test_a_missing_stream_and_a_missing_cluster_are_told_with_the_remedy(cluster: Broker) -> None:
    async def spoil(js: JetStreamContext) -> None:
        await check_streams(js, PARTITIONS)
        with pytest.raises(StartError, match="has 3 partitions, not 2"):
            await check_streams(js, 2)
        await js.delete_stream("numbers-2")
        with pytest.raises(
            StartError, match="no stream numbers-2: run 'numbers-uring cluster init'"
        ):
            await check_streams(js, PARTITIONS)
        await js.delete_key_value("numbers-cluster")
        with pytest.raises(StartError, match="no cluster yet: run 'numbers-uring cluster init'"):
            await check_streams(js, PARTITIONS)

    cluster.run(spoil)


def test_a_nats_server_without_jetstream_or_without_room_is_told_in_one_line(
    tmp_path_factory: pytest.TempPathFactory, bare_broker: Broker
) -> None:
    done = run_command(
        "cluster", "init", "--partitions", "2", "--nats", "nats://u:geheim@127.0.0.1:1"
    )
    assert_one_line_error(
        done, 3, "cannot reach the NATS server at nats://127.0.0.1:1: Connection refused"
    )
    assert "geheim" not in done.stderr
    done = run_command("cluster", "status", "--nats", "127.0.0.1:x")
    assert_one_line_error(done, 2, "--nats", "'127.0.0.1:x' is not like nats://HOST:PORT")
    with Broker(tmp_path_factory.mktemp("broker")) as other:
        arguments = ("--partitions", "2", "--nats", other.url, "--max-bytes")
        done = run_command("cluster", "init", *arguments, "100000000000")
        assert_one_line_error(done, 3, "cannot make the cluster's streams: insufficient storage")


def test_a_url_is_shown_without_its_password() -> None:
    assert url_text("nats://me:secret@host:4222,tls://other:4223") == (
        "nats://host:4222,tls://other:4223"
    )
