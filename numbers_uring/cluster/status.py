"""How a cluster is: its nodes, its partitions with their streams and copies, and what is wrong."""

import asyncio
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from numbers_uring.cluster.bucket import CLUSTER_BUCKET, Buckets, NoClusterError, bucket_stream
from numbers_uring.cluster.connection import broker_errors
from numbers_uring.cluster.partitions import stream_name
from numbers_uring.cluster.problems import (
    CopyStatus,
    PartitionStatus,
    Problem,
    StreamStatus,
    is_gone,
    problems,
)
from numbers_uring.cluster.stream_settings import BUCKETS
from numbers_uring.cluster.streams import stream_info, time_ns
from numbers_uring.cluster.tasks import each_of
from numbers_uring.cluster.values import Copy, Node, Settings, Skip, Trim
from numbers_uring.limits import (
    COPY_BEHIND_S,
    MESSAGE_TIMES_MAX,
    STATUS_ANSWER_S,
)

if TYPE_CHECKING:
    from nats.js import JetStreamContext


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterStatus:
    """All that `cluster status` shows."""

    settings: Settings
    replicas: int
    nodes: list[Node]
    partitions: list[PartitionStatus]
    skips: list[Skip]
    trims: dict[int, Trim]
    problems: list[Problem]
    time: float

    def as_json(self) -> dict[str, Any]:
        """Return it as JSON has it, with the totals."""
        settings = self.settings
        return {
            "ok": not self.problems,
            "time": self.time,
            "problems": [problem._asdict() for problem in self.problems],
            "settings": {
                "partitions": settings.partitions,
                "replicas": self.replicas,
                "copies": settings.copies,
                "keep_s": settings.keep_s,
            },
            "nodes": [_node_json(node) for node in self.nodes],
            "partitions": [self._partition_json(one) for one in self.partitions],
            "totals": self.totals,
        }

    @property
    def totals(self) -> dict[str, Any]:
        each = self.partitions
        return {
            "nodes": sum(not is_gone(node) for node in self.nodes),
            "nodes_gone": sum(map(is_gone, self.nodes)),
            "partitions": len(each),
            "collected": sum(one.running > 0 for one in each),
            "copies": sum(one.running for one in each),
            "numbers": sum(one.numbers for one in each),
            "per_s": sum(one.per_s for one in each),
            "lag_messages": sum(one.lag_messages for one in each),
            "bytes": sum(one.stream.bytes for one in each),
            "full_share": max((one.stream.full_share for one in each), default=0.0),
        }

    def _partition_json(self, one: PartitionStatus) -> dict[str, Any]:
        stream, trim = one.stream, self.trims.get(one.partition)
        return {
            "partition": one.partition,
            "numbers": one.numbers,
            "per_s": one.per_s,
            "lag_messages": one.lag_messages,
            "stream": {
                "name": stream.name,
                "answers": stream.info is not None,
                "messages": stream.messages,
                "first_sequence": stream.first_sequence,
                "last_sequence": stream.last_sequence,
                "bytes": stream.bytes,
                "max_bytes": stream.max_bytes,
                "full_share": stream.full_share,
                "replicas": stream.replicas,
                "leader": stream.leader,
            },
            "trim_announced": None if trim is None else trim.sequence,
            "skipped": [
                [skip.sequence, skip.last_sequence]
                for skip in self.skips
                if (skip.partition, skip.stream_created_ns) == (one.partition, stream.created_ns)
            ],
            "copies": [_copy_json(each) for each in one.copies],
        }


def _node_json(node: Node) -> dict[str, Any]:
    return {
        "run": node.run,
        "host": node.host,
        "state": "gone" if is_gone(node) else "running",
        "age_s": node.age_s,
        "time": node.time,
        "unique": node.unique,
        "duplicate": node.duplicate,
        "acknowledged": node.acknowledged,
        "in_flight": node.in_flight,
        "clients": node.clients,
    }


def _copy_json(each: CopyStatus) -> dict[str, Any]:
    copy = each.copy
    return {
        "copy": copy.copy,
        "run": copy.run,
        "host": copy.host,
        "log": copy.log,
        "state": each.state,
        "waits": copy.waits,
        "age_s": copy.age_s,
        "time": copy.time,
        "sequence": copy.sequence,
        "lag_messages": each.lag_messages,
        "lag_s": each.lag_s,
        "numbers": copy.count,
        "sum": copy.sum,
        "log_bytes": copy.log_bytes,
        "per_s": copy.per_s,
    }


