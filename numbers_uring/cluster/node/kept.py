"""Whether the streams still have what they have acknowledged: none was made again, or put back.

A node takes each number that it has seen for a repeat: one that a stream has lost would be stored
nowhere however often a client sends it. So a node whose stream has lost something has to end.

Facts of nats-server 2.15 that it relies on:

- What a stream stores gets a higher sequence than all before, also after a purge.
- The leader of a stream answers; one that has just been chosen, or is cut off from the others, may
  tell of an earlier state.
"""

import asyncio
from typing import TYPE_CHECKING

from numbers_uring.cluster.partitions import stream_name
from numbers_uring.cluster.stream_settings import Json
from numbers_uring.cluster.streams import stream_info, time_ns
from numbers_uring.cluster.tasks import each_of
from numbers_uring.limits import FORWARD_LOST_LOOKS, FORWARD_LOST_PAUSE_S

if TYPE_CHECKING:
    from nats.js import JetStreamContext


class StreamLostError(Exception):
    """A stream does not have what it has acknowledged."""

    def __init__(self, partition: int, what: str) -> None:
        name = stream_name(partition)
        super().__init__(
            f"the stream {name} {what}; restart the node, which would take what is lost for repeats"
        )


class Kept:
    """What this node knows of each partition's stream; `infos` is what they said at the start."""

    def __init__(self, infos: list[Json]) -> None:
        self._created_ns = [time_ns(info["created"]) for info in infos]
        self._last = [0] * len(infos)

    def last(self, partition: int) -> int:
        """Return the highest sequence that was acknowledged to this node; 0 if none was."""
        return self._last[partition]

    def note(self, partition: int, sequence: int, *, above: int | None) -> None:
        """Take note of an acknowledgement.

        `above` is what `last` was when the message was sent; None if it is one of before. Raises
        StreamLostError.
        """
        if above is not None and sequence <= above:
            raise StreamLostError(partition, f"was put back to before message {above}")
        self._last[partition] = max(self._last[partition], sequence)

    async def look(self, js: "JetStreamContext") -> bool:
        """Ask for all streams, and return whether there are all.

        Raises StreamLostError, and what `stream_info` raises.
        """
        partitions = range(len(self._last))
        return all(await each_of(partitions, lambda partition: self._look_at(js, partition)))

    async def _look_at(self, js: "JetStreamContext", partition: int) -> bool:
        looks = 0
        while True:
            last = self._last[partition]
            info = await stream_info(js, stream_name(partition))
            if info is None:
                return False
            lost = self._lost(partition, last, info)
            if lost is None:
                return True
            looks += 1
            if info["config"]["num_replicas"] == 1 or looks == FORWARD_LOST_LOOKS:
                raise StreamLostError(partition, lost)
            await asyncio.sleep(FORWARD_LOST_PAUSE_S)

    def _lost(self, partition: int, last: int, info: Json) -> str | None:
        if time_ns(info["created"]) != self._created_ns[partition]:
            return "was deleted and made again"
        if info["state"]["last_seq"] < last:
            return f"was put back to before message {last}"
        return None
