"""Trims the streams: purges what all registered copies have on disk, and is old enough.

A purge never outruns a registered copy, nor the comparison of any two. It is announced in the
bucket; a round later the copies are read again, and what still can go by then is purged. A copy
that registers meanwhile is either found by that, or finds the announcement.
"""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from numbers_uring.cluster.bucket import Buckets, ChangedError
from numbers_uring.cluster.collector.lookup import (
    Lookup,
    NoAnswerError,
    NoStreamError,
    StreamState,
    read_state,
)
from numbers_uring.cluster.comparison import Floor, trim_floor
from numbers_uring.cluster.partitions import stream_name
from numbers_uring.cluster.tasks import each_of
from numbers_uring.cluster.values import Contents, Trim

if TYPE_CHECKING:
    from nats.js import JetStreamContext


@dataclass(frozen=True, slots=True, kw_only=True)
class TrimSource:
    """A partition of this process, whose stream was created at that time."""

    partition: int
    stream_created_ns: int
    record_before: Callable[[int], Floor | None]
    """Returns the last record of the index whose message is not younger than a time in the stream,
    in nanoseconds; called in a thread."""


class Trimmer:
    """Trims the streams of some partitions.

    `differs` returns whether a partition's copies were found to differ. `say` takes one line for
    the operator.
    """

    def __init__(
        self,
        js: "JetStreamContext",
        buckets: Buckets,
        sources: Sequence[TrimSource],
        *,
        differs: Callable[[int], bool],
        say: Callable[[str], None],
    ) -> None:
        self._differs = differs
        self._js = js
        self._buckets = buckets
        self.sources = sources
        self._sources = {source.partition: source for source in sources}
        self._say = say
        self._said: set[str] = set()
        self._announced: dict[int, int] = {}
        """By partition: what was announced when the last round ended."""
        self.streams: dict[int, StreamState] = {}
        """By partition, for any thread."""

    async def round(self, contents: Contents) -> None:
        """Look at all streams, announce what can go, purge what was announced a round ago.

        Raises what the client and Buckets raise.
        """
        states = await each_of(self._sources, self._ask)
        found = zip(self._sources, states, strict=True)
        self.streams = {partition: state for partition, state in found if state is not None}
        announced, self._announced = self._announced, {}
        floors = await self._floors(contents, list(self.streams))
        await each_of(
            floors, lambda partition: self._announce(partition, floors[partition], contents)
        )
        due = [
            partition
            for partition, floor in floors.items()
            if self._gain(partition, announced.get(partition, 0), floor)
        ]
        if due:
            # No replica's moment-old answer, and who registers from here on finds our announcement.
            again = await self._floors(await self._buckets.read(due, fresh=True), due)
            await each_of(
                again,
                lambda partition: self._purge(partition, announced[partition], again[partition]),
            )

    async def _floors(self, contents: Contents, partitions: Sequence[int]) -> dict[int, Floor]:
        """Return up to where each stream may be trimmed; those that may not are left out."""
        if contents.unreadable:
            return {}  # One of them may be a copy.
        found = {}
        for partition in partitions:
            source, state = self._sources[partition], self.streams[partition]
            # The points of the moment may all be of before a difference that was found earlier.
            if state.created_ns != source.stream_created_ns or self._differs(partition):
                continue
            copies = [copy for copy in contents.copies if copy.partition == partition]
            floor: Floor | str | None
            floor = trim_floor(
                copies, contents.settings, source.stream_created_ns, state.first_sequence
            )
            limit_ns = state.now_ns - int(contents.settings.keep_s * 1e9)
            if isinstance(floor, Floor) and floor.time_ns > limit_ns:
                old = await asyncio.to_thread(source.record_before, limit_ns)
                # Clocks are put back: an old message may be behind what all copies have.
                floor = None if old is None else old._replace(up_to=min(old.up_to, floor.up_to))
            if isinstance(floor, Floor):
                found[partition] = floor
        return found

    async def _announce(self, partition: int, floor: Floor, contents: Contents) -> None:
        created_ns = self._sources[partition].stream_created_ns
        before = contents.trims.get(partition, Trim(0, created_ns))
        up_to = before.sequence if before.stream_created_ns == created_ns else 0
        if floor.up_to > max(up_to, self.streams[partition].first_sequence):
            # Another collector may be faster: its announcement is found in the next round.
            with suppress(ChangedError):
                trim = Trim(floor.up_to, created_ns, before.revision)
                await self._buckets.put_trim(partition, trim)
                up_to = floor.up_to
        self._announced[partition] = up_to

    def _gain(self, partition: int, announced: int, floor: Floor) -> int:
        """Return how many messages can be purged at most."""
        return max(min(announced, floor.up_to) - self.streams[partition].first_sequence, 0)

    async def _purge(self, partition: int, announced: int, floor: Floor) -> None:
        from nats.js.errors import APIError  # noqa: PLC0415

        up_to = min(announced, floor.up_to)
        stream = stream_name(partition)
        try:
            # A server that was put back has other messages under sequences that we know.
            if self._gain(partition, announced, floor) and await self._has(stream, floor):
                await self._js.purge_stream(stream, seq=up_to)
        except APIError as error:
            self._say_once(f"cannot trim the stream {stream}: {error.description}; retrying")

    async def _ask(self, partition: int) -> StreamState | None:
        try:
            return await read_state(self._js, stream_name(partition))
        except NoStreamError:
            return None  # The partition's reader says so.

    async def _has(self, stream: str, floor: Floor) -> bool:
        """Return whether the stream has that very message."""
        try:
            found = await Lookup(self._js, stream).find(floor.sequence, floor.sequence)
        except NoAnswerError:
            return False
        return bool(found) and found[0].time_ns == floor.time_ns

    def _say_once(self, text: str) -> None:
        if text not in self._said:
            self._said.add(text)
            self._say(text)
