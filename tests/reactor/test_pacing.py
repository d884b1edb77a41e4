import math

import pytest

from numbers_uring.limits import (
    PACING_CHUNK_BYTES,
    PACING_INTERVAL_S,
    PACING_PASSES,
    PACING_PAUSE_S_MIN,
    PACING_PERIOD_S,
    PACING_SIGNS,
)
from numbers_uring.reactor.pacing import Pacing


class Stream:
    """Passes that take some time each, and the pauses before them."""

    def __init__(self) -> None:
        self.pacing = Pacing()
        self.now_s = 1000.0

    def passes(self, count: int, *, apart_s: float, events: int, size: int) -> list[float]:
        paused_s = []
        for _ in range(count):
            paused_s.append(self.pacing.pause_s(self.now_s))
            self.now_s += apart_s + paused_s[-1]
            self.pacing.note_pass(self.now_s, events, events * size)
        return paused_s


def test_a_rush_of_tiny_packets_is_paced_after_its_first_passes() -> None:
    paused_s = Stream().passes(PACING_SIGNS + 10, apart_s=PACING_INTERVAL_S / 2, events=5, size=10)
    # The first pass follows nothing, and the first paced one nothing that was paced.
    assert paused_s[: PACING_SIGNS + 2] == [0.0] * (PACING_SIGNS + 2)
    assert paused_s[PACING_SIGNS + 2 :] == pytest.approx(
        [PACING_PERIOD_S - PACING_INTERVAL_S / 2] * 8
    )


def test_passes_that_are_paced_begin_a_period_apart_whatever_they_take() -> None:
    stream = Stream()
    stream.passes(PACING_SIGNS + 2, apart_s=1e-6, events=5, size=10)
    for share in (0.1, 0.9, 0.5):
        taken_s = PACING_PERIOD_S * share
        paused_s = stream.passes(2, apart_s=taken_s, events=5, size=10)[1]
        assert paused_s + taken_s == pytest.approx(PACING_PERIOD_S)


def test_a_pass_that_takes_longer_than_a_period_has_no_pause_behind_it() -> None:
    for taken_s in (PACING_PERIOD_S - PACING_PAUSE_S_MIN / 2, PACING_PERIOD_S * 20):
        events = math.ceil(2 * taken_s / PACING_INTERVAL_S)
        assert not any(Stream().passes(500, apart_s=taken_s, events=events, size=10))


def test_a_rush_is_looked_at_anew_from_time_to_time() -> None:
    paused_s = Stream().passes(1000, apart_s=PACING_INTERVAL_S / 2, events=5, size=10)
    rest = [bool(each) for each in paused_s[PACING_SIGNS + 1 :]]
    period = [*[True] * PACING_PASSES, *[False] * PACING_SIGNS]
    assert rest == [False, *(period * 20)[1 : len(rest)]]


def test_a_stream_with_pauses_is_never_paced() -> None:
    paused_s = Stream().passes(500, apart_s=PACING_INTERVAL_S * 1.01, events=1, size=10)
    assert not any(paused_s)


def test_large_pieces_are_never_paced() -> None:
    paused_s = Stream().passes(500, apart_s=1e-6, events=5, size=PACING_CHUNK_BYTES)
    assert not any(paused_s)


def test_a_rush_that_ends_is_paced_no_more() -> None:
    stream = Stream()
    stream.passes(PACING_SIGNS + 5, apart_s=PACING_INTERVAL_S / 2, events=5, size=10)
    # The pass behind a pause found nothing, and had to wait for long.
    stream.passes(1, apart_s=1.0, events=0, size=0)
    assert not any(stream.passes(100, apart_s=PACING_INTERVAL_S * 2, events=1, size=10))


def test_an_idle_stream_is_delayed_by_less_than_a_millisecond() -> None:
    assert PACING_PERIOD_S < 0.001