class StatusReader:
    """Asks the NATS server of `js`, in a few rounds, as often as `read` is called."""

    def __init__(self, js: "JetStreamContext") -> None:
        self._js = js
        self._buckets = Buckets(js)
        self._times: dict[tuple[str, int], int | None] = {}
        """When messages were stored that copies lacked when they were looked at last."""

    async def read(self) -> ClusterStatus:
        """Raises StartError."""
        with broker_errors("read the cluster's status"):
            # The copies before their streams: a stream that ends before a copy has gone back.
            contents = await self._buckets.read()
            nodes, unreadable = await self._read_nodes()
            settings = contents.settings
            names = [*map(bucket_stream, BUCKETS), *map(stream_name, range(settings.partitions))]
            found = await each_of(names, self._read_stream)
            streams = dict(zip(names, found, strict=True))
            copies = await self._read_copies(contents.copies, streams)
        by_partition: dict[int, list[CopyStatus]] = {}
        for each in copies:
            by_partition.setdefault(each.copy.partition, []).append(each)
        replicas = streams[bucket_stream(CLUSTER_BUCKET)].replicas
        partitions = [
            PartitionStatus(
                partition=partition,
                stream=streams[stream_name(partition)],
                copies=by_partition.get(partition, []),
            )
            for partition in range(settings.partitions)
        ]
        buckets = {bucket: streams[bucket_stream(bucket)] for bucket in BUCKETS}
        wrong = list(problems(settings, replicas, nodes, partitions, buckets))
        wrong += [Problem("unreadable", line) for line in (*contents.unreadable, *unreadable)]
        # All of one kind together; the kinds in the order of their first ones.
        kinds = list(dict.fromkeys(problem.kind for problem in wrong))
        wrong.sort(key=lambda problem: kinds.index(problem.kind))
        return ClusterStatus(
            settings=settings,
            replicas=replicas,
            nodes=nodes,
            partitions=partitions,
            skips=contents.skips,
            trims=contents.trims,
            problems=wrong,
            time=time.time(),
        )

    async def _read_nodes(self) -> tuple[list[Node], list[str]]:
        try:
            return await self._buckets.nodes()
        except NoClusterError:
            return [], []  # The missing bucket is a problem of its own.

    async def _read_stream(self, name: str) -> StreamStatus:
        """Ask for a stream; one without a leader does not end the command."""
        from nats.js.errors import ServiceUnavailableError  # noqa: PLC0415

        try:
            async with asyncio.timeout(STATUS_ANSWER_S):
                info = await stream_info(self._js, name)
        except (ServiceUnavailableError, TimeoutError):
            return StreamStatus(name=name, info=None)
        return StreamStatus(name=name, info=info, exists=info is not None)

    async def _read_copies(
        self, copies: list[Copy], streams: dict[str, StreamStatus]
    ) -> list[CopyStatus]:
        """Ask for the first message that each copy lacks, unless it can't be old."""
        lacking = {}
        for copy in copies:
            stream = streams[stream_name(copy.partition)]
            key = (stream.name, max(copy.sequence + 1, stream.first_sequence))
            if key[1] <= stream.last_sequence and copy.message_time_ns < _limit_ns(stream):
                lacking[key] = self._times.get(key)
        # The messages come with the times, and they are large.
        unknown = [key for key, known_ns in lacking.items() if known_ns is None]
        unknown = unknown[:MESSAGE_TIMES_MAX]
        lacking.update(zip(unknown, await each_of(unknown, self._message_time_ns), strict=True))
        self._times = lacking
        return [
            _copy_status(copy, streams[stream_name(copy.partition)], self._times) for copy in copies
        ]

    async def _message_time_ns(self, key: tuple[str, int]) -> int | None:
        """Return the time of the first message that there is from a sequence on."""
        from nats.js.errors import APIError  # noqa: PLC0415

        try:
            found = await self._js.get_msg(*key, subject=">", direct=True, next=True)
        except (APIError, TimeoutError):
            return None
        return None if found.time is None else round(found.time.timestamp() * 1e9)


def _limit_ns(stream: StreamStatus) -> int:
    """Return the time of the oldest message that a copy may lack without being behind."""
    now_ns = 0 if stream.info is None else time_ns(stream.info["ts"])
    return now_ns - round(COPY_BEHIND_S * 1e9)


def _copy_status(
    copy: Copy, stream: StreamStatus, times_ns: dict[tuple[str, int], int | None]
) -> CopyStatus:
    first = max(copy.sequence + 1, stream.first_sequence)
    lag_messages = max(0, stream.last_sequence - first + 1)
    if stream.info is None or not lag_messages:
        return CopyStatus(copy=copy, lag_messages=0, lag_s=0.0)
    # If it was not asked for, it came after the last one that the copy has.
    oldest_ns = times_ns.get((stream.name, first)) or max(
        copy.message_time_ns, time_ns(stream.info["state"]["first_ts"])
    )
    lag_s = max(0.0, (time_ns(stream.info["ts"]) - oldest_ns) / 1e9)
    return CopyStatus(copy=copy, lag_messages=lag_messages, lag_s=lag_s)
