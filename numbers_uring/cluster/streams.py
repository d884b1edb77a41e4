"""Asks for the streams of a cluster: whether they are there, as they have to be, and up to date.

Facts of nats-server 2.15 that it relies on:

- A replica tells its leader of itself each second. One that is dead counts as current for ten
  seconds, and not as offline for long.
"""

import math
import re
from collections.abc import Iterator
from datetime import datetime
from typing import TYPE_CHECKING, NamedTuple

from numbers_uring.cluster.bucket import Buckets
from numbers_uring.cluster.connection import broker_errors, request_api
from numbers_uring.cluster.partitions import stream_name
from numbers_uring.cluster.stream_settings import Json, wrong_stream_settings
from numbers_uring.cluster.tasks import each_of
from numbers_uring.errors import StartError
from numbers_uring.limits import NANOSECONDS_PER_S, REPLICA_SILENT_S
from numbers_uring.words import counted

if TYPE_CHECKING:
    from nats.js import JetStreamContext


def time_ns(text: str) -> int:
    """Return a time of a NATS server, such as 2026-11-27T20:48:37.894474045Z, in nanoseconds.

    Raises ValueError.
    """
    match = re.fullmatch(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?(Z|[+-]\d\d:\d\d)", text)
    if match is None:
        raise ValueError(f"{text!r} is no time")
    seconds = datetime.fromisoformat(match[1] + match[3].replace("Z", "+00:00")).timestamp()
    return int(seconds) * NANOSECONDS_PER_S + int((match[2] or "").ljust(9, "0"))


class LateReplica(NamedTuple):
    """A replica that does not have everything."""

    name: str
    is_silent: bool
    """Whether the leader has not heard from it for some time, or not yet."""
    lag: int
    """How many operations it is behind, if that is known."""

    @property
    def text(self) -> str:
        return f"the replica on {self.name} {'is silent' if self.is_silent else 'is not current'}"


def late_replicas(info: Json) -> list[LateReplica]:
    """Return the replicas of a stream that are not as they should be; one is its leader."""
    replicas = (info.get("cluster") or {}).get("replicas") or []
    late = []
    for each in replicas:
        is_current, active_ns = bool(each.get("current")), each.get("active") or 0
        # One that the leader has never heard of has no time.
        silent_s = active_ns / NANOSECONDS_PER_S if active_ns or is_current else math.inf
        is_silent = silent_s >= REPLICA_SILENT_S or bool(each.get("offline"))
        if is_silent or not is_current:
            late.append(LateReplica(str(each.get("name")), is_silent, int(each.get("lag") or 0)))
    missing = info["config"]["num_replicas"] - 1 - len(replicas)
    return late + [LateReplica("another server", False, 0)] * missing


async def stream_info(js: "JetStreamContext", name: str) -> Json | None:
    """Return what the NATS server tells of a stream; None if it has none of that name."""
    from nats.js.errors import NotFoundError  # noqa: PLC0415

    try:
        return await request_api(js, f"STREAM.INFO.{name}")
    except NotFoundError:
        return None


async def recorded_partitions(js: "JetStreamContext") -> int:
    """Return how many partitions the cluster was made with. Raises StartError."""
    with broker_errors("read the cluster's settings"):
        return (await Buckets(js).settings()).partitions


def check_number(recorded: int, partitions: int) -> None:
    """Raise StartError if the cluster was made with another number of partitions."""
    if recorded != partitions:
        raise StartError(
            f"the cluster has {counted(recorded, 'partition')}, not {partitions}: their ranges "
            "differ, so another number needs other streams, on a NATS server of their own"
        )


async def check_streams(js: "JetStreamContext", partitions: int) -> list[Json]:
    """Return what the NATS server tells of each partition's stream.

    Raises StartError, naming the setting, where a stream would not keep the cluster's promise, and
    where the cluster was made with another number of partitions, or not at all.
    """
    check_number(await recorded_partitions(js), partitions)
    return await each_of(range(partitions), lambda partition: _check_stream(js, partition))


async def _check_stream(js: "JetStreamContext", partition: int) -> Json:
    name = stream_name(partition)
    with broker_errors(f"ask for the stream {name}"):
        info = await stream_info(js, name)
    if info is None:
        raise StartError(f"the NATS server has no stream {name}: run 'numbers-uring cluster init'")
    refuse(wrong_stream_settings(partition, info["config"]))
    return info


def refuse(lines: Iterator[str]) -> None:
    """Raise StartError with the first of these lines, if there is one."""
    for line in lines:
        raise StartError(line)
