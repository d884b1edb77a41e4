"""What is left out, and what is not, where a part of the tests runs, or several run at once."""

from collections import Counter
from pathlib import Path

import pytest

from support.selection import SLOW, dealt, some_cases


class Case:
    """In the place of a pytest.Item."""

    def __init__(self, nodeid: str) -> None:
        self.nodeid = nodeid
        self.path = Path(nodeid.partition("::")[0])


def cases(test: str, count: int) -> list[Case]:
    return [Case(f"{test}[{number}]") for number in range(count)]


@pytest.mark.parametrize(
    ("count", "cases_max", "kept"),
    [(1, 3, [0]), (3, 3, [0, 1, 2]), (4, 3, [0, 1, 3]), (101, 3, [0, 50, 100]), (5, 1, [0])],
)
def test_of_each_test_some_cases_are_kept(count: int, cases_max: int, kept: list[int]) -> None:
    alone = Case("tests/log/test_x.py::test_without_cases")
    many = cases("tests/log/test_x.py::test_x", count)
    of_the_interpreter = cases("tests/system/test_x.py::test_x", count)
    tests = [*many, alone, *of_the_interpreter]
    assert some_cases(tests, cases_max) == [
        *(many[number] for number in kept),
        alone,
        *of_the_interpreter,
    ]


@pytest.mark.parametrize("workers", [1, 2, 3, 6])
@pytest.mark.parametrize("quick_count", [0, 7, 400])
def test_each_worker_begins_with_slow_tests_and_none_is_lost(
    workers: int, quick_count: int
) -> None:
    counts = {f"tests/{folder}/test_{i}.py": 5 + i for folder in SLOW for i in range(6)}
    counts["tests/log/test_x.py"] = quick_count
    tests = [test for path, count in counts.items() for test in cases(f"{path}::test_x", count)]
    order = dealt(tests, workers)
    assert Counter(order) == Counter(tests)
    files = [test.path for test in order]
    for path in set(files) - {Path("tests/log/test_x.py")}:
        first = files.index(path)
        assert files[first : first + counts[str(path)]].count(path) == counts[str(path)]
    if quick_count == 400:
        left, begin = len(order), 0
        for worker in range(workers):
            size = left // (workers - worker)
            part = [test.path.parent.name in SLOW for test in order[begin : begin + size]]
            assert part == sorted(part, reverse=True)
            assert part[0]
            assert not part[-1]
            left, begin = left - size, begin + size
