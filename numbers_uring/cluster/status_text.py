"""A cluster's status for people: totals and problems, nodes and partitions, on 80 columns."""

from collections.abc import Iterator
from itertools import groupby

from numbers_uring.cluster.comparison import is_alive
from numbers_uring.cluster.problems import PartitionStatus, is_gone
from numbers_uring.cluster.status import ClusterStatus
from numbers_uring.cluster.values import Node
from numbers_uring.ingest.report import rate_text
from numbers_uring.limits import PROBLEMS_SHOWN_MAX
from numbers_uring.words import counted


def head(found: ClusterStatus) -> list[str]:
    """Return the totals, and each problem in a line."""
    totals, settings = found.totals, found.settings
    keep = f"keep {settings.keep_s:g} s" if settings.keep_s else "no trimming"
    gone = f" and {totals['nodes_gone']} gone" if totals["nodes_gone"] else ""
    lines = [
        f"cluster: {totals['collected']} of {counted(totals['partitions'], 'partition')} "
        f"collected, {counted(totals['nodes'], 'node')}{gone}",
        f"         replicas {found.replicas}, copies {settings.copies}, {keep}",
        f"         {counted(totals['numbers'], 'number')}, {rate_text(totals['per_s'])}, "
        f"lag {counted(totals['lag_messages'], 'message')}",
        f"         streams {totals['bytes'] / 1e6:.1f} MB, {totals['full_share']:.0%} full at most",
    ]
    for _, some in groupby(found.problems, key=lambda problem: problem.kind):
        same = list(some)
        lines += [f"problem: {problem.text}" for problem in same[:PROBLEMS_SHOWN_MAX]]
        if len(same) > PROBLEMS_SHOWN_MAX:
            lines.append(f"problem: {len(same) - PROBLEMS_SHOWN_MAX} more like the last one")
    if not found.problems:
        lines.append("no problems")
    return lines


def body(found: ClusterStatus) -> list[str]:
    """Return what nodes and partitions are like."""
    lines = []
    if found.nodes:
        lines.append(
            f"{'node':16}  {'host':17} {'clients':>7} {'acknowledged':>12} {'in flight':>10}  state"
        )
        lines += [_node_text(node) for node in found.nodes]
    for one in found.partitions:
        lines += _partition_text(one)
    return lines


def as_text(found: ClusterStatus) -> str:
    """Return it for people: the problems come last, where they are seen."""
    return "\n".join([*body(found), *head(found)])


def _node_text(node: Node) -> str:
    state = f"gone, {node.age_s:.0f} s ago" if is_gone(node) else "running"
    return (
        f"{node.run:16}  {node.host[:17]:17} {node.clients:7} {node.acknowledged:12} "
        f"{node.in_flight:10}  {state}"
    )


def _partition_text(one: PartitionStatus) -> Iterator[str]:
    stream = one.stream
    if stream.info is None:
        yield f"partition {one.partition}: the stream {stream.name} does not answer"
    else:
        yield (
            f"partition {one.partition}: {counted(one.numbers, 'number')}, last message "
            f"{stream.last_sequence}, {stream.bytes / 1e6:.1f} MB ({stream.full_share:.0%} full)"
        )
    if not one.copies:
        yield "  no copy"
    for each in one.copies:
        copy = each.copy
        rate = rate_text(copy.per_s) if is_alive(copy) else ""
        yield (
            f"  {copy.copy:12} {copy.host[:14]:14} at {copy.sequence:<10} "
            f"lag {each.lag_messages:<7} {rate:>9}  {each.state}"
        )
