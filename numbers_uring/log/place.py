"""Keeps a log in the file that its path names: after a rotation, and after it was removed."""

import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from numbers_uring.config import Fsync
from numbers_uring.errors import SinkError, StartError
from numbers_uring.limits import LOG_NAME_CHECK_S, LOG_RENAMED_S
from numbers_uring.log.calls import FileCalls
from numbers_uring.log.file import LogFile, NoSpaceError
from numbers_uring.log.opening import open_locked
from numbers_uring.words import counted_and


class LogPlace:
    """The log's file, and the one that takes its place. For one thread at a time.

    `say` takes one line for the operator, `inform` one that is no warning. `leave` is called with
    the next file before the present one is closed. The constructor raises StartError as
    `open_locked` does.
    """

    def __init__(
        self,
        path: Path,
        fsync: Fsync,
        calls: FileCalls,
        say: Callable[[str], None],
        inform: Callable[[str], None],
        leave: Callable[[LogFile], None],
    ) -> None:
        self._path = path
        self._fsync = fsync
        self._calls = calls
        self._say = say
        self._inform = inform
        self._leave = leave
        self._rename_notice = _RenameNotice(say)
        self.removed = False
        """Whether the file has no name any more, so that what is in it is lost."""
        self.removed_lines = 0
        """Lines that were appended to files that were removed."""
        self.file = self._open()

    def _open(self) -> LogFile:
        """Open what the path names now. Raises StartError."""
        fd = open_locked(self._path, self._fsync, self._calls.open)
        try:
            return LogFile(self._path, fd, say=self._say, calls=self._calls)
        except OSError as error:
            os.close(fd)
            raise StartError(f"cannot open the log {self._path}: {error.strerror}") from error

    def settle(self) -> str | None:
        """Make sure that the next line starts a new line, in a file that has a name.

        Returns None, or the reason why there is no such file now. Raises SinkError, and
        NoSpaceError where it can be tried again.
        """
        if not self._settle_present():
            return None
        try:
            self._switch(self._open_next())
        except StartError as error:
            return str(error)
        return None

    def note_append(self) -> None:
        """Look at the name of the file now and then, as `settle` does it before an append."""
        self._rename_notice.look(self.file)
        self.file.say_fused()

    def settle_at_end(self) -> None:
        """The same when nothing more is appended, for which no new file is made."""
        # Our own lines are whole where what others have left behind them can't be ended.
        with suppress(NoSpaceError):
            if not self._settle_present():
                self._rename_notice.look_at_end(self.file)

    def _settle_present(self) -> bool:
        """Look at what others did to the file; return whether it is removed. Raises SinkError."""
        try:
            state = self.file.state()
        except OSError as error:
            raise check_error(self._path, error.strerror) from error
        if state.st_nlink == 0:
            if not self.removed:
                self.removed = True
                self.removed_lines += self.file.lines
                self._say(f"the log {self._path} was removed with all lines in it")
            return True
        self._rename_notice.look(self.file)
        self.file.say_fused()
        if state.st_size != self.file.end_bytes:
            try:
                self.file.settle(state.st_size)
            except OSError as error:
                raise SinkError(
                    f"cannot repair the end of the log {self._path}: {error.strerror}"
                ) from error
        return False

    def reopen(self) -> None:
        """Go on in what the path names now; if that can't be done, in the old file.

        Raises SinkError.
        """
        try:
            removed = self._settle_present()
        except NoSpaceError:
            self._say(f"the log {self._path} ends within a line: not reopened")
            return
        if removed:
            # If a new file cannot be created, the next append reports it.
            self.settle()
        elif not self.file.ends_whole_line():
            self._say(f"the log {self._path} ends within a line: not reopened")
        elif self.file.has_name():
            self._say(f"the log {self._path} was not renamed: still appending to it")
        else:
            try:
                self._switch(self._open_next())
            except StartError as error:
                self._say(f"{error}; still writing to the old file")

    def _open_next(self) -> LogFile:
        """Open the file that is to take this one's place. Raises StartError."""
        file = self._open()
        try:
            if file.is_made_of_lines():
                return file
            reason = f"the new {self._path} is not made of lines"
        except OSError as error:
            reason = f"cannot read the log {self._path}: {error.strerror}"
        with suppress(OSError):
            file.close()
        raise StartError(reason)

    def _switch(self, file: LogFile) -> None:
        """Go on in another file. Raises SinkError if lines in the old one may be lost."""
        old, was_removed = self.file, self.removed
        try:
            self._leave(file)
        except SinkError:
            with suppress(OSError):
                file.close()
            raise
        self.file, self.removed = file, False
        self._rename_notice.reset()
        try:
            old.close()
        except OSError as error:
            if not was_removed:
                raise close_error(self._path, error) from error
        self._inform(f"the log {self._path} is reopened")


def check_error(path: Path, reason: str | None) -> SinkError:
    """Return what it means that the state of a log can't be read."""
    return SinkError(f"cannot check the log {path}: {reason}")


def close_error(path: Path, error: OSError) -> SinkError:
    """Return what close(2) of a log means that reports an error."""
    return SinkError(
        f"cannot close the log {path}: {error.strerror}; "
        "lines since the last sync may not be on disk"
    )


class _RenameNotice:
    """Warns once that the log was renamed and not reopened."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self.reset()

    def reset(self) -> None:
        """Forget the old file: another one is in use."""
        self._check_due_s = 0.0
        self._renamed_s: float | None = None
        self._said = False

    def look(self, file: LogFile) -> None:
        """Called before each append; checks the name at intervals.

        The first seconds are those between the renaming and the signal of an ordinary rotation.
        """
        now_s = time.monotonic()
        if now_s < self._check_due_s:
            return
        self._check_due_s = now_s + LOG_NAME_CHECK_S
        if file.has_name() is not False:
            self._renamed_s, self._said = None, False
        elif self._renamed_s is None:
            self._renamed_s = now_s
        elif not self._said and now_s - self._renamed_s >= LOG_RENAMED_S:
            self._said = True
            self._say(
                f"the log {file.path} was renamed or replaced: still appending to the old file; "
                "send SIGHUP to open a new one"
            )

    def look_at_end(self, file: LogFile) -> None:
        """Called when nothing more is appended: the last line names where the path leads."""
        if not self._said and file.lines and file.has_name() is False:
            lines = counted_and(file.lines, "line", "is", "are")
            self._say(
                f"the log {file.path} was renamed or replaced: the last {lines} in the old file"
            )
