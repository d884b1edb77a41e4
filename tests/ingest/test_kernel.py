"""One suite over the reference kernel and every compiled variant."""

import os
import random
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from numbers_uring import _native
from numbers_uring.ingest import native as compiled
from numbers_uring.ingest.intake import Intake
from numbers_uring.ingest.kernel import BoundKernel, Kernel, PythonKernel, Result, Verdict
from numbers_uring.limits import BITMAP_BYTES, CHUNK_BYTES_MAX, HEADROOM_BYTES, LINE_BYTES
from support.guard_page import Guarded

NATIVE_DIRECTORY = os.environ.get("TEST_NATIVE")
if NATIVE_DIRECTORY is not None:
    # Else a run that is meant for a sanitized build could pass on the ordinary one.
    assert Path(NATIVE_DIRECTORY).resolve() in Path(_native.__file__).resolve().parents

PYTHON = PythonKernel()
ALONE = compiled.variants()
AVAILABLE: dict[str, Kernel] = {
    kernel.variant: kernel for alone in ALONE for kernel in (alone, alone.shared)
}
VARIANT_NAMES = [
    name for variant in compiled.VARIANT_NAMES for name in (variant, f"{variant}-shared")
]
TERMINATE = b"terminate\n"
BATCH = memoryview(bytearray(64 * 1024))

BLOCK_LINES, WINDOW_LINES = 8, 128
"""What native/ingest/window.h says: places worth probing, no more; nothing here depends on it."""


def line(number: int) -> bytes:
    return b"%09d\n" % number


def lines(numbers: range | list[int]) -> bytes:
    return b"".join(map(line, numbers))


def random_numbers(count: int, seed: int = 1) -> list[int]:
    return random.Random(seed).sample(range(10**9), count)


def available(variant: str) -> Kernel:
    if variant not in AVAILABLE:
        pytest.skip(f"this CPU does not run the variant {variant}")
    return AVAILABLE[variant]


@pytest.fixture(params=VARIANT_NAMES)
def native(request: pytest.FixtureRequest) -> Kernel:
    return available(request.param)


@pytest.fixture(params=["python", *VARIANT_NAMES])
def kernel(request: pytest.FixtureRequest) -> Kernel:
    return PYTHON if request.param == "python" else available(request.param)


@pytest.fixture(scope="module")
def bitmap() -> Iterator[bytearray]:
    """One for all tests, each of which leaves it empty."""
    shared = bytearray(BITMAP_BYTES)
    yield shared
    assert shared.count(0) == BITMAP_BYTES, "a bit was set for which there was no line"


class Outcome(NamedTuple):
    result: Result
    batch: bytes
    seen: frozenset[int]
    """The numbers of the input whose bits are set."""


def numbers_of(data: bytes) -> list[int]:
    cuts = range(0, len(data) - LINE_BYTES + 1, LINE_BYTES)
    candidates = (data[cut : cut + LINE_BYTES - 1] for cut in cuts)
    return [int(digits) for digits in candidates if digits.isdigit()]


def forget(bitmap: bytearray, numbers: list[int]) -> None:
    for number in numbers:
        bitmap[number >> 3] = 0


def take_in(kernel: Kernel, data: bytes | memoryview, bitmap: bytearray) -> Outcome:
    """Run `kernel` over `data` on an empty bitmap, and leave that empty."""
    result = kernel(memoryview(data), bitmap, BATCH)
    numbers = numbers_of(bytes(data))
    seen = frozenset(n for n in numbers if bitmap[n >> 3] >> (n & 7) & 1)
    forget(bitmap, numbers)
    return Outcome(result, bytes(BATCH[: result.unique * LINE_BYTES]), seen)


def all_taken_in(data: bytes) -> Outcome:
    """Return what has to come out where whole lines of `data` are all numbers."""
    numbers = numbers_of(data)
    unique = list(dict.fromkeys(numbers))
    result = Result(
        Verdict.MORE, len(numbers) * LINE_BYTES, len(unique), len(numbers) - len(unique)
    )
    return Outcome(result, lines(unique), frozenset(unique))


