"""The scan of a log against a naive one, however the file is cut into pieces."""

import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from numbers_uring.ingest.kernel import Kernel, PythonKernel
from numbers_uring.ingest.native import variants
from numbers_uring.limits import BITMAP_BYTES
from numbers_uring.log.scan import Scan, scan
from support.logs import lines

KERNELS: list[Kernel] = [PythonKernel(), *variants()]
BITMAP = bytearray(BITMAP_BYTES)
"""Shared: each test clears the bits it set."""

NUMBER = re.compile(rb"[0-9]{9}")
TORN = re.compile(rb"[0-9]{0,9}\0*")


@dataclass
class Oracle:
    """What a file holds, found out by splitting it at newlines."""

    data: bytes
    new: list[int] = field(default_factory=list)
    duplicates: int = 0
    bad_offsets: list[int] = field(default_factory=list)
    torn_bytes: int = 0

    def __post_init__(self) -> None:
        *whole, rest = self.data.split(b"\n")
        seen = set()
        offset = 0
        for line in whole:
            if not NUMBER.fullmatch(line):
                self.bad_offsets.append(offset)
            elif int(line) in seen:
                self.duplicates += 1
            else:
                seen.add(int(line))
                self.new.append(int(line))
            offset += len(line) + 1
        if TORN.fullmatch(rest):
            self.torn_bytes = len(rest)
        else:
            self.bad_offsets.append(offset)

    @property
    def scan(self) -> Scan:
        return Scan(
            unique=len(self.new),
            duplicates=self.duplicates,
            bad_lines=len(self.bad_offsets),
            first_bad_offset=self.bad_offsets[0] if self.bad_offsets else None,
            torn_bytes=self.torn_bytes,
            consumed_bytes=len(self.data) - self.torn_bytes,
        )


def clear(new_lines: bytes) -> None:
    for number in map(int, new_lines.split()):
        BITMAP[number >> 3] = 0


