"""Speaks to a NATS server as nodes and collectors do: measures the NATS server alone."""

import asyncio
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from mmap import mmap
from typing import TYPE_CHECKING, NamedTuple

from background import DEADLINE_S
from numbers_uring.cluster.collector.collector import CONSUMER, consumer_config
from numbers_uring.cluster.collector.kernel import CollectKernel, ForeignNumberError
from numbers_uring.cluster.connection import connected, jetstream
from numbers_uring.cluster.node.packer import Packer
from numbers_uring.cluster.partitions import NUMBER_BYTES, range_of, stream_name, subject_name
from numbers_uring.config import BrokerAccess
from numbers_uring.limits import (
    BITMAP_BYTES,
    COLLECTOR_BATCH_BYTES,
    FETCH_BUSY_S,
    FETCH_MESSAGES,
    FORWARD_AREAS_BYTES,
    FORWARD_BATCH_BYTES,
    FORWARD_IN_FLIGHT,
    LINE_BYTES,
)
from numbers_uring.load.lines import make_lines
from numbers_uring.load.model import LoadParameters

if TYPE_CHECKING:
    from nats.aio.msg import Msg
    from nats.js import JetStreamContext

CHUNK_LINES = 100_000
LOOK_S = 0.01


class Batch(NamedTuple):
    """What a node would publish."""

    partition: int
    payload: bytes


@dataclass(frozen=True, slots=True)
class Span:
    """When something began and ended, on the system's monotonic clock, and its processor time."""

    begin_s: float
    end_s: float
    cpu_s: float


