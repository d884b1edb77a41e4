"""The log writer: what is in the file after each thing that can go wrong."""

import errno
import fcntl
import os
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from numbers_uring.config import Fsync
from numbers_uring.errors import SinkError, StartError
from numbers_uring.log import file, place
from numbers_uring.log.calls import FileCalls
from numbers_uring.log.writer import NumbersLog
from numbers_uring.words import counted
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
    with pytest.raises(SinkError, match=os.strerror(number)):
        log.append(memoryview(LINES))
    assert path.read_bytes() == LINES[: first // 10 * 10]
    assert log.written_lines == first // 10


def test_a_write_that_takes_nothing_is_a_failure_and_no_endless_loop(path: Path) -> None:
    log = open_log(path, write=lambda _fd, _data: 0)
    with pytest.raises(SinkError, match="wrote nothing"):
        log.append(memoryview(LINES))


def refuse_to_cut(_fd: int, _size: int) -> None:
    raise failure(errno.EIO)


def test_a_torn_line_that_cannot_be_cut_is_finished_when_there_is_space(path: Path) -> None:
    script: list[int | OSError] = [5, failure(errno.ENOSPC), 17, failure(errno.ENOSPC)]
    log = open_log(path, write=Writes(iter(script)), ftruncate=refuse_to_cut)
    view = memoryview(LINES)
    assert log.append(view) == 0
    assert path.read_bytes() == LINES[:5]
    assert log.append(view) == 20
    assert path.read_bytes() == LINES[:22]
    log.append(view[20:])
    assert path.read_bytes() == LINES
    assert log.written_lines == 100


def test_a_torn_line_is_not_finished_with_the_end_of_another_one(path: Path) -> None:
    """Several loops append to one log: while one's line is unfinished, others have to wait."""
    script: list[int | OSError] = [9, failure(errno.ENOSPC)]
    log = open_log(path, write=Writes(iter(script)), ftruncate=refuse_to_cut)
    ours, others = memoryview(lines([111_111_111])), memoryview(lines([222_222_222]))
    assert log.append(ours) == 0
    assert log.append(others) == 0
    assert log.append(ours) == 10
    assert log.append(others) == 10
    assert path.read_bytes() == bytes(ours) + bytes(others)


def test_a_failed_sync_is_final(path: Path) -> None:
    def refuse(_fd: int) -> None:
        raise failure(errno.EIO)

    log = open_log(path, fsync=Fsync.ALWAYS, fdatasync=refuse)
    with pytest.raises(SinkError, match="sync"):
        log.append(memoryview(LINES))
    with pytest.raises(SinkError, match="sync"):
        log.wait_until_stored(log.mark())
    with pytest.raises(SinkError, match="sync"):
        log.finish()


def test_what_was_written_before_a_mark_is_waited_for_and_appended_to(path: Path) -> None:
    syncing, go_on = threading.Event(), threading.Event()

    def sync(_fd: int) -> None:
        syncing.set()
        assert go_on.wait(DEADLINE_S)

    log = open_log(path, fsync=Fsync.ALWAYS, fdatasync=sync)
    appending = threading.Thread(target=log.append, args=(memoryview(LINES),))
    appending.start()
    assert syncing.wait(DEADLINE_S)
    mark = log.mark()
    assert not log.has(mark)
    threading.Timer(0.05, go_on.set).start()
    log.wait_until_stored(mark)
    assert log.has(mark)
    appending.join(DEADLINE_S)
    assert log.append(memoryview(LINES)) == len(LINES)
    log.finish()
    assert path.read_bytes() == 2 * LINES


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
    with pytest.raises(SinkError, match="sync"):
        log.check()
    with pytest.raises(SinkError, match="sync"):
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
    assert said == [f"the log {path} was not renamed: still appending to it"]


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
    assert [line.rsplit("; ", 1)[1] for line in said] == ["still writing to the old file"] * 3


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


def take_the_folder(path: Path) -> Callable[[], object]:
    shutil.rmtree(path.parent)
    return path.parent.mkdir


def put_a_folder(path: Path) -> Callable[[], object]:
    path.unlink()
    path.mkdir()
    return path.rmdir


def put_a_dangling_link(path: Path) -> Callable[[], object]:
    path.unlink()
    path.symlink_to(path.parent / "nowhere" / "numbers.log")
    return path.unlink


def put_a_locked_file(path: Path) -> Callable[[], object]:
    path.unlink()
    other = path.open("ab")
    fcntl.flock(other, fcntl.LOCK_EX)
    return other.close


def put_a_file_that_is_not_made_of_lines(path: Path) -> Callable[[], object]:
    path.unlink()
    path.write_bytes(b"no line")
    return path.unlink


OBSTACLES = [
    take_the_folder,
    put_a_folder,
    put_a_dangling_link,
    put_a_locked_file,
    put_a_file_that_is_not_made_of_lines,
]


@pytest.mark.parametrize("obstruct", OBSTACLES, ids=lambda obstruct: obstruct.__name__)
def test_nothing_is_taken_while_a_removed_log_cannot_be_made_anew(
    tmp_path: Path, obstruct: Callable[[Path], Callable[[], object]]
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    path = folder / "numbers.log"
    said: list[str] = []
    log = open_log(path, said=said)
    log.append(memoryview(LINES[:100]))
    mend = obstruct(path)
    for _ in range(3):
        assert log.append(memoryview(LINES[100:])) == 0
        assert str(path) in log.full_message
        assert "no space" not in log.full_message
        assert log.full_status == "No log can be opened"
    assert log.written_lines == 10
    mend()
    assert log.append(memoryview(LINES[100:])) == len(LINES[100:])
    assert path.read_bytes() == LINES[100:]
    assert log.room_message == f"the log {path} can be written again"
    assert [("was removed" in line, "is reopened" in line) for line in said] == [
        (True, False),
        (False, True),
    ]
    log.finish()
    assert log.summary() == (f"100 numbers written to {path}, 10 of them to a removed file")


def test_a_removal_that_only_the_end_sees_is_said(path: Path) -> None:
    said: list[str] = []
    log = open_log(path, said=said, fsync=Fsync.ALWAYS)
    log.append(memoryview(LINES))
    path.unlink()
    log.finish()
    assert not path.exists()
    assert len(said) == 1
    assert "was removed" in said[0]
    assert "100 of them to a removed file" in log.summary()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time that the log's notices see, in its only element."""
    now_s = [1000.0]
    monkeypatch.setattr(place, "time", SimpleNamespace(monotonic=lambda: now_s[0]))
    monkeypatch.setattr(file, "time", SimpleNamespace(monotonic=lambda: now_s[0]))
    return now_s


@pytest.mark.parametrize("replaced", [False, True])
def test_a_log_that_was_renamed_and_never_reopened_is_mentioned_once(
    path: Path, clock: list[float], replaced: bool
) -> None:
    said: list[str] = []
    log = open_log(path, said=said)
    log.append(memoryview(LINES[:10]))
    path.rename(path.with_suffix(".1"))
    if replaced:
        path.write_bytes(b"")
    for _ in range(60):
        log.append(memoryview(LINES[:10]))
        clock[0] += 1
    assert len(said) == 1
    assert "renamed or replaced" in said[0]
    assert "SIGHUP" in said[0]
    log.reopen()
    log.append(memoryview(LINES[:10]))
    assert path.read_bytes() == LINES[:10]
    path.rename(path.with_suffix(".2"))
    for _ in range(60):
        log.append(memoryview(LINES[:10]))
        clock[0] += 1
    assert ["renamed or replaced" in line for line in said] == [True, False, True]


def test_a_rotation_with_its_signal_soon_after_is_not_mentioned(
    path: Path, clock: list[float]
) -> None:
    said: list[str] = []
    log = open_log(path, said=said)
    for turn in range(5):
        path.rename(path.with_suffix(f".{turn}"))
        for _ in range(4):
            log.append(memoryview(LINES[:10]))
            clock[0] += 1
        log.reopen()
        clock[0] += 100
    assert said == [f"the log {path} is reopened"] * 5


FOREIGN = [
    *(b"1", b"123", b"123456789", b"\0" * 4096, b"hello", b"x" * 200_000),
    *(b"123\n", b"000000001\n", b"000000001\n12", b"a\nb\n1", b"\n", b"y\n" * 70_000 + b"z"),
]


@pytest.mark.parametrize("foreign", FOREIGN, ids=lambda foreign: repr(foreign[:20]))
@pytest.mark.parametrize("readable", [True, False])
def test_what_another_process_appends_never_fuses_with_our_lines(
    path: Path, clock: list[float], foreign: bytes, readable: bool
) -> None:
    said: list[str] = []
    flags = [] if readable else [os.O_RDWR]
    log = open_log(path, said=said, open=without(*flags))
    expected = b""
    for _ in range(3):
        assert log.append(memoryview(LINES)) == len(LINES)
        with path.open("ab") as other:
            other.write(foreign)
        whole = foreign[: foreign.rfind(b"\n") + 1]
        expected += LINES + whole
    log.finish()
    assert len(said) == 1
    bytes_text = counted(len(foreign), "byte")
    assert said[0].startswith(f"another process appended {bytes_text} to the log {path}")
    if readable:
        assert path.read_bytes() == expected
        assert ("cut off" in said[0]) == (whole != foreign)
    else:
        assert path.read_bytes() == (LINES + foreign + b"\n") * 3
        assert "ended with a newline" in said[0]
    assert log.written_lines == 300
    clock[0] += 60


def without(*flags: int) -> Callable[[Path, int, int], int]:
    """Return an `open` that has no permission where it is asked for one of the flags."""

    def call(path: Path, asked: int, mode: int) -> int:
        if any(asked & flag for flag in flags):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return os.open(path, asked, mode)

    return call


def test_what_cannot_be_cut_off_is_ended_with_a_newline(path: Path) -> None:
    """As in a file that is append-only."""
    said: list[str] = []
    log = open_log(path, said=said, ftruncate=refuse_to_cut)
    log.append(memoryview(LINES))
    with path.open("ab") as other:
        other.write(b"123")
    log.append(memoryview(LINES))
    assert path.read_bytes() == LINES + b"123\n" + LINES
    assert len(said) == 1
    assert "ended with a newline" in said[0]


def test_a_line_that_was_fused_in_the_moment_of_the_write_is_said(path: Path) -> None:
    def write(fd: int, data: memoryview) -> int:
        if log.written_lines == 100:
            with path.open("ab") as other:
                other.write(b"123")
        return os.write(fd, data)

    said: list[str] = []
    log = open_log(path, said=said, write=write)
    for _ in range(3):
        log.append(memoryview(LINES))
    assert path.read_bytes() == LINES + b"123" + LINES * 2
    assert len(said) == 1
    assert "may be fused" in said[0]


def fused(said: list[str]) -> int:
    """Return how many numbers may be fused, as was said."""
    found = re.findall(r"(?:a|(\d+)) numbers? may be fused", "\n".join(said))
    return sum(int(number or 1) for number in found)


OTHERS = [b"123", b"0123456789", b"a line of another\nprocess, and 10 bytes"]
"""What another process appends: in the moment of a write, a number is fused with it."""


def append(path: Path, data: bytes) -> None:
    with path.open("ab") as other:
        other.write(data)


@pytest.mark.parametrize("count", [1, 7])
@pytest.mark.parametrize("others", OTHERS)
def test_each_number_that_was_fused_in_the_moment_of_the_write_is_said_in_the_end(
    path: Path, clock: list[float], others: bytes, count: int
) -> None:
    def write(fd: int, data: memoryview) -> int:
        if log.written_lines // count in {3, 6, 9, 19}:
            append(path, others)
        return os.write(fd, data)

    said: list[str] = []
    log = open_log(path, said=said, write=write)
    for first in range(0, 20 * count, count):
        log.append(memoryview(lines(range(first, first + count))))
    assert fused(said) == 1
    log.finish()
    whole = set(path.read_bytes().split(b"\n"))
    assert sum(b"%09d" % number not in whole for number in range(20 * count)) == 4
    assert fused(said) == 4


def test_a_number_that_was_fused_with_what_a_truncation_left_is_said(path: Path) -> None:
    def write(fd: int, data: memoryview) -> int:
        if log.written_lines == 2:
            os.truncate(path, 17)
        return os.write(fd, data)

    said: list[str] = []
    log = open_log(path, said=said, write=write)
    for number in range(4):
        log.append(memoryview(lines([number])))
    log.finish()
    assert path.read_bytes() == lines([0]) + b"0000000" + lines([2, 3])
    assert len(said) == fused(said) == 1


def test_a_number_that_may_be_fused_is_said_within_a_minute(path: Path, clock: list[float]) -> None:
    def write(fd: int, data: memoryview) -> int:
        if log.written_lines < 3:
            append(path, b"123")
        return os.write(fd, data)

    said: list[str] = []
    log = open_log(path, said=said, write=write)
    for number in range(10):
        log.append(memoryview(lines([number])))
    assert fused(said) == 1
    clock[0] += 60
    log.append(memoryview(lines([10])))
    assert fused(said) == 3
    log.finish()
    assert len(said) == 2


@pytest.mark.parametrize("others", OTHERS)
def test_where_others_append_in_the_moment_of_a_short_write_no_whole_line_is_cut_off(
    path: Path, others: bytes
) -> None:
    def write(fd: int, data: memoryview) -> int:
        step = next(script, len(data))
        if step == 25:
            append(path, others)
        if not step:
            raise failure(errno.ENOSPC)
        return os.write(fd, data[:step])

    script = iter([50, 25, 0])
    said: list[str] = []
    log = open_log(path, said=said, write=write)
    log.append(memoryview(lines(range(5))))
    assert log.append(memoryview(lines(range(5, 10)))) == 20
    assert log.append(memoryview(lines(range(7, 10)))) == 30
    log.finish()
    assert path.read_bytes() == lines(range(5)) + others + lines(range(5, 10))
    assert fused(said) == 1


def test_another_process_that_keeps_appending_is_mentioned_once_a_minute(
    path: Path, clock: list[float]
) -> None:
    said: list[str] = []
    log = open_log(path, said=said)
    for _ in range(100):
        with path.open("ab") as other:
            other.write(b"12")
        log.append(memoryview(LINES))
        clock[0] += 1
    assert path.read_bytes() == LINES * 100
    assert len(said) == 2


def test_a_torn_line_that_another_process_appends_to_is_written_anew(path: Path) -> None:
    def cut_later(fd: int, size: int) -> None:
        if not cuttable:
            raise failure(errno.EIO)
        os.ftruncate(fd, size)

    cuttable = False
    script: list[int | OSError] = [5, failure(errno.ENOSPC)]
    log = open_log(path, write=Writes(iter(script)), ftruncate=cut_later)
    assert log.append(memoryview(LINES)) == 0
    with path.open("ab") as other:
        other.write(b"123")
    cuttable = True
    assert log.append(memoryview(LINES)) == len(LINES)
    assert path.read_bytes() == LINES


@pytest.mark.parametrize("others", [b"123456789\n", b"\n", b"123456789\n12", b"1\n2\n"])
@pytest.mark.parametrize("cuttable", [True, False])
def test_a_torn_line_that_another_process_has_ended_is_said(
    path: Path, others: bytes, cuttable: bool
) -> None:
    def cut(fd: int, size: int) -> None:
        if not may_cut:
            raise failure(errno.EIO)
        os.ftruncate(fd, size)

    said: list[str] = []
    may_cut = False
    script: list[int | OSError] = [15, failure(errno.ENOSPC)]
    log = open_log(path, said=said, write=Writes(iter(script)), ftruncate=cut)
    assert log.append(memoryview(LINES)) == 10
    with path.open("ab") as other:
        other.write(others)
    may_cut = cuttable
    assert log.append(memoryview(LINES)[10:]) == len(LINES) - 10
    ended = others[: others.rindex(b"\n") + 1] if cuttable else others.rstrip(b"\n") + b"\n"
    assert path.read_bytes() == LINES[:15] + ended + LINES[10:]
    assert len(said) == 1
    assert "may be fused" in said[0]


@pytest.mark.parametrize("number", [errno.ESTALE, errno.EIO])
def test_a_file_that_cannot_be_looked_at_is_a_final_failure(path: Path, number: int) -> None:
    failures: list[OSError] = []

    def fstat(fd: int) -> os.stat_result:
        if failures:
            raise failures.pop()
        return os.fstat(fd)

    log = open_log(path, fstat=fstat)
    log.append(memoryview(LINES[:10]))
    failures.append(failure(number))
    for _ in range(2):
        with pytest.raises(SinkError, match=f"cannot check .*{os.strerror(number)}"):
            log.append(memoryview(LINES[10:]))
    assert log.written_lines == 1
    assert not log.has(1)
    with pytest.raises(SinkError, match="cannot check"):
        log.finish()
    assert path.read_bytes() == LINES[:10]


@pytest.mark.parametrize("number", [errno.EIO, errno.EDQUOT, errno.ENOSPC])
@pytest.mark.parametrize("rotated", [False, True])
def test_a_close_that_fails_is_a_final_failure(path: Path, number: int, rotated: bool) -> None:
    failures = iter([failure(number)])

    def close(fd: int) -> None:
        os.close(fd)
        for error in failures:
            raise error

    log = open_log(path, close=close)
    log.append(memoryview(LINES))
    if rotated:
        path.rename(path.with_suffix(".1"))
        with pytest.raises(SinkError, match="cannot close"):
            log.reopen()
        with pytest.raises(SinkError, match="cannot close"):
            log.append(memoryview(LINES))
    with pytest.raises(SinkError, match=f"cannot close .*{os.strerror(number)}"):
        log.finish()
    log.close()
    with pytest.raises(SinkError, match="cannot close"):
        log.finish()


def test_calls_that_are_interrupted_are_made_again(path: Path) -> None:
    def interrupted(call: Callable[..., Any]) -> Callable[..., Any]:
        interrupt = True

        def twice(*arguments: Any) -> Any:
            nonlocal interrupt
            interrupt = not interrupt
            if not interrupt:
                raise InterruptedError(errno.EINTR, os.strerror(errno.EINTR))
            return call(*arguments)

        return twice

    def closed_all_the_same(fd: int) -> None:
        os.close(fd)
        raise InterruptedError(errno.EINTR, os.strerror(errno.EINTR))

    log = open_log(
        path,
        fsync=Fsync.ALWAYS,
        open=interrupted(os.open),
        fstat=interrupted(os.fstat),
        write=interrupted(os.write),
        ftruncate=interrupted(os.ftruncate),
        fdatasync=interrupted(os.fdatasync),
        close=closed_all_the_same,
    )
    log.truncate()
    log.append(memoryview(LINES))
    with path.open("ab") as other:
        other.write(b"123")
    log.append(memoryview(LINES))
    path.rename(path.with_suffix(".1"))
    log.reopen()
    log.append(memoryview(LINES))
    log.finish()
    assert path.with_suffix(".1").read_bytes() == LINES * 2
    assert path.read_bytes() == LINES


def test_what_is_not_synced_is_not_stored_where_always_is_asked_for(path: Path) -> None:
    stored = []

    def sync(_fd: int) -> None:
        stored.append(log.has(log.mark()))

    log = open_log(path, fsync=Fsync.ALWAYS, fdatasync=sync)
    log.append(memoryview(LINES))
    assert stored == [False]
    assert log.has(log.mark())


def test_a_file_with_the_right_size_is_not_truncated(path: Path) -> None:
    """An append-only file that --resume has nothing to cut from must be usable."""
    path.write_bytes(LINES)
    log = open_log(path, ftruncate=refuse_to_cut)
    log.keep(len(LINES))
    log.append(memoryview(LINES))
    assert path.read_bytes() == LINES * 2
    with pytest.raises(StartError, match="cannot truncate"):
        log.truncate()


@pytest.mark.parametrize("stream", [1, 2])
@pytest.mark.parametrize("link", [None, os.symlink, os.link])
def test_the_file_of_a_standard_stream_is_refused(
    path: Path, stream: int, link: Callable[[Path, Path], None] | None
) -> None:
    path.write_bytes(LINES)
    name = path
    if link is not None:
        name = path.with_name("other name")
        link(path, name)
    kept = os.dup(stream)
    try:
        with path.open("ab") as other:
            os.dup2(other.fileno(), stream)
        with pytest.raises(StartError, match=r"standard (output|error)"):
            open_log(name)
    finally:
        os.dup2(kept, stream)
        os.close(kept)
    assert path.read_bytes() == LINES


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


def test_a_lock_of_another_program_counts_too(path: Path) -> None:
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
