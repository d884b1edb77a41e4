"""Partitions: all numbers, each once, in whole bytes of a bitmap."""

import pytest

from numbers_uring.cluster.partitions import parse_partitions, partition_width, ranges
from numbers_uring.limits import NUMBERS


@pytest.mark.parametrize("partitions", [1, 2, 3, 4, 7, 16, 100, 1000, 1024])
def test_partitions_are_all_numbers_each_once(partitions: int) -> None:
    end = 0
    for partition, (first, stop) in enumerate(ranges(partitions)):
        assert first == end
        assert first % 8 == 0
        assert first // partition_width(partitions) == partition
        end = stop
    assert end == NUMBERS


@pytest.mark.parametrize(
    ("text", "found"), [("0", [0]), ("0-3", [0, 1, 2, 3]), ("5,0-1,1", [0, 1, 5]), ("7-7", [7])]
)
def test_lists_of_partitions_are_understood(text: str, found: list[int]) -> None:
    assert parse_partitions(text, 8) == found


@pytest.mark.parametrize("text", ["", "8", "3-1", "a", "0-", "-1", "0,,1", "0 1", "1-8"])
def test_anything_else_is_none(text: str) -> None:
    with pytest.raises(ValueError, match=r"partitions"):
        parse_partitions(text, 8)
