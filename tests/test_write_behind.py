"""Write-back behind the writer: what is asked of the kernel, and what is left in memory."""

import errno
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
from support import lines

from numbers_uring import write_behind
from numbers_uring.config import WRITE_BEHIND_BYTES
from numbers_uring.numbers_log import LogError, NumbersLog
from numbers_uring.write_behind import WriteBehind

W = WRITE_BEHIND_BYTES


class Calls:
    """A stand-in for the two native calls, with a record, that answers as it is told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, answer: int = 0) -> None:
        self.made: list[tuple[str, int]] = []
        self.answer = answer
        monkeypatch.setattr(
            write_behind,
            "lib",
            SimpleNamespace(
                nu_writeback_start=lambda _fd, offset, _bytes: self._note("start", offset),
                nu_writeback_finish=lambda _fd, offset, _bytes: self._note("finish", offset),
            ),
        )

    def _note(self, name: str, offset: int) -> int:
        self.made.append((name, offset // W))
        return self.answer


def test_each_window_is_started_when_it_is_full_and_finished_one_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls = Calls(monkeypatch)
    behind = WriteBehind()
    behind.advance(3, W - 1)
    assert calls.made == []
    behind.advance(3, W)
    assert calls.made == [("start", 0)]
    behind.advance(3, 2 * W + 5)
    assert calls.made == [("start", 0), ("start", 1), ("finish", 0)]
    behind.advance(3, 4 * W)
    assert calls.made[3:] == [("start", 2), ("finish", 1), ("start", 3), ("finish", 2)]


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ESPIPE, errno.ENOSYS, errno.EOPNOTSUPP])
def test_where_it_is_not_supported_it_is_not_asked_for_again(
    monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    calls = Calls(monkeypatch, -number)
    behind = WriteBehind()
    behind.advance(3, W)
    behind.advance(3, 9 * W)
    assert len(calls.made) == 1


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EDQUOT])
def test_a_failed_write_back_is_final(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, number: int
) -> None:
    Calls(monkeypatch, -number)
    log = NumbersLog(tmp_path / "numbers.log", say=print, behind=WriteBehind())
    with pytest.raises(LogError, match=os.strerror(number)):
        log.append(memoryview(lines(range(W // 10 + 1))))


def test_a_growing_log_is_whole_and_its_pages_are_given_up(tmp_path: Path) -> None:
    """The real calls; whether pages go is the file system's business, so that is not asserted."""
    log = NumbersLog(tmp_path / "numbers.log", say=print, behind=WriteBehind())
    block = memoryview(lines(range(100_000)))
    for _ in range(40):
        assert log.append(block) == len(block)
    log.finish()
    log.close()
    assert log.path.read_bytes() == bytes(block) * 40
