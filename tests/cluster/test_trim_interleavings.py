"""Trimming beside copies that register, advance and are put back, in any order of their steps."""

import asyncio
import random
from collections.abc import Collection
from types import SimpleNamespace
from typing import Any

import pytest

from numbers_uring.cluster.bucket import ChangedError
from numbers_uring.cluster.checkpoints import Point
from numbers_uring.cluster.collector import trim as trim_module
from numbers_uring.cluster.collector.lookup import StreamState
from numbers_uring.cluster.collector.trim import Trimmer, TrimSource
from numbers_uring.cluster.values import Contents, Copy, Settings, Trim

CREATED_NS = 7
SETTINGS = Settings(partitions=1, copies=2, keep_s=1e-9)
ROUNDS = 12
SEEDS = 300


class World:
    """A stream, and the bucket, whose requests take a while before and after they have effect."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.now = 0
        """Counts what has had effect."""
        self.first, self.last = 1, 20
        self.copies: dict[str, tuple[int, int]] = {}
        """Position of each copy, and when it was registered there."""
        self.trim = Trim(0, CREATED_NS, 0)
        self.purges = 0

    async def while_it_travels(self) -> None:
        for _ in range(self.random.randrange(6)):
            await asyncio.sleep(0)

    async def register(self, name: str, position: int) -> Trim:
        """Write a copy's position, and read afterwards what was announced."""
        await self.while_it_travels()
        self.now += 1
        self.copies[name] = (position, self.now)
        await self.while_it_travels()
        return self.trim


class FakeBuckets:
    """The bucket, as one trimmer uses it. Values are not all of the same moment."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.fresh_begin: int | None = None
        """When the last read began, if that was at the leader."""

    async def read(self, _partitions: Collection[int], *, fresh: bool = False) -> Contents:
        world = self.world
        self.fresh_begin = world.now if fresh else None
        await world.while_it_travels()
        contents = Contents(settings=SETTINGS, trims={0: world.trim})
        for name in sorted(world.copies):
            await world.while_it_travels()
            position, _ = world.copies[name]
            contents.copies.append(
                Copy(
                    partition=0,
                    copy=name,
                    run=name,
                    host=name,
                    log=name,
                    place=name,
                    state="collecting",
                    stream_created_ns=CREATED_NS,
                    sequence=position,
                    message_time_ns=position,
                    points=tuple(Point(each, each, each) for each in range(1, position + 1)),
                )
            )
        return contents

    async def put_trim(self, _partition: int, trim: Trim) -> int:
        world = self.world
        await world.while_it_travels()
        if trim.revision != world.trim.revision:
            raise ChangedError
        world.now += 1
        world.trim = trim._replace(revision=world.now)
        await world.while_it_travels()
        return world.trim.revision


class FakeJetStream:
    """Purges, and checks that no copy needs what goes."""

    def __init__(self, world: World, buckets: FakeBuckets) -> None:
        self.world = world
        self.buckets = buckets

    async def purge_stream(self, _name: str, *, seq: int) -> None:
        world = self.world
        await world.while_it_travels()
        assert self.buckets.fresh_begin is not None, "the copies were not read again"
        for name, (position, registered) in world.copies.items():
            was_seen = registered <= self.buckets.fresh_begin
            # One that was put back to before the stream's first message lacks that anyhow.
            is_able = position + 1 >= world.first
            assert position >= seq or not (was_seen and is_able), f"{name} needs {position}: {seq}"
        assert seq <= world.trim.sequence, "a copy that registers now would not know"
        world.purges += world.first < seq
        world.first = max(world.first, seq)


async def collector(world: World, name: str) -> None:
    """A copy that goes on, and is put back now and then."""
    position = 0
    for _ in range(ROUNDS):
        position += world.random.randrange(4)
        if world.random.random() < 0.1:
            position = world.random.randrange(position + 1)
        world.last = max(world.last, position)
        announced = await world.register(name, position)
        assert world.first <= max(position, announced.sequence, 1)


async def trimmer(world: World, name: str) -> None:
    buckets: Any = FakeBuckets(world)
    js: Any = FakeJetStream(world, buckets)
    source = TrimSource(partition=0, stream_created_ns=CREATED_NS, record_before=lambda _: None)
    here = Trimmer(
        js,
        buckets,
        [source],
        differs=lambda _: False,
        say=lambda text: pytest.fail(f"{name}: {text}"),
    )
    for _ in range(ROUNDS):
        await here.round(await buckets.read([0]))


def test_no_purge_outruns_a_copy_that_was_registered_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World(0)

    async def read_state(_js: object, _stream: str) -> StreamState:
        await world.while_it_travels()
        return StreamState(
            created_ns=CREATED_NS,
            first_sequence=world.first,
            last_sequence=world.last,
            messages=world.last - world.first + 1,
            bytes=0,
            bytes_max=-1,
            now_ns=10**18,
        )

    class FoundAtOnce:
        def __init__(self, _js: object, _stream: str) -> None: ...

        async def find(self, first: int, _last: int) -> list[Any]:
            await world.while_it_travels()
            return [SimpleNamespace(time_ns=first)] if first >= world.first else []

    monkeypatch.setattr(trim_module, "read_state", read_state)
    monkeypatch.setattr(trim_module, "Lookup", FoundAtOnce)

    async def run() -> None:
        parts = [collector(world, name) for name in ("a", "b", "c")]
        parts += [trimmer(world, name) for name in ("x", "y")]
        world.random.shuffle(parts)
        await asyncio.gather(*parts)

    purges = 0
    for seed in range(SEEDS):
        world = World(seed)
        asyncio.run(run())
        purges += world.purges
    assert purges > SEEDS
