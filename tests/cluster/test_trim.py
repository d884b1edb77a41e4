"""Trimming: what all registered copies have goes, announced before, and never anything else."""

import itertools
import json
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field, replace

import pytest
from nats.js import JetStreamContext

from numbers_uring.cluster.bucket import Buckets
from numbers_uring.cluster.checkpoints import Point
from numbers_uring.cluster.collector.trim import Trimmer, TrimSource
from numbers_uring.cluster.comparison import Floor
from numbers_uring.cluster.partitions import stream_name, subject_name
from numbers_uring.cluster.streams import time_ns
from numbers_uring.cluster.values import Copy, Settings, Trim
from support.broker import Broker, broker_with_cluster

PARTITIONS = 32
KEEP_NOTHING = Settings(partitions=PARTITIONS, copies=2, keep_s=1e-6)


@pytest.fixture(scope="module")
def trimmed_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """A NATS server with a cluster whose streams are trimmed once there are two copies."""
    folder = tmp_path_factory.mktemp("broker")
    with broker_with_cluster(folder, partitions=PARTITIONS, max_bytes=2_000_000) as broker:
        yield broker


@pytest.fixture(scope="module")
def _unused() -> Iterator[int]:
    return itertools.count()


@dataclass
class Partition:
    """One partition's stream, and what registers as its copies."""

    js: JetStreamContext
    buckets: Buckets
    number: int
    created_ns: int = 0
    times: dict[int, int] = field(default_factory=dict)
    """Of the messages, by sequence."""
    said: list[str] = field(default_factory=list)
    differs: bool = False
    """Whether a difference was found earlier."""

    async def publish(self, count: int) -> None:
        for _ in range(count):
            stored = await self.js.publish(subject_name(self.number), b"\1\0\0\0")
            found = await self.request("STREAM.MSG.GET", b'{"seq": %d}' % stored.seq)
            self.times[stored.seq] = time_ns(found["message"]["time"])

    async def request(self, name: str, request: bytes = b"") -> "dict[str, dict[str, str]]":
        subject = f"$JS.API.{name}.{stream_name(self.number)}"
        answer = await self.js._nc.request(subject, request, 10)
        found: dict[str, dict[str, str]] = json.loads(answer.data)
        return found

    async def first(self) -> int:
        return (await self.js.stream_info(stream_name(self.number))).state.first_seq

    def copy(self, name: str, sequence: int, *, altered: int = 0) -> Copy:
        return Copy(
            partition=self.number,
            copy=name,
            run=name,
            host=name,
            log=name,
            place=name,
            state="collecting",
            stream_created_ns=self.created_ns,
            sequence=sequence,
            message_time_ns=self.times.get(sequence, 0),
            points=tuple(Point(each, each, altered) for each in range(1, sequence + 1)),
        )

    async def register(self, name: str, sequence: int, *, altered: int = 0) -> None:
        await self.buckets.put_copy(self.copy(name, sequence, altered=altered))

    def trimmer(self, record_before: Callable[[int], Floor | None] = lambda _: None) -> Trimmer:
        source = TrimSource(
            partition=self.number,
            stream_created_ns=self.created_ns,
            record_before=record_before,
        )
        return Trimmer(
            self.js,
            self.buckets,
            [source],
            differs=lambda _: self.differs,
            say=self.said.append,
        )

    async def round(self, trimmer: Trimmer) -> int:
        """Return the first message of the stream after a round."""
        await trimmer.round(await self.buckets.read([self.number]))
        return await self.first()


@pytest.fixture
def use(
    trimmed_broker: Broker, _unused: Iterator[int]
) -> Callable[[Callable[[Partition], Awaitable[None]]], None]:
    """Await a session with a partition of its own, whose stream has ten messages."""
    number = next(_unused)

    def run(session: Callable[[Partition], Awaitable[None]]) -> None:
        async def with_js(js: JetStreamContext) -> None:
            buckets = Buckets(js)
            await buckets.put_settings(KEEP_NOTHING, new=False)
            partition = Partition(js, buckets, number)
            info = await partition.request("STREAM.INFO")
            partition.created_ns = time_ns(str(info["created"]))
            await partition.publish(10)
            await session(partition)

        trimmed_broker.run(with_js)

    return run


Use = Callable[[Callable[[Partition], Awaitable[None]]], None]


def test_what_all_copies_have_goes_a_round_after_it_was_announced(use: Use) -> None:
    async def session(partition: Partition) -> None:
        trimmer = partition.trimmer()
        await partition.register("a", 9)
        await partition.register("b", 6)
        assert await partition.round(trimmer) == 1
        assert (await partition.buckets.read([partition.number])).trims[
            partition.number
        ].sequence == 6
        # The message of the slowest copy's position stays: it is looked at when that starts.
        assert await partition.round(trimmer) == 6
        assert await partition.round(trimmer) == 6
        await partition.register("b", 8)
        assert await partition.round(trimmer) == 6
        assert await partition.round(trimmer) == 8
        assert trimmer.streams[partition.number].first_sequence == 6
        await partition.publish(1)
        assert (await partition.js.stream_info(stream_name(partition.number))).state.messages == 4

    use(session)