def random_lines(seed: int, count: int, distinct: int) -> bytes:
    choices = random.Random(seed)
    numbers = [choices.randrange(10**9) for _ in range(distinct)]
    return b"".join(line(choices.choice(numbers)) for _ in range(count))


STREAMS = st.builds(
    lambda parts, kept: b"".join(parts)[:kept],
    st.lists(
        st.one_of(
            st.builds(
                random_lines,
                st.integers(0, 2**32),
                st.integers(0, 3 * WINDOW_LINES),
                st.integers(1, 200),
            ),
            st.integers(0, 999_999_999).map(line),
            st.just(TERMINATE),
            st.binary(max_size=12),
            st.text("0123456789\nterminae+- ", max_size=12).map(str.encode),
        ),
        max_size=8,
    ),
    st.one_of(st.none(), st.integers(0, 4000)),
)


@settings(deadline=None, max_examples=300)
@given(stream=STREAMS)
def test_every_variant_does_what_the_reference_does(stream: bytes, bitmap: bytearray) -> None:
    expected = take_in(PYTHON, stream, bitmap)
    for kernel in AVAILABLE.values():
        # Compared outside of the assertion: pytest would spell out each difference while shrinking.
        agrees = take_in(kernel, stream, bitmap) == expected
        assert agrees, kernel.variant


def test_the_variants_are_listed_once_each_and_the_portable_ones_always() -> None:
    assert [name for name in VARIANT_NAMES if name in AVAILABLE] == list(AVAILABLE)
    assert {"swar", "scalar"} <= set(AVAILABLE)


def test_every_length_is_taken_in_at_every_alignment(kernel: Kernel, bitmap: bytearray) -> None:
    data = lines(random_numbers(144))
    arena = bytearray(64 + len(data))
    for offset in (0, 1, 7, 15, 16, 33):
        arena[offset : offset + len(data)] = data
        for size in [*range(200), *range(1260, 1440)]:
            outcome = take_in(kernel, memoryview(arena)[offset : offset + size], bitmap)
            assert outcome == all_taken_in(data[:size])


@pytest.mark.parametrize(
    "count", [WINDOW_LINES, WINDOW_LINES + 1, WINDOW_LINES + 2 * BLOCK_LINES + 1, 300]
)
def test_repeats_are_found_at_every_distance(kernel: Kernel, bitmap: bytearray, count: int) -> None:
    for distance in range(1, count):
        numbers = random_numbers(count)
        numbers[count - 1] = numbers[count - 1 - distance]
        numbers[distance] = numbers[0]
        data = lines(numbers)
        assert take_in(kernel, data, bitmap) == all_taken_in(data)


@pytest.mark.parametrize("numbers", [range(700), range(699, -1, -1), range(0, 7000, 9)])
def test_numbers_that_share_a_byte_do_not_disturb_each_other(
    kernel: Kernel, bitmap: bytearray, numbers: range
) -> None:
    for data in (lines(numbers), lines(numbers) * 2, lines([*numbers, 5, 5, 12, 5])):
        assert take_in(kernel, data, bitmap) == all_taken_in(data)


def test_one_number_of_a_block_may_be_far_from_the_others(
    kernel: Kernel, bitmap: bytearray
) -> None:
    for far in (63, 128, 6_400, 999_999_999):  # the others are 64 to 127
        for index in range(BLOCK_LINES):
            numbers = [*range(70, 70 + BLOCK_LINES)] * 3
            numbers[BLOCK_LINES + index] = far
            data = lines([*numbers, *random_numbers(WINDOW_LINES)])
            assert take_in(kernel, data, bitmap) == all_taken_in(data)


def test_numbers_that_follow_each_other_may_be_mixed_with_repeats_and_with_others(
    kernel: Kernel, bitmap: bytearray
) -> None:
    for seed, near in enumerate((4096, 256, 64, 8)):
        choices = random.Random(seed)
        numbers = [
            first + choices.randrange(near) for first in range(0, 40_960, 4096) for _ in range(150)
        ]
        for place in choices.sample(range(len(numbers)), 50):
            numbers[place] = choices.randrange(10**9)
        data = lines([*numbers, *random_numbers(WINDOW_LINES)])
        assert take_in(kernel, data, bitmap) == all_taken_in(data)


