"""Readers on three NATS servers: what one of them has lost is had from another."""

import asyncio
import json
import time
from collections.abc import Iterator
from functools import partial
from itertools import count

import pytest
from nats.errors import Error as NatsError
from nats.js import JetStreamContext

from numbers_uring.cluster.collector import reader
from numbers_uring.cluster.collector.lookup import Lookup
from numbers_uring.cluster.connection import connected, jetstream
from numbers_uring.cluster.partitions import stream_name
from support.broker import Broker, broker_group, init, leader
from support.reading import Driven, publish_all, reader_of
from support.stores import set_byte
from support.waiting import DEADLINE_S, wait_until

PARTITIONS = 3
MESSAGES = [b"message %04d" % number + bytes(1_000_000) for number in range(12)]
"""More than one block of a stream's file."""

DAMAGED = 3
"""The number of the message that is damaged: it is message 4 of its stream."""


@pytest.fixture(scope="module")
def group(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Broker]]:
    with broker_group(tmp_path_factory.mktemp("group")) as brokers:
        init(brokers[0].url, "--replicas", "3", partitions=PARTITIONS)
        yield brokers


@pytest.fixture(scope="module")
def _partitions() -> Iterator[int]:
    return iter(range(PARTITIONS))


@pytest.fixture
def group_partition(group: list[Broker], _partitions: Iterator[int]) -> int:
    """A partition that no other test has touched, with MESSAGES."""
    partition = next(_partitions)
    # The test before has stopped servers.
    for broker in group:
        wait_until(partial(broker.tried, partial(_all_current, partition)), "all replicas")

    group[0].run(lambda js: publish_all(js, partition, MESSAGES))
    return partition


def damage(brokers: list[Broker], partition: int, value: int = 1) -> None:
    """Change one message at these servers, all stopped at once; value 0 repairs it."""
    for broker in brokers:
        broker.stop()
    for broker in brokers:
        set_byte(broker, stream_name(partition), MESSAGES[DAMAGED][:12], 5_000, value)
        broker.start()
    for broker in brokers:
        broker.wait_ready()
        wait_until(partial(broker.tried, partial(_all_current, partition)), "all replicas")


async def _damaged_is_there(partition: int, js: JetStreamContext) -> bool:
    return bool(await Lookup(js, stream_name(partition)).find(DAMAGED + 1, DAMAGED + 1))


async def _all_current(partition: int, js: JetStreamContext) -> None:
    async with asyncio.timeout(2):
        info = await js.stream_info(stream_name(partition))
        assert info.cluster is not None
        assert info.cluster.leader
        assert all(replica.current for replica in info.cluster.replicas or [])


def assert_all_read(driven: Driven) -> None:
    assert driven.sequences == list(range(1, len(MESSAGES) + 1))
    assert [message.data for message in driven.read] == MESSAGES
    assert driven.said == []


def test_what_some_replicas_have_lost_is_had_from_the_one_that_has_it(
    group: list[Broker], group_partition: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = leader(group, stream_name(group_partition))
    other = next(broker for broker in group if broker is not first)
    damage([first, other], group_partition)
    looked_for: list[tuple[int, int]] = []
    find = Lookup.find

    async def noted_find(lookup: Lookup, first: int, last: int) -> object:
        looked_for.append((first, last))
        return await find(lookup, first, last)

    monkeypatch.setattr(Lookup, "find", noted_find)

    async def use(js: JetStreamContext) -> None:
        # Which server has a reader's consumer is left to chance: two of three have the damage.
        for runs in count(1):
            driven = await reader_of(js, group_partition)
            await driven.until_read(len(MESSAGES))
            await driven.reader.close()
            assert_all_read(driven)
            if runs >= 3 and looked_for:
                break
            assert runs < 20
        assert set(looked_for) == {(DAMAGED + 1, DAMAGED + 1)}

    group[0].run(use)


def test_what_all_replicas_have_lost_is_waited_for_until_one_has_it_again(
    group: list[Broker], group_partition: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader, "LOOKUP_RETRY_S", 0.2)
    while group[0].run(partial(_damaged_is_there, group_partition)):
        # A server may have it again, from what it keeps for the others.
        damage(group, group_partition)

    async def use() -> None:
        urls = ",".join(broker.url for broker in group)
        async with connected(urls, "tests", access=group[0].access) as client:
            driven = await reader_of(jetstream(client), group_partition)
            await driven.until_waits("gap")
            assert driven.said == [
                f"partition {group_partition} waits: message {DAMAGED + 1} is missing in the "
                f"stream {stream_name(group_partition)}; "
                f"'numbers-uring cluster skip {group_partition} {DAMAGED + 1}' passes over it"
            ]
            driven.said.clear()
            repaired = asyncio.create_task(
                asyncio.to_thread(damage, [group[1]], group_partition, 0)
            )
            await driven.until_read(len(MESSAGES))
            await repaired
            assert_all_read(driven)
            assert driven.informed == [f"partition {group_partition} continues at message 4"]

    asyncio.run(use())


def test_reading_goes_on_where_the_server_of_the_consumer_and_leader_of_the_stream_is_suspended(
    group: list[Broker], group_partition: int
) -> None:
    """It takes as long as the others need to choose a leader."""
    stream = stream_name(group_partition)
    near = group[0]

    async def use() -> None:
        async with connected(near.url, "tests", access=near.access) as client:
            js = jetstream(client)
            while True:
                driven = await reader_of(js, group_partition)
                await driven.until_read(len(MESSAGES))
                (consumer,) = await js.consumers_info(stream)
                assert consumer.cluster is not None
                if consumer.cluster.leader != near.name:
                    break
                await driven.reader.close()
            far = next(each for each in group if each.name == consumer.cluster.leader)
            request = json.dumps({"placement": {"preferred": far.name}}).encode()
            await client.request(f"$JS.API.STREAM.LEADER.STEPDOWN.{stream}", request, 5)
            async with asyncio.timeout(DEADLINE_S):
                while not await _leads(js, stream, far):
                    await asyncio.sleep(0.05)
            far.suspend()
            try:
                begin_s, feed = time.monotonic(), driven.reader._feed
                await driven.until(lambda: driven.reader._feed is not feed, "another consumer")
                assert time.monotonic() - begin_s < 10
                await _publish_until_stored(js, group_partition, b"late")
                await driven.until_read(len(MESSAGES) + 1)
            finally:
                far.resume()
            assert driven.read[-1].data == b"late"
            assert driven.sequences == list(range(1, len(MESSAGES) + 2))

    asyncio.run(use())


async def _leads(js: JetStreamContext, stream: str, broker: Broker) -> bool:
    cluster = (await js.stream_info(stream)).cluster
    return cluster is not None and cluster.leader == broker.name


async def _publish_until_stored(js: JetStreamContext, partition: int, data: bytes) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while True:
            try:
                async with asyncio.timeout(1):
                    await publish_all(js, partition, [data], {"Nats-Msg-Id": "once"})
                return
            except (NatsError, TimeoutError):
                pass  # There is no leader yet.
