"""The protocol's lines, and the logs that are made of them."""

import re
from collections.abc import Iterable
from pathlib import Path

REPORT = re.compile(r"Received (\d+) unique numbers, (\d+) duplicates\. Unique total: (\d+)")


def lines(numbers: Iterable[int]) -> bytes:
    """Return the protocol's lines for `numbers`."""
    return b"".join(b"%09d\n" % number for number in numbers)


def logged(path: Path) -> list[int]:
    """Return the log's numbers, after a check that it consists of whole lines."""
    data = path.read_bytes()
    assert re.fullmatch(rb"(?:[0-9]{9}\n)*", data), "the log has something else than lines"
    return [int(line) for line in data.split()]


def logged_so_far(path: Path) -> list[int]:
    """Return the log's numbers at this moment: a write(2) under way shows byte by byte."""
    whole, _, unfinished = path.read_bytes().rpartition(b"\n")
    assert re.fullmatch(rb"(?:[0-9]{9}(?:\n|$))*", whole), "the log has something else than lines"
    assert re.fullmatch(rb"[0-9]{0,9}", unfinished), "the log ends with no part of a line"
    return [int(line) for line in whole.split()]


def logged_once(path: Path) -> set[int]:
    """Return the log's numbers, after a check that none is there twice."""
    numbers = logged(path)
    assert len(set(numbers)) == len(numbers), "the log has a number twice"
    return set(numbers)


def reported(reports: Iterable[str]) -> tuple[int, int, int]:
    """Return the sums of the reports' unique and duplicate numbers, and the last total."""
    parsed = []
    for line in reports:
        match = REPORT.fullmatch(line)
        assert match, f"not a report: {line!r}"
        parsed.append(tuple(map(int, match.groups())))
    uniques, duplicates, totals = zip(*parsed, strict=True)
    assert [sum(uniques[: i + 1]) for i in range(len(uniques))] == list(totals)
    return sum(uniques), sum(duplicates), totals[-1]


class GrowingLog:
    """A log over several runs; each look reads only what has come since the last one."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._seen_bytes = 0
        self.numbers: set[int] = set()

    @property
    def size(self) -> int:
        return self.path.stat().st_size

    def look(self) -> None:
        with self.path.open("rb") as file:
            file.seek(self._seen_bytes)
            data = file.read()
        whole = data[: len(data) // 10 * 10]
        assert re.fullmatch(rb"(?:[0-9]{9}\n)*", whole)
        assert re.fullmatch(rb"[0-9]{0,9}", data[len(whole) :])
        found = [int(line) for line in whole.split()]
        new = set(found)
        assert len(new) == len(found), "a number is there twice"
        assert not new & self.numbers, "a number is there twice"
        self.numbers |= new
        self._seen_bytes += len(whole)
