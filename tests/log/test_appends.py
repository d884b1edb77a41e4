"""What compiled passes append by themselves, and what they leave to Python."""

import errno
import os
import resource
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from numbers_uring._native import ffi, lib
from numbers_uring.config import Fsync
from numbers_uring.errors import SinkError
from numbers_uring.log import appends
from numbers_uring.log.background import LogBackground
from numbers_uring.log.calls import FileCalls
from numbers_uring.log.writer import NumbersLog
from support.logs import lines, logged_once

FIRST, SECOND = lines(range(10)), lines(range(10, 20))


class Batch:
    """Lines that a pass has taken in."""

    def __init__(self, data: bytes) -> None:
        self._memory: Any = ffi.new("uint8_t[]", data)
        self.ingest: Any = ffi.new(
            "struct nu_ingest *",
            {"batch": self._memory, "batch_bytes": len(data), "batch_used": len(data)},
        )

    @property
    def left(self) -> bytes:
        return bytes(ffi.buffer(self._memory, self.ingest.batch_used))

    def append(self, log: NumbersLog) -> bool:
        """Append as a pass does; return whether nothing is left."""
        assert log.compiled is not None
        done: bool = lib.nu_log_append(log.compiled.pointer, self.ingest)
        return done


@pytest.fixture
def said() -> list[str]:
    """What the log has said."""
    return []


@pytest.fixture
def log(tmp_path: Path, said: list[str]) -> Iterator[NumbersLog]:
    """A log in which passes may append, with FIRST in it."""
    log = NumbersLog(tmp_path / "numbers.log", say=said.append)
    log.truncate()
    log.append(memoryview(FIRST))
    yield log
    log.close()


