"""One log file, open and locked: appends whole lines, even if other processes change it."""

import errno
import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from numbers_uring.limits import LINE_BYTES, LOG_CHANGES_WARNING_S, LOG_TAIL_CHUNK_BYTES
from numbers_uring.log.appends import AppendsEnd
from numbers_uring.log.calls import FileCalls, again
from numbers_uring.words import counted

NO_SPACE = {errno.ENOSPC, errno.EDQUOT}


class NoSpaceError(Exception):
    """There is no space for the newline that a file needs before the next line."""


class LogFile:
    """The file open as `fd`, for one thread at a time. All methods raise OSError.

    `say` takes one line for the operator.
    """

    def __init__(
        self, path: Path, fd: int, *, say: Callable[[str], None], calls: FileCalls
    ) -> None:
        self.path = path
        self.fd = fd
        self.lines = 0
        """Whole lines that were appended to this file."""
        self._say = say
        self._calls = calls
        self._torn = b""
        """What the file ends with of a line that could be neither finished nor cut off."""
        self._last_line = b""
        """The last whole line that was appended, if nothing has happened to the file since."""
        self._fused = 0
        """How often a number may have been fused with what others appended, until it is said."""
        self._warning_due_s = 0.0
        self.end_bytes = self.state().st_size
        """The end of the file after our last write or check."""

    def state(self) -> os.stat_result:
        """Return what the system knows of the file now."""
        while True:
            try:
                return self._calls.fstat(self.fd)
            except InterruptedError:
                continue

    def has_name(self) -> bool | None:
        """Return whether the path leads to this file; None if that can't be told."""
        try:
            return os.path.samestat(self.path.stat(), self.state())
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError:
            return None

    # What others do to it.

    def settle(self, size_bytes: int) -> None:
        """Make a file that others have changed, to this size, end with a whole line.

        Raises NoSpaceError, and is then to be called again.
        """
        if size_bytes < self.end_bytes:
            before_bytes = self.end_bytes
            end = self._line_end(0, size_bytes)
            # Our last line may be there because it came between our check of the file and our
            # write, and then behind part of a line.
            ours = bool(self._last_line) and self._is_last_line_at(size_bytes)
            fused = ours and size_bytes % LINE_BYTES != 0
            # Not read: it is assumed to consist of our lines.
            self._end_line(size_bytes - size_bytes % LINE_BYTES if end is None else end, size_bytes)
            done = f"; {_fused_text(1, 'what is left of a line')}" if fused else ""
            self._say(
                f"the log {self.path} was truncated by another process, from {before_bytes} "
                f"to {counted(size_bytes, 'byte')}; appending at its new end{done}"
            )
            return
        appended_bytes = size_bytes - self.end_bytes
        begin = self.end_bytes - len(self._torn)
        end = self._line_end(begin, size_bytes)
        # They came between our check of the file and our write, or behind one that was short.
        fused = not self._is_last_line_at(begin) or (self._torn != b"" and end != begin)
        done = self._end_line(end, size_bytes)
        self._fused += fused
        if self._may_warn():
            done += f"; {_fused_text(self._take_fused(), 'them')}" if self._fused else ""
            self._say(
                f"another process appended {counted(appended_bytes, 'byte')} to the log "
                f"{self.path}{done}"
            )

    def say_fused(self, *, at_end: bool = False) -> None:
        """Say what the last warning was too recent for; `at_end` says that there is no later."""
        if self._fused and (at_end or self._may_warn()):
            others = f"what another process appended to the log {self.path}"
            self._say(_fused_text(self._take_fused(), others))

    def _may_warn(self) -> bool:
        now_s = time.monotonic()
        if now_s < self._warning_due_s:
            return False
        self._warning_due_s = now_s + LOG_CHANGES_WARNING_S
        return True

    def _take_fused(self) -> int:
        fused, self._fused = self._fused, 0
        return fused

    def _is_last_line_at(self, end: int) -> bool:
        """Return whether the last line that was appended ends there, as far as we may know."""
        begin = end - len(self._last_line)
        try:
            found = again(os.pread, self.fd, len(self._last_line), max(begin, 0))
        except OSError as error:
            if error.errno == errno.EBADF:
                return True
            raise
        return found == self._last_line

    def is_made_of_lines(self) -> bool:
        """Return whether it may be nothing but lines as ours, by its size and its last byte."""
        size_bytes = self.end_bytes
        return size_bytes % LINE_BYTES == 0 and self._line_end(0, size_bytes) in {size_bytes, None}

    def _end_line(self, end: int | None, size_bytes: int) -> str:
        """Cut off what is behind `end`; if that fails, or is not known, end it with a newline.

        Returns what was done, to be said.
        """
        done = ""
        if end != size_bytes:
            size_bytes, done = self._cut_or_end(end, size_bytes)
        self._torn, self._last_line, self.end_bytes = b"", b"", size_bytes
        return done

    def _cut_or_end(self, end: int | None, size_bytes: int) -> tuple[int, str]:
        if end is not None:
            with suppress(OSError):
                again(self._calls.ftruncate, self.fd, end)
                return end, f", of which {size_bytes - end} without a newline were cut off"
        # The file may be append-only. A bad line is better than one of ours fused with it.
        try:
            size_bytes += again(self._calls.write, self.fd, memoryview(b"\n"))
        except OSError as error:
            if error.errno in NO_SPACE:
                raise NoSpaceError from error
            raise
        return size_bytes, ", which were ended with a newline"

    def _line_end(self, begin: int, end: int) -> int | None:
        """Return where the last line ends that ends between two offsets; `begin` if none does.

        None if we may not read the file.
        """
        position = end
        while position > begin:
            start = max(begin, position - LOG_TAIL_CHUNK_BYTES)
            try:
                chunk = again(os.pread, self.fd, position - start, start)
            except OSError as error:
                if error.errno == errno.EBADF:
                    return None
                raise
            newline = chunk.rfind(b"\n")
            if newline >= 0:
                return start + newline + 1
            position = start
        return begin

    # What we do to it.

    def append(self, lines: memoryview) -> int:
        """Append lines; return how many bytes of them are in the file, which are whole lines.

        Fewer than given mean that there is no space for the rest. If it raises, `lines` has counted
        those that are in the file.
        """
        start = position = 0
        if self._torn:
            self._cut_torn()
            start = position = len(self._torn)
            if self._torn != lines[:start]:
                return 0
        failure: OSError | None = None
        while position < len(lines) and failure is None:
            try:
                size = self._calls.write(self.fd, lines[position:])
            except InterruptedError:
                continue
            except OSError as error:
                failure = error
            else:
                position += size
                if size == 0:
                    failure = OSError(errno.EIO, "write(2) wrote nothing")
        torn_bytes = position % LINE_BYTES
        whole_bytes = position - torn_bytes
        self.end_bytes += position - start
        self.lines += whole_bytes // LINE_BYTES
        self._torn = bytes(lines[whole_bytes:position]) if torn_bytes else b""
        if whole_bytes:
            self._last_line = bytes(lines[whole_bytes - LINE_BYTES : whole_bytes])
        if torn_bytes:
            self._cut_torn()
        if failure is not None and failure.errno not in NO_SPACE:
            raise failure
        return whole_bytes

    def note(self, end: AppendsEnd) -> None:
        """Note what compiled passes have appended."""
        self.end_bytes, self._torn = end.end_bytes, end.torn
        self.lines += end.lines
        self._last_line = end.last_line or self._last_line

    def ends_whole_line(self) -> bool:
        """Return whether no unfinished line of ours is at its end, after a try to cut it off."""
        if self._torn:
            self._cut_torn()
        return not self._torn

    def _cut_torn(self) -> None:
        """Cut an unfinished line off; if that fails it is finished when there is space.

        Not where another process has appended since the file was looked at: it may have done so
        before our write, and our line ends elsewhere. `settle` finds out.
        """
        end_bytes = self.end_bytes - len(self._torn)
        try:
            if self.state().st_size != self.end_bytes:
                return
            again(self._calls.ftruncate, self.fd, end_bytes)
        except OSError:
            return
        self._torn, self.end_bytes = b"", end_bytes

    def truncate(self, size_bytes: int) -> int:
        """Drop what is behind `size_bytes`, and return how many bytes that were.

        An append-only file that ends there is left alone.
        """
        before_bytes = self.state().st_size
        if before_bytes != size_bytes:
            again(self._calls.ftruncate, self.fd, size_bytes)
        self._torn, self._last_line, self.end_bytes = b"", b"", size_bytes
        return before_bytes - size_bytes

    def sync(self) -> None:
        """Return when the disk has all that was appended."""
        again(self._calls.fdatasync, self.fd)

    def close(self) -> None:
        """Close the file, which unlocks it; an error means that lines of it may be lost."""
        self.say_fused(at_end=True)
        fd, self.fd = self.fd, -1
        with suppress(InterruptedError):  # It is closed all the same, on Linux.
            self._calls.close(fd)


def _fused_text(numbers: int, others: str) -> str:
    text = "a number" if numbers == 1 else counted(numbers, "number")
    return f"{text} may be fused with {others}, which 'numbers-uring check' finds"
