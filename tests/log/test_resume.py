"""An earlier run's log, taken up again by the real process."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from numbers_uring.words import counted
from support.logs import lines
from support.processes import ServerProcess
from support.waiting import DEADLINE_S

Serve = Callable[..., ServerProcess]
OLD = lines(range(0, 1000, 2))


def test_old_numbers_are_kept_and_count_as_duplicates(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "numbers.log").write_bytes(OLD)
    server = serve("--resume")
    assert f"resumed {server.log_path}: 500 numbers in" in server.stderr
    server.send(lines(range(1000)))
    assert server.terminate() == 0
    assert server.logged() == [*range(0, 1000, 2), *range(1, 1000, 2)]
    assert server.reported() == (500, 500, 500)


def test_there_need_not_be_a_log_to_resume(serve: Serve) -> None:
    server = serve("--resume")
    server.send(lines([1]))
    assert server.terminate() == 0
    assert server.logged() == [1]


@pytest.mark.parametrize("tail", [b"1", b"123456789", b"\0" * 4096, b"12345\0\0\0\0\0\0\0\0"])
def test_a_torn_tail_is_cut_and_that_is_said(serve: Serve, tmp_path: Path, tail: bytes) -> None:
    (tmp_path / "numbers.log").write_bytes(OLD + tail)
    server = serve("--resume")
    assert f"a torn tail of {counted(len(tail), 'byte')} cut off" in server.stderr
    server.send(lines([1]))
    assert server.terminate() == 0
    assert server.logged() == [*range(0, 1000, 2), 1]


@pytest.mark.parametrize(
    "bad", [b"12345678\n", b"terminate\n", b"1234567890\n", b"\0" * 10 + b"\n"]
)
def test_a_bad_line_is_refused_with_its_place_and_the_file_left_as_it_is(
    tmp_path: Path, bad: bytes
) -> None:
    log = tmp_path / "numbers.log"
    log.write_bytes(OLD + bad + OLD)
    done = subprocess.run(
        [
            *(sys.executable, "-m", "numbers_uring", "serve", "--port", "0", "--resume"),
            *("--log-file", str(log)),
        ],
        capture_output=True,
        check=False,
        text=True,
        timeout=DEADLINE_S,
    )
    assert done.returncode == 3
    assert f"the line at byte {len(OLD)} is not a number" in done.stderr
    assert log.read_bytes() == OLD + bad + OLD


def test_a_log_with_a_number_twice_is_resumed_and_that_is_said(
    serve: Serve, tmp_path: Path
) -> None:
    (tmp_path / "numbers.log").write_bytes(OLD + OLD[:30])
    server = serve("--resume")
    assert "503 numbers, 3 of them again" in server.stderr
    assert server.terminate() == 0


def test_runs_can_be_resumed_one_after_the_other(serve: Serve) -> None:
    for run in range(5):
        server = serve("--resume")
        server.send(lines(range(run * 10, run * 10 + 20)))
        assert server.terminate() == 0
    assert server.logged() == list(range(60))
    assert server.reported() == (10, 10, 10)