def test_the_first_and_the_last_numbers_count(kernel: Kernel, bitmap: bytearray) -> None:
    edges = [0, 1, 7, 8, 31, 32, 9, 10, 99_999_999, 100_000_000, 999_999_998, 999_999_999]
    for repeats in (1, 2, 20):
        data = lines(edges) * repeats
        assert take_in(kernel, data, bitmap) == all_taken_in(data)


def test_the_bit_of_a_number_is_where_it_should_be(kernel: Kernel, bitmap: bytearray) -> None:
    for number in [0, 7, 8, 31, 32, 63, 123_456_789, 999_999_999, *random_numbers(200)]:
        for before in ([], [200_000_000 + 1000 * i for i in range(20)]):
            kernel(memoryview(lines([*before, number])), bitmap, BATCH)
            assert bitmap[number >> 3] == 1 << (number & 7)
            forget(bitmap, [*before, number])


def test_leading_zeros_are_kept(kernel: Kernel, bitmap: bytearray) -> None:
    data = b"000000007\n" * 2 + b"007007009\n"
    assert take_in(kernel, data, bitmap).batch == b"000000007\n007007009\n"


@pytest.mark.parametrize("index", [0, 3, BLOCK_LINES - 1, BLOCK_LINES, WINDOW_LINES + 5, 143])
def test_each_byte_of_a_line_decides(kernel: Kernel, bitmap: bytearray, index: int) -> None:
    first, count = 555_555_000, 144
    stream = bytearray(lines(range(first, first + count)))
    covered = slice(first >> 3, (first + count >> 3) + 1)
    nothing = bytes(covered.stop - covered.start)
    for place in range(LINE_BYTES):
        position = index * LINE_BYTES + place
        original = stream[position]
        for value in range(256):
            stream[position] = value
            result = kernel(memoryview(stream), bitmap, BATCH)
            changed = bytes(stream[index * LINE_BYTES : (index + 1) * LINE_BYTES])
            bitmap[covered] = nothing
            if value == original or (place < LINE_BYTES - 1 and 0x30 <= value <= 0x39):
                forget(bitmap, [int(changed)])
                assert result[:2] == (Verdict.MORE, len(stream))
                assert result.unique + result.duplicate == count
            else:
                assert result == (Verdict.INVALID, index * LINE_BYTES, index, 0)
                assert BATCH[: index * LINE_BYTES] == stream[: index * LINE_BYTES]
        stream[position] = original


@pytest.mark.parametrize("bad", [b"\0", b"\n", b" ", b"/", b":", b"t", b"\x80", b"\xb0", b"\xff"])
def test_a_bad_byte_anywhere_ends_the_stream_there(
    kernel: Kernel, bitmap: bytearray, bad: bytes
) -> None:
    stream = lines(random_numbers(200))
    for position in [*range(200), *range(1200, 1400)]:
        if stream[position : position + 1] == bad:
            continue
        before = position // LINE_BYTES * LINE_BYTES
        good = all_taken_in(stream[:before])
        changed = stream[:position] + bad + stream[position + 1 :]
        for cut in (1400, 2000):  # at the end of the input, and far from it
            outcome = take_in(kernel, changed[:cut], bitmap)
            assert outcome == good._replace(result=good.result._replace(verdict=Verdict.INVALID))


def test_each_byte_of_a_tail_decides(kernel: Kernel, bitmap: bytearray) -> None:
    for whole in (b"123456789", b"terminate"):
        for size in range(1, LINE_BYTES):
            for position in range(size):
                for value in range(256):
                    tail = whole[:position] + bytes([value]) + whole[position + 1 : size]
                    result = kernel(memoryview(tail), bitmap, BATCH)
                    can_become_a_line = tail.isdigit() or b"terminate".startswith(tail)
                    verdict = Verdict.MORE if can_become_a_line else Verdict.INVALID
                    assert result == (verdict, 0, 0, 0), tail


