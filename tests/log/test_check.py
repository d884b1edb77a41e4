"""The command `check`: findings, exit codes, repairs, and what a failed repair leaves."""

import bz2
import errno
import fcntl
import gzip
import json
import lzma
import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from numbers_uring.cli import check as check_module
from numbers_uring.cli.program import run as run_program
from numbers_uring.errors import SinkError
from numbers_uring.ingest.bitmap import Bitmap
from numbers_uring.ingest.native import variants
from numbers_uring.limits import BITMAP_BYTES
from numbers_uring.log.check import check_logs, open_logs
from numbers_uring.log.repair import repair_logs
from support.logs import lines
from support.processes import ServerProcess
from support.waiting import DEADLINE_S

BITMAP = bytearray(BITMAP_BYTES)
"""Shared: each check clears it first."""

BROKEN = lines([1, 2, 1]) + b"bad\n" + lines([3]) + b"terminate\n" + lines([4, 4]) + b"12345\0\0"
REPAIRED = lines([1, 2, 3, 4])


class Done:
    """What one run of the command in this process did."""

    def __init__(self, code: int, stdout: str, stderr: str) -> None:
        self.code = code
        self.lines = stdout.splitlines()
        self.errors = stderr.splitlines()


Run = Callable[..., Done]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """Run `check` with arguments in this process."""
    monkeypatch.setattr(check_module, "allocate", lambda: Bitmap(BITMAP, 0))

    def run_check(*arguments: object) -> Done:
        monkeypatch.setattr(sys, "argv", ["numbers-uring", "check", *map(str, arguments)])
        return Done(run_program(), *capfd.readouterr())

    return run_check


def run_process(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "numbers_uring", "check", *map(str, arguments)],
        check=False,
        stdin=subprocess.DEVNULL,
        text=True,
        timeout=DEADLINE_S,
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options},
    )


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "numbers.log"


def assert_error(done: Done, code: int, *words: str) -> None:
    assert done.code == code
    (line,) = done.errors
    assert line.startswith("numbers-uring: error: ")
    for word in words:
        assert word in line


def test_a_clean_log_is_said_to_be_clean(run: Run, log: Path) -> None:
    log.write_bytes(lines([5, 0, 999_999_999]))
    done = run(log)
    assert done.code == 0
    assert done.lines == [f"{log}: 3 numbers", "1 file: 3 numbers, 3 distinct, clean"]
    assert done.errors == []


def test_an_empty_log_is_clean(run: Run, log: Path) -> None:
    log.touch()
    done = run(log)
    assert done.code == 0
    assert done.lines == [f"{log}: 0 numbers", "1 file: 0 numbers, 0 distinct, clean"]


@pytest.mark.parametrize(
    ("content", "finding"),
    [
        (lines([1, 1]), "2 numbers, 1 duplicate"),
        (lines([1, 1, 1]), "3 numbers, 2 duplicates"),
        (lines([1]) + b"1", "1 number, torn tail of 1 byte"),
        (b"12345\0\0", "0 numbers, torn tail of 7 bytes"),
        (lines([1]) + b"x\n" + lines([2]), "2 numbers, bad line at byte 10"),
        (lines([1]) + b"x\ny\nz", "1 number, 3 bad lines, the first at byte 10"),
        (b"terminate\n", "0 numbers, bad line at byte 0"),
        (
            BROKEN,
            "6 numbers, 2 duplicates, torn tail of 7 bytes, 2 bad lines, the first at byte 30",
        ),
    ],
)
def test_findings_are_one_line_a_file_and_exit_1(
    run: Run, log: Path, content: bytes, finding: str
) -> None:
    log.write_bytes(content)
    done = run(log)
    assert done.code == 1
    assert done.errors == []
    assert done.lines[0] == f"{log}: {finding}"
    assert done.lines[1].endswith("distinct, findings in 1 file")
    assert log.read_bytes() == content


