"""Checkpoints: what copies of a log know in common, whatever one is ahead, and after restarts."""

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from numbers_uring.cluster.checkpoints import (
    Checkpoints,
    Difference,
    Point,
    difference,
    essential,
)

SEQUENCES_MAX = 1500
positions = st.integers(1, SEQUENCES_MAX)
seeds = st.integers(0, 2**32)


def point_at(sequence: int, altered_from: int = SEQUENCES_MAX + 1) -> Point:
    """Return the point of a log to which message n adds n numbers of the value 7."""
    count = sequence * (sequence + 1) // 2
    return Point(sequence, count, 7 * count + (sequence >= altered_from))


def copy_at(sequence: int, altered_from: int = SEQUENCES_MAX + 1) -> Checkpoints:
    """Return the checkpoints of a copy that never restarted, and syncs each message."""
    copy = Checkpoints()
    for each in range(1, sequence + 1):
        copy.note(point_at(each, altered_from), each)
    copy.synced()
    return copy


class Copy:
    """A copy that syncs after up to `gap` messages, and restarts now and then from its index."""

    def __init__(self, seed: int, gap: int, restarts: int) -> None:
        self._random = random.Random(seed)
        self._gap = gap
        self._restarts = restarts
        self.index: list[Point] = []
        self.points = Checkpoints()
        self.position = 0

    def advance(self, sequence: int) -> None:
        """Take in all messages up to this one; record some of them, and sync the last."""
        while self.position < sequence:
            end = min(sequence, self.position + self._random.randint(1, self._gap))
            for each in range(self.position + 1, end + 1):
                self.points.note(point_at(each), each)
            self._record(end)
            if self._random.random() < 0.3 or end == sequence:
                self.points.synced()
            if self._random.random() < 0.1 * self._restarts:
                self.restart()

    def _record(self, end: int) -> None:
        landmark = self.points.landmark
        assert landmark is not None
        assert landmark.time_ns == landmark.point.sequence
        if landmark.point.sequence != end:
            self.index.append(landmark.point)
        self.index.append(point_at(end))
        self.points.recorded()
        self.position = end

    def restart(self) -> None:
        """Know only what a thinned index has."""
        kept = essential([point.sequence for point in self.index])
        self.index = [point for point in self.index if point.sequence in kept]
        self.points = Checkpoints(self.index)


def newest_shared(one: Checkpoints, other: Checkpoints) -> int:
    shared = set(one.told) & set(other.told)
    return max((point.sequence for point in shared), default=0)


@settings(deadline=None)
@given(positions, positions)
def test_two_copies_share_a_point_that_is_as_recent_as_they_are_near(one: int, other: int) -> None:
    behind, ahead = sorted((one, other))
    shared = newest_shared(copy_at(one), copy_at(other))
    assert behind - shared <= 2 * (ahead - behind)


@settings(deadline=None)
@given(seeds, st.integers(1, 40), st.integers(0, 9), positions, positions)
def test_copies_share_a_recent_point_after_restarts_too(
    seed: int, gap: int, restarts: int, one: int, other: int
) -> None:
    behind, ahead = sorted((one, other))
    first, second = Copy(seed, gap, restarts), Copy(seed + 1, gap, restarts)
    first.advance(behind)
    second.advance(ahead)
    first.restart()
    second.restart()
    shared = newest_shared(first.points, second.points)
    assert behind - shared <= 2 * max(ahead - behind, gap)


@settings(deadline=None)
@given(seeds, positions)
def test_what_is_told_is_true_and_ends_at_the_position(seed: int, position: int) -> None:
    copy = Copy(seed, gap=30, restarts=2)
    copy.advance(position)
    told = copy.points.told
    assert list(told) == [point_at(point.sequence) for point in told]
    assert told[-1].sequence == position
    assert list(told) == sorted(told)


def test_few_points_are_told_however_long_a_log_is() -> None:
    copy = Copy(1, gap=100, restarts=0)
    copy.advance(200_000)
    assert len(copy.points.told) <= 2 * (200_000).bit_length() + 1


def test_nothing_is_told_before_it_is_synced() -> None:
    copy = copy_at(10)
    before = copy.told
    for sequence in range(11, 100):
        copy.note(point_at(sequence), sequence)
        assert copy.told == before
    copy.synced()
    assert copy.told == copy_at(99).told


@settings(deadline=None)
@given(positions, positions, positions)
def test_a_difference_is_found_where_it_begins_as_far_as_points_tell(
    one: int, other: int, altered_from: int
) -> None:
    altered, sound = copy_at(one, altered_from), copy_at(other)
    found = difference(altered.told, sound.told)
    shared = {point.sequence for point in altered.told} & {point.sequence for point in sound.told}
    if not any(sequence >= altered_from for sequence in shared):
        assert found is None
        return
    assert found is not None
    assert found.equal_until < altered_from <= found.differs_at
    assert found == difference(sound.told, altered.told)
    assert not [each for each in shared if found.equal_until < each < found.differs_at]


def test_copies_that_share_no_point_do_not_differ() -> None:
    assert difference([point_at(3)], [point_at(4, 1)]) is None
    assert difference([], [point_at(4)]) is None


def test_a_difference_from_the_first_message_on_is_found() -> None:
    assert difference(copy_at(1, 1).told, copy_at(1).told) == Difference(0, 1)


def test_a_log_that_had_numbers_before_its_stream_is_a_point_at_sequence_0() -> None:
    base = Point(0, 10, 45)
    copy = Checkpoints([base])
    assert copy.told == (base,)
    copy.note(Point(1, 11, 50), 1)
    copy.synced()
    assert base in copy.told
