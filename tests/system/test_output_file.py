"""A file that is written at the end of a run: whole, or not at all."""

import errno
import os
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from numbers_uring.errors import StartError
from numbers_uring.system.output_file import OutputFile

OLD = b"old" * 1000


@contextmanager
def small_file_size() -> Iterator[None]:
    """Set RLIMIT_FSIZE to 4 KiB; Python ignores SIGXFSZ."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def write(path: Path, data: bytes) -> None:
    with OutputFile(path) as file:
        file.write(data)


@pytest.mark.parametrize("data", [b"", b"new", b"new" * 5000])
def test_the_contents_are_replaced(tmp_path: Path, data: bytes) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    old.write_bytes(OLD)
    for path in (old, new):
        write(path, data)
        assert path.read_bytes() == data


def test_links_and_rights_stay(tmp_path: Path) -> None:
    path, link = tmp_path / "file", tmp_path / "link"
    path.write_bytes(OLD)
    path.chmod(0o640)
    link.symlink_to(path)
    write(link, b"new")
    assert link.is_symlink()
    assert path.read_bytes() == b"new"
    assert path.stat().st_mode & 0o777 == 0o640


def test_a_limit_of_file_sizes_leaves_the_old_contents(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    old.write_bytes(OLD)
    with small_file_size():
        for path in (old, new):
            with pytest.raises(OSError, match=os.strerror(errno.EFBIG)):
                write(path, b"n" * 10_000)
    assert old.read_bytes() == OLD
    assert not new.exists()


def test_a_full_disk_leaves_the_old_contents(small_disk: Path) -> None:
    old, new = small_disk / "old", small_disk / "new"
    old.write_bytes(OLD)
    for path in (old, new):
        with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
            write(path, b"n" * 2_000_000)
    assert old.read_bytes() == OLD
    assert list(small_disk.iterdir()) == [old]


def make_folder(path: Path) -> None:
    path.mkdir()


def make_pipe(path: Path) -> None:
    os.mkfifo(path)


def make_dangling(path: Path) -> None:
    path.symlink_to(path / "nowhere")


@pytest.mark.parametrize("make", [make_folder, make_pipe, make_dangling])
def test_what_is_no_regular_file_is_refused(make: Callable[[Path], None], tmp_path: Path) -> None:
    path = tmp_path / "x"
    make(path)
    with pytest.raises(StartError, match="cannot write"):
        OutputFile(path)


@pytest.mark.parametrize("name", ["a\0b", "x" * 300, "missing/x"])
def test_a_name_that_no_file_can_have_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(StartError, match="cannot write"):
        OutputFile(tmp_path / name)


@pytest.mark.parametrize("by", ["name", "link", "hard link"])
def test_a_log_is_not_replaced(tmp_path: Path, by: str) -> None:
    log, other = tmp_path / "numbers.log", tmp_path / "picture.svg"
    log.write_bytes(b"000000001\n000000002\n")
    if by == "link":
        other.symlink_to(log)
    elif by == "hard link":
        other.hardlink_to(log)
    with pytest.raises(StartError, match="is a log of numbers"):
        OutputFile(log if by == "name" else other)
    assert log.read_bytes() == b"000000001\n000000002\n"
