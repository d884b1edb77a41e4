"""What the registered copies of one partition mean together: whether they differ, which of them
has what another one lacks, and what of their stream none of them needs any more.
"""

from collections.abc import Iterable, Sequence
from itertools import combinations
from typing import NamedTuple

from numbers_uring.cluster.checkpoints import Difference, difference
from numbers_uring.cluster.partitions import stream_name
from numbers_uring.cluster.values import Copy, Settings
from numbers_uring.limits import COPY_GONE_S

STARTING = "starting"
"""The state of a copy whose collector has not found where to go on."""

NO_SPACE = "no space"
"""The state of a copy whose disk is full."""

STOPPED = "stopped"
"""The state of a copy whose collector has ended in order."""


class Disagreement(NamedTuple):
    """Two copies of a partition that differ, and where they begin to."""

    one: Copy
    other: Copy
    where: Difference

    @property
    def text(self) -> str:
        """Name both, and the messages between which they began to differ."""
        where = self.where
        return (
            f"partition {self.one.partition}: {copy_text(self.one)} and {copy_text(self.other)} "
            f"differ: equal up to message {where.equal_until} of the stream "
            f"{stream_name(self.one.partition)}, different at message {where.differs_at}"
        )


def copy_text(copy: Copy) -> str:
    """Return how a line for the operator names a copy."""
    return f"copy {copy.copy} ({copy.log} on {copy.host})"


def is_alive(copy: Copy) -> bool:
    """Return whether the collector of a copy may still run."""
    return copy.state != STOPPED and copy.age_s <= COPY_GONE_S


def disagreements(copies: Iterable[Copy]) -> list[Disagreement]:
    """Return all pairs of copies that differ; copies of other partitions or streams never do."""
    found = []
    for one, other in combinations(copies, 2):
        if (one.partition, one.stream_created_ns) != (other.partition, other.stream_created_ns):
            continue
        where = difference(one.points, other.points)
        if where is not None:
            found.append(Disagreement(one, other, where))
    return found


def share_points(one: Copy, other: Copy, since: int) -> bool:
    """Return whether the two can be compared at a message from `since` on."""
    known = {point.sequence for point in other.points}
    return any(point.sequence in known for point in one.points if point.sequence >= since)


def passed_by(copies: Iterable[Copy], own: Copy, sequence: int) -> Copy | None:
    """Return the copy that is to be copied where `own` waits for a message that others have passed.

    None if no other copy of the same stream has, without a difference to `own`.
    """
    others = [
        copy
        for copy in copies
        if copy.copy != own.copy
        and copy.partition == own.partition
        and copy.stream_created_ns == own.stream_created_ns
        and copy.sequence >= sequence
        and difference(copy.points, own.points) is None
    ]
    return max(others, key=lambda copy: (copy.sequence, copy.copy), default=None)


def compared_until(copies: Iterable[Copy]) -> int | None:
    """Return up to which message each pair of these copies was compared; None without any pair.

    What differs behind it is found by no one yet.
    """
    return min((_last_shared(one, other) for one, other in combinations(copies, 2)), default=None)


def _last_shared(one: Copy, other: Copy) -> int:
    known = {point.sequence for point in other.points}
    return max((point.sequence for point in one.points if point.sequence in known), default=0)


class Floor(NamedTuple):
    """A message that all copies have on disk, and up to where none of them needs the stream."""

    sequence: int
    time_ns: int
    up_to: int
    """Not behind `sequence`. It stays in the stream, because a copy begins with a look at the
    message of its position."""


def trim_floor(
    copies: Sequence[Copy], settings: Settings, stream_created_ns: int, first_sequence: int
) -> Floor | str:
    """Return up to where the copies of one partition allow to trim its stream, or why they don't.

    `stream_created_ns` tells the stream from an earlier one of the same name; it begins at
    `first_sequence`.
    """
    if not settings.copies or not settings.keep_s:
        return "trimming was not asked for"
    foreign = [copy for copy in copies if copy.stream_created_ns != stream_created_ns]
    if foreign:
        return f"{copy_text(foreign[0])} is of another stream of the same name"
    differing = disagreements(copies)
    if differing:
        return differing[0].text
    # One that lacks what is gone already, because it was put back, needs another one's files: the
    # stream is of no use to it. One that is starting may turn out to have more.
    able = [
        copy for copy in copies if copy.sequence + 1 >= first_sequence or copy.state == STARTING
    ]
    if len(able) < settings.copies:
        return f"{len(able)} of {settings.copies} copies can go on from the stream"
    slowest = min(able, key=lambda copy: copy.sequence)
    compared = compared_until(able)
    up_to = slowest.sequence if compared is None else min(compared, slowest.sequence)
    return Floor(slowest.sequence, slowest.message_time_ns, up_to)
