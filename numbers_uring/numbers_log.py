"""The O_APPEND writer of the log: whole lines only, and a plain word when it can't."""

import errno
import fcntl
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from numbers_uring.config import LINE_BYTES, StartError

_NO_SPACE = {errno.ENOSPC, errno.EDQUOT}


class LogError(Exception):
    """The log can't be written any more; its text is the one line for the user."""


class Behind(Protocol):
    """Whoever looks after the pages of a growing file."""

    def advance(self, fd: int, end_bytes: int) -> None:
        """Note that the file ends at `end_bytes` now. Raises OSError."""


class NumbersLog:
    """The log file, open and locked.

    `write` is os.write or a stand-in for it; `behind`, where given, is told how far the file has
    grown. The file is opened by the constructor, which leaves
    its content as it is until `truncate`, and raises StartError where the path is no regular file,
    may not be written or is locked by another server.
    """

    def __init__(
        self,
        path: Path,
        *,
        write: Callable[[int, memoryview], int] = os.write,
        behind: Behind | None = None,
    ) -> None:
        self.path = path
        self.written_lines = 0
        self._write = write
        self._behind = behind
        self._fd = _open_locked(path)

    def truncate(self) -> None:
        """Drop whatever an earlier run left in the file. Raises StartError."""
        try:
            os.ftruncate(self._fd, 0)
        except OSError as error:
            raise StartError(f"cannot empty the log {self.path}: {error.strerror}") from error

    def append(self, lines: memoryview) -> int:
        """Write whole lines; return how many bytes of them are on file, a multiple of 10.

        Less than len(lines) means that there is no space for the rest; the file then ends with a
        whole line. Raises LogError on any other failure, with the file in that same state where
        that can still be done.
        """
        written = 0
        failure: OSError | None = None
        while written < len(lines):
            try:
                size = self._write(self._fd, lines[written:])
            except InterruptedError:
                continue
            except OSError as error:
                failure = error
                break
            if size == 0:
                failure = OSError(errno.EIO, "write(2) took nothing")
                break
            written += size
        torn_bytes = written % LINE_BYTES
        if torn_bytes:
            self._cut(torn_bytes)
        self.written_lines += written // LINE_BYTES
        if failure is not None and failure.errno not in _NO_SPACE:
            raise LogError(f"cannot write the log {self.path}: {failure.strerror}") from failure
        if self._behind is not None:
            self._write_behind(self._behind)
        return written - torn_bytes

    def _write_behind(self, behind: Behind) -> None:
        try:
            behind.advance(self._fd, self.written_lines * LINE_BYTES)
        except OSError as error:
            raise LogError(
                f"cannot write the log {self.path} back to disk: {error.strerror}; "
                "lines counted as written may be lost"
            ) from error

    def _cut(self, torn_bytes: int) -> None:
        """Take the start of an unfinished line off the end of the file."""
        try:
            os.ftruncate(self._fd, os.fstat(self._fd).st_size - torn_bytes)
        except OSError as error:
            raise LogError(
                f"cannot cut an unfinished line off the log {self.path}: {error.strerror}"
            ) from error

    def sync(self) -> None:
        """Have the disk hold what was written. Raises LogError; a failed sync is final."""
        try:
            os.fdatasync(self._fd)
        except OSError as error:
            raise LogError(f"cannot sync the log {self.path}: {error.strerror}") from error

    def close(self) -> None:
        """Close the file and give up the lock, without a sync."""
        os.close(self._fd)


def _open_locked(path: Path) -> int:
    """Open for appending; O_NONBLOCK, so that a FIFO without a reader does not hold us up."""
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
    try:
        # Asked first, because opening a device can act on it.
        if path.exists() and not path.is_file():
            raise StartError(f"the log {path} is not a regular file")
        fd = os.open(path, flags, 0o644)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise StartError(f"cannot open the log {path}: {reason}") from error
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise StartError(f"the log {path} is not a regular file")
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(fd)
        reason = error.strerror
        if isinstance(error, BlockingIOError):
            reason = "another process has locked it"
        raise StartError(f"cannot lock the log {path}: {reason}") from error
    except StartError:
        os.close(fd)
        raise
    return fd
