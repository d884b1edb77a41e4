"""Readers on one NATS server: each message in sequence, and none is passed over."""

import asyncio
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from nats.js import JetStreamContext

from numbers_uring.cluster.collector import feed, reader
from numbers_uring.cluster.collector.feed import Feed, Message, parse_delivery
from numbers_uring.cluster.collector.lookup import Lookup
from numbers_uring.cluster.collector.reader import StreamReplacedError, malformed
from numbers_uring.cluster.connection import connected, jetstream
from numbers_uring.cluster.partitions import stream_name
from numbers_uring.cluster.streams import time_ns
from numbers_uring.limits import MESSAGE_BYTES_MAX
from support.broker import Broker, broker_with_cluster
from support.reading import Driven, publish_all, reader_of, state_of
from support.waiting import DEADLINE_S

STATUSES = ("100", "204", "404", "408", "409", "503", "999")
FAKES = {
    "Nats-Sequence": "1",
    "Nats-Time-Stamp": "2001-01-01T00:00:00Z",
    "Nats-Stream": "elsewhere",
    "Nats-Subject": "elsewhere",
    "Nats-Num-Pending": "0",
    "Nats-Last-Sequence": "1",
    "Status": "404",
}
"""What a publisher may write to look like the NATS server."""


def some(count: int, first: int = 0) -> list[bytes]:
    return [b"%04d" % number for number in range(first, first + count)]


def numbered(messages: list[Message]) -> list[tuple[int, bytes]]:
    return [(message.sequence, message.data) for message in messages]


# What comes.


def test_messages_come_in_sequence_with_their_times_whatever_a_read_returns(
    broker: Broker, partition: int
) -> None:
    async def use(js: JetStreamContext) -> None:
        await publish_all(js, partition, some(500))
        driven = await reader_of(js, partition)
        await driven.until_read(500)
        await publish_all(js, partition, some(100, first=500))
        await driven.until_read(600)
        assert numbered(driven.read) == list(enumerate(some(600), start=1))
        there = await Lookup(js, stream_name(partition)).find(1, 600)
        assert [message.time_ns for message in there] == [
            message.time_ns for message in driven.read[: len(there)]
        ]
        assert driven.reader.lag_messages == 0
        await driven.reader.close()

    broker.run(use)


def test_no_header_of_a_publisher_is_taken_for_one_of_the_server(
    broker: Broker, partition: int
) -> None:
    headers = [*({"Status": status} for status in STATUSES), {"Status": "404"} | FAKES, FAKES]

    async def use(js: JetStreamContext) -> None:
        datas = [data for _ in headers for data in (b"", b"data")]
        for index, each in enumerate(headers):
            await publish_all(js, partition, datas[2 * index : 2 * index + 2], each)
        driven = await reader_of(js, partition)
        await driven.until_read(len(datas))
        assert numbered(driven.read) == list(enumerate(datas, start=1))
        assert all(malformed(message) for message in driven.read)
        # Nor are they by the other way to the same messages.
        lookup = Lookup(js, stream_name(partition))
        found = list(await lookup.find(1, len(datas)))
        assert numbered(found) == numbered(driven.read)
        one_by_one = [(await lookup.find(each, each))[0] for each in range(1, len(datas) + 1)]
        by_leader = [(await lookup._of_leader(each))[0] for each in range(1, len(datas) + 1)]
        for ways in zip(driven.read, found, one_by_one, by_leader, strict=True):
            assert len({(each.sequence, each.data, each.time_ns) for each in ways}) == 1
            assert len({malformed(each) for each in ways}) == 1
        await driven.reader.close()

    broker.run(use)


