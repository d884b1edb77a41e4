"""Memory that ends at a guard page."""

import ctypes
import mmap
import os


class Guarded:
    """Memory between two inaccessible pages: a read or write beyond it is fatal."""

    def __init__(self) -> None:
        page = mmap.PAGESIZE
        self._mapping = mmap.mmap(-1, 3 * page, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        libc = ctypes.CDLL(None, use_errno=True)
        libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
        address = ctypes.addressof(ctypes.c_char.from_buffer(self._mapping))
        for forbidden in (address, address + 2 * page):
            assert libc.mprotect(forbidden, page, 0) == 0, os.strerror(ctypes.get_errno())
        self.memory = memoryview(self._mapping)[page : 2 * page]

    def first(self, size: int) -> memoryview:
        """Return the bytes right behind the lower guard."""
        return self.memory[:size]

    def last(self, size: int) -> memoryview:
        """Return the bytes right before the upper guard."""
        return self.memory[len(self.memory) - size :]
