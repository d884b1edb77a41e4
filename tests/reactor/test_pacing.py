from numbers_uring.limits import (
    PACING_CHUNK_BYTES,
    PACING_INTERVAL_S,
    PACING_PASSES,
    PACING_SIGNS,
    PACING_SLEEP_S,
)
from numbers_uring.reactor.pacing import Pacing


class Stream:
    """Passes that follow each other at some distance, and what each is slept for."""

    def __init__(self) -> None:
        self.pacing = Pacing()
        self.now_s = 1000.0

    def passes(self, count: int, *, apart_s: float, events: int, size: int) -> list[float]:
        slept = []
        for _ in range(count):
            slept.append(self.pacing.sleep_s())
            self.now_s += apart_s + slept[-1]
            self.pacing.note_pass(self.now_s, events, events * size)
        return slept


def test_a_rush_of_tiny_packets_is_slept_for_after_its_first_passes() -> None:
    slept = Stream().passes(PACING_SIGNS + 10, apart_s=PACING_INTERVAL_S / 2, events=5, size=10)
    # The first pass follows nothing.
    assert slept == [0.0] * (PACING_SIGNS + 1) + [PACING_SLEEP_S] * 9


def test_a_rush_of_many_clients_is_one_too_though_each_pass_takes_longer() -> None:
    slept = Stream().passes(PACING_SIGNS + 2, apart_s=PACING_INTERVAL_S * 20, events=50, size=10)
    assert slept[-1] == PACING_SLEEP_S


def test_a_rush_is_looked_at_anew_from_time_to_time() -> None:
    slept = Stream().passes(1000, apart_s=PACING_INTERVAL_S / 2, events=5, size=10)
    rest = slept[PACING_SIGNS + 1 :]
    period = PACING_PASSES + PACING_SIGNS
    assert rest[PACING_PASSES:period] == [0.0] * PACING_SIGNS
    assert rest[period] == PACING_SLEEP_S


def test_a_stream_with_pauses_is_never_slept_for() -> None:
    slept = Stream().passes(500, apart_s=PACING_INTERVAL_S * 1.01, events=1, size=10)
    assert not any(slept)


def test_large_pieces_are_never_slept_for() -> None:
    slept = Stream().passes(500, apart_s=1e-6, events=5, size=PACING_CHUNK_BYTES)
    assert not any(slept)


def test_a_rush_that_ends_is_slept_for_no_more() -> None:
    stream = Stream()
    stream.passes(PACING_SIGNS + 5, apart_s=PACING_INTERVAL_S / 2, events=5, size=10)
    # The wait that was slept for found nothing, and had to wait for long.
    stream.passes(1, apart_s=1.0, events=0, size=0)
    assert not any(stream.passes(100, apart_s=PACING_INTERVAL_S * 2, events=1, size=10))


def test_an_idle_stream_is_delayed_by_less_than_a_millisecond() -> None:
    assert PACING_SLEEP_S < 0.001
