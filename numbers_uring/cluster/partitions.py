"""What nodes and collectors of a cluster agree on: ranges, names, and the form of a batch."""

import re
import sys
from array import array
from collections.abc import Iterator
from typing import NamedTuple

from numbers_uring.limits import NUMBERS, PARTITIONS_MAX

NUMBER_BYTES = 4
"""A batch is a whole count of numbers, each an unsigned 32-bit integer, little-endian."""


def unpacked(packed: bytes) -> "array[int]":
    """Return the numbers of a batch, of whole numbers."""
    numbers = array("I", packed)
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers


class Range(NamedTuple):
    """Numbers from `first` to `end` - 1."""

    first: int
    end: int


def range_of(partition: int, partitions: int) -> Range:
    """Return the numbers of one of `partitions` equal parts; the last one may be shorter."""
    assert 0 <= partition < partitions <= PARTITIONS_MAX
    width = partition_width(partitions)
    return Range(min(partition * width, NUMBERS), min((partition + 1) * width, NUMBERS))


def partition_width(partitions: int) -> int:
    """Return how many numbers a partition has: number n belongs to partition n // width.

    A multiple of 8, so that each partition's bitmap is a slice of whole bytes.
    """
    width = -(-NUMBERS // partitions)
    return -(-width // 8) * 8


def stream_name(partition: int) -> str:
    """Return the name of the partition's stream."""
    return f"numbers-{partition}"


def subject_name(partition: int) -> str:
    """Return the subject that the partition's batches are published to."""
    return f"numbers.{partition}"


def log_name(partition: int) -> str:
    """Return the name of the partition's log in its collector's folder."""
    return f"numbers.{partition}.log"


def index_name(partition: int) -> str:
    """Return the name of the log's index, in the same folder."""
    return f"numbers.{partition}.index"


def parse_partitions(text: str, partitions: int) -> list[int]:
    """Return what `0-3`, `0,2` or `0-3,8` names, ascending, each once. Raises ValueError."""
    found: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"([0-9]{1,4})(?:-([0-9]{1,4}))?", part)
        if match is None:
            raise ValueError(f"{text!r} is not a list of partitions such as 0-3,8")
        first, last = int(match[1]), int(match[2] or match[1])
        if first > last or last >= partitions:
            raise ValueError(f"{part!r} is not within partitions 0 to {partitions - 1}")
        found.update(range(first, last + 1))
    return sorted(found)


def ranges(partitions: int) -> Iterator[Range]:
    """Yield all partitions' ranges in order: together they are all numbers, each once."""
    return (range_of(partition, partitions) for partition in range(partitions))
