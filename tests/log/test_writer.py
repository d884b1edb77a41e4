"""The log writer: what is in the file after each thing that can go wrong."""

import errno
import fcntl
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from numbers_uring.config import Fsync
from numbers_uring.errors import StartError
from numbers_uring.log.writer import FileCalls, LogError, NumbersLog
from support.logs import lines
from support.waiting import DEADLINE_S

LINES = lines(range(100, 200))


class Writes:
    """A stand-in for os.write that takes what its script says: a number of bytes, or an errno."""

    def __init__(self, script: Iterator[int | OSError]) -> None:
        self._script = script

    def __call__(self, fd: int, data: memoryview) -> int:
        step = next(self._script, len(data))
        if isinstance(step, OSError):
            raise step
        return os.write(fd, data[:step])


def failure(number: int) -> OSError:
    return OSError(number, os.strerror(number))


def open_log(
    path: Path,
    *,
    fsync: Fsync = Fsync.NEVER,
    said: list[str] | None = None,
    **calls: Callable[..., Any],
) -> NumbersLog:
    return NumbersLog(
        path,
        say=(said if said is not None else []).append,
        fsync=fsync,
        calls=replace(FileCalls(), **calls),
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "numbers.log"


def test_whole_lines_are_appended(path: Path) -> None:
    log = open_log(path)
    assert log.append(memoryview(LINES)) == len(LINES)
    assert log.append(memoryview(b"")) == 0
    assert log.append(memoryview(LINES)) == len(LINES)
    log.finish()
    log.close()
    assert path.read_bytes() == LINES * 2
    assert log.written_lines == 200


def test_short_writes_are_finished(path: Path) -> None:
    log = open_log(path, write=Writes(iter([1, 3, 17, 9, 500, 1])))
    assert log.append(memoryview(LINES)) == len(LINES)
    assert path.read_bytes() == LINES


def test_an_interrupted_write_is_tried_again(path: Path) -> None:
    log = open_log(path, write=Writes(iter([failure(errno.EINTR), 7, failure(errno.EINTR)])))
    assert log.append(memoryview(LINES)) == len(LINES)
    assert path.read_bytes() == LINES


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("first", [0, 1, 9, 10, 11, 505, 999])
def test_without_space_the_file_ends_with_a_whole_line_and_goes_on_later(
    path: Path, number: int, first: int
) -> None:
    script: list[int | OSError] = [*([first] if first else []), failure(number), failure(number)]
    log = open_log(path, write=Writes(iter(script)))
    view = memoryview(LINES)
    on_file = log.append(view)
    assert on_file == first // 10 * 10
    assert path.read_bytes() == LINES[:on_file]
    assert log.append(view[on_file:]) == 0
    assert log.append(view[on_file:]) == len(LINES) - on_file
    assert path.read_bytes() == LINES
    assert log.written_lines == 100


@pytest.mark.parametrize("number", [errno.EIO, errno.EFBIG, errno.EROFS, errno.EBADF])
@pytest.mark.parametrize("first", [0, 1, 10, 505])
def test_any_other_failure_is_final_and_leaves_whole_lines(
    path: Path, number: int, first: int
) -> None:
    script: list[int | OSError] = [*([first] if first else []), failure(number)]
    log = open_log(path, write=Writes(iter(script)))
    with pytest.raises(LogError, match=os.strerror(number)):
        log.append(memoryview(LINES))
    assert path.read_bytes() == LINES[: first // 10 * 10]
    assert log.written_lines == first // 10


def test_a_write_that_takes_nothing_is_a_failure_and_no_endless_loop(path: Path) -> None:
    log = open_log(path, write=lambda _fd, _data: 0)
    with pytest.raises(LogError, match="took nothing"):
        log.append(memoryview(LINES))


def test_a_torn_line_that_cannot_be_cut_is_finished_when_there_is_space(path: Path) -> None:
    def refuse(_fd: int, _size: int) -> None:
        raise failure(errno.EIO)

    script: list[int | OSError] = [5, failure(errno.ENOSPC), 17, failure(errno.ENOSPC)]
    log = open_log(path, write=Writes(iter(script)), ftruncate=refuse)
    view = memoryview(LINES)
    on_file = log.append(view)
    assert on_file == 5
    on_file += log.append(view[on_file:])
    assert on_file == 22
    log.append(view[on_file:])
    assert path.read_bytes() == LINES
    assert log.written_lines == 100


def test_a_failed_sync_is_final(path: Path) -> None:
    def refuse(_fd: int) -> None:
        raise failure(errno.EIO)

    log = open_log(path, fsync=Fsync.ALWAYS, fdatasync=refuse)
    with pytest.raises(LogError, match="sync"):
        log.append(memoryview(LINES))
    with pytest.raises(LogError, match="sync"):
        log.finish()


def test_each_append_is_synced_where_always_is_asked_for(path: Path) -> None:
    synced = []
    log = open_log(path, fsync=Fsync.ALWAYS, fdatasync=lambda _fd: synced.append(path.read_bytes()))
    log.append(memoryview(LINES[:100]))
    log.append(memoryview(LINES[100:200]))
    assert synced == [LINES[:100], LINES[:200]]


def test_a_growing_log_is_synced_in_the_background(path: Path) -> None:
    synced = threading.Event()
    log = open_log(path, fsync=Fsync.INTERVAL, fdatasync=lambda _fd: synced.set())
    log.append(memoryview(LINES))
    assert synced.wait(DEADLINE_S)
    log.check()
    log.finish()
    log.close()


def test_never_never_syncs(path: Path) -> None:
    def refuse(_fd: int) -> None:
        raise AssertionError("synced")

    log = open_log(path, fdatasync=refuse)
    log.append(memoryview(LINES))
    log.finish()
    log.close()


def test_a_sync_that_fails_in_the_background_is_said_by_the_next_call(path: Path) -> None:
    def refuse(_fd: int) -> None:
        raise failure(errno.EIO)

    woken = threading.Event()
    log = NumbersLog(
        path,
        say=lambda _line: None,
        fsync=Fsync.INTERVAL,
        wake=woken.set,
        calls=replace(FileCalls(), fdatasync=refuse),
    )
    log.check()
    log.append(memoryview(LINES))
    assert woken.wait(DEADLINE_S)
    with pytest.raises(LogError, match="sync"):
        log.check()
    with pytest.raises(LogError, match="sync"):
        log.finish()
    log.close()


def test_after_a_rotation_each_line_is_in_one_file(path: Path) -> None:
    said: list[str] = []
    log = open_log(path, fsync=Fsync.INTERVAL, said=said)
    log.append(memoryview(LINES[:500]))
    path.rename(path.with_suffix(".1"))
    log.append(memoryview(LINES[500:600]))
    log.reopen()
    log.append(memoryview(LINES[600:]))
    log.finish()
    log.close()
    assert path.with_suffix(".1").read_bytes() == LINES[:600]
    assert path.read_bytes() == LINES[600:]
    assert said == [f"the log {path} is reopened"]
    assert log.written_lines == 100


def test_a_reopened_log_is_locked_and_the_old_one_is_free(path: Path) -> None:
    log = open_log(path)
    path.rename(path.with_suffix(".1"))
    log.reopen()
    with pytest.raises(StartError, match="locked"):
        open_log(path)
    open_log(path.with_suffix(".1")).close()
    log.close()


def test_a_reopen_without_a_rotation_goes_on_in_the_same_file(path: Path) -> None:
    said: list[str] = []
    log = open_log(path, said=said)
    log.append(memoryview(LINES[:10]))
    log.reopen()
    log.append(memoryview(LINES[10:]))
    assert path.read_bytes() == LINES
    assert "same file" in said[0]


@pytest.mark.parametrize("content", [b"", LINES])
def test_a_new_file_that_has_lines_keeps_them(path: Path, content: bytes) -> None:
    log = open_log(path)
    path.rename(path.with_suffix(".1"))
    path.write_bytes(content)
    log.reopen()
    log.append(memoryview(LINES))
    assert path.read_bytes() == content + LINES


def test_a_new_file_that_cannot_be_used_leaves_the_old_one_in_use(path: Path) -> None:
    said: list[str] = []
    log = open_log(path, said=said)
    old = path.with_suffix(".1")
    path.rename(old)
    path.mkdir()
    log.reopen()
    path.rmdir()
    path.write_bytes(b"no line")
    log.reopen()
    path.unlink()
    with open_locked(path):
        log.reopen()
    log.append(memoryview(LINES))
    assert old.read_bytes() == LINES
    assert [line.rsplit(": ", 1)[1] for line in said] == ["going on in the old file"] * 3


@contextmanager
def open_locked(path: Path) -> Iterator[None]:
    with path.open("ab") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        yield


def test_a_removed_log_is_made_anew_and_that_is_said_once(path: Path) -> None:
    said: list[str] = []
    log = open_log(path, said=said)
    log.append(memoryview(LINES[:100]))
    path.unlink()
    log.append(memoryview(LINES[100:200]))
    log.append(memoryview(LINES[200:300]))
    assert path.read_bytes() == LINES[100:300]
    assert [("was removed" in line, "is reopened" in line) for line in said] == [
        (True, False),
        (False, True),
    ]


def test_a_log_that_cannot_be_made_anew_is_written_to_all_the_same(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    said: list[str] = []
    log = open_log(folder / "numbers.log", said=said)
    shutil.rmtree(folder)
    for _ in range(3):
        assert log.append(memoryview(LINES)) == len(LINES)
    assert len(said) == 2


@pytest.mark.parametrize("left", [0, 7, 10, 55])
def test_a_truncated_log_goes_on_with_whole_lines(path: Path, left: int) -> None:
    said: list[str] = []
    log = open_log(path, said=said)
    log.append(memoryview(LINES[:100]))
    os.truncate(path, left)
    log.append(memoryview(LINES[100:200]))
    log.append(memoryview(LINES[200:300]))
    assert path.read_bytes() == LINES[: left // 10 * 10] + LINES[100:300]
    assert len(said) == 1
    assert "truncated by another process" in said[0]


def test_opening_leaves_the_content_until_it_is_truncated(path: Path) -> None:
    path.write_bytes(LINES)
    log = open_log(path)
    assert path.read_bytes() == LINES
    log.truncate()
    assert path.read_bytes() == b""


def test_a_second_server_is_refused_and_the_file_left_as_it_is(path: Path) -> None:
    first = open_log(path)
    first.append(memoryview(LINES))
    with pytest.raises(StartError, match="another process has locked it"):
        open_log(path)
    assert path.read_bytes() == LINES
    first.close()
    open_log(path).close()


def test_a_file_that_is_replaced_before_it_is_locked_is_refused(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = fcntl.flock

    def replace_and_lock(fd: int, operation: int) -> None:
        path.with_suffix(".new").write_bytes(LINES)
        path.with_suffix(".new").rename(path)
        lock(fd, operation)

    monkeypatch.setattr(fcntl, "flock", replace_and_lock)
    with pytest.raises(StartError, match="replaced"):
        open_log(path)
    assert path.read_bytes() == LINES


def test_a_lock_of_somebody_else_counts_too(path: Path) -> None:
    path.write_bytes(LINES)
    with path.open("rb") as other:
        fcntl.flock(other, fcntl.LOCK_SH)
        with pytest.raises(StartError, match="locked"):
            open_log(path)


def make_directory(path: Path) -> None:
    path.mkdir()


def make_fifo(path: Path) -> None:
    os.mkfifo(path)


def make_device_link(path: Path) -> None:
    path.symlink_to("/dev/full")


def make_dangling_link(path: Path) -> None:
    path.symlink_to(path.parent / "nowhere" / "numbers.log")


def make_loop(path: Path) -> None:
    path.symlink_to(path)


@pytest.mark.parametrize(
    "make", [make_directory, make_fifo, make_device_link, make_dangling_link, make_loop]
)
def test_what_is_no_regular_file_is_refused(path: Path, make: Callable[[Path], None]) -> None:
    make(path)
    with pytest.raises(StartError, match=r"numbers\.log"):
        open_log(path)


def test_a_fifo_with_a_reader_is_refused_too(path: Path) -> None:
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        with pytest.raises(StartError, match="regular file"):
            open_log(path)
    finally:
        os.close(reader)


@pytest.mark.parametrize("name", ["nowhere/numbers.log", "x" * 300, "nul\0byte"])
def test_a_path_that_cannot_be_opened_is_said(tmp_path: Path, name: str) -> None:
    with pytest.raises(StartError, match="cannot open the log"):
        open_log(tmp_path / name)


def test_a_link_to_a_regular_file_is_followed(path: Path) -> None:
    target = path.with_name("target.log")
    path.symlink_to(target)
    log = open_log(path)
    log.append(memoryview(LINES))
    assert target.read_bytes() == LINES


def test_the_time_spent_writing_and_syncing_is_counted(path: Path) -> None:
    pause = threading.Event()

    def slow_write(fd: int, data: memoryview) -> int:
        pause.wait(0.02)
        return os.write(fd, data[:500])

    def slow_sync(fd: int) -> None:
        pause.wait(0.03)

    log = open_log(path, fsync=Fsync.ALWAYS, write=slow_write, fdatasync=slow_sync)
    assert (log.write_s, log.sync_s) == (0, 0)
    log.append(memoryview(LINES))
    log.close()
    assert 0.04 <= log.write_s < DEADLINE_S
    assert 0.03 <= log.sync_s < DEADLINE_S


def test_the_time_that_the_background_spends_syncing_is_counted(path: Path) -> None:
    pause, synced = threading.Event(), threading.Event()

    def slow_sync(fd: int) -> None:
        pause.wait(0.03)
        synced.set()

    log = open_log(path, fsync=Fsync.INTERVAL, fdatasync=slow_sync)
    log.append(memoryview(LINES))
    assert synced.wait(DEADLINE_S)
    log.close()
    assert 0.03 <= log.sync_s < DEADLINE_S
