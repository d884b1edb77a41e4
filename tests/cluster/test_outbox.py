"""The outbox: what goes in comes out, packed and once, and never more than it may hold."""

import random
import struct
import threading
from collections.abc import Callable

import pytest

from numbers_uring.cluster.node.outbox import Batch, Outbox
from numbers_uring.limits import FORWARD_BATCHES_MAX, FORWARD_LINGER_S, FORWARD_STOP_ACK_S, NUMBERS
from support.logs import lines
from support.waiting import DEADLINE_S, wait_until


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def put(outbox: Outbox, *numbers: int) -> int:
    """Return how many of the numbers were taken."""
    return outbox.put(memoryview(lines(numbers))) // 10


def unpack(batch: Batch | None) -> list[int]:
    assert batch is not None
    return [number for (number,) in struct.iter_unpack("<I", batch.payload)]


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def make(clock: Clock) -> Callable[..., Outbox]:
    """Make an outbox with time that stands still; what it wakes is counted in `wakes`."""

    def make(partitions: int = 2, batch_numbers: int = 4) -> Outbox:
        return Outbox(partitions, wake=lambda: None, batch_bytes=4 * batch_numbers, clock=clock)

    return make


def test_a_batch_leaves_a_little_after_its_first_number(
    make: Callable[..., Outbox], clock: Clock
) -> None:
    outbox = make()
    assert outbox.due_in_s() is None
    assert put(outbox, 1, 999_999_999, 2) == 3
    assert outbox.take() is None
    assert outbox.due_in_s() == pytest.approx(FORWARD_LINGER_S)
    clock.now_s += FORWARD_LINGER_S
    assert outbox.due_in_s() == 0
    first, second = outbox.take(), outbox.take()
    assert first is not None
    assert second is not None
    assert (first.partition, unpack(first)) == (0, [1, 2])
    assert (second.partition, unpack(second)) == (1, [999_999_999])
    assert first.number != second.number
    assert outbox.take() is None


def test_a_full_batch_leaves_at_once(make: Callable[..., Outbox]) -> None:
    outbox = make()
    assert put(outbox, *range(9)) == 9
    assert [unpack(outbox.take()), unpack(outbox.take())] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert outbox.take() is None


def test_numbers_count_when_their_batch_is_acknowledged(
    make: Callable[..., Outbox], clock: Clock
) -> None:
    outbox = make()
    put(outbox, *range(5))
    batch = outbox.take()
    assert batch is not None
    assert outbox.forwarded == (0, 5, 0, 16)
    assert not outbox.acknowledge(batch)
    assert outbox.forwarded == (4, 1, 0, 16)
    assert outbox.acknowledged == 4


def test_a_failed_batch_comes_again_as_it_was_and_others_of_its_partition_wait(
    make: Callable[..., Outbox], clock: Clock
) -> None:
    outbox = make()
    put(outbox, *range(4))
    clock.now_s += FORWARD_LINGER_S
    batch = outbox.take()
    assert batch is not None
    number = batch.number
    outbox.fail(batch, 0.5)
    put(outbox, 10, 999_999_999)
    clock.now_s += FORWARD_LINGER_S
    other = outbox.take()
    assert unpack(other) == [999_999_999], "the other partition is served"
    assert outbox.take() is None
    assert outbox.due_in_s() == pytest.approx(0.5 - FORWARD_LINGER_S)
    clock.now_s += 0.5
    again = outbox.take()
    assert again is batch
    assert (again.number, unpack(again)) == (number, [0, 1, 2, 3])
    assert outbox.forwarded.resent == 1
    assert other is not None
    assert not outbox.acknowledge(other), "the failure is not over with that"
    assert outbox.acknowledge(batch)
    clock.now_s += FORWARD_LINGER_S
    assert unpack(outbox.take()) == [10]


def test_what_a_failing_partition_has_no_room_for_is_not_taken(clock: Clock) -> None:
    # Real time: it waits for room, about a second.
    outbox = Outbox(2, wake=lambda: None, batch_bytes=16)
    put(outbox, *range(5))
    batch = outbox.take()
    assert batch is not None
    outbox.fail(batch, 100)
    assert put(outbox, *range(5, 20)) == 3
    assert put(outbox, 999_999_999) == 1


def test_no_more_is_held_than_the_limit_says() -> None:
    outbox = Outbox(1, wake=lambda: None, batch_bytes=16)
    assert put(outbox, *range(4 * FORWARD_BATCHES_MAX + 100)) == 4 * FORWARD_BATCHES_MAX + 4
    assert outbox.write_s > 0.5, "it was waited for room"
    batch = outbox.take()
    assert batch is not None
    outbox.acknowledge(batch)
    assert put(outbox, *range(500, 510)) == 4


def test_room_that_is_made_is_used_at_once() -> None:
    outbox = Outbox(1, wake=lambda: None, batch_bytes=16)
    numbers = 4 * FORWARD_BATCHES_MAX + 400
    taken: list[int] = []
    thread = threading.Thread(target=lambda: taken.append(put(outbox, *range(numbers))))
    thread.start()
    found: list[int] = []

    def acknowledge_next() -> bool:
        batch = outbox.take()
        if batch is not None:
            found.extend(unpack(batch))
            outbox.acknowledge(batch)
        return len(found) == numbers

    wait_until(acknowledge_next, "all numbers")
    thread.join(DEADLINE_S)
    assert taken == [numbers]
    assert found == list(range(numbers))
    assert outbox.wait_until_acknowledged(outbox.mark())


