"""The id of a copy: one for each folder, and another one for another folder."""

import fcntl
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from numbers_uring.cluster.collector.identity import COPY_NAME, identify
from numbers_uring.errors import StartError
from support.waiting import DEADLINE_S, wait_until


def test_a_folder_keeps_its_id_from_run_to_run(tmp_path: Path) -> None:
    first, second = identify(tmp_path), identify(tmp_path)
    assert first.copy == second.copy
    assert first.place == second.place
    assert first.run != second.run
    assert (tmp_path / COPY_NAME).read_text() == f"{first.copy}\n"


def test_a_process_waits_for_the_id_that_another_is_about_to_write(tmp_path: Path) -> None:
    with ThreadPoolExecutor(1) as pool, (tmp_path / COPY_NAME).open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        later = pool.submit(identify, tmp_path)
        wait_until(lambda: is_waited_for(file.fileno()) or later.done(), "the other process")
        file.write("0123456789ab\n")
        file.close()
        assert later.result(DEADLINE_S).copy == "0123456789ab"


def is_waited_for(fd: int) -> bool:
    """Return whether a lock of this file is waited for."""
    inode = f":{os.fstat(fd).st_ino} "
    lines = Path("/proc/locks").read_text().splitlines()
    return any("->" in line and inode in line for line in lines)


def test_folders_have_different_ids(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "other").mkdir()
    assert identify(tmp_path / "one").copy != identify(tmp_path / "other").copy


def test_a_copied_folder_is_another_place_with_the_same_id(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    first = identify(tmp_path / "one")
    shutil.copytree(tmp_path / "one", tmp_path / "other")
    second = identify(tmp_path / "other")
    assert first.copy == second.copy
    assert first.place != second.place


@pytest.mark.parametrize("text", [b"\n", b"0123", b"0123456789ab0", b"0123456789aB\n", b"\0" * 200])
def test_a_file_without_an_id_is_refused_by_name(tmp_path: Path, text: bytes) -> None:
    (tmp_path / COPY_NAME).write_bytes(text)
    with pytest.raises(StartError, match=f"{COPY_NAME} has no id of a copy: remove it"):
        identify(tmp_path)
    assert (tmp_path / COPY_NAME).read_bytes() == text


def test_a_start_that_failed_before_the_id_was_written_is_no_hindrance(tmp_path: Path) -> None:
    (tmp_path / COPY_NAME).touch()
    assert identify(tmp_path).copy == identify(tmp_path).copy


def test_a_folder_that_cannot_have_an_id_is_named(tmp_path: Path) -> None:
    (tmp_path / COPY_NAME).mkdir()
    with pytest.raises(StartError, match=f"cannot read or make .*{COPY_NAME}"):
        identify(tmp_path)


def test_a_fifo_with_the_name_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / COPY_NAME)
    with pytest.raises(StartError, match=f"{COPY_NAME} is not a regular file"):
        identify(tmp_path)