@pytest.mark.parametrize("ahead_bytes", [100_000, 1_000_000], ids=["less than one", "some"])
def test_a_reader_has_no_more_than_it_may_and_misses_nothing(
    broker: Broker, partition: int, ahead_bytes: int
) -> None:
    size = 200_000

    async def use(js: JetStreamContext) -> None:
        await publish_all(js, partition, [data * (size // 4) for data in some(40)])
        feed = await Feed.open(js, stream_name(partition), 1, ahead_bytes)
        async with asyncio.timeout(DEADLINE_S):
            for sequence in range(1, 41):
                while not feed.messages:
                    feed.changed.clear()
                    await feed.tend()
                    await feed.changed.wait()
                # Let it have all that it asks for.
                await js.account_info()
                assert sum(len(each.data) for each in feed.messages) <= max(ahead_bytes, size)
                assert feed.take().sequence == sequence
        assert feed.broken is None
        await feed.close()

    broker.run(use)


def test_a_request_that_ends_with_its_last_byte_is_followed_by_another(
    broker: Broker, partition: int
) -> None:
    async def use(js: JetStreamContext) -> None:
        await publish_all(js, partition, some(1))
        probe = await Feed.open(js, stream_name(partition), 1, 10_000)
        while not probe.messages:
            await probe.changed.wait()
        charged = 10_000 - probe._asked_bytes
        await probe.close()
        await publish_all(js, partition, some(7, first=1))
        # The same length: sequence, time and count have as many digits.
        feed = await Feed.open(js, stream_name(partition), 1, 2 * charged)
        async with asyncio.timeout(DEADLINE_S):
            for sequence in range(1, 9):
                while not feed.messages:
                    feed.changed.clear()
                    await feed.tend()
                    assert feed.broken is None
                    await feed.changed.wait()
                assert feed.take().sequence == sequence
        await feed.close()

    broker.run(use)


def test_what_is_lost_on_its_way_is_read_again(
    broker: Broker, partition: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost = {3, 7}
    deliver = Feed._deliver

    def deliver_most(feed: Feed, message: "Message") -> None:
        sequence = parse_delivery(message.reply).sequence  # type: ignore[attr-defined]
        if sequence in lost:
            lost.remove(sequence)
        else:
            deliver(feed, message)  # type: ignore[arg-type]

    async def find(lookup: Lookup, first: int, last: int) -> list[Message]:
        raise AssertionError("the consumer's server has them")

    monkeypatch.setattr(Feed, "_deliver", deliver_most)
    monkeypatch.setattr(Lookup, "find", find)

    async def use(js: JetStreamContext) -> None:
        await publish_all(js, partition, some(10))
        driven = await reader_of(js, partition)
        await driven.until_read(10)
        assert numbered(driven.read) == list(enumerate(some(10), start=1))
        assert not lost
        assert driven.said == []
        await driven.reader.close()

    broker.run(use)


async def _delete_consumers(js: JetStreamContext, partition: int) -> int:
    infos = await js.consumers_info(stream_name(partition))
    for info in infos:
        await js.delete_consumer(stream_name(partition), info.name)
    return len(infos)


def test_a_consumer_that_is_deleted_is_made_again_and_one_left_behind_is_deleted(
    broker: Broker, partition: int
) -> None:
    async def use(js: JetStreamContext) -> None:
        await publish_all(js, partition, some(5))
        driven = await reader_of(js, partition)
        await driven.until_read(5)
        assert await _delete_consumers(js, partition) == 1
        await publish_all(js, partition, some(5, first=5))
        await driven.until_read(10)
        assert numbered(driven.read) == list(enumerate(some(10), start=1))
        assert driven.said == []
        await driven.reader.close()
        await js.account_info()
        assert await _delete_consumers(js, partition) == 0

    broker.run(use)


def test_a_consumer_that_is_asked_for_twice_is_made_once(
    broker: Broker, partition: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def use(js: JetStreamContext) -> None:
        request = js._nc.request

        async def ask_twice(subject: str, *rest: Any, **named: Any) -> Any:
            if ".CONSUMER.CREATE." in subject:
                await request(subject, *rest, **named)
            return await request(subject, *rest, **named)

        monkeypatch.setattr(js._nc, "request", ask_twice)
        await publish_all(js, partition, some(3))
        driven = await reader_of(js, partition)
        await driven.until_read(3)
        assert len(await js.consumers_info(stream_name(partition))) == 1
        await driven.reader.close()

    broker.run(use)


def test_reading_goes_on_at_the_position(broker: Broker, partition: int) -> None:
    async def use(js: JetStreamContext) -> None:
        await publish_all(js, partition, some(6))
        first = await reader_of(js, partition)
        await first.until_read(6)
        fourth = first.read[3]
        driven = await reader_of(
            js, partition, position=fourth.sequence, time_ns=fourth.time_ns, ahead_bytes=100_000
        )
        await driven.until_read(6)
        assert driven.read == first.read[4:]
        # A message that is in the log may go: by a purge, and by itself.
        await js.delete_msg(stream_name(partition), 6)
        await js.purge_stream(stream_name(partition), seq=5)
        again = await reader_of(js, partition, position=6, time_ns=first.read[5].time_ns)
        await publish_all(js, partition, some(1, first=6))
        await again.until_read(7)
        assert again.sequences == [7]
        assert again.said == []

    broker.run(use)


def test_a_missing_message_at_the_position_does_not_hide_that_the_stream_was_put_back(
    broker: Broker, partition: int
) -> None:
    async def use(js: JetStreamContext) -> None:
        await publish_all(js, partition, some(6))
        first = await reader_of(js, partition)
        await first.until_read(6)
        # As if the log had another message 6, of before, and then the stream lost its own.
        await js.delete_msg(stream_name(partition), 6)
        await publish_all(js, partition, some(1, first=6))
        driven = await reader_of(js, partition, position=6, time_ns=first.read[3].time_ns + 1)
        await driven.until_waits("went_back")
        assert driven.read == []
        assert stream_name(partition) in driven.said[0]

    broker.run(use)


# What is missing.

Remove = Callable[[JetStreamContext, str], Awaitable[object]]


async def _rmm_fourth(js: JetStreamContext, stream: str) -> None:
    await js.delete_msg(stream, 4)


async def _rmm_last(js: JetStreamContext, stream: str) -> None:
    await js.delete_msg(stream, 8)


async def _rmm_first(js: JetStreamContext, stream: str) -> None:
    await js.delete_msg(stream, 1)


async def _rmm_some(js: JetStreamContext, stream: str) -> None:
    for sequence in range(3, 7):
        await js.delete_msg(stream, sequence)


async def _purge_some(js: JetStreamContext, stream: str) -> None:
    await js.purge_stream(stream, seq=4)


async def _purge_all(js: JetStreamContext, stream: str) -> None:
    await js.purge_stream(stream)


MISSING: dict[str, tuple[Remove, str, range]] = {
    "one within": (_rmm_fourth, "gap", range(4, 5)),
    "some within": (_rmm_some, "gap", range(3, 7)),
    "the last one": (_rmm_last, "gap", range(8, 9)),
    "the first one": (_rmm_first, "trimmed", range(1, 2)),
    "purged ones": (_purge_some, "trimmed", range(1, 4)),
    "all": (_purge_all, "trimmed", range(1, 9)),
}


@pytest.mark.parametrize("case", MISSING)
def test_what_is_missing_is_named_once_and_waited_for_until_it_is_skipped(
    broker: Broker, partition: int, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader, "READ_IDLE_S", 0.2)
    remove, kind, missing = MISSING[case]

    async def use(js: JetStreamContext) -> None:
        await publish_all(js, partition, some(8))
        await remove(js, stream_name(partition))
        driven = await reader_of(js, partition)
        await driven.until_waits(kind)
        waits = driven.reader.waits
        assert waits is not None
        assert (waits.first_sequence, waits.last_sequence) == (missing[0], missing[-1])
        assert driven.said == [f"partition {partition} waits: {waits.text}"]
        assert stream_name(partition) in waits.text
        assert str(missing[-1] if kind == "gap" else missing[-1] + 1) in waits.text
        before = [index for index in range(1, 9) if index < missing[0]]
        assert driven.sequences == before
        driven.skipped.update(missing)
        await driven.until_read(8)
        assert driven.sequences == list(range(1, 9))
        assert driven.reader.waits is None
        for message in driven.read:
            if message.sequence in missing:
                assert message == Message(message.sequence, 0, b"", None, skipped=True)
            else:
                assert message.data == some(8)[message.sequence - 1]
        assert len(driven.said) == 1
        await driven.reader.close()

    broker.run(use)


@pytest.mark.parametrize(("is_other", "kind"), [(False, "gap"), (True, "went_back")])
def test_a_stream_whose_end_is_missing_is_compared_at_the_position_first(
    broker: Broker, partition: int, is_other: bool, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader, "READ_IDLE_S", 0.2)

    async def use(js: JetStreamContext) -> None:
        await publish_all(js, partition, some(8))
        first = await reader_of(js, partition)
        await first.until_read(8)
        for sequence in range(4, 9):
            await js.delete_msg(stream_name(partition), sequence)
        # One that was told of another message 4 must not take in anything behind it.
        time_ns = first.read[0 if is_other else 3].time_ns
        driven = await reader_of(js, partition, position=4, time_ns=time_ns)
        driven.skipped.update(range(5, 8))
        await driven.until_waits(kind)
        assert driven.sequences == ([] if is_other else [5, 6, 7])

    broker.run(use)


def test_a_purge_behind_the_reader_harms_nothing_and_one_before_it_is_seen(
    broker: Broker, partition: int
) -> None:
    async def use(js: JetStreamContext) -> None:
        await publish_all(js, partition, [data * 50_000 for data in some(12)])
        driven = await reader_of(js, partition, ahead_bytes=400_000)
        await driven.until_read(3)
        await js.purge_stream(stream_name(partition), seq=4)
        await driven.until_read(5)
        assert driven.said == []
        await js.purge_stream(stream_name(partition), seq=12)
        await driven.until_waits("trimmed")
        waits = driven.reader.waits
        assert waits is not None
        assert waits.last_sequence == 11
        assert driven.sequences == list(range(1, waits.first_sequence))

    broker.run(use)


def test_another_copy_that_has_passed_the_missing_message_is_named(
    broker: Broker, partition: int
) -> None:
    asked: list[int] = []

    async def passed_by(sequence: int) -> str:
        asked.append(sequence)
        return "copy blue (log on host-2)"

    async def use(js: JetStreamContext) -> None:
        await publish_all(js, partition, some(3))
        await js.delete_msg(stream_name(partition), 2)
        driven = await reader_of(js, partition, passed_by=passed_by)
        await driven.until_waits("gap")
        assert set(asked) == {2}
        said = "copy blue (log on host-2) has passed it: stop this collector, copy"
        assert said in driven.said[0]

    broker.run(use)


def test_to_skip_a_billion_messages_takes_neither_their_memory_nor_a_line_each(
    broker: Broker, partition: int
) -> None:
    count = 10**9

    async def use(js: JetStreamContext) -> None:
        await js.purge_stream(stream_name(partition), seq=count + 1)
        await publish_all(js, partition, [b"data"])
        state = await state_of(js, partition)
        informed: list[str] = []
        tested = reader.Reader(
            js,
            partition,
            position=0,
            time_ns=0,
            created_ns=state.created_ns,
            skipped=range(1, count + 1),
            say=pytest.fail,
            inform=informed.append,
        )
        async with asyncio.timeout(DEADLINE_S):
            while not (messages := await tested.read()):
                pass
        await tested.close()
        assert [message.sequence for message in messages] == list(range(1, len(messages) + 1))
        assert len(messages) > 1
        assert all(message.skipped for message in messages)
        (line,) = informed
        assert f"messages 1 to {len(messages)} of the stream" in line

    broker.run(use)


def test_a_message_that_is_skipped_is_not_taken_in_though_it_is_there(
    broker: Broker, partition: int
) -> None:
    async def use(js: JetStreamContext) -> None:
        await publish_all(js, partition, some(3))
        driven = await reader_of(js, partition)
        driven.skipped.add(2)
        await driven.until_read(3)
        assert [(message.data, message.skipped) for message in driven.read] == [
            (b"0000", False),
            (b"", True),
            (b"0002", False),
        ]
        assert driven.read[0].time_ns < driven.read[1].time_ns < driven.read[2].time_ns
        assert driven.said == []

    broker.run(use)


def test_a_refused_message_is_waited_at_until_it_is_skipped_and_the_next_ones_come_again(
    broker: Broker, partition: int
) -> None:
    async def use(js: JetStreamContext) -> None:
        await publish_all(js, partition, some(2))
        driven = await reader_of(js, partition)
        await driven.until_read(2)
        await publish_all(js, partition, some(4, first=2))
        feed = driven.reader._feed
        assert feed is not None
        async with asyncio.timeout(DEADLINE_S):
            while len(feed.messages) < 4:
                feed.changed.clear()
                await feed.changed.wait()
        messages = await driven.reader.read()
        assert [message.sequence for message in messages] == [3, 4, 5, 6]
        driven.read.append(messages[0])
        driven.reader.refuse(messages[1], "holds what it must not")
        assert driven.reader.position == 3
        assert driven.reader.waits is not None
        assert driven.reader.waits.kind == "malformed"
        assert await driven.reader.read() == []
        assert await _delete_consumers(js, partition) == 1
        assert await driven.reader.read() == []
        assert driven.said == [
            f"partition {partition} waits: message 4 of the stream {stream_name(partition)} "
            f"holds what it must not; 'numbers-uring cluster skip {partition} 4' passes over it"
        ]
        driven.skipped.add(4)
        await driven.until_read(6)
        assert driven.sequences == [1, 2, 3, 4, 5, 6]
        assert [message.skipped for message in driven.read] == [False] * 3 + [True, False, False]
        assert driven.reader.waits is None
        await publish_all(js, partition, some(1, first=6))
        await driven.until_read(7)
        assert driven.sequences[-1] == 7

    broker.run(use)


def test_a_stream_without_direct_gets_is_asked_by_its_leader(
    broker: Broker, partition: int
) -> None:
    async def use(js: JetStreamContext) -> None:
        config = (await js.stream_info(stream_name(partition))).config
        await js.update_stream(config.evolve(allow_direct=False))
        await publish_all(js, partition, some(3))
        lookup = Lookup(js, stream_name(partition))
        assert numbered(list(await lookup.find(2, 3))) == [(2, b"0001")]
        assert await lookup.find(4, 4) == []
        # A collector of any partition checks all streams of this NATS server.
        await js.update_stream(config)

    broker.run(use)


# Other streams.


def test_a_stream_that_was_made_again_is_refused(
    broker: Broker, partition: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader, "READ_SILENT_S", 1)

    async def use(js: JetStreamContext) -> None:
        await publish_all(js, partition, some(3))
        driven = await reader_of(js, partition)
        await driven.until_read(3)
        config = (await js.stream_info(stream_name(partition))).config
        await js.delete_stream(stream_name(partition))
        await driven.until_waits("broker")
        assert driven.said == [
            f"partition {partition} waits: the stream {stream_name(partition)} is gone; retrying"
        ]
        await js.add_stream(config)
        await publish_all(js, partition, some(5))
        with pytest.raises(StreamReplacedError, match="was deleted and made again"):
            await driven.until_read(5)

    broker.run(use)


def test_a_stream_that_was_put_back_is_not_read_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader, "READ_IDLE_S", 0.2)
    store, saved, newer = tmp_path / "store", tmp_path / "saved", tmp_path / "newer"
    with broker_with_cluster(tmp_path, partitions=1) as broker:
        broker.run(lambda js: publish_all(js, 0, some(4)))
        broker.stop()
        shutil.copytree(store, saved)
        broker.start()

        async def use() -> None:
            async with connected(broker.url, "tests", access=broker.access) as client:
                js = jetstream(client)
                await publish_all(js, 0, some(4, first=4))
                driven = await reader_of(js, 0)
                await driven.until_read(8)
                await asyncio.to_thread(_put_back, broker, store, saved, keep=newer)
                await driven.until_waits("went_back")
                assert "ends at message 4" in driven.said[-1]
                # Its sequences are used again, for other messages.
                await publish_all(js, 0, some(9, first=50))
                await driven.until(
                    lambda: "its message 8 is another one" in str(driven.reader.waits), "the other"
                )
                assert len([line for line in driven.said if "put back" in line]) == 1
                # So it is for one that starts now.
                last = driven.read[-1]
                late = await reader_of(js, 0, position=8, time_ns=last.time_ns)
                await late.until_waits("went_back")
                await asyncio.to_thread(_put_back, broker, store, newer)
                await publish_all(js, 0, some(1, first=8))
                await driven.until_read(9)
                await late.until_read(9)
                assert numbered(driven.read) == list(enumerate(some(9), start=1))
                assert numbered(late.read) == [(9, b"0008")]
                assert driven.reader.waits is None

        asyncio.run(use())


def _put_back(broker: Broker, store: Path, saved: Path, keep: Path | None = None) -> None:
    broker.stop()
    if keep is not None:
        shutil.copytree(store, keep)
    shutil.rmtree(store)
    shutil.copytree(saved, store)
    broker.start()


def test_a_server_that_is_suspended_or_killed_is_noticed_and_read_from_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed, "READ_HEARTBEAT_S", 0.4)
    monkeypatch.setattr(feed, "READ_SILENT_S", 1.0)
    monkeypatch.setattr(reader, "READ_SILENT_S", 1.0)

    async def wait_and_continue(driven: Driven, js: JetStreamContext, sequence: int) -> None:
        await driven.until_waits("broker")
        waits = driven.reader.waits
        assert waits is not None
        broker.resume()
        await publish_all(js, 0, some(1, first=sequence - 1))
        await driven.until_read(sequence)
        assert driven.reader.waits is None

    async def use() -> None:
        async with connected(broker.url, "tests", access=broker.access) as client:
            js = jetstream(client)
            await publish_all(js, 0, some(3))
            driven = await reader_of(js, 0)
            await driven.until_read(3)
            broker.suspend()
            await wait_and_continue(driven, js, 4)
            broker.kill()
            await asyncio.to_thread(broker.start)
            await publish_all(js, 0, some(1, first=4))
            await driven.until_read(5)
            assert numbered(driven.read) == list(enumerate(some(5), start=1))

    with broker_with_cluster(tmp_path, partitions=1) as broker:
        asyncio.run(use())


# What is told by each message.


def test_the_place_of_a_message_is_parsed_with_a_domain_and_without() -> None:
    expected = (22, 33, 1795812517893587033, 55)
    assert parse_delivery("$JS.ACK.numbers-3.abc.11.22.33.1795812517893587033.55") == expected
    with_domain = "$JS.ACK.hub.ACC.numbers-3.abc.11.22.33.1795812517893587033.55"
    assert parse_delivery(with_domain) == expected
    assert parse_delivery(with_domain + ".random") == expected
    for reply in ("", "_INBOX.a", "$JS.ACK.numbers-3.abc", "$JS.ACK.a.b.c.d.e.f.g"):
        with pytest.raises(ValueError, match=r"invalid literal|is of no message"):
            parse_delivery(reply)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2026-11-27T20:48:37.894474045Z", 1795812517894474045),
        ("2026-11-27T20:48:37.8Z", 1795812517800000000),
        ("2026-11-27T20:48:37Z", 1795812517000000000),
        ("2026-11-27T22:48:37.000000001+02:00", 1795812517000000001),
    ],
)
def test_a_time_is_parsed_to_the_nanosecond(text: str, expected: int) -> None:
    assert time_ns(text) == expected


@pytest.mark.parametrize(
    ("data", "headers", "expected"),
    [
        (b"data", None, None),
        (b"data", {"Nats-Msg-Id": "1"}, None),
        (b"", None, "is empty"),
        (b"data", {"Status": "409"}, "has a header Status"),
        (bytes(MESSAGE_BYTES_MAX), None, None),
        (bytes(MESSAGE_BYTES_MAX + 1), None, "bytes, which no node sends"),
    ],
)
def test_what_no_node_sends_is_malformed(
    data: bytes, headers: dict[str, str] | None, expected: str | None
) -> None:
    why = malformed(Message(1, 1, data, headers))
    assert why is None if expected is None else expected in (why or "")
