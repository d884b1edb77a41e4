"""The O_APPEND writer of the log: whole lines only, and a plain word when it can't."""

import errno
import fcntl
import os
import stat
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from mmap import PAGESIZE
from pathlib import Path
from typing import ParamSpec, TypeVar

from numbers_uring.config import Fsync
from numbers_uring.errors import SinkError, StartError
from numbers_uring.ingest.report import Counts
from numbers_uring.limits import LINE_BYTES
from numbers_uring.log.background import LogBackground
from numbers_uring.log.writeback import WriteBehind

P = ParamSpec("P")
T = TypeVar("T")

_NO_SPACE = {errno.ENOSPC, errno.EDQUOT}
_FLAGS = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
"""O_NONBLOCK, so that opening a FIFO without a reader does not hold us up."""


class LogError(SinkError):
    """The log can't be written any more."""


@dataclass(frozen=True, slots=True)
class FileCalls:
    """The system calls that can fail: os's own, or stand-ins that fail as told."""

    open: Callable[[Path, int, int], int] = os.open
    write: Callable[[int, memoryview], int] = os.write
    ftruncate: Callable[[int, int], None] = os.ftruncate
    fdatasync: Callable[[int], None] = os.fdatasync


class NumbersLog:
    """The log file, open and locked: the Sink of a server that keeps its numbers itself.

    The constructor leaves the file's content as it is, until `truncate` or `keep`. It raises
    StartError where the path is no regular file, may not be written or is locked by another
    server. `say` takes one line for the operator, `inform` one that is no warning; `wake` is
    called, from another thread, when the file could not be synced and the next call will say so.
    With `drop_synced` what was synced by Fsync.ALWAYS leaves the page cache.
    """

    def __init__(
        self,
        path: Path,
        *,
        say: Callable[[str], None],
        inform: Callable[[str], None] | None = None,
        fsync: Fsync = Fsync.NEVER,
        write_behind: bool = False,
        drop_synced: bool = False,
        wake: Callable[[], None] = lambda: None,
        calls: FileCalls | None = None,
    ) -> None:
        self.path = path
        self._say = say
        self._inform = inform or say
        self._fsync = fsync
        self._drop_synced = drop_synced
        self._calls = calls or FileCalls()
        # A whole append is one step, and a reopening or a sync comes before it or after it.
        self._lock = threading.RLock()
        self._written_bytes = 0
        self._write_s = 0.0
        self._sync_s = 0.0
        self._removed = False
        self._fd = self._open()
        self._end_bytes = os.fstat(self._fd).st_size
        self._dropped_bytes = 0
        self._background = None
        if write_behind or fsync is Fsync.INTERVAL:
            self._background = LogBackground(
                self._fd,
                behind=WriteBehind() if write_behind else None,
                syncs=fsync is Fsync.INTERVAL,
                on_failure=wake,
                fdatasync=self._calls.fdatasync,
            )

    @property
    def name(self) -> str:
        return f"the log {self.path}"

    @property
    def fields(self) -> dict[str, object]:
        return {"log": self.path}

    @property
    def written_lines(self) -> int:
        """Whole lines that this run has put on file."""
        return self._written_bytes // LINE_BYTES

    @property
    def write_s(self) -> float:
        """Seconds spent in write(2)."""
        return self._write_s

    @property
    def sync_s(self) -> float:
        """Seconds spent in fdatasync(2), in whatever thread."""
        return self._sync_s + (0 if self._background is None else self._background.sync_s)

    @property
    def forwarded(self) -> None:
        """Nothing is."""

    @property
    def full_message(self) -> str:
        return f"no space for {self.name}"

    @property
    def room_message(self) -> str:
        return f"there is space for {self.name} again"

    def count(self, taken: Counts) -> Counts:
        """Return them all: what is not on file yet will be before the reactor waits again."""
        return taken

    def loss(self, lines: int) -> str:
        return f"{lines} counted numbers are lost, they are not in it"

    def summary(self) -> str:
        return f"{self.written_lines} numbers written to {self.path}"

    # Opening.

    def _open(self) -> int:
        return open_locked(self.path, self._fsync, self._calls.open)

    def truncate(self) -> None:
        """Drop whatever an earlier run left in the file. Raises StartError."""
        self.keep(0)

    def keep(self, size: int) -> None:
        """Keep the first `size` bytes of the file, whole lines, and drop the rest."""
        assert size % LINE_BYTES == 0
        try:
            _again(self._calls.ftruncate, self._fd, size)
        except OSError as error:
            raise StartError(f"cannot truncate the log {self.path}: {error.strerror}") from error
        self._end_bytes = size
        if self._background is not None:
            self._background.switch(self._fd, size)

    def open_for_reading(self) -> int:
        """Return a new descriptor of the file, to read from. Raises OSError."""
        fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        if not os.path.samestat(os.fstat(fd), os.fstat(self._fd)):
            os.close(fd)
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return fd

    # Writing.

    def append(self, lines: memoryview) -> int:
        """Write lines; return how many bytes of them are on file.

        Less than len(lines) means that there is no space for the rest, with which the next call has
        to begin; the file then ends with a whole line, wherever it could be made to. Raises
        LogError on any other failure. For any thread.
        """
        with self._lock:
            return self._append(lines)

    def _append(self, lines: memoryview) -> int:
        self._look_after_file()
        written = 0
        failure: OSError | None = None
        begin_s = time.monotonic()
        while written < len(lines):
            try:
                size = self._calls.write(self._fd, lines[written:])
            except InterruptedError:
                continue
            except OSError as error:
                failure = error
                break
            if size == 0:
                failure = OSError(errno.EIO, "write(2) took nothing")
                break
            written += size
            self._written_bytes += size
            self._end_bytes += size
        self._write_s += time.monotonic() - begin_s
        if failure is not None:
            written -= self._cut_torn_line(written)
            if failure.errno not in _NO_SPACE:
                raise LogError(f"cannot write the log {self.path}: {failure.strerror}") from failure
        if written:
            self._after_write()
        return written

    def _cut_torn_line(self, cut_max: int) -> int:
        """Take an unfinished line off the end of the file; return how many bytes that was.

        It stays where it can't be cut, or has its start before the last `cut_max` bytes: it is
        finished when there is space.
        """
        torn_bytes = self._written_bytes % LINE_BYTES
        if not 0 < torn_bytes <= cut_max:
            return 0
        try:
            _again(self._calls.ftruncate, self._fd, self._end_bytes - torn_bytes)
        except OSError:
            return 0
        self._written_bytes -= torn_bytes
        self._end_bytes -= torn_bytes
        return torn_bytes

    def _after_write(self) -> None:
        if self._background is not None:
            self._background.grown(self._end_bytes)
        if self._fsync is Fsync.ALWAYS:
            self._sync_now()
            if self._drop_synced:
                self._drop()

    def _drop(self) -> None:
        """Give the pages of what was synced back, so that the next write finds them warm.

        A page that the system has not used for long can cost more than all else: a host may have
        taken it back meanwhile.
        """
        start = min(self._dropped_bytes, self._end_bytes)
        with suppress(OSError):
            os.posix_fadvise(self._fd, start, self._end_bytes - start, os.POSIX_FADV_DONTNEED)
        # The last page stays, because it is not whole.
        self._dropped_bytes = self._end_bytes - self._end_bytes % PAGESIZE

    # Syncing.

    def check(self) -> None:
        """Raise LogError where the thread in the background has failed."""
        if self._background is not None and self._background.failure is not None:
            raise self._sync_error(self._background.failure)

    def mark(self) -> int:
        return self.written_lines

    def has(self, mark: int) -> bool:
        """Say whether so many lines were written; whatever was appended is."""
        return self.written_lines >= mark

    def begin_stop(self) -> None:
        """A stop makes no difference to a file."""

    def finish(self) -> None:
        """Have the disk hold what was written, unless that was never asked for. Raises LogError."""
        self.check()
        if self._fsync is not Fsync.NEVER:
            self._sync_now()

    def _sync_now(self) -> None:
        begin_s = time.monotonic()
        try:
            _again(self._calls.fdatasync, self._fd)
        except OSError as error:
            raise self._sync_error(error) from error
        finally:
            self._sync_s += time.monotonic() - begin_s

    def _sync_error(self, error: OSError) -> LogError:
        return LogError(
            f"cannot sync the log {self.path}: {error.strerror}; "
            "lines since the last sync may not be on disk"
        )

    # The file as others see it.

    def reopen(self) -> None:
        """Go on in whatever the path names now, as after a rotation.

        Each line is in the old file or in the new one, whole. Where the new one can't be opened,
        locked or appended to, the old one stays in use, and that is said. Raises LogError where
        the old one can't be synced.
        """
        with self._lock:
            self._reopen()

    def _reopen(self) -> None:
        if self._written_bytes % LINE_BYTES:
            self._say(f"the log {self.path} ends within a line: not reopened")
            return
        if self._is_current():
            self._say(f"the log {self.path} is the same file as before: going on in it")
            return
        try:
            fd = self._open()
        except StartError as error:
            self._say(f"{error}: going on in the old file")
            return
        end_bytes = os.fstat(fd).st_size
        if end_bytes % LINE_BYTES:
            os.close(fd)
            self._say(f"the new {self.path} is not made of lines: going on in the old file")
            return
        if self._fsync is not Fsync.NEVER:
            self._sync_now()
        if self._background is not None:
            self._background.switch(fd, end_bytes)
        os.close(self._fd)
        self._fd, self._end_bytes, self._removed = fd, end_bytes, False
        self._inform(f"the log {self.path} is reopened")

    def _is_current(self) -> bool:
        try:
            return os.path.samestat(self.path.stat(), os.fstat(self._fd))
        except OSError:
            return False

    def _look_after_file(self) -> None:
        """See to it that what is written next can be found, and begins a line."""
        state = os.fstat(self._fd)
        if state.st_nlink == 0 and not self._removed:
            self._removed = True
            self._say(f"the log {self.path} was removed, its lines are gone: going on in a new one")
            self._reopen()
        elif state.st_size < self._end_bytes:
            self._say(
                f"the log {self.path} was truncated by another process, from {self._end_bytes} "
                f"to {state.st_size} bytes: going on at its end"
            )
            self._end_bytes = state.st_size - state.st_size % LINE_BYTES
            if state.st_size != self._end_bytes:
                self._cut_to_end()
        else:
            self._end_bytes = state.st_size

    def _cut_to_end(self) -> None:
        try:
            _again(self._calls.ftruncate, self._fd, self._end_bytes)
        except OSError as error:
            raise LogError(f"cannot mend the log {self.path}: {error.strerror}") from error

    def close(self) -> None:
        """Close the file and give up the lock, without a sync."""
        if self._background is not None:
            self._background.close()
        os.close(self._fd)