@contextmanager
def no_file_beyond(size_bytes: int) -> Iterator[None]:
    """Make each write end there: Python ignores the signal that comes with it."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_pass_appends_what_python_then_knows(log: NumbersLog) -> None:
    batch = Batch(SECOND)
    assert batch.append(log)
    assert batch.left == b""
    assert log.path.read_bytes() == FIRST + SECOND
    assert log.written_lines == 20
    assert log.has(log.mark())
    assert log.append(memoryview(lines([20]))) == 10
    log.finish()
    assert log.path.read_bytes() == FIRST + SECOND + lines([20])
    assert log.written_lines == log.mark() == 21


def test_no_pass_appends_before_python_has(tmp_path: Path) -> None:
    log = NumbersLog(tmp_path / "numbers.log", say=print)
    log.truncate()
    assert not Batch(FIRST).append(log)
    assert log.path.read_bytes() == b""
    log.close()


def test_no_pass_appends_where_each_append_is_to_be_synced(tmp_path: Path) -> None:
    log = NumbersLog(tmp_path / "numbers.log", say=print, fsync=Fsync.ALWAYS)
    assert log.compiled is None
    log.close()


def truncate(log: NumbersLog) -> bytes:
    os.truncate(log.path, 50)
    return FIRST[:50] + SECOND


def append_a_line(log: NumbersLog) -> bytes:
    with log.path.open("ab") as file:
        file.write(lines([77]))
    return FIRST + lines([77]) + SECOND


def append_a_part(log: NumbersLog) -> bytes:
    with log.path.open("ab") as file:
        file.write(b"12345")
    return FIRST + SECOND


def remove(log: NumbersLog) -> bytes:
    log.path.unlink()
    return SECOND


@pytest.mark.parametrize("change", [truncate, append_a_line, append_a_part, remove])
def test_a_file_that_others_have_changed_is_left_to_python(
    log: NumbersLog, said: list[str], change: Callable[[NumbersLog], bytes]
) -> None:
    expected = change(log)
    batch = Batch(SECOND)
    assert not batch.append(log)
    assert batch.left == SECOND
    assert log.append(memoryview(batch.left)) == len(SECOND)
    assert log.path.read_bytes() == expected
    assert said
    assert Batch(lines([99])).append(log), "passes may append again"


@pytest.mark.parametrize("room_bytes", [0, 1, 9, 10, 33, 99])
def test_what_did_not_fit_is_left_and_nothing_is_torn(log: NumbersLog, room_bytes: int) -> None:
    batch, other = Batch(SECOND), lines([55])
    with no_file_beyond(len(FIRST) + room_bytes):
        assert not batch.append(log)
    assert batch.left == SECOND[room_bytes // 10 * 10 :]
    assert log.path.read_bytes() == FIRST + SECOND[: room_bytes // 10 * 10], "it is cut at once"
    assert not Batch(other).append(log), "the file may end within a line"
    if room_bytes:
        # A write that was refused is a failure, see below; one that was short is none.
        assert log.append(memoryview(other)) == len(other), "what is torn is another batch's"
        assert log.append(memoryview(batch.left)) == len(batch.left)
        log.finish()
        assert logged_once(log.path) == {*range(20), 55}
        assert log.written_lines == 21


def test_a_write_that_fails_in_a_pass_is_final(log: NumbersLog) -> None:
    with no_file_beyond(len(FIRST)):
        assert not Batch(SECOND).append(log)
    for _ in range(2):
        with pytest.raises(SinkError, match=f"cannot write the log .*: {os.strerror(errno.EFBIG)}"):
            log.append(memoryview(SECOND))
    assert not Batch(SECOND).append(log)
    with pytest.raises(SinkError):
        log.finish()
    assert log.path.read_bytes() == FIRST


def test_a_check_that_fails_in_a_pass_is_final(log: NumbersLog) -> None:
    fd = log._place.file.fd
    kept = os.dup(fd)
    os.close(fd)
    assert not Batch(SECOND).append(log)
    os.dup2(kept, fd, inheritable=False)
    os.close(kept)
    with pytest.raises(SinkError, match=f"cannot check the log .*: {os.strerror(errno.EBADF)}"):
        log.append(memoryview(SECOND))
    assert log.path.read_bytes() == FIRST


def test_an_append_that_takes_long_is_the_last_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(appends, "SLOW_APPEND_S", 0.0)
    log = NumbersLog(tmp_path / "numbers.log", say=print)
    log.truncate()
    log.append(memoryview(FIRST))
    assert Batch(SECOND).append(log)
    log.note_appends()
    assert not Batch(SECOND).append(log)
    log.close()
    assert log.path.read_bytes() == FIRST + SECOND


def note(log: NumbersLog) -> None:
    log.note_appends()


def find_no_space(log: NumbersLog) -> None:
    def refuse(fd: int, data: memoryview) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    log._place.file._calls = replace(FileCalls(), write=refuse)
    assert log.append(memoryview(lines([30]))) == 0


def find_no_file(log: NumbersLog) -> None:
    log.path.unlink()
    log.path.mkdir()
    assert log.append(memoryview(lines([30]))) == 0


def reopen(log: NumbersLog) -> None:
    log.reopen()


@pytest.mark.parametrize("then", [note, find_no_space, find_no_file, reopen])
def test_the_background_hears_of_appends_whatever_comes_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, then: Callable[[NumbersLog], None]
) -> None:
    ends: list[int] = []
    monkeypatch.setattr(LogBackground, "grown", lambda _, end_bytes: ends.append(end_bytes))
    log = NumbersLog(tmp_path / "numbers.log", say=print, fsync=Fsync.INTERVAL)
    log.truncate()
    log.append(memoryview(FIRST))
    assert Batch(SECOND).append(log)
    then(log)
    log.close()
    assert ends == [100, 200]


def test_the_background_hears_of_appends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ends: list[int] = []
    monkeypatch.setattr(LogBackground, "grown", lambda _, end_bytes: ends.append(end_bytes))
    log = NumbersLog(tmp_path / "numbers.log", say=print, fsync=Fsync.INTERVAL, write_behind=True)
    log.truncate()
    log.append(memoryview(FIRST))
    assert Batch(SECOND).append(log)
    log.note_appends()
    log.note_appends()
    assert Batch(lines([20])).append(log)
    log.note_appends()
    log.close()
    assert ends == [100, 200, 210]


def test_a_file_that_was_left_gets_nothing_more(log: NumbersLog, tmp_path: Path) -> None:
    assert Batch(SECOND).append(log)
    log.path.rename(tmp_path / "old.log")
    log.reopen()
    batch = Batch(lines([20]))
    assert not batch.append(log)
    log.append(memoryview(batch.left))
    assert Batch(lines([21])).append(log)
    log.finish()
    assert not Batch(lines([22])).append(log)
    assert (tmp_path / "old.log").read_bytes() == FIRST + SECOND
    assert log.path.read_bytes() == lines([20, 21])
    assert log.written_lines == 22


def test_passes_of_several_threads_append_beside_each_other_and_a_rotation(
    log: NumbersLog, tmp_path: Path
) -> None:
    each, threads_count, by_passes = 2000, 3, [0, 0, 0]
    errors: list[BaseException] = []

    def take_in(thread: int) -> None:
        try:
            for first in range(each):
                start = 1_000_000 * (thread + 1) + 3 * first
                batch = Batch(lines(range(start, start + 3)))
                if batch.append(log):
                    by_passes[thread] += 1
                    log.note_appends()
                else:
                    assert log.append(memoryview(batch.left)) == len(batch.left)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=take_in, args=(i,)) for i in range(threads_count)]
    for thread in threads:
        thread.start()
    rotated: list[Path] = []
    while any(thread.is_alive() for thread in threads):
        rotated.append(tmp_path / f"numbers.log.{len(rotated)}")
        log.path.rename(rotated[-1])
        log.reopen()
        threads[0].join(0.01)
    for thread in threads:
        thread.join()
    log.finish()
    assert not errors
    assert all(by_passes), "there is nothing to be seen here"
    found = [line for path in (*rotated, log.path) for line in path.read_bytes().splitlines()]
    assert len(found) == len(set(found)) == 10 + 3 * each * threads_count == log.written_lines
    assert all(len(line) == 9 for line in found)
