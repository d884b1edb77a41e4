"""The sink of a server that keeps its numbers itself: one log, in one file after the other."""

import errno
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from numbers_uring.config import Fsync
from numbers_uring.errors import SinkError, StartError
from numbers_uring.ingest.report import Counts
from numbers_uring.limits import LINE_BYTES, SLOW_APPEND_S
from numbers_uring.log.appends import CompiledAppends
from numbers_uring.log.calls import FileCalls
from numbers_uring.log.durability import Durability
from numbers_uring.log.file import NO_SPACE, LogFile, NoSpaceError
from numbers_uring.log.place import LogPlace, check_error, close_error
from numbers_uring.words import counted, counted_and

_NO_FAILURE = {0, errno.EINTR, *NO_SPACE}
"""What a pass may have met without a failure: the append in Python that follows sees for itself."""


class NumbersLog:
    """The log at `path`: a Sink.

    The constructor leaves the file's content as it is, until `truncate` or `keep`. It raises
    StartError as `open_locked` does. `say` takes one line for the operator, `inform` one that is no
    warning; `wake` is called, from another thread, when the file could not be synced and the next
    call will raise that. With `drop_synced` what was synced by Fsync.ALWAYS leaves the page cache.
    The first SinkError is final: every later call raises it, too.
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
        # Each append of Fsync.ALWAYS has a sync behind it, and given calls are made in Python.
        passes_may_append = fsync is not Fsync.ALWAYS and calls is None
        self._compiled = CompiledAppends() if passes_may_append else None
        self._noted_lines = 0
        calls = calls or FileCalls()
        # An append is one step; a reopening or the end comes before or after it.
        self._lock = threading.RLock()
        self._failure: SinkError | None = None
        self._finished = False
        self._written_lines = 0
        self._stored_lines = 0
        self._write_s = 0.0
        self._full_status = self._full_message = self._room_message = ""
        self._place = LogPlace(path, fsync, calls, say, inform or say, self._leave)
        self._durability = Durability(
            path,
            self._place.file,
            fsync,
            write_behind=write_behind,
            drop_synced=drop_synced,
            wake=wake,
            calls=calls,
        )

    @property
    def name(self) -> str:
        return f"the log {self.path}"

    @property
    def fields(self) -> dict[str, object]:
        return {"log": self.path}

    @property
    def written_lines(self) -> int:
        """Whole lines that this run has written to files."""
        return self._written_lines + self._compiled_lines

    @property
    def _compiled_lines(self) -> int:
        return 0 if self._compiled is None else self._compiled.lines

    @property
    def write_s(self) -> float:
        """Seconds spent in write(2)."""
        return self._write_s + (0.0 if self._compiled is None else self._compiled.write_s)

    @property
    def sync_s(self) -> float:
        """Seconds spent in fdatasync(2), in all threads."""
        return self._durability.sync_s

    @property
    def forwarded(self) -> None:
        """Nothing is."""

    @property
    def full_status(self) -> str:
        return self._full_status

    @property
    def full_message(self) -> str:
        return self._full_message

    @property
    def room_message(self) -> str:
        return self._room_message

    def count(self, taken: Counts) -> Counts:
        """Return them all: what is not on file yet will be before the reactor waits again."""
        return taken

    def loss(self, lines: int) -> str:
        lost = counted_and(lines, "counted number", "is lost, it is", "are lost, they are")
        return f"{lost} not in it"

    def summary(self) -> str:
        removed = self._place.removed_lines
        of_them = f", {removed} of them to a removed file" if removed else ""
        return f"{counted(self.written_lines, 'number')} written to {self.path}{of_them}"

    # Opening.

    def truncate(self) -> int:
        """Truncate the file that an earlier run left; return its size. Raises StartError."""
        return self.keep(0)

    def keep(self, size: int) -> int:
        """Keep the first `size` bytes of the file, whole lines; return how many it drops."""
        assert size % LINE_BYTES == 0
        try:
            dropped_bytes = self._place.file.truncate(size)
        except OSError as error:
            raise StartError(f"cannot truncate the log {self.path}: {error.strerror}") from error
        self._durability.switch(self._place.file)
        return dropped_bytes

    def has_state(self, state: os.stat_result) -> bool:
        """Return whether the state is that of its file, whatever the name. Raises OSError."""
        return os.path.samestat(state, os.fstat(self._place.file.fd))

    def open_for_reading(self) -> int:
        """Return a new descriptor of the file, to read from. Raises OSError."""
        fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        if not self.has_state(os.fstat(fd)):
            os.close(fd)
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return fd

    # Writing.

    @contextmanager
    def _final(self) -> Iterator[None]:
        """Let one thread at a time in, and after a failure, which is raised again, none."""
        with self._lock:
            if self._failure is not None:
                raise self._failure
            try:
                self._stop_passes()
                yield
            except SinkError as error:
                self._failure = error
                raise

    def append(self, lines: memoryview) -> int:
        """Write lines; return how many bytes of them, whole lines, are in the file.

        Fewer than len(lines) mean that there is no space for the rest or that there is no file, for
        which `full_message` has the reason; the next call has to begin with that rest. Raises
        SinkError on any other failure. For any thread.
        """
        # Not `with self._final()`, which costs a microsecond.
        with self._lock:
            if self._failure is not None:
                raise self._failure
            try:
                self._stop_passes()
                return self._append(lines)
            except SinkError as error:
                self._failure = error
                raise

    def _append(self, lines: memoryview) -> int:
        try:
            lack = self._place.settle()
        except NoSpaceError:
            self._note_no_space()
            return 0
        if lack is not None:
            self._full_status, self._full_message = "No log can be opened", lack
            self._room_message = f"{self.name} can be written again"
            return 0
        file = self._place.file
        before = file.lines
        begin_s = time.monotonic()
        try:
            written = file.append(lines)
        except OSError as error:
            raise self._write_error(error.strerror) from error
        finally:
            self._written_lines += file.lines - before
            taken_s = time.monotonic() - begin_s
            self._write_s += taken_s
        if written:
            self._durability.grown(file)
        self._stored_lines = self._written_lines
        if written < len(lines):
            self._note_no_space()
        elif self._compiled is not None and taken_s < SLOW_APPEND_S:
            self._compiled.allow(file.fd, file.end_bytes)
        return written

    @property
    def compiled(self) -> CompiledAppends | None:
        return self._compiled

    def note_appends(self) -> None:
        if self._compiled is None or self._compiled.lines == self._noted_lines:
            return
        with self._lock:
            if self._failure is not None:
                raise self._failure
            try:
                as_expected = self._stop_passes()
                self._noted_lines = self._compiled.lines
                if as_expected:
                    file = self._place.file
                    self._place.note_append()
                    self._compiled.allow(file.fd, file.end_bytes)
            except SinkError as error:
                self._failure = error
                raise

    def _stop_passes(self) -> bool:
        """Know again what is in the file; return whether passes may go on with it.

        Raises SinkError where one has failed for good.
        """
        end = None if self._compiled is None else self._compiled.stop()
        if end is None:
            return False
        self._place.file.note(end)
        if end.lines:
            # Whatever comes next, which may be that there is no space for long.
            self._durability.grown(self._place.file)
        if end.fstat_errno not in _NO_FAILURE:
            raise check_error(self.path, os.strerror(end.fstat_errno))
        if end.write_errno not in _NO_FAILURE:
            raise self._write_error(os.strerror(end.write_errno))
        return end.as_expected

    def _write_error(self, reason: str | None) -> SinkError:
        return SinkError(f"cannot write the log {self.path}: {reason}")

    def _note_no_space(self) -> None:
        self._full_status = "No space for the log"
        self._full_message = f"no space for {self.name}"
        self._room_message = f"there is space for {self.name} again"

    def mark(self) -> int:
        return self.written_lines

    def has(self, mark: int) -> bool:
        """Return whether so many lines are in files, and with Fsync.ALWAYS synced."""
        failed = self._failure is not None or self._durability.failed
        return self._stored_lines + self._compiled_lines >= mark and not failed

    def wait_until_stored(self, mark: int) -> None:
        """Wait for another thread's append, which is stored once it is over. Raises SinkError."""
        if not self.has(mark):
            with self._final():
                self.check()

    # Syncing.

    def check(self) -> None:
        """Raise SinkError if the thread in the background has failed."""
        self._durability.check()

    def sync(self) -> None:
        """Make the disk have all that is in the file, unless Fsync.NEVER. Raises SinkError."""
        with self._final():
            self._sync()

    def begin_stop(self) -> None:
        """A stop makes no difference to a file."""

    def finish(self) -> None:
        """Sync what was written, unless that was never asked for, and close the file.

        Raises the first SinkError that there was, now or before.
        """
        with self._lock:
            if not self._finished:
                self._finished = True
                self._durability.close()
                # What can be saved after a failure is.
                for step in (
                    self._stop_passes,
                    self.check,
                    self._place.settle_at_end,
                    self._sync,
                    self._close,
                ):
                    try:
                        step()
                    except SinkError as error:
                        self._failure = self._failure or error
            if self._failure is not None:
                raise self._failure

    def _sync(self) -> None:
        if not self._place.removed:
            self._durability.sync(self._place.file)

    def _close(self) -> None:
        try:
            self._place.file.close()
        except OSError as error:
            if not self._place.removed:
                raise close_error(self.path, error) from error

    def close(self) -> None:
        """Close the file, which unlocks it, without a sync, unless `finish` has done so."""
        if not self._finished:
            self._finished = True
            self._durability.close()
            with suppress(SinkError):
                self._stop_passes()
            with suppress(OSError):
                self._place.file.close()

    # The file as others see it.

    def reopen(self) -> None:
        """Switch to the file that the path names now, as after a rotation.

        Each line is in the old file or in the new one, whole. If the new one can't be opened,
        locked or appended to, the old one stays in use, with a warning. Raises SinkError.
        """
        with self._final():
            self._place.reopen()

    def _leave(self, new: LogFile) -> None:
        """Called before another file takes the place of the present one. Raises SinkError."""
        self._sync()
        self._durability.switch(new)
