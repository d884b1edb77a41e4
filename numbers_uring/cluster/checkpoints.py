"""Compares copies of a log by the count and sum of their numbers at sequences that they share.

A copy keeps these values at the last two multiples of each power of two. Take copies at the
sequences a and a - d, and the least power of two that is at least d: the last multiple up to a - d
is the last one or the one before up to a. So both have it, and it is less than 2 d behind a - d.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple


class Point(NamedTuple):
    """A log when all messages up to `sequence` were taken in."""

    sequence: int
    numbers: int
    """How many numbers are in the log."""
    sum: int
    """Their sum, modulo 2**64."""


class Landmark(NamedTuple):
    """A point, and the time of its message in the stream, in nanoseconds."""

    point: Point
    time_ns: int


class Difference(NamedTuple):
    """Where two copies begin to differ: behind `equal_until`, and at `differs_at` at the latest."""

    equal_until: int
    differs_at: int


class Checkpoints:
    """The points of one copy, whose log has what `known` tells: the points of its index.

    Used by one thread; `told` may be read by any.
    """

    def __init__(self, known: Iterable[Point] = ()) -> None:
        self._levels: list[tuple[Point, ...]] = []
        """Item k holds the last two points whose sequence is a multiple of 2**k."""
        self._taken: list[list[Point]] = []
        """The same for points that are not synced."""
        self._last: Point | None = None
        self._landmark: tuple[Point, int] | None = None
        self._landmark_level = 0
        self.told: tuple[Point, ...] = ()
        """The points that are on disk, in ascending order; the copy's position is the last one."""
        for point in known:
            self.note(point, 0)
            self._keep()
        self.recorded()
        self._tell()

    def note(self, point: Point, time_ns: int) -> None:
        """Take in the point behind each message, in order; it is told once it is synced."""
        assert self._last is None or point.sequence > self._last.sequence
        self._last = point
        # Once for each message: all but one in 2**k end at level k.
        sequence, level = point.sequence, 0
        while True:
            if level == len(self._taken):
                self._taken.append([])
            pair = self._taken[level]
            if len(pair) == 2:
                del pair[0]
            pair.append(point)
            if sequence >> level & 1 or not sequence:
                break
            level += 1
        if level >= self._landmark_level:
            self._landmark, self._landmark_level = (point, time_ns), level

    @property
    def landmark(self) -> Landmark | None:
        """The last of the not recorded points that are multiples of the greatest power of two.

        An index that has it beside the last one knows, after a restart, each multiple of a power of
        two that is greater than the number of messages between two records.
        """
        return None if self._landmark is None else Landmark(*self._landmark)

    def recorded(self) -> None:
        """Note that the index has the landmark and the last point, though not yet on disk."""
        self._landmark, self._landmark_level = None, 0

    def synced(self) -> None:
        """Tell all points noted so far: the log and its index are on disk up to the last one."""
        self._keep()
        self._tell()

    def _keep(self) -> None:
        for level, taken in enumerate(self._taken):
            if level == len(self._levels):
                self._levels.append(())
            self._levels[level] = (*self._levels[level], *taken)[-2:]
        self._taken.clear()

    def _tell(self) -> None:
        points = {point for level in self._levels for point in level}
        if self._last is not None:
            points.add(self._last)
        self.told = tuple(sorted(points))


def essential(sequences: Sequence[int]) -> set[int]:
    """Return which of these ascending sequences Checkpoints needs to know the same points again."""
    kept = Checkpoints(Point(sequence, 0, 0) for sequence in sequences)
    return {point.sequence for point in kept.told}


def difference(one: Iterable[Point], other: Iterable[Point]) -> Difference | None:
    """Return where two copies of a log begin to differ; None if no shared point shows any."""
    others = {point.sequence: point for point in other}
    equal_until = 0
    for point in sorted(one):
        if point.sequence not in others:
            continue
        if others[point.sequence] != point:
            return Difference(equal_until, point.sequence)
        equal_until = point.sequence
    return None
