"""The log writer: what is in the file after each thing that can go wrong."""

import errno
import fcntl
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support import lines

from numbers_uring.config import StartError
from numbers_uring.numbers_log import LogError, NumbersLog

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


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "numbers.log"


def test_whole_lines_are_appended(path: Path) -> None:
    log = NumbersLog(path)
    assert log.append(memoryview(LINES)) == len(LINES)
    assert log.append(memoryview(b"")) == 0
    assert log.append(memoryview(LINES)) == len(LINES)
    log.sync()
    log.close()
    assert path.read_bytes() == LINES * 2
    assert log.written_lines == 200


def test_short_writes_are_finished(path: Path) -> None:
    log = NumbersLog(path, write=Writes(iter([1, 3, 17, 9, 500, 1])))
    assert log.append(memoryview(LINES)) == len(LINES)
    assert path.read_bytes() == LINES


def test_an_interrupted_write_is_tried_again(path: Path) -> None:
    log = NumbersLog(path, write=Writes(iter([failure(errno.EINTR), 7, failure(errno.EINTR)])))
    assert log.append(memoryview(LINES)) == len(LINES)
    assert path.read_bytes() == LINES


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("first", [0, 1, 9, 10, 11, 505, 999])
def test_without_space_the_file_ends_with_a_whole_line_and_goes_on_later(
    path: Path, number: int, first: int
) -> None:
    script: list[int | OSError] = [*([first] if first else []), failure(number), failure(number)]
    log = NumbersLog(path, write=Writes(iter(script)))
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
    log = NumbersLog(path, write=Writes(iter(script)))
    with pytest.raises(LogError, match=os.strerror(number)):
        log.append(memoryview(LINES))
    assert path.read_bytes() == LINES[: first // 10 * 10]
    assert log.written_lines == first // 10


def test_a_write_that_takes_nothing_is_a_failure_and_no_endless_loop(path: Path) -> None:
    log = NumbersLog(path, write=lambda _fd, _data: 0)
    with pytest.raises(LogError, match="took nothing"):
        log.append(memoryview(LINES))


def test_a_torn_line_that_cannot_be_cut_is_said(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = NumbersLog(path, write=Writes(iter([5, failure(errno.ENOSPC)])))

    def refuse(_fd: int, _size: int) -> None:
        raise failure(errno.EIO)

    monkeypatch.setattr(os, "ftruncate", refuse)
    with pytest.raises(LogError, match="unfinished line"):
        log.append(memoryview(LINES))


def test_a_failed_sync_is_final(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = NumbersLog(path)

    def refuse(_fd: int) -> None:
        raise failure(errno.EIO)

    monkeypatch.setattr(os, "fdatasync", refuse)
    with pytest.raises(LogError, match="sync"):
        log.sync()


def test_opening_leaves_the_content_until_it_is_truncated(path: Path) -> None:
    path.write_bytes(LINES)
    log = NumbersLog(path)
    assert path.read_bytes() == LINES
    log.truncate()
    assert path.read_bytes() == b""


def test_a_second_server_is_refused_and_the_file_left_as_it_is(path: Path) -> None:
    first = NumbersLog(path)
    first.append(memoryview(LINES))
    with pytest.raises(StartError, match="another process has locked it"):
        NumbersLog(path)
    assert path.read_bytes() == LINES
    first.close()
    NumbersLog(path).close()


def test_a_lock_of_somebody_else_counts_too(path: Path) -> None:
    path.write_bytes(LINES)
    with path.open("rb") as other:
        fcntl.flock(other, fcntl.LOCK_SH)
        with pytest.raises(StartError, match="locked"):
            NumbersLog(path)


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
        NumbersLog(path)


def test_a_fifo_with_a_reader_is_refused_too(path: Path) -> None:
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        with pytest.raises(StartError, match="regular file"):
            NumbersLog(path)
    finally:
        os.close(reader)


@pytest.mark.parametrize("name", ["nowhere/numbers.log", "x" * 300, "nul\0byte"])
def test_a_path_that_cannot_be_opened_is_said(tmp_path: Path, name: str) -> None:
    with pytest.raises(StartError, match="cannot open the log"):
        NumbersLog(tmp_path / name)


def test_a_link_to_a_regular_file_is_followed(path: Path) -> None:
    target = path.with_name("target.log")
    path.symlink_to(target)
    log = NumbersLog(path)
    log.append(memoryview(LINES))
    assert target.read_bytes() == LINES
