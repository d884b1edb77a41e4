"""--seen: numbers of rotated logs count as repeats, whatever a rotation does meanwhile."""

import gzip
import json
import os
import platform
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from numbers_uring.errors import StartError, StopRequestedError
from numbers_uring.ingest.kernel import Kernel, PythonKernel
from numbers_uring.ingest.native import variants
from numbers_uring.limits import BITMAP_BYTES, SEEN_LISTINGS_MAX
from numbers_uring.log import seen as seen_module
from numbers_uring.log import seen_files as seen_files_module
from numbers_uring.log.compressed import inflater, scan_compressed
from numbers_uring.log.opening import open_regular
from numbers_uring.log.seen import Seen, read_seen
from numbers_uring.log.seen_files import SeenFiles
from support.logs import lines
from support.processes import CommandProcess, ServerProcess, failure

Serve = Callable[..., ServerProcess]

LOG = lines(range(100))
ONE, TWO = lines(range(100, 300)), lines(range(300, 600))
BITMAP = bytearray(BITMAP_BYTES)
"""Shared: each test clears the bits it set."""
KERNEL: Kernel = variants()[0]


@pytest.fixture
def rotated(tmp_path: Path) -> Path:
    """Return a folder as logrotate leaves it: the older one of two is compressed."""
    (tmp_path / "numbers.log").write_bytes(LOG)
    (tmp_path / "numbers.log.1").write_bytes(ONE)
    (tmp_path / "numbers.log.2.gz").write_bytes(gzip.compress(TWO))
    return tmp_path