@pytest.mark.parametrize("before", [0, 1, 7, 8, 9, 127, 128, 129, 136, 137, 200])
def test_terminate_ends_the_stream_wherever_it_is(
    kernel: Kernel, bitmap: bytearray, before: int
) -> None:
    numbers = lines(random_numbers(before))
    good = all_taken_in(numbers)
    consumed = len(numbers) + LINE_BYTES
    terminated = good._replace(
        result=good.result._replace(verdict=Verdict.TERMINATE, consumed=consumed)
    )
    for after in (b"", b"1", b"garbage", lines(range(300)), TERMINATE):
        result, batch, seen = take_in(kernel, numbers + TERMINATE + after, bitmap)
        assert result == terminated.result
        assert batch == terminated.batch
        assert seen == terminated.seen
    for size in range(LINE_BYTES):
        assert take_in(kernel, numbers + TERMINATE[:size], bitmap) == good


def test_nearly_terminate_is_invalid(kernel: Kernel, bitmap: bytearray) -> None:
    for text in (b"Terminate\n", b"terminate\r\n", b"terminated\n", b"terminate ", b" terminate\n"):
        assert kernel(memoryview(text), bitmap, BATCH) == (Verdict.INVALID, 0, 0, 0)


def test_every_line_is_either_unique_or_a_duplicate(kernel: Kernel, bitmap: bytearray) -> None:
    for seed, distinct in enumerate([1, 2, 10, 100, 1000]):
        data = random_lines(seed, 3000, distinct)
        result, _, seen = take_in(kernel, data, bitmap)
        assert result.unique + result.duplicate == 3000
        assert result.unique == len(seen)


def test_which_numbers_are_unique_does_not_depend_on_their_order(
    kernel: Kernel, bitmap: bytearray
) -> None:
    numbers = numbers_of(random_lines(5, 2000, 700))
    expected = set(numbers)
    for seed in range(5):
        random.Random(seed).shuffle(numbers)
        result, batch, seen = take_in(kernel, lines(numbers), bitmap)
        assert seen == expected == set(numbers_of(batch))
        assert result.unique == len(expected)


GUARDED_INPUT, GUARDED_BATCH = Guarded(), Guarded()


@pytest.mark.parametrize("spoil", [None, 0, 85, 400, -1], ids=str)
def test_no_byte_beyond_input_or_batch_is_touched(
    kernel: Kernel, bitmap: bytearray, spoil: int | None
) -> None:
    numbers = random_numbers(160)
    whole = lines(numbers)
    for size in [*range(200), *range(430, 516), *range(1270, 1380), *range(1570, 1600)]:
        data = bytearray(whole[:size])
        if spoil is not None and size > spoil:
            data[spoil:] = b"x" + data[spoil:][1:]
        for place in (Guarded.first, Guarded.last):
            source = place(GUARDED_INPUT, len(data))
            source[:] = data
            batch = place(GUARDED_BATCH, len(data))
            result = kernel(source, bitmap, batch)
            forget(bitmap, numbers)
            taken = result.consumed
            assert result.unique * LINE_BYTES == taken
            assert batch[:taken] == whole[:taken]
            source.release()
            batch.release()


def test_a_batch_without_room_for_the_input_is_an_error_and_nothing_is_done(
    kernel: Kernel, bitmap: bytearray
) -> None:
    data = memoryview(lines(range(100)))
    batch = bytearray(b"\xaa" * (len(data) - 1))
    with pytest.raises(ValueError, match="room"):
        kernel(data, bitmap, memoryview(batch))
    assert set(batch) == {0xAA}
    assert bitmap[:13].count(0) == 13

    bound = kernel.bind(bytearray(data), bitmap, batch)
    bound.ingest(0, 100)
    with pytest.raises(ValueError, match="room"):
        bound.ingest(100, 1000)
    assert (bound.unique, bound.duplicate, bound.batch_used) == (10, 0, 100)
    assert batch[:100] == data[:100]
    forget(bitmap, list(range(10)))


