"""Which tests run, and in which order, where not all of them run one after the other."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, TypeVar

ALL_CASES = "tests/system/"
"""Whose cases are the interpreter's own: signals, streams and threads of each kind."""
SLOW = ("cluster", "docs", "packaging", "server")
"""Folders of tests that start many processes, or wait."""


class Item(Protocol):
    """What is asked of a pytest.Item."""

    @property
    def nodeid(self) -> str: ...

    path: Path


T = TypeVar("T", bound=Item)


def some_cases(tests: Sequence[T], cases_max: int) -> list[T]:
    """Return the tests with so many of their cases: the first, the last and some between."""
    cases: dict[str, list[T]] = {}
    for test in tests:
        cases.setdefault(test.nodeid.partition("[")[0], []).append(test)
    kept = set()
    for name, each in cases.items():
        count = len(each) if name.startswith(ALL_CASES) else min(cases_max, len(each))
        kept |= {each[i * (len(each) - 1) // max(count - 1, 1)].nodeid for i in range(count)}
    return [test for test in tests if test.nodeid in kept]


def dealt(tests: Sequence[T], workers: int) -> list[T]:
    """Return the tests in an order of which each worker has slow ones first, and then quick ones.

    Of `--dist worksteal` each gets an equal part, and the rest of another one's when it is done: a
    slow test that is left then is waited for by all. Files stay together, for what tests share.
    """
    files: dict[Path, list[T]] = {}
    for test in tests:
        files.setdefault(test.path, []).append(test)
    folders: dict[str, list[Path]] = {}
    for path in files:
        folders.setdefault(path.parent.name, []).append(path)
    # One of each folder in turn.
    slow = sorted((i, path) for name in SLOW for i, path in enumerate(folders.get(name, ())))
    hands: list[list[T]] = [[] for _ in range(workers)]
    for _, path in slow:
        min(hands, key=len).extend(files[path])
    quick = [test for test in tests if test.path.parent.name not in SLOW]
    order: list[T] = []
    for number, hand in enumerate(hands):
        size = (len(tests) - len(order)) // (workers - number)
        count = max(size - len(hand), 0)
        order += hand + quick[:count]
        del quick[:count]
    return order + quick
