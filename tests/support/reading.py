"""Readers of a stream: how tests make and drive them."""

import asyncio
from collections.abc import Callable, Collection
from typing import Any

from nats.js import JetStreamContext

from numbers_uring.cluster.collector.feed import Message
from numbers_uring.cluster.collector.lookup import StreamState, read_state
from numbers_uring.cluster.collector.reader import Reader
from numbers_uring.cluster.partitions import stream_name, subject_name
from support.waiting import DEADLINE_S


class Driven:
    """A reader, all that it has returned, and all that it has said."""

    def __init__(
        self, js: JetStreamContext, partition: int, created_ns: int, **settings: Any
    ) -> None:
        self.read: list[Message] = []
        self.said: list[str] = []
        self.informed: list[str] = []
        self.skipped: set[int] = set()
        defaults = {"position": 0, "time_ns": 0, "created_ns": created_ns}
        self.reader = Reader(
            js,
            partition,
            **(defaults | settings),
            skipped=self.skipped,
            say=self.said.append,
            inform=self.informed.append,
        )

    async def until(self, condition: Callable[[], object], what: str) -> None:
        """Read until `condition` holds; fail, naming `what`, if it does not in time."""
        try:
            async with asyncio.timeout(DEADLINE_S):
                while not condition():
                    self.read.extend(await self.reader.read())
        except TimeoutError:
            raise AssertionError(
                f"in vain for {what}: {self.sequences}, {self.reader.waits}, {self.said}"
            ) from None

    async def until_read(self, sequence: int) -> None:
        await self.until(lambda: self.reader.position >= sequence, f"message {sequence}")

    async def until_waits(self, kind: str) -> None:
        def waits() -> bool:
            return self.reader.waits is not None and self.reader.waits.kind == kind

        await self.until(waits, f"a wait of kind {kind}")

    @property
    def sequences(self) -> list[int]:
        return [message.sequence for message in self.read]


async def reader_of(js: JetStreamContext, partition: int, **settings: Any) -> Driven:
    """Return a reader of the partition's stream, from its begin unless told otherwise."""
    state = await state_of(js, partition)
    return Driven(js, partition, state.created_ns, **settings)


async def state_of(js: JetStreamContext, partition: int) -> StreamState:
    return await read_state(js, stream_name(partition))


async def publish_all(
    js: JetStreamContext,
    partition: int,
    datas: Collection[bytes],
    headers: dict[str, str] | None = None,
) -> None:
    for data in datas:
        await js.publish(subject_name(partition), data, headers=headers)