def test_repeats_across_files_are_told_from_those_within_one(run: Run, tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("1.log", "2.log", "3.log")]
    paths[0].write_bytes(lines([1, 2, 3]))
    paths[1].write_bytes(lines([4, 5]))
    paths[2].write_bytes(lines([3, 3, 4, 6, 6, 7]))
    done = run(*paths)
    assert done.code == 1
    assert done.lines == [
        f"{paths[0]}: 3 numbers",
        f"{paths[1]}: 2 numbers",
        f"{paths[2]}: 6 numbers, 2 duplicates, 2 repeated from earlier files",
        "3 files: 11 numbers, 7 distinct, findings in 1 file",
    ]
    assert run(*paths[:2]).code == 0
    assert run(paths[0], paths[2]).lines[1].endswith("2 duplicates, 1 repeated from earlier files")


def test_a_log_that_gzip_has_compressed_is_read_as_it_was(run: Run, tmp_path: Path) -> None:
    old, new = tmp_path / "numbers.log.1.gz", tmp_path / "numbers.log"
    old.write_bytes(gzip.compress(BROKEN[:40]) + gzip.compress(BROKEN[40:]))
    new.write_bytes(lines([5, 1]))
    plain = tmp_path / "plain"
    plain.write_bytes(BROKEN)
    done, as_plain = run(old, new), run(plain, new)
    assert (done.code, done.errors) == (1, [])
    assert done.lines == [line.replace(str(plain), str(old)) for line in as_plain.lines]
    # What tells repeats apart reads a file once more.
    assert run(new, old).lines[1] == run(new, plain).lines[1].replace(str(plain), str(old))
    found = json.loads(run("--json", old, new).lines[0])["files"]
    assert [file["compressed"] for file in found] == [True, False]
    assert found[0]["bytes"] == len(BROKEN)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (gzip.compress(BROKEN)[:-9], "cannot read {}: its end is missing, and perhaps numbers"),
        (gzip.compress(BROKEN) + b"x", "cannot read {}: it is damaged: incorrect header check"),
        (gzip.compress(BROKEN)[:-8] + bytes(8), "cannot read {}: it is damaged: incorrect "),
        (BROKEN, "cannot read {}: not compressed by gzip"),
        (b"\x28\xb5\x2f\xfd", "cannot read {}: compressed by zstd, not by gzip"),
    ],
    ids=["cut", "garbage behind", "wrong sum", "plain", "zstd"],
)
def test_a_compressed_log_that_cannot_be_read_is_no_finding(
    run: Run, tmp_path: Path, content: bytes, text: str
) -> None:
    path = tmp_path / "numbers.log.1.gz"
    path.write_bytes(content)
    assert_error(run(path), 3, text.format(path))


def test_json_is_one_object_with_the_exit_code(run: Run, tmp_path: Path) -> None:
    first, second = tmp_path / "1.log", tmp_path / "2.log"
    first.write_bytes(lines([1, 4]))
    second.write_bytes(BROKEN)
    done = run("--json", first, second)
    assert done.code == 1
    (line,) = done.lines
    assert json.loads(line) == {
        "exit_code": 1,
        "error": None,
        "numbers": 8,
        "distinct": 4,
        "files": [
            {
                "path": str(first),
                "bytes": 20,
                "compressed": False,
                "numbers": 2,
                "duplicates": 0,
                "repeated_from_earlier_files": 0,
                "bad_lines": 0,
                "first_bad_offset": None,
                "torn_bytes": 0,
                "repaired": False,
                "hard_links_left": 0,
                "attributes_lost": [],
                "index": None,
            },
            {
                "path": str(second),
                "bytes": len(BROKEN),
                "compressed": False,
                "numbers": 6,
                "duplicates": 2,
                "repeated_from_earlier_files": 2,
                "bad_lines": 2,
                "first_bad_offset": 30,
                "torn_bytes": 7,
                "repaired": False,
                "hard_links_left": 0,
                "attributes_lost": [],
                "index": None,
            },
        ],
    }


def test_the_json_of_a_repair_says_what_was_repaired(run: Run, log: Path) -> None:
    log.write_bytes(BROKEN)
    done = run("--json", "--repair", log)
    result = json.loads(done.lines[0])
    assert (done.code, result["exit_code"], result["error"]) == (0, 0, None)
    assert [file["repaired"] for file in result["files"]] == [True]


