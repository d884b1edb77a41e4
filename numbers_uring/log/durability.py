"""Makes the disk have what was appended: at once, in the background or when asked."""

import os
import time
from collections.abc import Callable
from contextlib import suppress
from mmap import PAGESIZE
from pathlib import Path

from numbers_uring.config import Fsync
from numbers_uring.errors import SinkError
from numbers_uring.log.background import LogBackground
from numbers_uring.log.calls import FileCalls
from numbers_uring.log.file import LogFile
from numbers_uring.log.writeback import WriteBehind


class Durability:
    """Syncs one log, also across files, as `fsync` says. For one thread at a time.

    `wake` is called, from another thread, when a sync in the background has failed, which `check`
    raises from then on. Raises StartError if that thread can't be started.
    """

    def __init__(
        self,
        path: Path,
        file: LogFile,
        fsync: Fsync,
        *,
        write_behind: bool,
        drop_synced: bool,
        wake: Callable[[], None],
        calls: FileCalls,
    ) -> None:
        self._path = path
        self._fsync = fsync
        self._drop_synced = drop_synced
        self._dropped_bytes = 0
        self._sync_s = 0.0
        self._background = None
        if write_behind or fsync is Fsync.INTERVAL:
            self._background = LogBackground(
                file.fd,
                behind=WriteBehind() if write_behind else None,
                syncs=fsync is Fsync.INTERVAL,
                on_failure=wake,
                fdatasync=calls.fdatasync,
            )

    @property
    def sync_s(self) -> float:
        """Seconds spent in fdatasync(2), in all threads."""
        return self._sync_s + (0 if self._background is None else self._background.sync_s)

    @property
    def failed(self) -> bool:
        """Whether the background has failed; from any thread."""
        return self._background is not None and self._background.failure is not None

    def check(self) -> None:
        """Raise SinkError if the background has failed; from any thread."""
        if self._background is not None and self._background.failure is not None:
            raise self._error(self._background.failure)

    def grown(self, file: LogFile) -> None:
        """Called when lines were appended. Raises SinkError."""
        if self._background is not None:
            self._background.grown(file.end_bytes)
        if self._fsync is Fsync.ALWAYS:
            self.sync(file)
            if self._drop_synced:
                self._drop(file)

    def sync(self, file: LogFile) -> None:
        """Sync the file, unless that was never asked for. Raises SinkError."""
        if self._fsync is Fsync.NEVER:
            return
        begin_s = time.monotonic()
        try:
            file.sync()
        except OSError as error:
            raise self._error(error) from error
        finally:
            self._sync_s += time.monotonic() - begin_s

    def switch(self, file: LogFile) -> None:
        """Go on with this file, cut or new. Nothing is done with the old one any more then."""
        self._dropped_bytes = 0
        if self._background is not None:
            self._background.switch(file.fd, file.end_bytes)

    def close(self) -> None:
        """End the background, after the one call that it may be waiting in."""
        if self._background is not None:
            self._background.close()

    def _error(self, error: OSError) -> SinkError:
        return SinkError(
            f"cannot sync the log {self._path}: {error.strerror}; "
            "lines since the last sync may not be on disk"
        )

    def _drop(self, file: LogFile) -> None:
        """Give the pages of what was synced back, so that the next write finds them warm.

        A page that the system has not used for long can cost more than all else: a host may have
        taken it back meanwhile.
        """
        start = min(self._dropped_bytes, file.end_bytes)
        with suppress(OSError):
            os.posix_fadvise(file.fd, start, file.end_bytes - start, os.POSIX_FADV_DONTNEED)
        # The last page stays, because it is not whole.
        self._dropped_bytes = file.end_bytes - file.end_bytes % PAGESIZE
