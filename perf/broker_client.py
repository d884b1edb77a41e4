"""Speaks to a NATS server as nodes and collectors do: measures the NATS server alone."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from mmap import mmap
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import click

from background import DEADLINE_S
from numbers_uring.cluster.collector.kernel import CollectKernel, ForeignNumberError
from numbers_uring.cluster.collector.lookup import read_state
from numbers_uring.cluster.collector.reader import Reader
from numbers_uring.cluster.connection import connected, jetstream
from numbers_uring.cluster.index import read_index
from numbers_uring.cluster.node.packer import Packer
from numbers_uring.cluster.partitions import (
    NUMBER_BYTES,
    index_name,
    range_of,
    stream_name,
    subject_name,
)
from numbers_uring.config import BrokerAccess
from numbers_uring.limits import (
    BITMAP_BYTES,
    COLLECTOR_BATCH_BYTES,
    FORWARD_AREAS_BYTES,
    FORWARD_BATCH_BYTES,
    FORWARD_IN_FLIGHT,
    LINE_BYTES,
)
from numbers_uring.load.lines import make_lines
from numbers_uring.load.model import LoadParameters

if TYPE_CHECKING:
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
    """Read as a collector does, until so many numbers have come.

    Raises RuntimeError where more numbers than that come.
    """
    return asyncio.run(_consume(url, numbers, partitions))


async def _consume(url: str, numbers: int, partitions: int) -> Span:
    async with (
        connected(url, "benchmark", access=BrokerAccess()) as client,
        asyncio.timeout(DEADLINE_S),
    ):
        js = jetstream(client)
        readers = [await _reader(js, partition) for partition in range(partitions)]
        begin_s, cpu_s = time.monotonic(), time.process_time()
        drain = _Drain(numbers * NUMBER_BYTES)
        async with asyncio.TaskGroup() as streams:
            tasks = [streams.create_task(drain.stream(reader)) for reader in readers]
            await drain.done.wait()
            span = Span(begin_s, time.monotonic(), time.process_time() - cpu_s)
            for task in tasks:
                task.cancel()
        for reader in readers:
            await reader.close()
    if drain.got_bytes != numbers * NUMBER_BYTES:
        raise RuntimeError("more numbers have come than were sent")
    return span


class _Drain:
    """What has come of all streams together; `done` is set once it is `wanted_bytes`."""

    def __init__(self, wanted_bytes: int) -> None:
        self.done = asyncio.Event()
        self.got_bytes = 0
        self._wanted_bytes = wanted_bytes

    async def stream(self, reader: Reader) -> None:
        while True:
            for message in await reader.read():
                self.got_bytes += len(message.data)
            if self.got_bytes >= self._wanted_bytes:
                self.done.set()


async def _reader(js: "JetStreamContext", partition: int) -> Reader:
    """Return a reader of the partition's stream from its first message on."""
    state = await read_state(js, stream_name(partition))
    return Reader(
        js,
        partition,
        position=0,
        time_ns=0,
        created_ns=state.created_ns,
        skipped=(),
        say=click.echo,
        inform=click.echo,
    )


def until_synced(url: str, logs: Sequence[Path]) -> None:
    """Return once the logs' indexes say that all is synced that the streams hold."""
    asyncio.run(_until_synced(url, logs))


async def _until_synced(url: str, logs: Sequence[Path]) -> None:
    async with (
        connected(url, "benchmark", access=BrokerAccess()) as client,
        asyncio.timeout(DEADLINE_S),
    ):
        js = jetstream(client)
        for partition, log in enumerate(logs):
            last = (await read_state(js, stream_name(partition))).last_sequence
            while _synced(log.with_name(index_name(partition))) < last:
                await asyncio.sleep(LOOK_S)


def _synced(index: Path) -> int:
    """Return the last message that an index has; 0 where its collector has not made it yet."""
    try:
        records = read_index(index).records
    except FileNotFoundError:
        return 0
    return records[-1].sequence if records else 0


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
    """Take in all messages of the stream."""
    stream = stream_name(partition)
    last = (await read_state(js, stream)).last_sequence
    reader = await _reader(js, partition)
    while reader.position < last:
        for message in await reader.read():
            try:
                kernel.take(message.data)
            except ForeignNumberError as error:
                raise RuntimeError(f"{stream} has numbers of another partition") from error
            kernel.clear()
    await reader.close()
