"""The collector's kernel against its specification."""

import random
import re
from array import array
from mmap import mmap

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from numbers_uring.cluster.collector.kernel import (
    CollectKernel,
    ForeignNumberError,
    collect_reference,
)
from numbers_uring.cluster.partitions import Range, range_of
from numbers_uring.limits import BITMAP_BYTES, NUMBERS

COLLECTED = range_of(3, 7)


def packed(numbers: list[int]) -> bytes:
    return array("I", numbers).tobytes()


@pytest.fixture(scope="module")
def bitmap() -> mmap:
    """One for all: who takes it leaves it as it was."""
    return mmap(-1, BITMAP_BYTES)


def take(collected: Range, bitmap: mmap, messages: list[list[int]]) -> tuple[bytes, int]:
    kernel = CollectKernel(collected, bitmap, 10 * max(sum(map(len, messages)), 1))
    for message in messages:
        kernel.take(packed(message))
    return bytes(kernel.lines()), kernel.duplicate


def clear(bitmap: mmap, numbers: list[int]) -> None:
    for number in numbers:
        assert bitmap[number >> 3]
    for number in numbers:
        bitmap[number >> 3] = 0


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.lists(st.integers(COLLECTED.first, COLLECTED.first + 300), max_size=200),
        min_size=1,
        max_size=4,
    )
)
def test_the_kernel_does_what_its_specification_does(messages: list[list[int]]) -> None:
    bitmap = mmap(-1, BITMAP_BYTES)
    expected, lines = mmap(-1, BITMAP_BYTES), bytearray()
    counted = [collect_reference(packed(m), COLLECTED, expected, lines) for m in messages]
    unique, total, duplicate = map(sum, zip(*counted, strict=True))
    kernel = CollectKernel(COLLECTED, bitmap, 10 * max(sum(map(len, messages)), 1))
    for message in messages:
        kernel.take(packed(message))
    assert bytes(kernel.lines()) == bytes(lines)
    assert (kernel.unique, kernel.sum, kernel.duplicate) == (unique, total, duplicate)
    place = slice(COLLECTED.first // 8, COLLECTED.first // 8 + 40)
    assert bitmap[place] == expected[place]


def test_every_power_of_ten_and_its_neighbours_become_nine_digits(bitmap: mmap) -> None:
    numbers = sorted(
        {
            number
            for power in range(10)
            for digit in range(1, 10)
            for number in (digit * 10**power - 1, digit * 10**power, digit * 10**power + 1)
            if number < NUMBERS
        }
    )
    lines, duplicate = take(Range(0, NUMBERS), bitmap, [numbers])
    assert lines == b"".join(b"%09d\n" % number for number in numbers)
    assert duplicate == 0
    clear(bitmap, numbers)


def test_random_numbers_become_lines_in_their_order(bitmap: mmap) -> None:
    numbers = random.Random(1).sample(range(NUMBERS), 100_000)
    lines, _ = take(Range(0, NUMBERS), bitmap, [numbers, numbers[:1000]])
    assert lines == b"".join(b"%09d\n" % number for number in numbers)
    clear(bitmap, numbers)


@pytest.mark.parametrize(
    "number", [COLLECTED.first - 1, COLLECTED.end, 0, NUMBERS, 2**31, 2**32 - 1], ids=str
)
@pytest.mark.parametrize("place", [0, 63, 99])
def test_a_message_with_one_number_of_another_partition_changes_nothing(
    bitmap: mmap, number: int, place: int
) -> None:
    numbers = list(range(COLLECTED.first, COLLECTED.first + 100))
    numbers[place] = number
    kernel = CollectKernel(COLLECTED, bitmap, 1000)
    with pytest.raises(ForeignNumberError):
        kernel.take(packed(numbers))
    assert (bytes(kernel.lines()), kernel.duplicate) == (b"", 0)
    assert not any(bitmap[COLLECTED.first // 8 : COLLECTED.first // 8 + 20])


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_a_message_that_ends_within_a_number_is_refused(bitmap: mmap, size: int) -> None:
    with pytest.raises(ForeignNumberError):
        CollectKernel(Range(0, NUMBERS), bitmap, 1000).take(bytes(size))


def test_the_first_and_the_last_number_of_each_range_are_collected_by_it_alone(
    bitmap: mmap,
) -> None:
    for partitions in (1, 3, 8, 1000):
        for partition in (0, partitions // 2, partitions - 1):
            collected = range_of(partition, partitions)
            numbers = sorted({collected.first, collected.end - 1})
            assert take(collected, bitmap, [numbers])[1] == 0
            clear(bitmap, numbers)


def test_the_batch_says_when_it_has_no_room(bitmap: mmap) -> None:
    kernel = CollectKernel(Range(0, NUMBERS), bitmap, 10 * 3 + 9)
    assert kernel.fits(12)
    assert not kernel.fits(16)
    kernel.take(packed([1, 2]))
    assert kernel.fits(4)
    assert not kernel.fits(8)
    kernel.clear()
    assert kernel.fits(12)
    clear(bitmap, [1, 2])


def lines_reference(lines: bytes, collected: Range, seen: set[int]) -> int:
    """Return how many bytes of a log's lines the kernel takes in."""
    for offset in range(0, len(lines) - 9, 10):
        line = lines[offset : offset + 10]
        if not re.fullmatch(rb"[0-9]{9}\n", line):
            return offset
        number = int(line)
        if not collected.first <= number < collected.end or number in seen:
            return offset
        seen.add(number)
    return len(lines) // 10 * 10


@settings(max_examples=80, deadline=None)
@given(
    st.lists(
        st.integers(COLLECTED.first - 1, COLLECTED.first + 3000), unique=True, max_size=1000
    ).map(lambda numbers: b"".join(b"%09d\n" % number for number in numbers)),
    st.data(),
)
def test_lines_of_a_log_are_taken_up_to_the_first_that_cannot_be_in_it(
    lines: bytes, data: st.DataObject
) -> None:
    if lines and data.draw(st.booleans()):
        at = data.draw(st.integers(0, len(lines) - 1))
        lines = lines[:at] + data.draw(st.binary(min_size=1, max_size=2)) + lines[at + 1 :]
    bitmap, seen = mmap(-1, BITMAP_BYTES), set[int]()
    kernel = CollectKernel(COLLECTED, bitmap, 10)
    assert kernel.take_lines(lines) == lines_reference(lines, COLLECTED, seen)
    assert (kernel.unique, kernel.sum, kernel.duplicate) == (len(seen), sum(seen), 0)
    assert len(kernel.lines()) == 0
    # A changed digit may make a number that is far away.
    assert set_bits(bitmap) == {number for number in seen if number // 8 < WINDOW.stop}
    kernel.reset()
    assert (kernel.unique, kernel.sum) == (0, 0)
    assert not set_bits(bitmap)


WINDOW = range(COLLECTED.first // 8 - 1, COLLECTED.first // 8 + 400)
"""The bytes of the bitmap that have most numbers of these tests."""


def set_bits(bitmap: mmap) -> set[int]:
    return {8 * place + bit for place in WINDOW for bit in range(8) if bitmap[place] >> bit & 1}


def test_a_reset_leaves_the_neighbours_numbers_alone() -> None:
    bitmap = mmap(-1, BITMAP_BYTES)
    neighbours = (COLLECTED.first - 1, COLLECTED.end)
    CollectKernel(Range(0, NUMBERS), bitmap, 100).take(packed([*neighbours, COLLECTED.first]))
    CollectKernel(COLLECTED, bitmap, 10).reset()
    assert [bitmap[n >> 3] >> (n & 7) & 1 for n in (*neighbours, COLLECTED.first)] == [1, 1, 0]


def test_a_sum_begins_again_behind_64_bits() -> None:
    kernel = CollectKernel(Range(0, NUMBERS), mmap(-1, BITMAP_BYTES), 100)
    kernel._state.sum = 2**64 - 5
    kernel.take(packed([3, 4]))
    assert kernel.sum == 2
    assert kernel.take_lines(b"000000009\n") == 10
    assert kernel.sum == 11