def open_locked(path: Path, fsync: Fsync, call: Callable[[Path, int, int], int] = os.open) -> int:
    """Open and lock what the path names, made if it is missing; its content stays as it is.

    Returns a descriptor to append to. Raises StartError where that is no regular file, may not be
    written, or is locked by somebody else.
    """
    try:
        # Asked first, because opening a device can act on it.
        if path.exists() and not path.is_file():
            raise StartError(f"the log {path} is not a regular file")
        fd = _again(call, path, _FLAGS, 0o644)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise StartError(f"cannot open the log {path}: {reason}") from error
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise StartError(f"the log {path} is not a regular file")
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not os.path.samestat(os.fstat(fd), path.stat()):
            # A repair or a rotation came between, and what is locked has no name any more.
            raise StartError(f"the log {path} was replaced just now")
        if fsync is not Fsync.NEVER:
            _sync_directory(path.parent)
    except (OSError, StartError) as error:
        os.close(fd)
        if isinstance(error, StartError):
            raise
        reason = error.strerror
        if isinstance(error, BlockingIOError):
            reason = "another process has locked it"
        raise StartError(f"cannot lock the log {path}: {reason}") from error
    return fd


def _again(call: Callable[P, T], *arguments: P.args, **keywords: P.kwargs) -> T:
    """Make the call until it is not interrupted."""
    while True:
        try:
            return call(*arguments, **keywords)
        except InterruptedError:
            continue


def _sync_directory(path: Path) -> None:
    """Have the disk know the names of new files, where the file system and our rights allow it."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except PermissionError:
        return
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno not in {errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS}:
            raise
    finally:
        os.close(fd)
