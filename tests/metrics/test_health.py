"""When the loop counts as alive."""

from numbers_uring.limits import HEARTBEAT_STALE_S
from numbers_uring.metrics.health import HEALTHY, Health, State


class Loop:
    stopping = False
    held_back = False
    lacking = ""


class Clock:
    now_s = 50.0

    def __call__(self) -> float:
        return self.now_s


def test_before_there_is_a_loop_it_starts_however_long_that_takes() -> None:
    clock = Clock()
    health = Health(clock)
    clock.now_s += 10 * HEARTBEAT_STALE_S
    assert health.state() is State.STARTING
    health.watch(Loop())
    assert health.state() is State.OK


def test_a_loop_that_does_not_come_round_is_stuck_until_it_does() -> None:
    clock = Clock()
    health = Health(clock)
    health.watch(Loop())
    clock.now_s += HEARTBEAT_STALE_S
    assert health.state() is State.OK
    clock.now_s += 0.1
    assert health.state() is State.STUCK
    assert health.reason() == "The loop, or a write or sync that it waits for, takes 10 s"
    health.heartbeat()
    assert health.state() is State.OK
    assert health.reason() == ""


def test_a_loop_without_space_is_healthy_one_that_stops_is_not() -> None:
    loop, health = Loop(), Health(Clock())
    health.watch(loop)
    loop.held_back = True
    assert health.state() is State.HELD_BACK
    loop.lacking = "No space"
    assert health.reason() == "No space"
    loop.stopping = True
    assert health.state() is State.STOPPING
    assert health.reason() == ""
    assert frozenset({State.OK, State.HELD_BACK}) == HEALTHY