class Scanner:
    """Scans bytes that are put into one and the same file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __call__(
        self, data: bytes, kernel: Kernel, chunk_bytes: int | None = None
    ) -> tuple[Scan, bytes]:
        """Return the scan and the lines that were new."""
        self._path.write_bytes(data)
        new = bytearray()
        progress: list[int] = []
        settings = {} if chunk_bytes is None else {"chunk_bytes": chunk_bytes}
        fd = os.open(self._path, os.O_RDONLY)
        try:
            result = scan(
                fd, kernel, BITMAP, on_new=new.extend, progress=progress.append, **settings
            )
        finally:
            os.close(fd)
            clear(bytes(new))
        assert sum(progress) == len(data)
        return result, bytes(new)


@pytest.fixture
def scanned(tmp_path: Path) -> Scanner:
    return Scanner(tmp_path / "numbers.log")


@pytest.fixture(params=KERNELS, ids=lambda kernel: kernel.variant)
def kernel(request: pytest.FixtureRequest) -> Kernel:
    found: Kernel = request.param
    return found


PARTS = st.one_of(
    st.integers(0, 20).map(b"%09d\n".__mod__),
    st.integers(0, 999_999_999).map(b"%09d\n".__mod__),
    st.sampled_from([0, 999_999_999]).map(b"%09d\n".__mod__),
    st.sampled_from(
        [
            *(
                b"terminate\n",
                b"terminate",
                b"term",
                b"\n",
                b"\n\n\n",
                b"\r\n",
                b"x",
                b"12345678\n",
            ),
            *(b"1234567890\n", b"123456789\r\n", b"+12345678\n", b"12345678\xb2\n", b"1234 6789\n"),
            *(b"1", b"12345", b"123456789", b"1234567890", b"\0", b"\0\n", b"123\0\n", b"x" * 70),
        ]
    ),
    st.integers(1, 90).map(bytes),
    st.integers(1, 30).map(b"y\n".__mul__),
    st.binary(max_size=12),
)
ENDS = st.one_of(
    st.just(b""),
    st.builds(
        lambda digits, nuls: b"123456789"[:digits] + bytes(nuls),
        st.integers(0, 9),
        st.integers(0, 200),
    ),
    st.sampled_from([b"terminate", b"t", b"term\0\0", b"1234567890", b"1234567890\0", b"12\0x"]),
)
FILES = st.tuples(st.lists(PARTS, max_size=25), ENDS).map(lambda file: b"".join(file[0]) + file[1])


@settings(
    deadline=None, max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=FILES, chunk_bytes=st.integers(1, 64))
@example(data=b"", chunk_bytes=1)
@example(data=b"12345" + bytes(1000), chunk_bytes=16)
@example(data=b"12345" + bytes(1000) + b"\n", chunk_bytes=16)
@example(data=b"12345" + bytes(1000) + b"000000001\n000000002\n", chunk_bytes=16)
def test_a_scan_says_what_splitting_at_newlines_says(
    kernel: Kernel, scanned: Scanner, data: bytes, chunk_bytes: int
) -> None:
    oracle = Oracle(data)
    for size in (chunk_bytes, None):
        result, new = scanned(data, kernel, size)
        assert result == oracle.scan
        assert new == lines(oracle.new)
    assert result.lines == len(oracle.new) + oracle.duplicates
    assert result.size_bytes == len(data)


@pytest.mark.parametrize("chunk_bytes", [1, 2, 3, 7, 9, 10, 11, 19, 20, 64])
def test_pieces_may_cut_lines_anywhere(kernel: Kernel, scanned: Scanner, chunk_bytes: int) -> None:
    data = lines([*range(50), 7]) + b"bad\nterminate\n" + lines([999_999_999]) + b"1234\0\0"
    result, new = scanned(data, kernel, chunk_bytes)
    assert result == Oracle(data).scan
    assert new == lines([*range(50), 999_999_999])


@pytest.mark.parametrize("digits", range(10))
@pytest.mark.parametrize("nuls", [0, 1, 9, 10, 4096, 100_000])
def test_digits_and_nuls_at_the_end_are_a_torn_tail(
    scanned: Scanner, digits: int, nuls: int
) -> None:
    tail = b"123456789"[:digits] + bytes(nuls)
    result, _ = scanned(lines([1, 2]) + tail, KERNELS[-1], 4096)
    assert (result.lines, result.torn_bytes, result.bad_lines) == (2, len(tail), 0)
    assert result.consumed_bytes == 20
    assert result.first_bad_offset is None


@pytest.mark.parametrize(
    "tail",
    [
        *(b"terminate\n", b"terminate", b"t", b"termi\0\0", b"1234567890", b"12345678x", b"x"),
        *(b"\0\0x", b"\x001", b"1\x002", b"\0\n", b"\n", b" ", b"-1", b"123456789\r"),
        *(bytes(5000) + b"1", bytes(5000) + b"\n", bytes(4096 - 20) + b"1"),
    ],
)
def test_any_other_end_is_a_bad_line(scanned: Scanner, tail: bytes) -> None:
    result, _ = scanned(lines([1, 2]) + tail, KERNELS[-1], 4096)
    assert (result.lines, result.torn_bytes, result.bad_lines) == (2, 0, 1)
    assert result.first_bad_offset == 20


def test_lines_after_a_bad_one_count_again(kernel: Kernel, scanned: Scanner) -> None:
    data = b"x" * 100 + b"\n" + lines([1]) + b"terminate\n" + b"12\n" * 3 + lines([2, 1])
    for chunk_bytes in range(1, 40):
        result, new = scanned(data, kernel, chunk_bytes)
        assert new == lines([1, 2])
        assert (result.duplicates, result.bad_lines, result.first_bad_offset) == (1, 5, 0)


def test_a_file_of_bad_lines_alone_is_scanned(scanned: Scanner) -> None:
    data = b"123456789\r\n" * 100_000
    result, new = scanned(data, KERNELS[-1])
    assert (result.bad_lines, result.first_bad_offset, new) == (100_000, 0, b"")


def test_numbers_that_the_bitmap_has_already_are_duplicates(tmp_path: Path) -> None:
    path = tmp_path / "numbers.log"
    path.write_bytes(lines(range(100)))
    with path.open("rb") as file:
        first = scan(file.fileno(), KERNELS[-1], BITMAP)
        second = scan(file.fileno(), KERNELS[-1], BITMAP)
        assert file.tell() == 0
    clear(path.read_bytes())
    assert (first.unique, first.duplicates) == (100, 0)
    assert (second.unique, second.duplicates, second.lines) == (0, 100, 100)


@pytest.fixture
def short_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have each read bring a few bytes, as many as it likes."""
    preadv: Callable[..., int] = os.preadv

    def short(fd: int, buffers: list[memoryview], offset: int) -> int:
        return preadv(fd, [buffers[0][: 1 + offset % 13]], offset)

    monkeypatch.setattr(os, "preadv", short)


@pytest.mark.usefixtures("short_reads")
def test_short_reads_are_gone_on_with(kernel: Kernel, scanned: Scanner) -> None:
    data = lines(range(30)) + b"terminate\n" + lines([3]) + b"12"
    assert scanned(data, kernel)[0] == Oracle(data).scan


def test_what_cannot_be_read_is_raised(tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_RDONLY)
    try:
        with pytest.raises(IsADirectoryError):
            scan(fd, KERNELS[-1], BITMAP)
    finally:
        os.close(fd)
