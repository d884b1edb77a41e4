"""When a stop no longer takes in what clients go on to send."""

import pytest

from numbers_uring.limits import DRAIN_BYTES_MAX, DRAIN_S, DRAIN_USED_S
from numbers_uring.reactor.drain_bound import DrainBound


class Times:
    def __init__(self) -> None:
        self.now_s = self.used_s = 1000.0
        self.bound = DrainBound(
            self.now_s + DRAIN_S, clock=lambda: self.now_s, used_clock=lambda: self.used_s
        )


def test_before_its_end_nothing_is_over() -> None:
    times = Times()
    times.now_s += DRAIN_S / 2
    times.used_s += DRAIN_S / 2
    times.bound.received(DRAIN_BYTES_MAX, on_top=DRAIN_BYTES_MAX)
    assert not times.bound.over


def test_time_in_which_the_process_does_not_run_ends_nothing() -> None:
    times = Times()
    times.now_s += 100 * DRAIN_S
    times.bound.received(DRAIN_BYTES_MAX - 1, on_top=DRAIN_BYTES_MAX - 1)
    # What the sockets held at first does not count.
    times.bound.received(DRAIN_BYTES_MAX, on_top=-1)
    times.bound.waited(DRAIN_USED_S * 0.9)
    assert not times.bound.over


@pytest.mark.parametrize("used", ["bytes", "processor time", "waits"])
def test_behind_its_end_what_was_used_ends_it(used: str) -> None:
    times = Times()
    times.now_s += DRAIN_S
    assert not times.bound.over
    if used == "bytes":
        times.bound.received(2 * DRAIN_BYTES_MAX, on_top=DRAIN_BYTES_MAX)
    elif used == "waits":
        times.bound.waited(DRAIN_USED_S)
    else:
        times.used_s += DRAIN_USED_S
    assert times.bound.over
