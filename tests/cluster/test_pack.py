"""Splitting and packing: every number in the area of its partition, in order, none elsewhere."""

import random
import struct
from collections.abc import Iterable

import pytest

from numbers_uring._native import ffi, lib
from numbers_uring.cluster.node.packer import Packer
from numbers_uring.cluster.partitions import partition_width, ranges
from numbers_uring.limits import NUMBERS
from support.guard_page import Guarded
from support.logs import lines

PARTITIONS = [1, 2, 3, 4, 7, 64, 1000, 1024]
LAST = NUMBERS - 1


def edges(partitions: int) -> list[int]:
    """Return the numbers at both ends of every range."""
    found = {0, 9, 10, 99_999_999, 100_000_000, 123_456_789, LAST}
    for first, end in ranges(partitions):
        found |= {number for number in (first - 1, first, end - 1, end) if 0 <= number < NUMBERS}
    return sorted(found)


def split(numbers: Iterable[int], partitions: int) -> dict[int, bytes]:
    """Return each partition's packed numbers, in plain Python."""
    width = partition_width(partitions)
    found: dict[int, bytes] = {}
    for number in numbers:
        found[number // width] = found.get(number // width, b"") + struct.pack("<I", number)
    return found


@pytest.mark.parametrize("partitions", PARTITIONS)
def test_each_number_is_packed_for_its_partition_in_order(partitions: int) -> None:
    numbers = edges(partitions) + random.Random(1).sample(range(NUMBERS), 5000)
    packer = Packer(partitions, 4 * len(numbers))
    data = memoryview(lines(numbers))
    assert packer.pack(data[:50]) == 50
    assert packer.pack(data[50:50]) == 0
    assert packer.pack(data[50:]) == len(data) - 50
    expected = split(numbers, partitions)
    assert packer.occupied() == sorted(expected)
    assert {partition: packer.take(partition) for partition in expected} == expected
    assert packer.occupied() == []
    assert all(packer.take(partition) == b"" for partition in expected)


@pytest.mark.parametrize("partitions", PARTITIONS)
def test_a_line_is_asked_for_its_partition(partitions: int) -> None:
    packer = Packer(partitions, 4)
    for number in edges(partitions):
        line = memoryview(lines([number, 5]))
        assert packer.partition_of(line) == number // partition_width(partitions)


def test_packing_stops_in_front_of_the_line_whose_area_is_full() -> None:
    numbers = [1, 2, 999_999_999, 3, 4, 999_999_998]
    packer = Packer(2, 3 * 4)
    data = memoryview(lines(numbers))
    assert packer.pack(data) == 40
    assert packer.pack(data[40:]) == 0
    assert packer.partition_of(data[40:]) == 0
    assert packer.take(0) == struct.pack("<3I", 1, 2, 3)
    assert packer.pack(data[40:]) == 20
    assert packer.take(0) == struct.pack("<I", 4)
    assert packer.take(1) == struct.pack("<2I", 999_999_999, 999_999_998)


def test_no_byte_beyond_lines_areas_or_counts_is_touched() -> None:
    source, areas, counts = Guarded(), Guarded(), Guarded()
    numbers = random.Random(2).sample(range(NUMBERS), 60)
    expected = split(numbers, 3)
    for place in (Guarded.first, Guarded.last):
        data = place(source, 10 * len(numbers))
        data[:] = lines(numbers)
        # Each area has room for what the fullest one gets, and no more.
        room = max(map(len, expected.values()))
        memory, used = place(areas, 3 * room), place(counts, 3 * 4)
        pack = ffi.new("struct nu_pack *")
        views = [
            ffi.from_buffer("uint32_t[]", view, require_writable=True) for view in (memory, used)
        ]
        assert lib.nu_pack_set(pack, partition_width(3), 3, room // 4, *views) == 0
        taken = lib.nu_pack_lines(pack, ffi.from_buffer("uint8_t[]", data), len(numbers))
        assert taken == len(numbers)
        for partition, packed in expected.items():
            start = partition * room
            assert memory[start : start + len(packed)] == packed
            assert used[4 * partition : 4 * partition + 4] == struct.pack("<I", len(packed) // 4)
        first = lines([numbers[expected_first(numbers, room)]])
        data[:10] = first
        assert lib.nu_pack_lines(pack, ffi.from_buffer("uint8_t[]", data), 1) == 0


def expected_first(numbers: list[int], room: int) -> int:
    """Return the place of a number whose area is full."""
    full = [partition for partition, packed in split(numbers, 3).items() if len(packed) == room]
    width = partition_width(3)
    return next(place for place, number in enumerate(numbers) if number // width in full)


@pytest.mark.parametrize(
    ("width", "partitions", "area_numbers"), [(1, NUMBERS, 1), (8, 2, 1), (NUMBERS, 1, 0)]
)
def test_a_split_that_leaves_numbers_out_is_refused(
    width: int, partitions: int, area_numbers: int
) -> None:
    pack = ffi.new("struct nu_pack *")
    result = lib.nu_pack_set(pack, width, partitions, area_numbers, ffi.NULL, ffi.NULL)
    assert result < 0
