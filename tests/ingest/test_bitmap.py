import errno
import mmap
from array import array
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from numbers_uring._native import ffi, lib
from numbers_uring.doctor.memory_checks import check_huge_pages
from numbers_uring.errors import StartError
from numbers_uring.ingest import bitmap
from numbers_uring.limits import BITMAP_BYTES

MIB = 1024 * 1024
PAGEMAP_ENTRY_BYTES = 8
PAGEMAP_PRESENT_BIT = 63

SMAPS = """\
00400000-00600000 r--p 00000000 08:01 1 /usr/bin/python3
AnonHugePages:      2048 kB
7f0000000000-7f0000400000 rw-p 00000000 00:00 0
Size:               4096 kB
AnonHugePages:      4096 kB
7f0000400000-7f0000a00000 rw-p 00000000 00:00 0 [heap]
VmFlags: rd wr mr mw me ac hg
AnonHugePages:      2048 kB
"""


def test_the_bitmap_is_zeroed_and_as_long_as_asked_for() -> None:
    allocated = bitmap.allocate()
    assert len(allocated.memory) == BITMAP_BYTES
    assert allocated.memory.count(0) == BITMAP_BYTES
    assert 0 <= (allocated.huge_bytes or 0) <= BITMAP_BYTES


def test_without_proc_it_is_unknown_whether_pages_are_huge(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(bitmap, "Path", lambda _: tmp_path / "missing")
    allocated = bitmap.allocate()
    assert allocated.huge_bytes is None
    check = check_huge_pages(allocated)
    assert check.text.startswith("unknown")
    assert check.values["share"] is None


def test_huge_pages_are_had_where_the_system_grants_them() -> None:
    probe = bytearray(b"\1") * (8 * MIB)
    refusal = lib.nu_collapse_huge(ffi.from_buffer("uint8_t[]", probe), len(probe))
    if refusal:
        pytest.skip(f"the system grants no huge pages: {errno.errorcode[-refusal]}")
    # Memory may be too fragmented for all of it.
    assert bitmap.allocate().huge_bytes


def test_refused_huge_pages_are_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def zero(memory: Any, size: int) -> int:
        ffi.memmove(memory, bytes(size), size)
        return -errno.EINVAL

    refusing = SimpleNamespace(nu_bytearray_resize=lib.nu_bytearray_resize, nu_zero_huge=zero)
    monkeypatch.setattr(bitmap, "lib", refusing)
    allocated = bitmap.allocate(3 * MIB)
    assert allocated.memory.count(0) == 3 * MIB


def test_only_a_lack_of_memory_is_an_error() -> None:
    with pytest.raises(StartError, match="memory"):
        bitmap.allocate(1 << 60)


@pytest.mark.parametrize("size", [0, 1, 4096, 2 * MIB - 1])
def test_less_than_a_huge_page_is_left_alone(size: int) -> None:
    memory = bytearray(b"\x5a" * size)
    assert lib.nu_collapse_huge(ffi.from_buffer("uint8_t[]", memory), size) == 0
    assert memory.count(0x5A) == size


@pytest.mark.parametrize("size", [1, 4096, 2 * MIB, 9 * MIB + 5])
def test_memory_that_was_used_before_is_zeroed(size: int) -> None:
    memory = bytearray(b"\x5a" * (size + 1))
    lib.nu_zero_huge(ffi.from_buffer("uint8_t[]", memory), size)
    assert memory.count(0) == size
    assert memory[-1] == 0x5A


def test_a_resized_bytearray_is_one_like_any_other() -> None:
    memory = bytearray()
    assert lib.nu_bytearray_resize(ffi.cast("void *", id(memory)), 3 * MIB) == 0
    assert len(memory) == 3 * MIB
    memory[-1] = 7
    memory += b"more"
    assert memory[-5:] == b"\7more"


def test_a_bytearray_that_cannot_grow_stays_as_it_is() -> None:
    memory = bytearray()
    assert lib.nu_bytearray_resize(ffi.cast("void *", id(memory)), 1 << 60) == -errno.ENOMEM
    assert lib.nu_bytearray_resize(ffi.cast("void *", id(memory)), (1 << 64) - 1) == -errno.ENOMEM
    assert memory == b""


def test_collapsing_changes_no_byte() -> None:
    memory = bytearray(range(251)) * (9 * MIB // 251)
    before = bytes(memory)
    lib.nu_collapse_huge(ffi.from_buffer("uint8_t[]", memory), len(memory))
    assert memory == before


def test_memory_that_is_not_mapped_is_reported() -> None:
    address_of_the_kernel = ffi.cast("void *", 0xFFFF << 48)
    assert lib.nu_collapse_huge(address_of_the_kernel, 8 * MIB) < 0


@pytest.mark.parametrize(
    ("first", "end", "expected"),
    [
        (0x7F0000000000, 0x7F0000400000, 4 * MIB),
        (0x7F0000000000, 0x7F0000A00000, 6 * MIB),
        (0x7F0000001000, 0x7F0000200000, 2 * MIB - 4096),
        (0x7F0000B00000, 0x7F0000C00000, 0),
        (0x400000, 0x7F0000A00000, 8 * MIB),
    ],
)
def test_huge_pages_are_counted_within_the_range(first: int, end: int, expected: int) -> None:
    assert bitmap.huge_bytes_within(SMAPS.splitlines(), first, end) == expected


def test_a_reserved_bitmap_is_zeroed_and_takes_memory_for_what_is_populated_alone() -> None:
    reserved = bitmap.reserve()
    assert len(reserved) == BITMAP_BYTES
    start = int(ffi.cast("uintptr_t", ffi.from_buffer("uint8_t[]", reserved)))
    bitmap.populate(reserved, 40 * MIB + 1, 48 * MIB)
    # Not Rss of /proc/self/smaps: a mapping beside it may have become one with it.
    with Path("/proc/self/pagemap").open("rb") as pagemap:
        pagemap.seek(start // mmap.PAGESIZE * PAGEMAP_ENTRY_BYTES)
        entries = array("Q", pagemap.read(BITMAP_BYTES // mmap.PAGESIZE * PAGEMAP_ENTRY_BYTES))
    resident_bytes = sum(entry >> PAGEMAP_PRESENT_BIT for entry in entries) * mmap.PAGESIZE
    # Whole huge pages at both ends, or none of it where the system can't populate.
    assert resident_bytes <= (8 + 4) * MIB
    assert reserved[40 * MIB : 48 * MIB].count(0) == 8 * MIB


def test_what_is_populated_lies_on_huge_pages_where_the_system_grants_them() -> None:
    probe = bytearray(b"\1") * (8 * MIB)
    refusal = lib.nu_collapse_huge(ffi.from_buffer("uint8_t[]", probe), len(probe))
    if refusal:
        pytest.skip(f"the system grants no huge pages: {errno.errorcode[-refusal]}")
    reserved = bitmap.reserve()
    start = int(ffi.cast("uintptr_t", ffi.from_buffer("uint8_t[]", reserved)))
    bitmap.populate(reserved, 0, BITMAP_BYTES)
    with Path("/proc/self/smaps").open() as smaps:
        assert bitmap.huge_bytes_within(smaps, start, start + BITMAP_BYTES) > 0
