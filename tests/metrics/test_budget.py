"""The processor time that a thread may take."""

import pytest

from numbers_uring.metrics.budget import Budget


class Time:
    now_s = 1000.0
    spent_s = 3.0


def budget_of(time: Time) -> Budget:
    return Budget(0.1, 0.2, clock=lambda: time.now_s, spent_s=lambda: time.spent_s)


def test_a_burst_is_free_and_what_exceeds_it_is_slept_for() -> None:
    time = Time()
    budget = budget_of(time)
    time.spent_s += 0.15
    assert budget.pause_s() == 0
    time.spent_s += 0.06
    assert budget.pause_s() == pytest.approx(0.1)
    time.now_s += 0.1
    assert budget.pause_s() == pytest.approx(0)


def test_no_more_than_a_burst_is_saved() -> None:
    time = Time()
    budget = budget_of(time)
    time.now_s += 1e6
    time.spent_s += 0.3
    assert budget.pause_s() == pytest.approx(1.0)


def test_a_thread_that_sleeps_as_told_keeps_to_the_share() -> None:
    time = Time()
    budget = budget_of(time)
    for step in range(1000):
        time.spent_s += 0.001 * (step % 7)
        time.now_s += 0.001 * (step % 7) + budget.pause_s()
    used_s, passed_s = time.spent_s - Time.spent_s, time.now_s - Time.now_s
    assert used_s <= 0.2 + 0.1 * passed_s + 0.01


def test_without_a_clock_of_the_thread_all_time_counts_as_used() -> None:
    time = Time()

    def refuse() -> float:
        raise PermissionError("clock_gettime")

    budget = Budget(0.1, 0.2, clock=lambda: time.now_s, spent_s=refuse)
    assert budget.pause_s() == 0
    time.now_s += 1
    assert budget.pause_s() == pytest.approx((1 - 0.2) / 0.1)
