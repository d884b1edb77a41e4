"""The log's dirty pages, written to disk and given up a window behind the writer."""

import errno
import os

from numbers_uring._native import lib
from numbers_uring.limits import WRITE_BEHIND_BYTES, WRITE_BEHIND_LAG_BYTES

_LOST = {errno.EIO, errno.ENOSPC, errno.EDQUOT}
"""Linux could not write what it had taken, and says so only once, perhaps not to fdatasync(2)."""


class WriteBehind:
    """Follows one file, in windows of WRITE_BEHIND_BYTES.

    While the disk keeps up, the last WRITE_BEHIND_LAG_BYTES are in the page cache, and three
    windows more: one that fills, one whose write-back was started, one that is waited for. Where
    the call is refused, nothing is due any more.
    """

    def __init__(self) -> None:
        self.restart(0)

    def restart(self, end_bytes: int) -> None:
        """Follow another file, from its present end on."""
        self._started = self._finished = end_bytes
        self._supported = True

    def is_due(self, end_bytes: int) -> bool:
        """Return whether a file that ends at `end_bytes` has a window that is to be started."""
        behind_bytes = end_bytes - self._started
        return self._supported and behind_bytes >= WRITE_BEHIND_LAG_BYTES + WRITE_BEHIND_BYTES

    def advance(self, fd: int) -> None:
        """Start the next window of the file open as `fd`, and wait for the one before it.

        Raises OSError where the kernel could not write what it had taken.
        """
        self._check(lib.nu_writeback_start(fd, self._started, WRITE_BEHIND_BYTES))
        if self._started > self._finished:
            self._check(lib.nu_writeback_finish(fd, self._finished, WRITE_BEHIND_BYTES))
            self._finished += WRITE_BEHIND_BYTES
        self._started += WRITE_BEHIND_BYTES

    def _check(self, result: int) -> None:
        if -result in _LOST:
            raise OSError(-result, os.strerror(-result))
        # Other errors concern the call, not the file; writeback is optional.
        if result < 0 and -result != errno.EINTR:
            self._supported = False