@pytest.fixture(params=["isal", "zlib"])
def library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Decompress by each of the two libraries."""
    if request.param == "zlib":
        monkeypatch.setitem(sys.modules, "isal", None)
    elif platform.machine() not in {"x86_64", "aarch64"}:
        pytest.skip("isal has no package for this processor")
    name: str = request.param
    return name


# A server.


def test_numbers_of_rotated_logs_count_as_repeats(serve: Serve, rotated: Path) -> None:
    server = serve("--resume", "--seen", str(rotated / "numbers.log*"))
    assert "read 2 files of --seen: 500 numbers in" in server.stderr
    assert "resumed" in server.stderr
    assert ": 100 numbers in" in server.stderr
    assert ", 500 numbers of --seen, started in" in server.stderr
    server.send(lines(range(700)))
    assert server.terminate() == 0
    assert server.logged() == [*range(100), *range(600, 700)]
    assert server.reported() == (100, 600, 100)


def test_without_resume_the_log_is_made_anew_and_its_own_numbers_are_not_seen(
    serve: Serve, rotated: Path
) -> None:
    server = serve("--seen", str(rotated / "numbers.log*"), "--log-format", "json")
    started = next(json.loads(line) for line in server.stderr_lines if '"started"' in line)
    assert (started["seen_files"], started["seen_numbers"]) == (2, 500)
    assert started["dropped_bytes"] == len(LOG)
    server.send(lines(range(700)))
    assert server.terminate() == 0
    assert server.logged() == [*range(100), *range(600, 700)]


def test_a_first_start_finds_no_file(serve: Serve, tmp_path: Path) -> None:
    server = serve("--resume", "--seen", str(tmp_path / "numbers.log*"))
    assert "no file matches --seen" in server.stderr
    server.send(LOG)
    assert server.terminate() == 0
    assert server.logged() == list(range(100))


def test_a_variable_has_names_with_spaces_and_a_colon_between_them(
    serve: Serve, tmp_path: Path
) -> None:
    for name in ("old logs", "older logs"):
        (tmp_path / name).mkdir()
    (tmp_path / "old logs" / "number file.1").write_bytes(ONE)
    (tmp_path / "older logs" / "[x].gz").write_bytes(gzip.compress(TWO))
    value = f"{tmp_path}/old logs/number f*:{tmp_path}/older logs/[x].gz"
    server = serve(environment={"NUMBERS_URING_SERVE_SEEN": value})
    assert "read 2 files of --seen: 500 numbers in" in server.stderr
    assert server.terminate() == 0


@pytest.mark.parametrize("kernel", ["python", "scalar"])
def test_several_reactors_and_every_kernel_know_them(
    serve: Serve, rotated: Path, kernel: str
) -> None:
    server = serve(
        *("--seen", str(rotated / "numbers.log*"), "--reactors", "2", "--kernel", kernel)
    )
    with server.connect() as one, server.connect() as other:
        one.sendall(lines(range(100, 350)))
        other.sendall(lines(range(350, 650)))
    assert server.terminate() == 0
    assert server.logged() == list(range(600, 650))


# What is refused, with the log as it was.


def truncated(data: bytes) -> bytes:
    return gzip.compress(data)[:-20]


def flipped(data: bytes) -> bytes:
    whole = bytearray(gzip.compress(data))
    whole[len(whole) // 2] ^= 0xFF
    return bytes(whole)


CONTENTS: dict[str, tuple[str, bytes, str]] = {
    "a bad line": ("x.1", ONE + b"x\n" + ONE, f"the line at byte {len(ONE)} is not a number; rem"),
    "a bad line, compressed": (
        *("x.1.gz", gzip.compress(ONE + b"x\n" + ONE)),
        f"uncompressed, the line at byte {len(ONE)} is not a number",
    ),
    "terminate": ("x.1", ONE + b"terminate\n", f"the line at byte {len(ONE)} is not a number"),
    "an end that is missing": ("x.1.gz", truncated(ONE), "its end is missing"),
    "nothing but a name": ("x.1.gz", b"", "its end is missing"),
    "a header alone": ("x.1.gz", gzip.compress(ONE)[:9], "its end is missing"),
    "damage": ("x.1.gz", flipped(ONE), "it is damaged: "),
    "garbage behind": ("x.1.gz", gzip.compress(ONE) + b"garbage", "it is damaged: "),
    "a plain file of another name": ("x.1.gz", ONE, "not compressed by gzip"),
    "zstd": ("x.1.zst", b"\x28\xb5\x2f\xfd" + bytes(20), "compressed by zstd, not by gzip"),
    "xz": ("x.1.xz", b"\xfd7zXZ\0" + bytes(20), "compressed by xz, not by gzip"),
    "bzip2": ("x.1.bz2", b"BZh91AY&SY", "compressed by bzip2, not by gzip"),
}


@pytest.mark.parametrize("name", CONTENTS)
def test_a_file_that_cannot_be_read_is_refused_and_the_log_left_as_it_is(
    tmp_path: Path, name: str
) -> None:
    resume = ["--resume"] * (list(CONTENTS).index(name) % 2)
    log, (file, content, text) = tmp_path / "numbers.log", CONTENTS[name]
    log.write_bytes(LOG + b"0000")
    (tmp_path / file).write_bytes(content)
    code, said = failure(log, "--port", "0", *resume, "--seen", str(tmp_path / "x*"))
    assert (code, len(said)) == (3, 1)
    assert said[0].startswith(f"numbers-uring: error: cannot read {tmp_path / file}: {text}")
    assert log.read_bytes() == LOG + b"0000"


@pytest.mark.parametrize("name", [name for name in CONTENTS if CONTENTS[name][0] == "x.1.gz"])
def test_each_library_finds_the_same_faults(tmp_path: Path, library: str, name: str) -> None:
    file, content, text = CONTENTS[name]
    (tmp_path / file).write_bytes(content)
    with pytest.raises(StartError) as caught:
        read(tmp_path / "x*")
    assert str(caught.value).startswith(f"cannot read {tmp_path / file}: {text}")
    assert str(caught.value).isprintable()


def make_fifo(path: Path) -> None:
    os.mkfifo(path)


def make_closed_file(path: Path) -> None:
    path.write_bytes(ONE)
    path.chmod(0)


def make_dangling_link(path: Path) -> None:
    path.symlink_to("nowhere")


PLACES: dict[str, tuple[Callable[[Path], None], str, str]] = {
    "a folder": (Path.mkdir, "x*", "cannot open {}/x: it is not a regular file"),
    "a FIFO": (make_fifo, "x*", "cannot open {}/x: it is not a regular file"),
    "a link to nothing": (make_dangling_link, "x*", "cannot open {}/x: No such file or directory"),
    "no file of that name": (Path.touch, "y", "cannot open {}/y: No such file or directory"),
    "no folder": (Path.touch, "y/x*", "cannot list {}/y: No such file or directory"),
    "a file for a folder": (Path.touch, "x/x*", "cannot list {}/x: Not a directory"),
    "no right to read it": (make_closed_file, "x*", "cannot open {}/x: Permission denied"),
    "no right to list it": (
        lambda path: path.mkdir(mode=0o300),
        *("x/*", "cannot list {}/x: Permission denied"),
    ),
}


@pytest.mark.parametrize("name", PLACES)
def test_what_is_no_file_to_read_is_refused_at_once(tmp_path: Path, name: str) -> None:
    log, (make, pattern, text) = tmp_path / "numbers.log", PLACES[name]
    log.write_bytes(LOG)
    make(tmp_path / "x")
    prefix = ("setpriv", "--bounding-set=-dac_override,-dac_read_search")
    code, said = failure(
        *(log, "--port", "0", "--seen", str(tmp_path / pattern)),
        prefix=prefix if os.geteuid() == 0 else (),
    )
    assert (code, said) == (3, [f"numbers-uring: error: {text.format(tmp_path)}"])
    assert log.read_bytes() == LOG


def test_a_stop_while_files_are_read_leaves_the_log_as_it_is(tmp_path: Path) -> None:
    log = tmp_path / "numbers.log"
    log.write_bytes(LOG)
    # Zeros without end, which a crash can leave behind a line: read as fast as memory is.
    for name in ("x.1", "x.2"):
        (tmp_path / name).touch()
        os.truncate(tmp_path / name, 2**40)
    with CommandProcess(
        *("serve", "--port", "0", "--log-file", str(log), "--seen", str(tmp_path / "x*"))
    ) as server:
        server.wait_for("reading 2 files of --seen: 0 % of 2199.0 GB")
        assert server.stop(signal.SIGTERM) == 0
        assert len(server.stderr_lines) == server.stderr.count("reading 2 files of --seen")
    assert log.read_bytes() == LOG


# How files are read.


def clear(data: bytes) -> None:
    for number in map(int, data.split()):
        BITMAP[number >> 3] = 0


def read(
    *patterns: Path, kernel: Kernel = KERNEL, log: Path | None = None
) -> tuple[Seen, set[int]]:
    """Return what is seen of these files: what is said, and all numbers below 1,000."""
    said: list[str] = []

    def is_log(state: os.stat_result) -> bool:
        return log is not None and os.path.samestat(state, log.stat())

    files = SeenFiles(patterns, is_log=is_log)
    try:
        result = read_seen(
            files.files, kernel, BITMAP, say=said.append, stop_requested=lambda: False
        )
        return result, {n for n in range(1000) if BITMAP[n >> 3] & 1 << (n & 7)}
    finally:
        files.close()
        BITMAP[:125] = bytes(125)


@contextmanager
def processors(monkeypatch: pytest.MonkeyPatch, number: int) -> Iterator[None]:
    with monkeypatch.context() as patch:
        patch.setattr(os, "sched_getaffinity", lambda _: set(range(number)))
        yield


@pytest.mark.parametrize("number", [1, 2, 5])
@pytest.mark.parametrize("kernel", [PythonKernel(), KERNEL, KERNEL.shared])
def test_threads_read_each_file_once(
    rotated: Path, monkeypatch: pytest.MonkeyPatch, number: int, kernel: Kernel
) -> None:
    for i in range(10):
        (rotated / f"numbers.log.{i + 3}.gz").write_bytes(gzip.compress(TWO[: 300 * i]))
    (rotated / "hard link").hardlink_to(rotated / "numbers.log.1")
    (rotated / "link").symlink_to(rotated / "numbers.log")
    patterns = (rotated / "*", rotated / "numbers.log.1", rotated / "numbers*")
    with processors(monkeypatch, number):
        result, found = read(*patterns, kernel=kernel, log=rotated / "numbers.log")
    assert result == Seen(files=12, numbers=500)
    assert found == set(range(100, 600))


def test_where_no_thread_can_be_started_one_reads_them_all(
    rotated: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start_thread(*_: object) -> None:
        raise StartError("no thread")

    monkeypatch.setattr(seen_module, "start_thread", start_thread)
    with processors(monkeypatch, 4):
        (rotated / "numbers.log.3.gz").write_bytes(gzip.compress(LOG))
        assert read(rotated / "numbers.log.*") == (Seen(3, 600), set(range(600)))


@pytest.mark.parametrize("stop", [False, True], ids=["failure", "stop"])
def test_what_ends_one_thread_ends_them_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: bool
) -> None:
    for i in range(7):
        (tmp_path / f"x.{i}.gz").write_bytes(gzip.compress(b""))
    opened = SeenFiles([tmp_path / "x*"], is_log=lambda _: False)
    running, calls = [0], count()

    def scan(path: Path, *_: object, progress: Callable[[int], None], **_compressed: bool) -> None:
        running[0] += 1
        try:
            while True:
                progress(1)
                if not stop and path.name == "x.3.gz":
                    raise StartError("it is broken")
        finally:
            running[0] -= 1

    monkeypatch.setattr(seen_module, "scan_either", scan)
    # As many threads as files: whichever has the broken one, the others would read for ever.
    with processors(monkeypatch, 7), pytest.raises((StartError, StopRequestedError)) as caught:
        read_seen(
            opened.files,
            *(KERNEL, BITMAP),
            say=lambda _: None,
            stop_requested=lambda: stop and next(calls) > 20,
        )
    assert isinstance(caught.value, StopRequestedError) is stop
    assert running == [0]
    opened.close()


@pytest.mark.parametrize(
    ("tails", "text"),
    [
        ((b"0000\0\0", b"123456789"), "torn tails of 15 bytes left out"),
        ((b"", b"123"), "a torn tail of 3 bytes left out"),
        ((b"1", b""), "a torn tail of 1 byte left out"),
    ],
)
def test_torn_tails_are_left_out(tails: tuple[bytes, bytes], text: str, tmp_path: Path) -> None:
    (tmp_path / "x.1").write_bytes(ONE + tails[0])
    (tmp_path / "x.2.gz").write_bytes(gzip.compress(TWO + tails[1]))
    said: list[str] = []
    files = SeenFiles([tmp_path / "x*"], is_log=lambda _: False)
    read_seen(files.files, KERNEL, BITMAP, say=said.append, stop_requested=lambda: False)
    files.close()
    clear(ONE + TWO)
    assert f"500 numbers, {text} in" in said[-1]


def test_a_hidden_file_is_matched_by_a_dot_alone(tmp_path: Path) -> None:
    (tmp_path / ".x").write_bytes(ONE)
    assert read(tmp_path / "*") == (Seen(), set())
    assert read(tmp_path / ".*") == (Seen(1, 200), set(range(100, 300)))


# The format of gzip.


def test_isal_is_used_where_it_is_installed(library: str) -> None:
    assert inflater().begin.__module__ == {"isal": "isal.isal_zlib", "zlib": "zlib"}[library]


def scan_of(path: Path, data: bytes) -> tuple[int, bool]:
    path.write_bytes(data)
    fd = os.open(path, os.O_RDONLY)
    try:
        done_bytes: list[int] = []
        found = scan_compressed(path, fd, KERNEL, BITMAP, progress=done_bytes.append)
        assert sum(done_bytes) <= len(data)
        return found.scan.unique + found.scan.duplicates, found.ends_early
    finally:
        os.close(fd)


same_file = settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@same_file
@given(
    cuts=st.lists(st.integers(0, len(TWO))),
    levels=st.lists(st.integers(0, 9), min_size=1),
    zeros=st.sampled_from([0, 1, 600]),
)
def test_members_one_behind_the_other_are_one_file(
    tmp_path: Path, library: str, cuts: list[int], levels: list[int], zeros: int
) -> None:
    ends = [*sorted(cuts), len(TWO)]
    data = b"".join(
        gzip.compress(TWO[start:end], levels[at % len(levels)])
        for at, (start, end) in enumerate(zip([0, *ends], ends, strict=False))
    )
    assert scan_of(tmp_path / "x", data + bytes(zeros)) == (300, False)
    clear(TWO)


def test_a_file_that_expands_a_thousand_times_is_read_in_pieces(
    tmp_path: Path, library: str
) -> None:
    numbers = 1_000_000
    assert scan_of(tmp_path / "x", gzip.compress(b"000000007\n" * numbers)) == (numbers, False)
    clear(b"000000007")


def test_wherever_it_is_cut_it_is_known_to_have_no_end(tmp_path: Path, library: str) -> None:
    whole = gzip.compress(TWO)
    for size in range(len(whole)):
        found, ends_early = scan_of(tmp_path / "x", whole[:size])
        assert (found <= 300, ends_early) == (True, True), size
    clear(TWO)


def test_whichever_byte_is_wrong_it_is_noticed_or_makes_no_difference(
    tmp_path: Path, library: str
) -> None:
    whole = gzip.compress(TWO)
    scan_of(tmp_path / "x", whole)
    bits = BITMAP[: 1000 // 8]
    BITMAP[: 1000 // 8] = bytes(1000 // 8)
    noticed = 0
    for at in range(len(whole)):
        wrong = bytearray(whole)
        wrong[at] ^= 0x41
        try:
            found, ends_early = scan_of(tmp_path / "x", bytes(wrong))
        except StartError:
            noticed += 1
        else:
            noticed += ends_early
            assert ends_early or (found == 300 and BITMAP[: 1000 // 8] == bits), at
        BITMAP[: 1000 // 8] = bytes(1000 // 8)
    assert noticed > len(whole) - 20
    BITMAP[:] = bytes(BITMAP_BYTES)


# What a rotation does between two steps of ours.


def shift(folder: Path) -> None:
    (folder / "numbers.log.2.gz").rename(folder / "numbers.log.3.gz")
    (folder / "numbers.log.1").rename(folder / "numbers.log.2")


def compress(folder: Path) -> None:
    (folder / "numbers.log.1.gz").write_bytes(gzip.compress(ONE))
    (folder / "numbers.log.1").unlink()


def begin_to_compress(folder: Path) -> None:
    (folder / "numbers.log.1.gz").write_bytes(truncated(ONE))


def rotate_the_log(folder: Path) -> None:
    shift(folder)
    log = (folder / "numbers.log").rename(folder / "numbers.log.1")
    assert log.exists()


def name_by_date(folder: Path) -> None:
    (folder / "numbers.log.1").rename(folder / "numbers.log-20261127")
    (folder / "numbers.log.2.gz").rename(folder / "a numbers.log-20261126.gz")
    (folder / "a numbers.log-20261126.gz").rename(folder / "numbers.log-20261126.gz")


@pytest.mark.parametrize("moment", range(5))
@pytest.mark.parametrize("move", [shift, compress, begin_to_compress, rotate_the_log, name_by_date])
def test_whatever_a_rotation_renames_meanwhile_no_number_is_missed(
    rotated: Path, monkeypatch: pytest.MonkeyPatch, move: Callable[[Path], None], moment: int
) -> None:
    """It does so before one of the first openings, or between the two listings."""
    log = os.stat(rotated / "numbers.log")  # noqa: PTH116 - it will have another name
    moments = count()

    def at_moments(call: Callable[..., object]) -> Callable[..., object]:
        def run(*arguments: object) -> object:
            if next(moments) == moment:
                move(rotated)
            return call(*arguments)

        return run

    for name in ("open_regular", "_matches"):
        monkeypatch.setattr(seen_files_module, name, at_moments(getattr(seen_files_module, name)))
    files = SeenFiles([rotated / "numbers.log*"], is_log=lambda state: os.path.samestat(state, log))
    said: list[str] = []
    read_seen(files.files, KERNEL, BITMAP, say=said.append, stop_requested=lambda: False)
    files.close()
    found = {n for n in range(1000) if BITMAP[n >> 3] & 1 << (n & 7)}
    clear(lines(found))
    assert found == set(range(100, 600)), said
    assert next(moments) > moment


def test_files_that_are_renamed_all_the_time_are_given_up(
    rotated: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = count(10)
    original = open_regular

    def open_and_rename(path: Path) -> int:
        fd = original(path)
        (rotated / f"numbers.log.{next(names)}").touch()
        return fd

    monkeypatch.setattr(seen_files_module, "open_regular", open_and_rename)
    monkeypatch.setattr(seen_files_module, "SEEN_LISTINGS_MAX", 5)
    with pytest.raises(StartError, match="they change all the time"):
        SeenFiles([rotated / "numbers.log.*"], is_log=lambda _: False)
    assert SEEN_LISTINGS_MAX > 5


@pytest.mark.parametrize("size", [0, 5, 30, -5])
def test_an_unfinished_copy_beside_its_original_is_no_damage(rotated: Path, size: int) -> None:
    (rotated / "numbers.log.1.gz").write_bytes(gzip.compress(ONE)[:size])
    assert read(rotated / "numbers.log.*") == (Seen(3, 500), set(range(100, 600)))


def test_one_that_an_interrupted_logrotate_put_aside_is_none_either(rotated: Path) -> None:
    aside = rotated / "numbers.log.2.gz-2026112700.backup"
    aside.write_bytes(truncated(TWO))
    assert read(rotated / "numbers.log.*") == (Seen(3, 500), set(range(100, 600)))
    (rotated / "numbers.log.2.gz").unlink()
    with pytest.raises(StartError, match="its end is missing"):
        read(rotated / "numbers.log.*")


def test_an_unfinished_copy_of_another_file_is_damage(rotated: Path) -> None:
    (rotated / "numbers.log.1.gz").write_bytes(truncated(lines(range(700, 900))))
    with pytest.raises(StartError, match=r"numbers\.log\.1\.gz: its end is missing"):
        read(rotated / "numbers.log.*")
