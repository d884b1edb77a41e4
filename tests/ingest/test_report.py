import pytest
from hypothesis import given
from hypothesis import strategies as st

from numbers_uring.ingest.report import Counts, next_due_s, report_line


def test_a_report_says_what_came_since_the_last_one() -> None:
    line = report_line(Counts(567_181, 10), Counts(567_231, 12))
    assert line == "Received 50 unique numbers, 2 duplicates. Unique total: 567231"


def test_a_report_on_nothing_is_a_report() -> None:
    line = report_line(Counts(7, 9), Counts(7, 9))
    assert line == "Received 0 unique numbers, 0 duplicates. Unique total: 7"


@pytest.mark.parametrize(
    ("now_s", "next_s"), [(100, 110), (100.5, 110), (109.9, 110), (110, 120), (147, 150)]
)
def test_the_next_report_is_on_the_grid_of_the_first(now_s: float, next_s: float) -> None:
    assert next_due_s(100.0, now_s, 10.0) == next_s


@given(
    due_s=st.floats(0, 1e7), late_s=st.floats(0, 1e6), interval_s=st.sampled_from([0.1, 1, 10.0])
)
def test_a_stall_of_any_length_leaves_one_due_time_that_is_near(
    due_s: float, late_s: float, interval_s: float
) -> None:
    now_s = due_s + late_s
    following_s = next_due_s(due_s, now_s, interval_s)
    assert now_s - 1e-6 <= following_s <= now_s + interval_s + 1e-6
