"""Which connections are idle, by a clock that the tests move."""

from numbers_uring.limits import IDLE_PASS_S
from numbers_uring.server.idle import IdleTimeouts


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0
        self.idle = IdleTimeouts(5, lambda: self.now_s)

    def wait(self, seconds: float) -> None:
        """Let a pass wait so long, as it was to."""
        self.idle.begin_pass(seconds)
        self.now_s += seconds
        self.idle.end_pass()


def test_a_connection_is_due_when_its_time_is_up_and_only_once() -> None:
    clock = Clock()
    clock.idle.touch(1)
    assert clock.idle.left_s() == 5
    clock.wait(4.9)
    assert list(clock.idle.take_due()) == []
    clock.wait(0.2)
    assert list(clock.idle.take_due()) == [1]
    clock.wait(100)
    assert list(clock.idle.take_due()) == []
    assert clock.idle.left_s() is None


def test_a_connection_that_sends_a_line_goes_to_the_end_of_the_queue() -> None:
    clock = Clock()
    clock.idle.touch(1)
    clock.wait(1)
    clock.idle.touch(2)
    clock.wait(1)
    clock.idle.touch(1)
    assert clock.idle.left_s() == 4
    clock.wait(4.5)
    assert list(clock.idle.take_due()) == [2]
    clock.wait(0.5)
    assert list(clock.idle.take_due()) == [1]


def test_a_closed_connection_is_never_due() -> None:
    clock = Clock()
    clock.idle.touch(1)
    clock.idle.forget(1)
    clock.idle.forget(1)
    clock.wait(1000)
    assert list(clock.idle.take_due()) == []


def test_time_between_passes_is_not_idleness() -> None:
    clock = Clock()
    clock.idle.touch(1)
    clock.wait(1)
    clock.now_s += 100
    assert list(clock.idle.take_due()) == []
    clock.wait(3.9)
    assert list(clock.idle.take_due()) == []
    clock.wait(0.1)
    assert list(clock.idle.take_due()) == [1]


def test_a_pass_that_takes_longer_than_it_was_to_wait_counts_little_of_that() -> None:
    clock = Clock()
    clock.idle.touch(1)
    clock.idle.begin_pass(1)
    clock.now_s += 100
    assert list(clock.idle.take_due()) == []
    clock.idle.end_pass()
    assert clock.idle.left_s() == 4 - IDLE_PASS_S
