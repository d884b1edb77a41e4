"""Counts in sentences."""

import pytest

from numbers_uring.words import counted, counted_and


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 lines are"), (1, "1 line is"), (2, "2 lines are")]
)
def test_one_is_singular_and_every_other_count_is_plural(count: int, text: str) -> None:
    assert counted_and(count, "line", "is", "are") == text
    assert text.startswith(counted(count, "line"))
