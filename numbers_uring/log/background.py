"""A thread that waits for the disk, so that the reactor need not."""

import os
import threading
import time
from collections.abc import Callable

from numbers_uring.limits import SYNC_INTERVAL_S
from numbers_uring.log.writeback import WriteBehind
from numbers_uring.system.threads import start_thread


class LogBackground:
    """Syncs and writes back a file that grows.

    With `behind`, what was written is written back, window by window. With `syncs`, the file is
    synced soon after it has grown and then once in SYNC_INTERVAL_S: what a power cut can lose is
    what was written in that time and the duration of one sync. The first failure is final: it is
    kept in `failure`, `on_failure` is called once, from the thread, and nothing is done any more.
    Raises StartError if no thread can be started.
    """

    def __init__(
        self,
        fd: int,
        *,
        behind: WriteBehind | None,
        syncs: bool,
        on_failure: Callable[[], None],
        fdatasync: Callable[[int], None] = os.fdatasync,
    ) -> None:
        self.failure: OSError | None = None
        self.sync_s = 0.0
        """Seconds spent in fdatasync(2)."""
        self._fd = fd
        self._behind = behind
        self._syncs = syncs
        self._on_failure = on_failure
        self._fdatasync = fdatasync
        self._end_bytes = 0
        self._unsynced = False
        self._sync_due_s = 0.0
        self._closing = False
        self._work_due = threading.Event()
        self._in_call = threading.Lock()
        self._thread = start_thread(self._run, "log")

    def grown(self, end_bytes: int) -> None:
        """Called when the file ends at `end_bytes`; wakes the thread only if it has work."""
        self._end_bytes = end_bytes
        window_is_full = self._behind is not None and self._behind.is_due(end_bytes)
        if window_is_full or (self._syncs and not self._unsynced):
            self._unsynced = True
            self._work_due.set()

    def switch(self, fd: int, end_bytes: int) -> None:
        """Go on with another file. Returns when nothing is done with the old one any more."""
        with self._in_call:
            self._fd, self._end_bytes = fd, end_bytes
            if self._behind is not None:
                self._behind.restart(end_bytes)

    def close(self) -> None:
        """End the thread, after the one call that it may be waiting in."""
        self._closing = True
        self._work_due.set()
        self._thread.join()

    def _run(self) -> None:
        while True:
            self._work_due.wait(self._timeout_s())
            self._work_due.clear()
            try:
                while not self._closing and self._work():
                    pass
            except OSError as error:
                self.failure = error
                self._on_failure()
                return
            if self._closing:
                return

    def _timeout_s(self) -> float | None:
        if not (self._syncs and self._unsynced):
            return None
        return max(self._sync_due_s - time.monotonic(), 0)

    def _work(self) -> bool:
        """Make one call that may wait; return whether there may be more to do."""
        with self._in_call:
            if self._syncs and self._unsynced and time.monotonic() >= self._sync_due_s:
                self._unsynced = False
                begin_s = time.monotonic()
                try:
                    self._fdatasync(self._fd)
                except InterruptedError:
                    self._unsynced = True
                    return True
                finally:
                    self.sync_s += time.monotonic() - begin_s
                self._sync_due_s = time.monotonic() + SYNC_INTERVAL_S
            if self._behind is None or not self._behind.is_due(self._end_bytes):
                return False
            self._behind.advance(self._fd)
            return True
