"""A thread that does nothing but wait in fdatasync, so that the reactor need not."""

import os
import signal
import threading
from collections.abc import Callable

from numbers_uring.config import SYNC_INTERVAL_S


class BackgroundSync:
    """Syncs a file that grows: soon after the first `request`, then once in SYNC_INTERVAL_S.

    What a power cut can lose is what was written in SYNC_INTERVAL_S and the duration of one sync.
    The first failure is final: it is kept in `failure`, `on_failure` is called once, from the
    thread, and nothing is synced any more.
    """

    def __init__(
        self,
        fd: int,
        *,
        on_failure: Callable[[], None],
        fdatasync: Callable[[int], None] = os.fdatasync,
        interval_s: float = SYNC_INTERVAL_S,
    ) -> None:
        self.failure: OSError | None = None
        self._fd = fd
        self._on_failure = on_failure
        self._fdatasync = fdatasync
        self._interval_s = interval_s
        self._dirty = threading.Event()
        self._closing = threading.Event()
        self._in_call = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="log sync", daemon=True)
        # The thread inherits this mask: signals are the main thread's.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            self._thread.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    def request(self) -> None:
        """Note that the file has grown."""
        if not self._dirty.is_set():
            self._dirty.set()

    def switch(self, fd: int) -> None:
        """Go on with another file. Returns when nothing is done with the old one any more."""
        with self._in_call:
            self._fd = fd

    def close(self) -> None:
        """End the thread, after the sync that it may be waiting for."""
        self._closing.set()
        self._dirty.set()
        self._thread.join()

    def _run(self) -> None:
        while self._dirty.wait() and not self._closing.is_set():
            self._dirty.clear()
            with self._in_call:
                try:
                    self._fdatasync(self._fd)
                except InterruptedError:
                    self._dirty.set()
                except OSError as error:
                    self.failure = error
                    self._on_failure()
                    return
            self._closing.wait(self._interval_s)