def packed_batches(parameters: LoadParameters, partitions: int) -> list[Batch]:
    """Return the numbers of a load as a node would publish them."""
    area_bytes = min(FORWARD_BATCH_BYTES, FORWARD_AREAS_BYTES // partitions)
    packer = Packer(partitions, area_bytes - area_bytes % NUMBER_BYTES)
    plain = replace(parameters, clients=1, send_bytes=LINE_BYTES)
    batches = []
    for first in range(0, plain.numbers, CHUNK_LINES):
        count = min(CHUNK_LINES, plain.numbers - first)
        lines = memoryview(make_lines(plain, first, count))
        while len(lines := lines[packer.pack(lines) :]):
            full = packer.partition_of(lines)
            batches.append(Batch(full, packer.take(full)))
    return batches + [Batch(each, packer.take(each)) for each in packer.occupied()]


def publish(url: str, parameters: LoadParameters, partitions: int) -> Span:
    """Publish the numbers of a load as a node does; return once all are acknowledged."""
    return asyncio.run(_publish(url, packed_batches(parameters, partitions)))


async def _publish(url: str, batches: Sequence[Batch]) -> Span:
    slots = asyncio.Semaphore(FORWARD_IN_FLIGHT)
    async with connected(url, "benchmark", access=BrokerAccess()) as client:
        js = jetstream(client)

        async def publish_one(number: int, batch: Batch) -> None:
            await js.publish(
                subject_name(batch.partition),
                batch.payload,
                timeout=DEADLINE_S,
                headers={"Nats-Msg-Id": f"benchmark-{number}"},
            )
            slots.release()

        begin_s, cpu_s = time.monotonic(), time.process_time()
        async with asyncio.TaskGroup() as tasks:
            for number, batch in enumerate(batches):
                await slots.acquire()
                tasks.create_task(publish_one(number, batch))
        return Span(begin_s, time.monotonic(), time.process_time() - cpu_s)


def consume(url: str, numbers: int, partitions: int) -> Span:
    """Fetch and acknowledge as a collector does, until so many numbers have come.

    Raises RuntimeError where a message has come twice, or more numbers than that.
    """
    return asyncio.run(_consume(url, numbers, partitions))


async def _consume(url: str, numbers: int, partitions: int) -> Span:
    async with (
        connected(url, "benchmark", access=BrokerAccess()) as client,
        asyncio.timeout(DEADLINE_S),
    ):
        js = jetstream(client)
        drain = _Drain(js, numbers * NUMBER_BYTES)
        for partition in range(partitions):
            await js.add_consumer(stream_name(partition), consumer_config())
        begin_s, cpu_s = time.monotonic(), time.process_time()
        streams = [asyncio.create_task(drain.stream(each)) for each in range(partitions)]
        everything = asyncio.create_task(drain.done.wait())
        await asyncio.wait({everything, *streams}, return_when=asyncio.FIRST_COMPLETED)
        span = Span(begin_s, time.monotonic(), time.process_time() - cpu_s)
        await asyncio.gather(*streams)
    return span


class _Drain:
    """What has come of all streams together; `done` is set once it is `wanted_bytes`."""

    def __init__(self, js: "JetStreamContext", wanted_bytes: int) -> None:
        self.done = asyncio.Event()
        self._js = js
        self._wanted_bytes = wanted_bytes
        self._got_bytes = 0

    async def stream(self, partition: int) -> None:
        name = stream_name(partition)
        subscription = await self._js.pull_subscribe_bind(CONSUMER, name)
        seen: set[int] = set()
        fetch = asyncio.create_task(_fetch(subscription))
        while not self.done.is_set():
            messages, fetch = await fetch, asyncio.create_task(_fetch(subscription))
            for message in messages:
                await message.ack()
                seen.add(message.metadata.sequence.stream)
                self._got_bytes += len(message.data)
            if self._got_bytes >= self._wanted_bytes:
                self.done.set()
        await fetch
        state = (await self._js.stream_info(name)).state
        if len(seen) != state.messages or self._got_bytes != self._wanted_bytes:
            raise RuntimeError(f"{name}: messages were lost, or delivered twice")


async def _fetch(subscription: "JetStreamContext.PullSubscription") -> "Sequence[Msg]":
    from nats.js.errors import ServiceUnavailableError  # noqa: PLC0415

    messages: Sequence[Msg] = ()
    # The latter is a group that has no leader of the consumer yet.
    with suppress(TimeoutError, ServiceUnavailableError):
        messages = await subscription.fetch(FETCH_MESSAGES, FETCH_BUSY_S)
    return messages


def until_acknowledged(url: str, partitions: int) -> None:
    """Return once the collectors have acknowledged, and so synced, all that the streams hold."""
    asyncio.run(_until_acknowledged(url, partitions))


async def _until_acknowledged(url: str, partitions: int) -> None:
    async with (
        connected(url, "benchmark", access=BrokerAccess()) as client,
        asyncio.timeout(DEADLINE_S),
    ):
        js = jetstream(client)
        for partition in range(partitions):
            last = (await js.stream_info(stream_name(partition))).state.last_seq
            while last:
                floor = (await js.consumer_info(stream_name(partition), CONSUMER)).ack_floor
                if floor is not None and floor.stream_seq == last:
                    break
                await asyncio.sleep(LOOK_S)


def stored(url: str, partitions: int) -> tuple[bytearray, int]:
    """Return the bitmap of the numbers that the streams hold, and how many are there again.

    Raises RuntimeError where a number is in another partition's stream.
    """
    return asyncio.run(_stored(url, partitions))


async def _stored(url: str, partitions: int) -> tuple[bytearray, int]:
    repeats = 0
    bitmap = mmap(-1, BITMAP_BYTES)
    async with (
        connected(url, "benchmark", access=BrokerAccess()) as client,
        asyncio.timeout(DEADLINE_S),
    ):
        js = jetstream(client)
        for partition in range(partitions):
            kernel = CollectKernel(range_of(partition, partitions), bitmap, COLLECTOR_BATCH_BYTES)
            await _read(js, partition, kernel)
            repeats += kernel.duplicate
    return bytearray(bitmap), repeats


async def _read(js: "JetStreamContext", partition: int, kernel: CollectKernel) -> None:
    """Take in all messages of the stream, each by its number."""
    stream = stream_name(partition)
    state = (await js.stream_info(stream)).state
    for sequence in range(state.first_seq, state.last_seq + 1):
        message = await js.get_msg(stream, sequence)
        try:
            kernel.take(message.data or b"")
        except ForeignNumberError as error:
            raise RuntimeError(f"{stream} has numbers of another partition") from error
        kernel.clear()
