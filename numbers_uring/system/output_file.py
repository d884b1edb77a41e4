"""A file that is opened at the start of a run, and written at its end."""

import os
import re
import stat
from contextlib import suppress
from pathlib import Path
from typing import Self

from numbers_uring.errors import StartError
from numbers_uring.limits import LINE_BYTES


class OutputFile:
    """Opens `path` at once, and changes nothing in an existing file before `write` is called.

    As a context manager it closes the file, and removes one that it has created and that was not
    written. Raises StartError where the file can't be opened, is not a regular one, or is a log,
    whose numbers a wrong name would replace.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._created = not path.exists()
            # Non-blocking: a pipe, which is refused below, has no reader to wait for.
            flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK
            self._fd = os.open(path, flags, 0o666)
            state = os.fstat(self._fd)
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise StartError(f"cannot write {path}: {reason}") from error
        if not stat.S_ISREG(state.st_mode):
            os.close(self._fd)
            raise StartError(f"cannot write {path}: not a regular file")
        self._old_bytes = state.st_size
        if _is_log(path):
            os.close(self._fd)
            raise StartError(f"cannot write {path}: it is a log of numbers")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def write(self, data: bytes) -> None:
        """Replace the contents by `data`. Raises OSError, with the old contents as they were.

        The space is taken first, so that a full disk, a quota or a limit is found before anything
        is overwritten. In place, because links and rights stay, and the folder need not be ours.
        """
        try:
            if data:
                os.posix_fallocate(self._fd, 0, len(data))
        except OSError:
            # What it has taken before it failed.
            with suppress(OSError):
                os.ftruncate(self._fd, self._old_bytes)
            raise
        rest = memoryview(data)
        while rest:
            rest = rest[os.pwrite(self._fd, rest, len(data) - len(rest)) :]
        os.ftruncate(self._fd, len(data))
        self._created = False

    def close(self) -> None:
        """Close the file; a second call does nothing. An error of the disk is not reported."""
        if self._fd < 0:
            return
        with suppress(OSError):
            os.close(self._fd)
        self._fd = -1
        if self._created:
            with suppress(OSError):
                self.path.unlink()


def _is_log(path: Path) -> bool:
    """Return whether a line of a number is at its beginning; False if it can't be read."""
    try:
        with path.open("rb") as file:
            return re.match(rb"[0-9]{9}\n", file.read(LINE_BYTES)) is not None
    except OSError:
        return False


def try_output(path: Path) -> None:
    """Raise StartError as OutputFile would, where the file can't be written."""
    try:
        target = Path(os.path.realpath(path))
        if not file_exists(target):
            try_new_file(target)
            return
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise StartError(f"cannot write {path}: {reason}") from error
    # Of a file that is there this changes nothing.
    OutputFile(path).close()


def file_exists(path: Path) -> bool:
    """Return whether it does. Raises OSError where that is unknown, or the name is impossible."""
    try:
        path.stat()
    except FileNotFoundError:
        return False
    return True


def try_new_file(path: Path) -> None:
    """Make a file in the same folder, without a name or with another one for a moment.

    Raises OSError where none can be made.
    """
    flags = os.O_WRONLY | os.O_CLOEXEC
    try:
        fd = os.open(path.parent, flags | os.O_TMPFILE, 0o644)
    except OSError:
        # File systems without O_TMPFILE fail in many ways; where nothing can be made, so does this.
        named = path.with_name(f".numbers-uring-{os.getpid()}")
        fd = os.open(named, flags | os.O_CREAT | os.O_EXCL, 0o644)
        named.unlink()
    os.close(fd)
