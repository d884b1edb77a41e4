"""Allocates the bitmap, on huge pages where the system grants them."""

import re
from collections.abc import Iterable
from contextlib import suppress
from mmap import MADV_HUGEPAGE, MAP_ANONYMOUS, MAP_PRIVATE, PAGESIZE, mmap
from pathlib import Path
from typing import NamedTuple

from numbers_uring._native import ffi, lib
from numbers_uring.errors import StartError
from numbers_uring.limits import BITMAP_BYTES

_MADV_POPULATE_WRITE = 23
"""Linux 5.14; see madvise(2)."""

_MAPPING = re.compile(r"([0-9a-f]+)-([0-9a-f]+) ")


class Bitmap(NamedTuple):
    """A zeroed bitmap, all of it touched."""

    memory: bytearray
    huge_bytes: int | None
    """How much of it lies on huge pages, which spare random access most of its page walks; None
    where that is unknown."""


def allocate(size_bytes: int = BITMAP_BYTES) -> Bitmap:
    """Return a bitmap of `size_bytes`. Raises StartError where there is no memory for it.

    Afterwards no page of it is ever faulted in. That huge pages are refused is no error.

    bytearray(size_bytes) would touch its memory, small page by small page, before anyone can ask
    for huge ones; to collapse those afterwards takes several times as long.
    """
    memory = bytearray()
    if lib.nu_bytearray_resize(ffi.cast("void *", id(memory)), size_bytes):
        raise StartError(_lack_text(size_bytes))
    view = ffi.from_buffer("uint8_t[]", memory, require_writable=True)
    lib.nu_zero_huge(view, size_bytes)
    first = int(ffi.cast("uintptr_t", view))
    return Bitmap(memory, _huge_bytes(first, first + size_bytes))


def reserve(size_bytes: int = BITMAP_BYTES) -> mmap:
    """Return a zeroed bitmap of which memory is taken for what is touched alone.

    Raises StartError where there is no address space for it.
    """
    try:
        # Private, because a shared mapping is a file's, for which systems rarely grant huge pages.
        memory = mmap(-1, size_bytes, flags=MAP_PRIVATE | MAP_ANONYMOUS)
    except OSError as error:
        raise StartError(_lack_text(size_bytes)) from error
    with suppress(OSError):
        memory.madvise(MADV_HUGEPAGE)
    return memory


def populate(reserved: mmap, first: int, end: int) -> None:
    """Touch bytes first to end - 1 of it, on huge pages if Linux grants them.

    What is read before it is written would lie on the page of zeros, and on small pages once it
    is written, before Linux 6.13.
    """
    start = first - first % PAGESIZE
    with suppress(OSError):
        reserved.madvise(_MADV_POPULATE_WRITE, start, end - start)


def _lack_text(size_bytes: int) -> str:
    return f"not enough memory for a bitmap of {size_bytes} bytes"


def _huge_bytes(first: int, end: int) -> int | None:
    """Return how many of the bytes at addresses first to end - 1 lie on huge pages."""
    try:
        with Path("/proc/self/smaps").open(encoding="ascii", errors="replace") as smaps:
            return huge_bytes_within(smaps, first, end)
    except OSError:
        return None  # /proc is not mounted, or closed to us


def huge_bytes_within(smaps: Iterable[str], first: int, end: int) -> int:
    """Sum up what proc_pid_smaps(5) says of the mappings that overlap first to end - 1.

    It counts huge pages by mapping, not where they are; so a mapping is taken to have them inside
    of the range first, which is right unless huge pages of other memory share the mapping.
    """
    overlap = huge = 0
    for line in smaps:
        if mapping := _MAPPING.match(line):
            start, stop = (int(address, 16) for address in mapping.groups())
            overlap = max(0, min(stop, end) - max(start, first))
        elif line.startswith("AnonHugePages:"):
            huge += min(overlap, int(line.split()[1]) * 1024)
    return huge
