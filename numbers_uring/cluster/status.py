"""How a cluster is: nodes, partitions with their collectors, and what waits in the streams."""

from dataclasses import asdict, dataclass
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from numbers_uring.cluster.bucket import Buckets, Copy, Node
from numbers_uring.cluster.connection import broker_errors
from numbers_uring.cluster.partitions import stream_name
from numbers_uring.cluster.streams import each_of, recorded_partitions
from numbers_uring.ingest.report import rate_text
from numbers_uring.limits import NODE_GONE_S

if TYPE_CHECKING:
    from nats.js import JetStreamContext


@dataclass(frozen=True, slots=True, kw_only=True)
class PartitionStatus:
    """One partition at one moment."""

    partition: int
    collector: str | None
    """The host of the copy that is furthest; None if there is none."""
    log: str | None
    numbers: int
    """In its log, as its collector said last."""
    per_s: float
    """The rate at which its collector took numbers in recently."""
    lag_messages: int
    """Messages that this copy does not have yet."""
    messages: int
    bytes: int
    max_bytes: int
    """Of the stream: what it keeps, and how much it may keep at most."""
    leader: str | None
    """The server that leads the stream's replicas; None if there is only one, or none leads."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterStatus:
    """All that `cluster status` tells."""

    nodes: list[Node]
    """What each node said of itself in the last moments."""
    partitions: list[PartitionStatus]

    def as_json(self) -> dict[str, Any]:
        """Return it as JSON has it, with the totals."""
        each = self.partitions
        return {
            "nodes": [asdict(node) for node in self.nodes],
            "partitions": [asdict(one) for one in each],
            "totals": {
                "nodes": len(self.nodes),
                "partitions": len(each),
                "collected": sum(one.collector is not None for one in each),
                "numbers": sum(one.numbers for one in each),
                "per_s": sum(one.per_s for one in each),
                "lag_messages": sum(one.lag_messages for one in each),
                "bytes": sum(one.bytes for one in each),
            },
        }

    def as_text(self) -> str:
        """Return it for people: a line for each node and each partition, and one for all."""
        lines = [_node_text(node) for node in self.nodes]
        for one in self.partitions:
            fill = 100 * one.bytes // one.max_bytes if one.max_bytes > 0 else 0
            lines.append(
                f"partition {one.partition}: {one.collector or 'no collector'}, "
                f"{one.numbers} numbers, {rate_text(one.per_s)}, lag {one.lag_messages} messages, "
                f"stream {one.bytes / 1e6:.1f} MB ({fill} % full)"
            )
        totals = self.as_json()["totals"]
        lines.append(
            f"{totals['nodes']} nodes, {totals['collected']} of {totals['partitions']} partitions "
            f"collected, {totals['numbers']} numbers, {rate_text(totals['per_s'])}, "
            f"lag {totals['lag_messages']} messages, streams {totals['bytes'] / 1e6:.1f} MB"
        )
        return "\n".join(lines)


def _node_text(node: Node) -> str:
    return (
        f"node {node.run} on {node.host}: unique {node.unique}, duplicate {node.duplicate}, "
        f"acknowledged {node.acknowledged}, in flight {node.in_flight}, clients {node.clients}"
    )


async def read_status(js: "JetStreamContext") -> ClusterStatus:
    """Ask the NATS server. Raises StartError."""
    partitions = await recorded_partitions(js)
    with broker_errors("read the cluster's status"):
        copies = (await Buckets(js).read()).copies
        found = await each_of(
            range(partitions),
            lambda partition: _read_partition(
                js, partition, [copy for copy in copies if copy.partition == partition]
            ),
        )
        nodes, _ = await Buckets(js).nodes()
        nodes = [node for node in nodes if node.age_s < NODE_GONE_S]
        return ClusterStatus(nodes=nodes, partitions=found)


async def _read_partition(
    js: "JetStreamContext", partition: int, copies: list[Copy]
) -> PartitionStatus:
    info = await js.stream_info(stream_name(partition))
    first = max(copies, key=attrgetter("sequence"), default=None)
    return PartitionStatus(
        partition=partition,
        collector=None if first is None else first.host,
        log=None if first is None else first.log,
        numbers=0 if first is None else first.count,
        per_s=0.0 if first is None else first.per_s,
        lag_messages=info.state.last_seq - (0 if first is None else first.sequence),
        messages=info.state.messages,
        bytes=info.state.bytes,
        max_bytes=info.config.max_bytes or 0,
        leader=None if info.cluster is None else info.cluster.leader,
    )