@pytest.mark.parametrize(
    "hindrance",
    ["one copy", "no copies wanted", "all is kept", "differ", "another stream", "unreadable"],
)
def test_nothing_goes_while_there_is_a_hindrance(use: Use, hindrance: str) -> None:
    async def session(partition: Partition) -> None:
        trimmer = partition.trimmer()
        await partition.register("a", 9)
        if hindrance != "one copy":
            await partition.register("b", 9)
        key = f"$KV.numbers-cluster.v1.copy.{partition.number}.c"
        if hindrance == "no copies wanted":
            settings = Settings(partitions=PARTITIONS)
            await partition.buckets.put_settings(settings, new=False)
        elif hindrance == "all is kept":
            settings = Settings(partitions=PARTITIONS, copies=2)
            await partition.buckets.put_settings(settings, new=False)
        elif hindrance == "differ":
            await partition.register("c", 9, altered=1)
        elif hindrance == "another stream":
            copy = replace(partition.copy("c", 9), stream_created_ns=7)
            await partition.buckets.put_copy(copy)
        elif hindrance == "unreadable":
            await partition.js.publish(key, b"{}")
        for _ in range(3):
            assert await partition.round(trimmer) == 1
        assert partition.number not in (await partition.buckets.read([partition.number])).trims
        # Without it, all that they have goes.
        await partition.register("b", 9)
        await partition.buckets.forget_copy(partition.number, "c")
        await partition.buckets.put_settings(KEEP_NOTHING, new=False)
        await partition.round(trimmer)
        assert await partition.round(trimmer) == 9

    use(session)


@pytest.mark.parametrize(
    "hindrance", ["a new copy", "a copy that was put back", "a difference", "another stream"]
)
def test_what_comes_up_between_announcement_and_purge_is_seen(use: Use, hindrance: str) -> None:
    async def session(partition: Partition) -> None:
        trimmer = partition.trimmer()
        await partition.register("a", 9)
        await partition.register("b", 9)
        assert await partition.round(trimmer) == 1
        contents = await partition.buckets.read([partition.number])
        if hindrance == "a new copy":
            await partition.register("c", 4)
        elif hindrance == "a copy that was put back":
            await partition.register("b", 4)
        elif hindrance == "a difference":
            await partition.register("c", 9, altered=1)
        else:
            copy = replace(partition.copy("c", 9), stream_created_ns=7)
            await partition.buckets.put_copy(copy)
        # As if it had come up after the round has read the copies.
        await trimmer.round(contents)
        assert await partition.first() == (4 if "copy" in hindrance else 1)

    use(session)


def test_a_stopped_copy_holds_its_messages_until_it_is_forgotten(use: Use) -> None:
    async def session(partition: Partition) -> None:
        trimmer = partition.trimmer()
        stopped = replace(partition.copy("c", 3), state="stopped")
        await partition.buckets.put_copy(stopped)
        for sequence in (8, 10):
            await partition.register("a", sequence)
            await partition.register("b", sequence)
            await partition.round(trimmer)
            assert await partition.round(trimmer) == 3
        await partition.buckets.forget_copy(partition.number, "c")
        await partition.round(trimmer)
        assert await partition.round(trimmer) == 10

    use(session)


def test_a_difference_that_was_found_earlier_counts_although_no_point_shows_it(use: Use) -> None:
    async def session(partition: Partition) -> None:
        trimmer = partition.trimmer()
        await partition.register("a", 9)
        await partition.register("b", 9)
        assert await partition.round(trimmer) == 1
        partition.differs = True
        assert await partition.round(trimmer) == 1
        partition.differs = False
        await partition.round(trimmer)
        assert await partition.round(trimmer) == 9

    use(session)


def test_a_copy_that_was_put_back_too_far_does_not_let_the_stream_fill(use: Use) -> None:
    async def session(partition: Partition) -> None:
        trimmer = partition.trimmer()
        for name in ("a", "b", "c"):
            await partition.register(name, 6)
        await partition.round(trimmer)
        assert await partition.round(trimmer) == 6
        await partition.register("c", 2)
        for name in ("a", "b"):
            await partition.register(name, 9)
        await partition.round(trimmer)
        assert await partition.round(trimmer) == 9

    use(session)


