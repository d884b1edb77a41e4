"""What is wrong with a cluster: a line for each problem, of what was read at one moment."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from numbers_uring.cluster.comparison import (
    NO_SPACE,
    STOPPED,
    copy_text,
    disagreements,
    is_alive,
)
from numbers_uring.cluster.stream_settings import (
    Json,
    wrong_bucket_settings,
    wrong_stream_settings,
)
from numbers_uring.cluster.streams import late_replicas, time_ns
from numbers_uring.cluster.values import Copy, Node, Settings
from numbers_uring.ingest.report import rate_text
from numbers_uring.limits import COPY_BEHIND_S, NODE_GONE_S, STREAM_FULL_SHARE
from numbers_uring.words import counted


class Problem(NamedTuple):
    """Something that an operator has to look at."""

    kind: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamStatus:
    """A stream at one moment."""

    name: str
    info: Json | None
    """What the NATS server tells of it; None if it does not tell anything."""
    exists: bool = True
    """False if the NATS server says that there is none."""

    def _state(self, name: str) -> int:
        return 0 if self.info is None else int(self.info["state"][name])

    @property
    def messages(self) -> int:
        return self._state("messages")

    @property
    def bytes(self) -> int:
        return self._state("bytes")

    @property
    def first_sequence(self) -> int:
        return self._state("first_seq")

    @property
    def last_sequence(self) -> int:
        return self._state("last_seq")

    @property
    def max_bytes(self) -> int | None:
        """None without a limit."""
        limit = -1 if self.info is None else int(self.info["config"]["max_bytes"])
        return limit if limit > 0 else None

    @property
    def full_share(self) -> float:
        return self.bytes / self.max_bytes if self.max_bytes else 0.0

    @property
    def created_ns(self) -> int:
        """Tells it from others of the same name."""
        return 0 if self.info is None else time_ns(self.info["created"])

    @property
    def leader(self) -> str | None:
        """The server that leads its replicas; None if none does."""
        cluster: dict[str, Any] = (self.info or {}).get("cluster") or {}
        return cluster.get("leader")

    @property
    def replicas(self) -> int:
        return 0 if self.info is None else int(self.info["config"]["num_replicas"])


@dataclass(frozen=True, slots=True, kw_only=True)
class CopyStatus:
    """A copy at one moment."""

    copy: Copy
    lag_messages: int
    """How many messages of the stream it does not have on disk."""
    lag_s: float
    """How long the first of them has been in the stream; 0 if there is none."""

    @property
    def state(self) -> str:
        if not is_alive(self.copy) and self.copy.state != STOPPED:
            return "gone"
        return self.copy.state if self.copy.waits is None else "waiting"


@dataclass(frozen=True, slots=True, kw_only=True)
class PartitionStatus:
    """A partition at one moment."""

    partition: int
    stream: StreamStatus
    copies: list[CopyStatus]

    @property
    def running(self) -> int:
        return sum(is_alive(each.copy) for each in self.copies)

    @property
    def lag_messages(self) -> int:
        """Of the copy that is behind most; all messages if there is no copy."""
        return max((each.lag_messages for each in self.copies), default=self.stream.messages)

    @property
    def numbers(self) -> int:
        return max((each.copy.count for each in self.copies), default=0)

    @property
    def per_s(self) -> float:
        return max((each.copy.per_s for each in self.copies if is_alive(each.copy)), default=0.0)


def is_gone(node: Node) -> bool:
    """Return whether a node has ended without saying so, or is cut off."""
    return node.age_s >= NODE_GONE_S


def problems(
    settings: Settings,
    replicas: int,
    nodes: Iterable[Node],
    partitions: Sequence[PartitionStatus],
    buckets: dict[str, StreamStatus],
) -> Iterator[Problem]:
    """Yield all that is wrong, but for values that cannot be read."""
    for bucket, stream in buckets.items():
        yield from _of_stream(f"the bucket {bucket}", stream, replicas)
        if stream.info is not None:
            lines = wrong_bucket_settings(bucket, stream.info["config"])
            yield from (Problem("setting", line) for line in lines)
    for node in nodes:
        if is_gone(node):
            text = f"node {node.run} on {node.host} has not reported for {_age(node.age_s)}"
            yield Problem("node_gone", text)
    for one in partitions:
        yield from _of_stream(f"the stream {one.stream.name}", one.stream, replicas)
        if one.stream.info is not None:
            lines = wrong_stream_settings(one.partition, one.stream.info["config"])
            yield from (Problem("setting", line) for line in lines)
            yield from _of_fill(one.stream)
        yield from _of_copies(one, settings)


def _of_stream(what: str, stream: StreamStatus, replicas: int) -> Iterator[Problem]:
    if not stream.exists:
        yield Problem("stream_missing", f"{what} is missing: run 'numbers-uring cluster init'")
    elif stream.info is None:
        yield Problem(
            "stream_silent", f"{what} has no leader, or does not answer: are its servers up?"
        )
    else:
        if "cluster" in stream.info and not stream.leader:
            yield Problem("stream_silent", f"{what} has no leader: are its servers up?")
        for late in late_replicas(stream.info):
            yield Problem("replica_late", f"{what}: {late.text}")
        if stream.replicas < replicas:
            yield Problem(
                "setting",
                f"{what} has num_replicas {stream.replicas} but needs {replicas}: "
                "'numbers-uring cluster init' makes it grow",
            )


def _of_fill(stream: StreamStatus) -> Iterator[Problem]:
    if stream.full_share >= STREAM_FULL_SHARE:
        yield Problem(
            "stream_full",
            f"the stream {stream.name} is {stream.full_share:.0%} full: 'numbers-uring cluster "
            "init' with --copies and --keep trims it, or with --max-bytes gives it more room",
        )


def _of_copies(one: PartitionStatus, settings: Settings) -> Iterator[Problem]:
    where = f"partition {one.partition}"
    wanted = max(settings.copies, 1)
    if one.running < wanted:
        yield Problem("copies_missing", f"{where} has {one.running} of {wanted} copies running")
    for each in one.copies:
        copy, text = each.copy, f"{where}: {copy_text(each.copy)}"
        if each.state == "gone":
            yield Problem("copy_gone", f"{text} has not reported for {_age(copy.age_s)}")
        if copy.state == NO_SPACE and is_alive(copy):
            yield Problem("copy_full", f"{text} waits: its disk has no space")
        if copy.waits is not None:
            yield Problem("copy_waits", f"{text} waits: {copy.waits}")
        if one.stream.info is None:
            continue
        if copy.stream_created_ns != one.stream.created_ns:
            yield Problem("copy_foreign", f"{text} is of another stream of the same name")
        elif copy.sequence > one.stream.last_sequence:
            yield Problem(
                "stream_went_back",
                f"{text} has taken in message {copy.sequence}, and the stream {one.stream.name} "
                f"ends at {one.stream.last_sequence}",
            )
        elif is_alive(copy) and each.lag_s >= COPY_BEHIND_S and copy.waits is None:
            moving = f"takes in {rate_text(copy.per_s)}" if copy.per_s else "takes in nothing"
            yield Problem(
                "copy_behind",
                f"{text} is {counted(each.lag_messages, 'message')} behind, the first of them from "
                f"{_age(each.lag_s)} ago, and {moving}",
            )
    for found in disagreements(each.copy for each in one.copies):
        yield Problem("copies_differ", found.text)


def _age(seconds: float) -> str:
    """Return a time for people: 90 s, 12 min, 5 h, 3 d."""
    for unit, scale in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * scale:
            return f"{seconds / scale:.0f} {unit}"
    return f"{seconds:.0f} s"