def test_a_stop_waits_for_what_is_not_acknowledged_and_gives_up_in_the_end(
    make: Callable[..., Outbox], clock: Clock
) -> None:
    outbox = make()
    outbox.begin_stop()
    assert outbox.wait_until_acknowledged(outbox.mark())
    put(outbox, 1)
    clock.now_s += FORWARD_STOP_ACK_S
    assert not outbox.wait_until_acknowledged(outbox.mark())


def test_a_mark_is_waited_for_without_what_was_put_behind_it(
    make: Callable[..., Outbox], clock: Clock
) -> None:
    outbox = make()
    outbox.begin_stop()
    assert put(outbox, 1, 999_999_999) == 2
    clock.now_s += FORWARD_LINGER_S
    before = [outbox.take(), outbox.take()]
    mark = outbox.mark()
    assert put(outbox, 999_999_998) == 1

    def acknowledge() -> None:
        for batch in before:
            assert batch is not None
            outbox.acknowledge(batch)

    threading.Timer(0.05, acknowledge).start()
    assert outbox.wait_until_acknowledged(mark)
    assert outbox.forwarded.in_flight == 1
    clock.now_s += FORWARD_STOP_ACK_S
    assert not outbox.wait_until_acknowledged(outbox.mark())


def test_many_partitions_share_the_memory() -> None:
    outbox = Outbox(1024, wake=lambda: None)
    width = NUMBERS // 1024 + 1
    numbers = list(range(0, NUMBERS, width))
    assert put(outbox, *numbers) == len(numbers)
    found: list[int] = []

    def take_all() -> bool:
        while (batch := outbox.take()) is not None:
            found.extend(unpack(batch))
            outbox.acknowledge(batch)
        return len(found) == len(numbers)

    wait_until(take_all, "all batches")
    assert sorted(found) == numbers


def test_threads_that_put_at_once_lose_and_double_nothing() -> None:
    outbox = Outbox(7, wake=lambda: None, batch_bytes=400)
    pieces = [range(first, NUMBERS, 4 * 25_000) for first in (0, 1, 2, 3)]
    threads = [
        threading.Thread(
            target=lambda piece=piece: [
                put(outbox, *piece[i : i + 500]) for i in range(0, len(piece), 500)
            ]
        )
        for piece in pieces
    ]
    for thread in threads:
        thread.start()
    found: list[int] = []
    total = sum(map(len, pieces))

    def take_all() -> bool:
        while (batch := outbox.take()) is not None:
            found.extend(unpack(batch))
            outbox.acknowledge(batch)
        return len(found) >= total

    wait_until(take_all, "all numbers")
    for thread in threads:
        thread.join(DEADLINE_S)
    assert sorted(found) == sorted(number for piece in pieces for number in piece)
    assert outbox.wait_until_acknowledged(outbox.mark())


def test_a_batch_that_is_not_full_waits_for_those_before_it(
    make: Callable[..., Outbox], clock: Clock
) -> None:
    outbox = make()
    put(outbox, *range(6))
    full = outbox.take()
    assert unpack(full) == [0, 1, 2, 3]
    put(outbox, 999_999_999)
    clock.now_s += FORWARD_LINGER_S
    assert unpack(outbox.take()) == [999_999_999], "the other partition has none before it"
    assert outbox.take() is None
    put(outbox, 6)
    assert full is not None
    outbox.acknowledge(full)
    assert unpack(outbox.take()) == [4, 5, 6]


def test_what_was_put_before_a_mark_is_known_to_be_acknowledged_when_it_is(
    make: Callable[..., Outbox], clock: Clock
) -> None:
    outbox, chance = make(partitions=3), random.Random(7)
    marks: dict[int, set[int]] = {}
    put_so_far: set[int] = set()
    acknowledged: set[int] = set()
    under_way: list[Batch] = []
    for number in chance.sample(range(NUMBERS), 3000):
        if put(outbox, number):
            put_so_far.add(number)
        if chance.random() < 0.1:
            marks[outbox.mark()] = set(put_so_far)
        clock.now_s += chance.choice([0, FORWARD_LINGER_S])
        while (batch := outbox.take()) is not None:
            under_way.append(batch)
        chance.shuffle(under_way)
        while under_way and chance.random() < 0.7:
            acknowledged |= set(unpack(under_way[-1]))
            outbox.acknowledge(under_way.pop())
        for mark, before in list(marks.items()):
            if outbox.has_acknowledged(mark):
                assert before <= acknowledged
                del marks[mark]
    assert len(marks) < 100, "a mark is known only when there is nothing under way"


def test_a_mark_is_reached_beside_numbers_that_go_on_coming(
    make: Callable[..., Outbox], clock: Clock
) -> None:
    outbox = make()
    assert put(outbox, 1, 999_999_999) == 2
    mark = outbox.mark()
    for number in range(10, 100, 2):
        assert put(outbox, number, NUMBERS - number) == 2
        if outbox.has_acknowledged(mark):
            break
        clock.now_s += FORWARD_LINGER_S
        while (batch := outbox.take()) is not None:
            outbox.acknowledge(batch)
        assert put(outbox, number + 1, NUMBERS - number - 1) == 2
    assert number < 20
