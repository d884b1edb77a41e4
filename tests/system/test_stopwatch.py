"""The stopwatch: what lasts counts while it goes on, and what is over stays counted."""

from numbers_uring.system.stopwatch import Stopwatch


class Clock:
    now_s = 50.0

    def __call__(self) -> float:
        return self.now_s


def test_it_counts_from_each_start_to_the_next_stop() -> None:
    clock = Clock()
    watch = Stopwatch(clock)
    clock.now_s += 1
    assert (watch.runs, watch.total_s) == (False, 0)
    for before_s in (0, 5):
        watch.start()
        clock.now_s += 2
        watch.start()
        clock.now_s += 3
        assert (watch.runs, watch.total_s) == (True, before_s + 5)
        watch.stop()
        clock.now_s += 7
        watch.stop()
        assert (watch.runs, watch.total_s) == (False, before_s + 5)