def test_the_json_of_a_failed_repair_says_why(
    run: Run, log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log.write_bytes(BROKEN)
    monkeypatch.setattr(os, "write", Failing(os.write, errno.ENOSPC, 1))
    done = run("--json", "--repair", log)
    monkeypatch.undo()
    result = json.loads(done.lines[0])
    assert (done.code, result["exit_code"]) == (4, 4)
    assert "No space left" in result["error"]
    assert [file["repaired"] for file in result["files"]] == [False]


@pytest.mark.parametrize("variable", ["JSON", "REPAIR"])
def test_options_come_from_the_environment_too(
    run: Run, log: Path, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    log.write_bytes(BROKEN)
    monkeypatch.setenv(f"NUMBERS_URING_CHECK_{variable}", "1")
    done = run(log)
    if variable == "JSON":
        assert json.loads(done.lines[0])["exit_code"] == done.code == 1
    else:
        assert done.code == 0
        assert log.read_bytes() == REPAIRED


@pytest.mark.parametrize("arguments", [[], ["--no-such-option", "x"], ["--repair"]])
def test_wrong_usage_is_one_line_and_exit_2(run: Run, arguments: list[str]) -> None:
    assert_error(run(*arguments), 2, "--help")


def test_a_file_given_twice_is_wrong_usage(run: Run, log: Path) -> None:
    log.write_bytes(BROKEN)
    link = log.with_name("link.log")
    link.symlink_to(log)
    assert_error(run(log, link), 2, "same file")
    assert_error(run("--repair", log, log), 2, "same file")
    assert log.read_bytes() == BROKEN


def _directory(path: Path) -> None:
    path.mkdir()


def _fifo(path: Path) -> None:
    os.mkfifo(path)


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


def _device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def _nothing(_: Path) -> None:
    pass


def _loop(path: Path) -> None:
    path.symlink_to(path)


@pytest.mark.parametrize("options", [[], ["--repair"], ["--json"]])
@pytest.mark.parametrize("make", [_directory, _fifo, _socket, _device, _nothing, _loop])
def test_what_is_no_readable_file_is_one_line_and_exit_3(
    run: Run, tmp_path: Path, make: Callable[[Path], None], options: list[str]
) -> None:
    good, path = tmp_path / "good.log", tmp_path / "it"
    good.write_bytes(BROKEN)
    make(path)
    done = run(*options, good, path)
    assert_error(done, 3, f"cannot open {path}")
    assert done.lines == []
    assert good.read_bytes() == BROKEN


def test_a_file_whose_reading_fails_is_one_line_and_exit_3(
    run: Run, log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log.write_bytes(BROKEN)
    monkeypatch.setattr(os, "preadv", Failing(os.preadv, errno.EIO, 2))
    done = run(log)
    assert_error(done, 3, f"cannot read {log}", os.strerror(errno.EIO))


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, lzma.compress])
@pytest.mark.parametrize("name", ["numbers.log.2.gz", "numbers.log"])
def test_a_compressed_log_is_not_repaired_and_read_if_gzip_made_it(
    run: Run, tmp_path: Path, compress: Callable[[bytes], bytes], name: str
) -> None:
    log, other = tmp_path / name, tmp_path / "other.log"
    other.write_bytes(BROKEN)
    log.write_bytes(compress(lines(range(1000))))
    before = log.read_bytes()
    for arguments in ((), ("--repair",)):
        done = run(*arguments, other, log)
        if compress is gzip.compress and not arguments:
            assert done.lines[1] == f"{log}: 1000 numbers, 4 repeated from earlier files"
        else:
            assert_error(done, 3, str(log), "compressed by")
    assert (log.read_bytes(), other.read_bytes()) == (before, BROKEN)


def test_too_little_memory_is_one_line_and_exit_3(log: Path) -> None:
    log.touch()
    command = [sys.executable, "-m", "numbers_uring", "check", str(log)]
    done = subprocess.run(
        ["prlimit", f"--as={100 * 2**20}", *command],
        capture_output=True,
        check=False,
        text=True,
        timeout=DEADLINE_S,
    )
    assert_error(Done(done.returncode, done.stdout, done.stderr), 3, "memory")


def test_standard_output_that_takes_nothing_is_one_line_and_exit_3(log: Path) -> None:
    log.write_bytes(BROKEN)
    with Path("/dev/full").open("w", encoding="ascii") as full:
        done = run_process(log, stdout=full)
    assert_error(Done(done.returncode, "", done.stderr), 3, "standard output")
    reader, writer = os.pipe()
    os.close(reader)
    done = run_process(log, stdout=writer)
    os.close(writer)
    assert_error(Done(done.returncode, "", done.stderr), 3, "standard output")


@pytest.mark.parametrize("name", [b"\xff.log", b"new\nline.log", "\u00e9.log".encode()])
def test_any_name_is_told_in_one_line(tmp_path: Path, name: bytes) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name))
    path.touch()
    done = run_process(path, env={**os.environ, "PYTHONIOENCODING": "ascii"}, encoding="utf-8")
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout.splitlines()) == 2
    done = run_process("--json", path)
    assert json.loads(done.stdout)["files"][0]["path"] == str(path)


