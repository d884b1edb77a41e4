"""Allocates the memory of a ring's buffers, on huge pages, and touches what nearly all loads use.

Linux takes and zeroes a huge page as a whole at its first touch. That takes 0.15 ms, but 5 to 10 ms
in a virtual machine whose host has to find memory first, so it is done before clients come.
"""

from contextlib import suppress
from mmap import MADV_HUGEPAGE, MAP_ANONYMOUS, MAP_PRIVATE, mmap

from numbers_uring._native import lib
from numbers_uring.ingest.bitmap import populate
from numbers_uring.limits import RING_TOUCHED_BYTES


def allocate(size_bytes: int) -> mmap:
    """Return memory of at least that size. Raises OSError."""
    # Linux aligns a mapping for huge pages only if its size is a multiple of theirs.
    pages = -(-size_bytes // lib.NU_HUGE_PAGE_BYTES)
    memory = mmap(-1, pages * lib.NU_HUGE_PAGE_BYTES, flags=MAP_PRIVATE | MAP_ANONYMOUS)
    with suppress(OSError):
        memory.madvise(MADV_HUGEPAGE)
    populate(memory, 0, min(RING_TOUCHED_BYTES, len(memory)))
    return memory
