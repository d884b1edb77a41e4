"""Makes the streams and buckets of a cluster, and grows those that exist; it may be run again.

Facts of nats-server 2.15 that it relies on:

- Creating a stream that exists with the same settings succeeds. So a request without an answer is
  sent again.
- A stream that was deleted a moment ago may still be on the disk: creating it again fails then.
- An answer to a change of replicas comes before they have anything. STREAM.INFO names each replica
  besides the leader's, whether it is current, and how far it is behind.
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

from numbers_uring.cluster.bucket import (
    CLUSTER_BUCKET,
    Buckets,
    ChangedError,
    NoClusterError,
    bucket_stream,
)
from numbers_uring.cluster.connection import broker_errors, request_api
from numbers_uring.cluster.partitions import stream_name
from numbers_uring.cluster.stream_settings import (
    BUCKETS,
    Json,
    bucket_config,
    default_max_bytes,
    stream_config,
    wrong_bucket_settings,
    wrong_stream_settings,
)
from numbers_uring.cluster.streams import (
    check_number,
    late_replicas,
    refuse,
    stream_info,
)
from numbers_uring.cluster.tasks import each_of
from numbers_uring.cluster.values import Settings
from numbers_uring.errors import StartError
from numbers_uring.limits import (
    BROKER_REQUEST_TRIES,
    REPLICAS_POLL_S,
    REPLICAS_PROGRESS_S,
    REPLICAS_STUCK_S,
)

if TYPE_CHECKING:
    from nats.js import JetStreamContext


_STILL_THERE = "error creating store"


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """What a cluster has, and how many of its streams are new or have changed."""

    settings: Settings
    replicas: int
    created: int
    changed: int


async def init_cluster(
    js: "JetStreamContext",
    partitions: int,
    *,
    replicas: int | None = None,
    max_bytes: int | None = None,
    copies: int | None = None,
    keep_s: float | None = None,
    say: Callable[[str], None] = lambda _text: None,
) -> Made:
    """Create what is missing, grow what is smaller, check the rest, and wait for the replicas.

    What is None stays as it is; for a new cluster it is one replica, room in each stream for each
    number of its partition STREAM_NUMBERS_TIMES, no copies, no trimming. `say` gets a line from
    time to time while replicas are on their way. Raises StartError.
    """
    making = _Making(js, partitions, max_bytes, say)
    with broker_errors("make the cluster's buckets"):
        await making.check_before()
        making.replicas = replicas or await making.replicas_so_far()
        for bucket in BUCKETS:
            await making.make_bucket(bucket)
        settings = await making.settle(copies, keep_s)
    with broker_errors("make the cluster's streams"):
        done = await each_of(range(partitions), making.make_stream)
        making.changed |= {stream_name(index) for index, how in enumerate(done) if how != "kept"}
    with broker_errors("wait for the replicas"):
        await making.wait_for_replicas()
    return Made(
        settings=settings,
        replicas=making.replicas,
        created=done.count("created"),
        changed=done.count("changed"),
    )


class _Behind(NamedTuple):
    """A stream whose replicas do not have everything."""

    name: str
    missing: int
    """Replicas that are not current."""
    lag: int
    """How much they are behind, together."""
    where: str


class _Making:
    """One run of `init_cluster`."""

    replicas: int
    changed: set[str]
    """The streams that were made, or changed, by this run."""

    def __init__(
        self,
        js: "JetStreamContext",
        partitions: int,
        max_bytes: int | None,
        say: Callable[[str], None],
    ) -> None:
        self._js = js
        self._buckets = Buckets(js)
        self._partitions = partitions
        self._max_bytes = max_bytes
        self._say = say
        self.changed = set()

    async def check_before(self) -> None:
        """Raise StartError if there is a cluster that is another one, before anything changes."""
        await self._buckets.check_version()
        there = await self._settings()
        if there is not None:
            check_number(there.partitions, self._partitions)
            return
        # Without the bucket the streams tell how many there were.
        beyond = stream_name(self._partitions)
        if await stream_info(self._js, beyond) is not None:
            raise StartError(
                f"there is a stream {beyond} of a cluster of more than {self._partitions} "
                "partitions, whose bucket is gone: give the number that it had, or delete its "
                "streams if their numbers are not needed"
            )

    async def replicas_so_far(self) -> int:
        info = await stream_info(self._js, bucket_stream(CLUSTER_BUCKET))
        return 1 if info is None else int(info["config"]["num_replicas"])

    async def make_bucket(self, bucket: str) -> None:
        name = bucket_stream(bucket)
        info = await stream_info(self._js, name)
        if info is None:
            await self._create(bucket_config(bucket, replicas=self.replicas))
        else:
            config = info["config"]
            refuse(wrong_bucket_settings(bucket, config | {"allow_direct": True}))
            if not await self._grow(config, max_bytes=None):
                return
        self.changed.add(name)

    async def settle(self, copies: int | None, keep_s: float | None) -> Settings:
        """Write the cluster's settings, as far as they are new; return all of them."""
        there = await self._settings()
        before = there or Settings(partitions=self._partitions)
        settings = replace(
            before,
            copies=before.copies if copies is None else copies,
            keep_s=before.keep_s if keep_s is None else keep_s,
        )
        if settings.keep_s and not settings.copies:
            raise StartError(
                "--keep trims what is in enough copies, so it needs --copies: how many there are"
            )
        try:
            if settings != there:
                await self._buckets.put_settings(settings, new=there is None)
        except ChangedError:
            # By another run, or by what was not answered in time.
            if settings != await self._settings():
                raise StartError(
                    "another 'numbers-uring cluster init' runs at the same time: run it again"
                ) from None
        return settings

    async def _settings(self) -> Settings | None:
        try:
            return await self._buckets.settings()
        except NoClusterError:
            return None

    async def make_stream(self, partition: int) -> str:
        """Return whether it was created, changed, or neither."""
        name = stream_name(partition)
        info = await stream_info(self._js, name)
        if info is None:
            await self._create(
                stream_config(
                    partition,
                    replicas=self.replicas,
                    max_bytes=self._max_bytes or default_max_bytes(self._partitions),
                )
            )
            return "created"
        config = info["config"]
        refuse(wrong_stream_settings(partition, config | {"allow_direct": True}))
        return "changed" if await self._grow(config, max_bytes=self._max_bytes) else "kept"

    async def _grow(self, there: Json, *, max_bytes: int | None) -> bool:
        """Change a stream so that it has the replicas and the room; return whether it had not."""
        name = there["name"]
        wanted = {"num_replicas": self.replicas, "allow_direct": True}
        if max_bytes is not None:
            wanted["max_bytes"] = max_bytes
        for setting, flag in (("num_replicas", "--replicas"), ("max_bytes", "--max-bytes")):
            value = there[setting]
            # No limit is -1, and more than any.
            if setting in wanted and (value == -1 or value > wanted[setting]):
                raise StartError(
                    f"the stream {name} has {setting} {value}, not {wanted[setting]}, and is not "
                    f"made smaller: 'nats stream edit {name} {flag} {wanted[setting]}' does that"
                )
        changed = there | wanted
        if changed == there:
            return False
        await request_api(self._js, f"STREAM.UPDATE.{name}", changed)
        return True

    async def _create(self, config: Json) -> None:
        from nats.js.errors import ServerError  # noqa: PLC0415

        for left in reversed(range(BROKER_REQUEST_TRIES)):
            try:
                await request_api(self._js, f"STREAM.CREATE.{config['name']}", config)
            except ServerError as error:
                if not left or _STILL_THERE not in (error.description or ""):
                    raise
                await asyncio.sleep(REPLICAS_POLL_S)
            else:
                return

    async def wait_for_replicas(self) -> None:
        """Return when all replicas have everything. Raises StartError if they do not go on.

        It does not wait for a server that was away before, and of which nothing new is asked.
        """
        if self.replicas == 1:
            return
        names = [*map(bucket_stream, BUCKETS), *map(stream_name, range(self._partitions))]
        state, moved_s = (0, 0), time.monotonic()
        said_s = moved_s
        while names:
            answers = await each_of(names, self._behind)
            behind = [each for each in answers if each is not None]
            if not behind:
                return
            names = [each.name for each in behind]
            now_s = time.monotonic()
            before, state = (
                state,
                (
                    sum(each.missing for each in behind),
                    sum(each.lag for each in behind),
                ),
            )
            if state != before:
                moved_s = now_s
            first = f"the first is {behind[0].name}: {behind[0].where}"
            if now_s - moved_s >= REPLICAS_STUCK_S:
                raise StartError(
                    f"{len(behind)} streams have replicas that are not current, and do not move; "
                    f"{first}; run 'numbers-uring cluster init' again when all servers are up"
                )
            if now_s - said_s >= REPLICAS_PROGRESS_S:
                said_s = now_s
                self._say(f"waiting for the replicas of {len(behind)} streams; {first}")
            await asyncio.sleep(REPLICAS_POLL_S)

    async def _behind(self, name: str) -> _Behind | None:
        from nats.js.errors import ServiceUnavailableError  # noqa: PLC0415

        try:
            info = await stream_info(self._js, name)
        except (ServiceUnavailableError, TimeoutError):
            return _Behind(name, self.replicas, 0, "it has no leader")
        if info is None:
            raise StartError(f"the stream {name} was deleted meanwhile")
        late = late_replicas(info)
        if name not in self.changed:
            late = [each for each in late if not each.is_silent]
        if not late:
            return None
        lag = sum(each.lag for each in late)
        return _Behind(name, len(late), lag, ", ".join(each.text for each in late))