def test_progress_is_shown_on_a_terminal_only(log: Path) -> None:
    log.write_bytes(lines(range(100)))
    terminal, program_side = os.openpty()
    done = run_process(log, stderr=program_side)
    os.close(program_side)
    shown = b""
    # Reading fails once no process has the other side open any more.
    while piece := _read_or_nothing(terminal):
        shown += piece
    os.close(terminal)
    assert done.returncode == 0
    assert b"checking" in shown
    assert b"100%" in shown
    assert done.stdout.startswith(f"{log}: 100 numbers\n")
    assert run_process(log).stderr == ""


def _read_or_nothing(fd: int) -> bytes:
    try:
        return os.read(fd, 65536)
    except OSError:
        return b""


def test_a_repair_keeps_whole_lines_and_each_number_once(run: Run, log: Path) -> None:
    log.write_bytes(BROKEN)
    done = run("--repair", log)
    assert done.code == 0
    assert done.errors == []
    assert done.lines[0].startswith(f"{log}: 6 numbers, 2 duplicates, ")
    assert done.lines[0].endswith("; repaired")
    assert done.lines[1].endswith(
        "; repaired 1 file, dropped 2 duplicates, 2 bad lines and 7 torn bytes"
    )
    assert log.read_bytes() == REPAIRED
    assert list(log.parent.iterdir()) == [log]
    assert run(log).code == 0


def test_a_repair_over_several_files_keeps_what_comes_first(run: Run, tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("1.log", "2.log", "3.log", "4.log")]
    paths[0].write_bytes(lines([1, 2]))
    paths[1].write_bytes(lines([2, 3, 3]))
    paths[2].write_bytes(lines([5]) + b"4444")
    paths[3].write_bytes(lines([6]))
    inodes = [path.stat().st_ino for path in paths]
    done = run("--repair", *paths)
    assert done.code == 0
    assert done.lines[-1] == (
        "4 files: 7 numbers, 5 distinct, findings in 2 files; "
        "repaired 2 files, dropped 2 duplicates, 0 bad lines and 4 torn bytes"
    )
    assert [path.read_bytes() for path in paths] == [
        *(lines([1, 2]), lines([3]), lines([5]), lines([6]))
    ]
    kept = [path.stat().st_ino == inode for path, inode in zip(paths, inodes, strict=True)]
    assert kept == [True, False, False, True]


def test_a_clean_file_is_not_touched_by_a_repair(run: Run, log: Path) -> None:
    log.write_bytes(lines(range(10)))
    before = log.stat()
    assert run("--repair", log).code == 0
    after = log.stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)