def test_young_messages_are_kept_as_the_index_tells_their_age(use: Use) -> None:
    async def session(partition: Partition) -> None:
        await partition.buckets.put_settings(replace(KEEP_NOTHING, keep_s=3600), new=False)
        asked = []

        def record_before(limit_ns: int) -> Floor | None:
            asked.append(limit_ns)
            return None if len(asked) < 3 else Floor(5, partition.times[5], 5)

        trimmer = partition.trimmer(record_before)
        await partition.register("a", 9)
        await partition.register("b", 9)
        assert await partition.round(trimmer) == 1
        assert await partition.round(trimmer) == 1
        hour_ns = 3600 * 10**9
        assert asked[0] > partition.times[1] - hour_ns
        assert asked[0] < partition.times[10] - hour_ns + 600 * 10**9
        assert await partition.round(trimmer) == 1
        assert await partition.round(trimmer) == 5

    use(session)


def test_old_messages_behind_younger_ones_are_kept_for_copies_that_lack_them(use: Use) -> None:
    async def session(partition: Partition) -> None:
        # The server's clock was put back by hours, so that message 10 is older than message 4.
        await partition.buckets.put_settings(replace(KEEP_NOTHING, keep_s=3600), new=False)
        for sequence in range(1, 5):
            partition.times[sequence] += 2 * 3600 * 10**9
        await partition.register("a", 10)
        await partition.register("b", 4)
        trimmer = partition.trimmer(lambda _: Floor(10, partition.times[10], 10))
        await partition.round(trimmer)
        assert await partition.round(trimmer) == 4

    use(session)


def test_what_two_copies_have_and_was_not_compared_stays(use: Use) -> None:
    async def session(partition: Partition) -> None:
        trimmer = partition.trimmer()
        await partition.register("a", 9)
        apart = partition.copy("b", 6)
        await partition.buckets.put_copy(replace(apart, points=apart.points[:2]))
        await partition.round(trimmer)
        assert await partition.round(trimmer) == 2
        await partition.register("b", 8)
        await partition.round(trimmer)
        assert await partition.round(trimmer) == 8

    use(session)


def test_a_stream_that_has_other_messages_under_known_sequences_is_left_alone(use: Use) -> None:
    async def session(partition: Partition) -> None:
        trimmer = partition.trimmer()
        partition.times[9] += 1
        await partition.register("a", 9)
        await partition.register("b", 9)
        for _ in range(3):
            assert await partition.round(trimmer) == 1
        # So is one that does not reach the copies' position.
        partition.times[20] = partition.times[10]
        await partition.register("a", 20)
        await partition.register("b", 20)
        for _ in range(3):
            assert await partition.round(trimmer) == 1

    use(session)


def test_another_stream_of_the_same_name_is_left_alone(use: Use) -> None:
    async def session(partition: Partition) -> None:
        partition.created_ns -= 1
        trimmer = partition.trimmer()
        await partition.register("a", 9)
        await partition.register("b", 9)
        for _ in range(3):
            assert await partition.round(trimmer) == 1

    use(session)


def test_a_stream_that_is_gone_is_no_hindrance_for_others(use: Use) -> None:
    async def session(partition: Partition) -> None:
        trimmer = partition.trimmer()
        await partition.js.delete_stream(stream_name(partition.number))
        await trimmer.round(await partition.buckets.read([partition.number]))
        assert trimmer.streams == {}

    use(session)


def test_an_announcement_for_an_earlier_stream_is_replaced(use: Use) -> None:
    async def session(partition: Partition) -> None:
        await partition.buckets.put_trim(partition.number, Trim(10_000, 7))
        trimmer = partition.trimmer()
        await partition.register("a", 9)
        await partition.register("b", 9)
        assert await partition.round(trimmer) == 1
        found = (await partition.buckets.read([partition.number])).trims[partition.number]
        assert found[:2] == (9, partition.created_ns)
        assert await partition.round(trimmer) == 9

    use(session)


def test_two_that_trim_announce_what_only_grows(use: Use) -> None:
    async def session(partition: Partition) -> None:
        first, second = partition.trimmer(), partition.trimmer()
        await partition.register("a", 4)
        await partition.register("b", 4)
        stale = await partition.buckets.read([partition.number])
        await partition.register("a", 9)
        await partition.register("b", 9)
        assert await partition.round(first) == 1
        await second.round(stale)
        found = await partition.buckets.read([partition.number])
        assert found.trims[partition.number].sequence == 9
        assert await partition.round(first) == 9
        assert await partition.round(second) == 9

    use(session)


def test_a_stream_that_refuses_to_be_trimmed_is_named_once(use: Use) -> None:
    async def session(partition: Partition) -> None:
        config = (await partition.js.stream_info(stream_name(partition.number))).config
        await partition.js.delete_stream(stream_name(partition.number))
        await partition.js.add_stream(replace(config, deny_purge=True))
        info = await partition.request("STREAM.INFO")
        partition.created_ns = time_ns(str(info["created"]))
        await partition.publish(10)
        trimmer = partition.trimmer()
        await partition.register("a", 9)
        await partition.register("b", 9)
        for _ in range(3):
            assert await partition.round(trimmer) == 1
        (line,) = partition.said
        assert line.startswith(f"cannot trim the stream {stream_name(partition.number)}: ")

    use(session)
