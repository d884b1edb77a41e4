"""Each call of the log, failed at each place: the log and the count agree, or the loss is said."""

import errno
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from numbers_uring.config import Fsync
from numbers_uring.errors import SinkError
from numbers_uring.limits import BITMAP_BYTES
from support.logs import lines
from support.scripted_reactor import Run, Step

ERRORS = [errno.ENOSPC, errno.EIO, errno.EINTR, errno.EDQUOT, errno.EROFS]
SURVIVED = {errno.ENOSPC, errno.EDQUOT, errno.EINTR}
TOTAL = 400


@pytest.fixture(scope="module")
def shared_bitmap() -> bytearray:
    return bytearray(BITMAP_BYTES)


@pytest.fixture
def bitmap(shared_bitmap: bytearray) -> Iterator[bytearray]:
    yield shared_bitmap
    shared_bitmap[: TOTAL // 8 + 1] = bytes(TOTAL // 8 + 1)


class FailNth:
    """Stands in for a system call; the one with number `nth`, from 1, fails once."""

    def __init__(self, call: Callable[..., Any], nth: int, failure: int) -> None:
        self._call = call
        self._left = nth
        self._failure = failure

    def __call__(self, *arguments: Any) -> Any:
        self._left -= 1
        if self._left == 0:
            raise OSError(self._failure, os.strerror(self._failure))
        return self._call(*arguments)


class ShortWrites:
    """os.write that takes `most` bytes at a time, and fails once, at call `nth`."""

    def __init__(self, most: int, nth: int, failure: int) -> None:
        self._most = most
        self._write = FailNth(os.write, nth, failure)

    def __call__(self, fd: int, data: memoryview) -> Any:
        return self._write(fd, data[: self._most])


def run_through(
    tmp_path: Path, bitmap: bytearray, **calls: Callable[..., Any]
) -> tuple[Run, SinkError | None]:
    """Take in TOTAL numbers over several passes, with a rotation in between."""
    passes: list[list[Step]] = []
    drain: list[Step] = [(1, lines(range(350, TOTAL)))]
    run = Run(tmp_path, passes, drain, fsync=Fsync.ALWAYS, bitmap=bitmap, calls=calls)

    def rotate() -> None:
        run.path.rename(run.path.with_suffix(".1"))
        run.requests.reopen = True

    passes += [[0, 1]]
    passes += [[(0, lines(range(first, first + 50)))] for first in range(0, 150, 50)]
    passes += [[rotate, (0, lines(range(150, 200)))]]
    passes += [[(0, lines(range(first, first + 50)))] for first in range(200, 350, 50)]
    passes += [[(0, lines([1, 2]) + b"terminate\n")]]
    try:
        run.server.run()
    except SinkError as error:
        return run, error
    finally:
        run.log.close()
    return run, None


def assert_log_and_count_agree(run: Run, error: SinkError | None) -> None:
    old = run.path.with_suffix(".1")
    data = (old.read_bytes() if old.exists() else b"") + (
        run.path.read_bytes() if run.path.exists() else b""
    )
    assert re.fullmatch(rb"(?:[0-9]{9}\n)*", data), "a line is torn or fused"
    logged = data.split()
    assert len(set(logged)) == len(logged), "a number is there twice"
    counted = sum(int(line.split()[1]) for line, _ in run.reports)
    if error is None:
        assert len(logged) == counted == TOTAL
        return
    lost = re.search(r"(\d+) counted numbers are lost", str(error))
    assert len(logged) + (int(lost[1]) if lost else 0) == counted


@pytest.mark.parametrize("failure", ERRORS, ids=errno.errorcode.get)
@pytest.mark.parametrize("most", [1_000_000, 10, 7, 33])
def test_a_write_that_fails_anywhere(
    tmp_path: Path, bitmap: bytearray, failure: int, most: int
) -> None:
    for nth in (1, 2, 3, 5, 8, 13, 40):
        folder = tmp_path / str(nth)
        folder.mkdir()
        run, error = run_through(folder, bitmap, write=ShortWrites(most, nth, failure))
        assert_log_and_count_agree(run, error)
        reached = nth <= 10 or most < 100
        assert (error is None) is (failure in SURVIVED or not reached)
        bitmap[: TOTAL // 8 + 1] = bytes(TOTAL // 8 + 1)


@pytest.mark.parametrize("failure", ERRORS, ids=errno.errorcode.get)
@pytest.mark.parametrize("nth", [1, 2, 5, 8, 9])
def test_a_sync_that_fails_anywhere(
    tmp_path: Path, bitmap: bytearray, failure: int, nth: int
) -> None:
    run, error = run_through(tmp_path, bitmap, fdatasync=FailNth(os.fdatasync, nth, failure))
    assert_log_and_count_agree(run, error)
    assert (error is None) is (failure == errno.EINTR), "a failed sync is final"


@pytest.mark.parametrize("failure", ERRORS, ids=errno.errorcode.get)
def test_a_file_that_cannot_be_opened_after_a_rotation(
    tmp_path: Path, bitmap: bytearray, failure: int
) -> None:
    run, error = run_through(tmp_path, bitmap, open=FailNth(os.open, 2, failure))
    assert error is None
    assert_log_and_count_agree(run, error)
    assert run.path.exists() is (failure == errno.EINTR)


@pytest.mark.parametrize("failure", ERRORS, ids=errno.errorcode.get)
@pytest.mark.parametrize("most", [7, 33])
def test_a_torn_line_that_cannot_be_cut(
    tmp_path: Path, bitmap: bytearray, failure: int, most: int
) -> None:
    """It is finished when there is space again."""
    for nth in (2, 4, 9):
        folder = tmp_path / str(nth)
        folder.mkdir()
        run, error = run_through(
            folder,
            bitmap,
            write=ShortWrites(most, nth, errno.ENOSPC),
            ftruncate=FailNth(os.ftruncate, 1, failure),
        )
        assert error is None
        assert_log_and_count_agree(run, error)
        bitmap[: TOTAL // 8 + 1] = bytes(TOTAL // 8 + 1)