def test_a_repair_keeps_mode_owner_and_link(run: Run, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    target, link = tmp_path / "data" / "target.log", tmp_path / "numbers.log"
    target.write_bytes(BROKEN)
    target.chmod(0o640)
    if os.geteuid() == 0:
        os.chown(target, 12345, 23456)
    before = target.stat()
    link.symlink_to("data/target.log")
    assert run("--repair", link).code == 0
    assert link.is_symlink()
    assert target.read_bytes() == REPAIRED
    after = target.stat()
    assert stat.S_IMODE(after.st_mode) == 0o640
    assert (after.st_uid, after.st_gid) == (before.st_uid, before.st_gid)
    assert list(target.parent.iterdir()) == [target]


def test_a_repair_keeps_extended_attributes(run: Run, log: Path) -> None:
    log.write_bytes(BROKEN)
    try:
        os.setxattr(log, "user.origin", b"rack 7")
    except OSError as error:
        pytest.skip(f"no extended attributes here: {error}")
    done = run("--repair", log)
    assert done.code == 0
    assert done.lines[0].endswith("; repaired")
    assert os.getxattr(log, "user.origin") == b"rack 7"


@pytest.mark.parametrize("call", ["setxattr", "getxattr"])
def test_a_repair_says_which_extended_attributes_are_lost(
    run: Run, log: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    log.write_bytes(BROKEN)
    monkeypatch.setattr(os, "listxattr", lambda _fd: ["user.a", "security.b"])
    monkeypatch.setattr(os, "getxattr", lambda _fd, _name: b"")
    monkeypatch.setattr(os, "setxattr", lambda _fd, _name, _value: None)
    monkeypatch.setattr(os, call, Failing(lambda *_: b"", errno.EPERM, 2))
    done = run("--repair", "--json", log)
    assert done.code == 0
    assert json.loads(done.lines[0])["files"][0]["attributes_lost"] == ["security.b"]
    log.write_bytes(BROKEN)
    monkeypatch.setattr(os, call, Failing(lambda *_: b"", errno.EPERM, 1))
    assert run("--repair", log).lines[0].endswith("without the extended attributes user.a")


def test_a_repair_says_that_hard_links_lead_to_the_file_as_it_was(run: Run, log: Path) -> None:
    log.write_bytes(BROKEN)
    names = [log.with_name("second"), log.with_name("third")]
    for name in names:
        name.hardlink_to(log)
    done = run("--repair", log)
    assert done.code == 0
    assert done.lines[0].endswith("; repaired; 2 other hard links to the file as it was")
    assert log.read_bytes() == REPAIRED
    assert [name.read_bytes() for name in names] == [BROKEN] * 2
    log.write_bytes(BROKEN)
    log.with_name("fourth").hardlink_to(log)
    result = json.loads(run("--repair", "--json", log).lines[0])
    assert [file["hard_links_left"] for file in result["files"]] == [1]


def test_advice_that_is_refused_does_not_end_a_check(
    run: Run, log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log.write_bytes(lines([1]))
    monkeypatch.setattr(os, "posix_fadvise", Failing(os.posix_fadvise, errno.EPERM, 1))
    assert run(log).code == 0


@pytest.mark.parametrize("options", [(), ("--repair",)])
def test_a_deleted_working_directory_is_one_line_or_no_matter(
    tmp_path: Path, options: tuple[str, ...]
) -> None:
    log, folder = tmp_path / "numbers.log", tmp_path / "folder"
    for name, code in (("numbers.log", 3), (str(log), 1 - len(options))):
        log.write_bytes(BROKEN)
        folder.mkdir()
        done = subprocess.run(
            [
                *("sh", "-c", 'rmdir ../folder; exec "$@"', "sh"),
                *(sys.executable, "-P", "-m", "numbers_uring", "check", *options, name),
            ],
            capture_output=True,
            check=False,
            cwd=folder,
            text=True,
        )
        assert done.returncode == code, done.stderr
        assert "Traceback" not in done.stderr
        assert len(done.stderr.splitlines()) == (code == 3)


def test_a_log_without_any_number_is_repaired_to_an_empty_one(run: Run, log: Path) -> None:
    log.write_bytes(b"nonsense\n" * 1000 + bytes(5000))
    assert run("--repair", log).code == 0
    assert log.read_bytes() == b""


def test_a_log_in_use_is_checked_but_not_repaired(
    run: Run, serve: Callable[..., ServerProcess], tmp_path: Path
) -> None:
    server = serve()
    other = tmp_path / "other.log"
    other.write_bytes(BROKEN)
    assert run(server.log_path).code == 0
    assert_error(run("--repair", other, server.log_path), 3, "in use by another process")
    assert other.read_bytes() == BROKEN
    assert server.terminate() == 0
    assert run("--repair", server.log_path, other).code == 0


def test_the_lock_is_held_during_a_repair(
    run: Run, log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log.write_bytes(BROKEN)
    write = os.write
    refused = []

    def try_to_lock(fd: int, data: memoryview) -> int:
        if fd not in {1, 2}:
            with log.open("rb") as other, pytest.raises(BlockingIOError):
                fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
            refused.append(len(data))
        return write(fd, data)

    monkeypatch.setattr(os, "write", try_to_lock)
    assert run("--repair", log).code == 0
    assert refused


def test_a_file_that_was_replaced_before_it_was_locked_is_refused(
    run: Run, log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log.write_bytes(BROKEN)
    flock = fcntl.flock

    def replace_and_lock(fd: int, operation: int) -> None:
        other = log.with_name("other")
        other.write_bytes(BROKEN)
        other.rename(log)
        flock(fd, operation)

    monkeypatch.setattr(fcntl, "flock", replace_and_lock)
    assert_error(run("--repair", log), 3, "replaced")
    assert log.read_bytes() == BROKEN


class Failing:
    """A system call that fails at its nth call, and counts the calls."""

    def __init__(self, call: Callable[..., Any], number: int, at: int) -> None:
        self._call = call
        self._number = number
        self._at = at
        self.calls = 0

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        self.calls += 1
        if self.calls == self._at:
            raise OSError(self._number, os.strerror(self._number))
        return self._call(*arguments, **options)


LONG = lines(range(60_000)) + b"bad\n" + lines(range(59_000, 90_000)) + b"1234"
LONG_REPAIRED = lines(range(90_000))


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("call", ["write", "fsync", "rename", "preadv", "open", "fchown"])
def test_whatever_call_fails_a_log_is_as_it_was_or_repaired(
    log: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int
) -> None:
    second = log.with_name("second.log")
    for at in range(1, 100):
        log.write_bytes(LONG)
        second.write_bytes(lines([1]) + b"12")
        failing = Failing(getattr(os, call), number, at)
        yielded: list[Path] = []
        failed = None
        with open_logs([log, second], lock=True) as logs, monkeypatch.context() as patched:
            findings = check_logs(logs, variants()[0], BITMAP, silent)
            patched.setattr(os, call, failing)
            try:
                for repair in repair_logs(findings, variants()[0], BITMAP, silent):
                    yielded.append(repair.findings.log.path)
            except SinkError as error:
                failed = str(error)
        for path, before, after in (
            (log, LONG, LONG_REPAIRED),
            (second, lines([1]) + b"12", b""),
        ):
            assert path.read_bytes() in ([after] if path in yielded else [before, after])
            if failed and f"cannot repair {path}" in failed:
                assert path.read_bytes() == before
        assert sorted(log.parent.iterdir()) == [log, second]
        if failing.calls < at:
            assert at > 1
            assert failed is None
            assert yielded == [log, second]
            return
        assert failed or call == "fchown"
    pytest.fail("the calls did not come to an end")


def silent(_label: str, _size_bytes: int) -> nullcontext[Callable[[int], None]]:
    return nullcontext(lambda _size: None)


def test_a_repair_that_fails_is_one_line_and_exit_4(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = tmp_path / "1.log", tmp_path / "2.log"
    first.write_bytes(BROKEN)
    second.write_bytes(BROKEN + lines([9]))
    monkeypatch.setattr(os, "rename", Failing(os.rename, errno.EBUSY, 2))
    done = run("--repair", first, second)
    assert_error(done, 4, f"cannot repair {second}", os.strerror(errno.EBUSY), "was not changed")
    assert [line.endswith("; repaired") for line in done.lines[:2]] == [True, False]
    assert first.read_bytes() == REPAIRED
    assert second.read_bytes() == BROKEN + lines([9])
    assert sorted(tmp_path.iterdir()) == [first, second]


def test_the_copy_is_synced_before_it_replaces_the_log_and_the_folder_after(
    run: Run, log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log.write_bytes(BROKEN)
    fsync, rename = os.fsync, os.rename
    calls: list[tuple[str, bytes]] = []

    def note_fsync(fd: int) -> None:
        kind = "directory" if stat.S_ISDIR(os.fstat(fd).st_mode) else "file"
        calls.append((f"sync {kind}", log.read_bytes()))
        fsync(fd)

    def note_rename(source: Path, target: Path) -> None:
        calls.append(("rename", log.read_bytes()))
        rename(source, target)

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(os, "rename", note_rename)
    assert run("--repair", log).code == 0
    assert calls == [("sync file", BROKEN), ("rename", BROKEN), ("sync directory", REPAIRED)]


def test_a_folder_that_cannot_be_synced_does_not_fail_the_repair_where_none_can_be(
    run: Run, log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log.write_bytes(BROKEN)
    monkeypatch.setattr(os, "fsync", Failing(os.fsync, errno.EINVAL, 2))
    assert run("--repair", log).code == 0
    assert log.read_bytes() == REPAIRED


def test_short_writes_are_finished_and_empty_ones_are_a_failure(
    run: Run, log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = os.write
    log.write_bytes(BROKEN)
    with monkeypatch.context() as patched:
        patched.setattr(os, "write", lambda fd, data: 0 if fd > 2 else write(fd, data))
        done = run("--repair", log)
    assert_error(done, 4, "wrote nothing")
    assert log.read_bytes() == BROKEN
    monkeypatch.setattr(os, "write", lambda fd, data: write(fd, data[:7] if fd > 2 else data))
    assert run("--repair", log).code == 0
    assert log.read_bytes() == REPAIRED


def test_a_log_that_another_process_changes_meanwhile_is_not_replaced(
    run: Run, log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log.write_bytes(BROKEN)
    write = os.write

    def append_too(fd: int, data: memoryview) -> int:
        with log.open("ab") as file:
            file.write(lines([77]))
        return write(fd, data)

    with monkeypatch.context() as patched:
        patched.setattr(os, "write", append_too)
        with open_logs([log], lock=True) as logs:
            findings = check_logs(logs, variants()[0], BITMAP, silent)
            with pytest.raises(SinkError, match="another process"):
                list(repair_logs(findings, variants()[0], BITMAP, silent))
    assert log.read_bytes().startswith(BROKEN + lines([77]))
    assert list(log.parent.iterdir()) == [log]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("call", ["write", "fsync"])
def test_a_signal_during_a_repair_leaves_the_log_as_it_was(
    run: Run, log: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: signal.Signals
) -> None:
    log.write_bytes(LONG)
    handler = signal.getsignal(number)
    original: Callable[..., Any] = getattr(os, call)

    def interrupted(*arguments: Any) -> Any:
        monkeypatch.setattr(os, call, original)
        signal.raise_signal(number)
        return original(*arguments)

    monkeypatch.setattr(os, call, interrupted)
    assert_error(
        run("--repair", log), 4, number.name, "only logs reported as repaired were changed"
    )
    assert log.read_bytes() == LONG
    assert list(log.parent.iterdir()) == [log]
    assert signal.getsignal(number) == handler


def test_an_ignored_signal_stays_ignored(
    run: Run, log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log.write_bytes(BROKEN)
    write = os.write

    def interrupted(fd: int, data: memoryview) -> int:
        signal.raise_signal(signal.SIGHUP)
        return write(fd, data)

    monkeypatch.setattr(os, "write", interrupted)
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert run("--repair", log).code == 0
    finally:
        signal.signal(signal.SIGHUP, before)
    assert log.read_bytes() == REPAIRED


FILES = st.lists(
    st.lists(
        st.one_of(
            st.integers(0, 12).map(b"%09d\n".__mod__),
            st.sampled_from([b"terminate\n", b"x\n", b"12", b"\0\0\0", b"\n"]),
        ),
        max_size=12,
    ).map(b"".join),
    min_size=1,
    max_size=4,
)


@settings(
    deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(contents=FILES)
def test_a_repair_leaves_each_number_once_where_it_came_first(
    tmp_path: Path, contents: list[bytes]
) -> None:
    paths = [tmp_path / f"{at}.log" for at in range(len(contents))]
    expected, seen = [], set[bytes]()
    for path, content in zip(paths, contents, strict=True):
        path.write_bytes(content)
        numbers = [line for line in content.split(b"\n")[:-1] if len(line) == 9 and line.isdigit()]
        new = [line for line in dict.fromkeys(numbers) if line not in seen]
        seen.update(new)
        expected.append(b"".join(line + b"\n" for line in new))
    assert _check_and_repair(paths) == [
        path
        for path, content, after in zip(paths, contents, expected, strict=True)
        if content != after
    ]
    assert [path.read_bytes() for path in paths] == expected
    assert _check_and_repair(paths) == []


def _check_and_repair(paths: Sequence[Path]) -> list[Path]:
    with open_logs(paths, lock=True) as logs:
        findings = check_logs(logs, variants()[0], BITMAP, silent)
        repairs = repair_logs(findings, variants()[0], BITMAP, silent)
        return [repair.findings.log.path for repair in repairs]