def test_a_bound_kernel_appends_and_adds_up(kernel: Kernel, bitmap: bytearray) -> None:
    arena = bytearray(lines([*range(200), *range(150, 350)]))
    batch = bytearray(4000)
    bound = kernel.bind(arena, bitmap, batch)
    assert bound.ingest(0, 2000) == Verdict.MORE
    assert (bound.consumed, bound.unique, bound.duplicate) == (2000, 200, 0)
    assert bound.ingest(2000, 4000 - 3) == Verdict.MORE
    assert (bound.consumed, bound.unique, bound.duplicate) == (1990, 349, 50)
    assert batch[: bound.batch_used] == lines(range(349))
    bound.batch_used = 0
    assert bound.ingest(3990, 4000) == Verdict.MORE
    assert batch[: bound.batch_used] == line(349)
    assert (bound.consumed, bound.unique, bound.duplicate) == (10, 350, 50)
    forget(bitmap, list(range(350)))


def receive_in_pieces(
    kernel: Kernel, stream: bytes, sizes: list[int]
) -> tuple[int, int, int, bytes]:
    arena = bytearray(HEADROOM_BYTES + len(stream))
    bitmap = bytearray(BITMAP_BYTES)
    intake = Intake(kernel, arena, bitmap, connections_max=1, batch_bytes=CHUNK_BYTES_MAX)
    intake.open(0)
    position, verdict = 0, int(Verdict.MORE)
    for size in [*sizes, len(stream)]:
        piece = stream[position : position + size]
        arena[HEADROOM_BYTES : HEADROOM_BYTES + len(piece)] = piece
        verdict = intake.receive(0, HEADROOM_BYTES, len(piece))
        position += len(piece)
        if verdict != Verdict.MORE or position == len(stream):
            break
    return verdict, intake.unique, intake.duplicate, bytes(intake.batch)


@pytest.mark.parametrize("ending", [b"", b"12345", TERMINATE, b"12345678x\n" + TERMINATE])
def test_how_a_stream_is_cut_does_not_matter(kernel: Kernel, ending: bytes) -> None:
    stream = random_lines(3, 400, 250) + ending
    whole = receive_in_pieces(kernel, stream, [])
    cutter = random.Random(7)
    for longest in (1, 11, 1000):
        sizes = [cutter.randint(1, longest) for _ in stream]
        assert receive_in_pieces(kernel, stream, sizes) == whole


# Several threads on one bitmap.


@pytest.mark.parametrize("variant", ["python", *compiled.VARIANT_NAMES])
def test_each_number_is_new_to_exactly_one_of_several_threads(
    variant: str, bitmap: bytearray
) -> None:
    shared = (PYTHON if variant == "python" else available(variant)).shared
    count = 2_000 if variant == "python" else 100_000
    # Half of them near each other, so that threads meet in the same words.
    numbers = [*range(count // 2), *random_numbers(count // 2)]
    data = lines(numbers)
    threads_count = 4
    barrier = threading.Barrier(threads_count)
    batches = [bytearray(len(data)) for _ in range(threads_count)]
    bounds = [shared.bind(bytearray(data), bitmap, batch) for batch in batches]

    def take_in(bound: BoundKernel) -> None:
        barrier.wait(30)
        for start in range(0, len(data), 50_000):
            bound.ingest(start, min(start + 50_000, len(data)))

    threads = [threading.Thread(target=take_in, args=(bound,)) for bound in bounds]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    kept = [
        bytes(batch[start : start + LINE_BYTES])
        for bound, batch in zip(bounds, batches, strict=True)
        for start in range(0, bound.batch_used, LINE_BYTES)
    ]
    assert len(kept) == len(set(kept))
    assert set(kept) == set(map(line, numbers))
    assert sum(bound.unique for bound in bounds) == len(set(numbers)) == len(kept)
    assert sum(bound.unique + bound.duplicate for bound in bounds) == threads_count * count
    for number in numbers:
        bitmap[number >> 3] = 0
