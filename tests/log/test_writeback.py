"""Write-back behind the writer: what is asked of the kernel, and what is left in memory."""

import errno
import mmap
import os
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from numbers_uring.config import Fsync
from numbers_uring.errors import SinkError
from numbers_uring.limits import WRITE_BEHIND_BYTES
from numbers_uring.log import writeback
from numbers_uring.log.writeback import WriteBehind
from numbers_uring.log.writer import NumbersLog
from support.logs import lines
from support.waiting import DEADLINE_S

W = WRITE_BEHIND_BYTES


@pytest.fixture(autouse=True)
def _no_lag(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writeback, "WRITE_BEHIND_LAG_BYTES", 0)


class Calls:
    """A stand-in for the two native calls, with a record, that answers as it is told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, answer: int = 0) -> None:
        self.made: list[tuple[str, int]] = []
        self.answer = answer
        monkeypatch.setattr(
            writeback,
            "lib",
            SimpleNamespace(
                nu_writeback_start=lambda _fd, offset, _bytes: self._note("start", offset),
                nu_writeback_finish=lambda _fd, offset, _bytes: self._note("finish", offset),
            ),
        )

    def _note(self, name: str, offset: int) -> int:
        self.made.append((name, offset // W))
        return self.answer


def follow(behind: WriteBehind, end_bytes: int) -> None:
    while behind.is_due(end_bytes):
        behind.advance(3)


def test_the_last_part_of_a_file_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writeback, "WRITE_BEHIND_LAG_BYTES", 5 * W)
    behind = WriteBehind()
    assert not behind.is_due(6 * W - 1)
    assert behind.is_due(6 * W)


def test_each_window_is_started_when_it_is_full_and_finished_one_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls = Calls(monkeypatch)
    behind = WriteBehind()
    follow(behind, W - 1)
    assert calls.made == []
    follow(behind, W)
    assert calls.made == [("start", 0)]
    follow(behind, 2 * W + 5)
    assert calls.made == [("start", 0), ("start", 1), ("finish", 0)]
    follow(behind, 4 * W)
    assert calls.made[3:] == [("start", 2), ("finish", 1), ("start", 3), ("finish", 2)]


@pytest.mark.parametrize(
    "number", [errno.EINVAL, errno.ESPIPE, errno.ENOSYS, errno.EPERM, errno.ENOMEM]
)
def test_where_it_is_refused_it_is_not_asked_for_again(
    monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    calls = Calls(monkeypatch, -number)
    behind = WriteBehind()
    follow(behind, 9 * W)
    assert len(calls.made) == 1


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EDQUOT])
def test_a_failed_write_back_is_final(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, number: int
) -> None:
    Calls(monkeypatch, -number)
    woken = threading.Event()
    log = NumbersLog(tmp_path / "numbers.log", say=print, write_behind=True, wake=woken.set)
    log.append(memoryview(lines(range(W // 10 + 1))))
    assert woken.wait(DEADLINE_S)
    with pytest.raises(SinkError, match=os.strerror(number)):
        log.check()
    log.close()


@pytest.mark.parametrize("fsync", list(Fsync))
def test_a_growing_log_is_whole_whichever_thread_writes_it_back(
    tmp_path: Path, fsync: Fsync
) -> None:
    """The real calls, with a rotation; which pages stay is the file system's business."""
    path = tmp_path / "numbers.log"
    log = NumbersLog(path, say=lambda _line: None, fsync=fsync, write_behind=True)
    block = memoryview(lines(range(100_000)))
    for turn in range(40):
        assert log.append(block) == len(block)
        if turn == 20:
            path.rename(path.with_suffix(".1"))
            log.reopen()
    log.finish()
    log.close()
    assert path.with_suffix(".1").read_bytes() + path.read_bytes() == bytes(block) * 40


def test_what_is_synced_at_once_leaves_the_page_cache_where_that_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dropped: list[tuple[int, int, int]] = []
    monkeypatch.setattr(os, "posix_fadvise", lambda _fd, *asked: dropped.append(asked))
    path = tmp_path / "numbers.log"
    for asked_for in (False, True):
        log = NumbersLog(path, say=print, fsync=Fsync.ALWAYS, drop_synced=asked_for)
        log.truncate()
        pieces = [lines(range(first, first + 1000)) for first in range(0, 3000, 1000)]
        for piece in pieces:
            assert log.append(memoryview(piece)) == len(piece)
        log.close()
        assert path.read_bytes() == b"".join(pieces)
    page = mmap.PAGESIZE
    # Each from the page that the one before has ended in.
    starts = [0, 10_000 - 10_000 % page, 20_000 - 20_000 % page]
    ends = [10_000, 20_000, 30_000]
    assert [(start, start + size) for start, size, _ in dropped] == list(
        zip(starts, ends, strict=True)
    )
    assert {advice for _, _, advice in dropped} == {os.POSIX_FADV_DONTNEED}


def test_pages_that_can_not_be_dropped_are_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EINVAL, "invalid")

    monkeypatch.setattr(os, "posix_fadvise", refuse)
    log = NumbersLog(tmp_path / "n.log", say=print, fsync=Fsync.ALWAYS, drop_synced=True)
    assert log.append(memoryview(lines([7]))) == 10
    log.close()
