"""The messages of a stream that an operator has decided to skip, as the bucket has them."""

from bisect import bisect_right
from collections.abc import Iterable

from numbers_uring.cluster.values import Skip


class Skips:
    """The skips of one partition's stream, the one made at `stream_created_ns`; `in` asks for one.

    A skip counts for all copies, also for one that could read the message: else the logs of a copy
    that finds it and of one that does not would differ.
    """

    def __init__(self, partition: int, stream_created_ns: int) -> None:
        self._of = (partition, stream_created_ns)
        self._firsts: list[int] = []
        self._lasts: list[int] = []
        """The highest one of each skip, and of those before it."""

    def update(self, skips: Iterable[Skip]) -> None:
        """Replace the skips by these: all that the bucket has, of any partition and stream."""
        mine = sorted(
            (skip.sequence, skip.last_sequence)
            for skip in skips
            if (skip.partition, skip.stream_created_ns) == self._of
        )
        self._firsts, self._lasts = [], []
        for first, last in mine:
            self._firsts.append(first)
            self._lasts.append(max([last, *self._lasts[-1:]]))

    def count(self, first: int, last: int) -> int:
        """Return how many of the messages `first` to `last` are skipped."""
        count = 0
        for begin, end in zip(self._firsts, self._lasts, strict=True):
            both = range(max(begin, first), min(end, last) + 1)
            count += len(both)
            first = max(first, both.stop)
        return count

    def __contains__(self, sequence: object) -> bool:
        assert isinstance(sequence, int)
        index = bisect_right(self._firsts, sequence)
        return index > 0 and sequence <= self._lasts[index - 1]
