"""Opens logs, and locks the one that is appended to."""

import fcntl
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from numbers_uring.config import Fsync
from numbers_uring.errors import StartError
from numbers_uring.log.calls import again
from numbers_uring.log.directory import open_directory, sync_directory

_FLAGS = os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
"""O_NONBLOCK, because opening a FIFO without a reader would block."""

_STANDARD_STREAMS = ((1, "output"), (2, "error"))


def open_locked(path: Path, fsync: Fsync, call: Callable[[Path, int, int], int] = os.open) -> int:
    """Open and lock the file, made if it is missing; its content stays as it is.

    Returns a descriptor to append to and, if we may read the file, to read from. Raises StartError
    if it is no regular file, may not be written, is locked by another process or is what standard
    output or error go to.
    """
    fd = _open(path, call)
    try:
        _require_own_file(path, fd)
        _lock(path, fd)
        if fsync is not Fsync.NEVER:
            _sync_name(path)
    except StartError:
        os.close(fd)
        raise
    return fd


def open_regular(path: Path, access: int = os.O_RDONLY) -> int:
    """Open a file that has to be there, and to be a regular one.

    O_NONBLOCK, so that a FIFO without a peer does not hold us up. Raises StartError, whose cause is
    the OSError if there was one.
    """
    try:
        # Asked first, because opening a device can act on it.
        if stat.S_ISREG(path.stat().st_mode):
            fd = os.open(path, access | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
            if stat.S_ISREG(os.fstat(fd).st_mode):
                return fd
            os.close(fd)
    except OSError as error:
        raise StartError(f"cannot open {path}: {error.strerror}") from error
    raise StartError(f"cannot open {path}: it is not a regular file")


def _open(path: Path, call: Callable[[Path, int, int], int]) -> int:
    with _told(f"cannot open the log {path}"):
        # Checked before, because opening a device can act on it.
        if path.exists() and not path.is_file():
            raise StartError(f"the log {path} is not a regular file")
        try:
            # To read where a line ends that another process has left in it.
            return again(call, path, os.O_RDWR | _FLAGS, 0o644)
        except PermissionError:
            return again(call, path, os.O_WRONLY | _FLAGS, 0o644)


def _require_own_file(path: Path, fd: int) -> None:
    with _told(f"cannot open the log {path}"):
        state = os.fstat(fd)
    if not stat.S_ISREG(state.st_mode):
        raise StartError(f"the log {path} is not a regular file")
    for number, name in _STANDARD_STREAMS:
        try:
            same = os.path.samestat(state, os.fstat(number))
        except OSError:
            continue  # It is closed.
        if same:
            raise StartError(
                f"the log {path} is the file that standard {name} goes to: redirect that elsewhere"
            )


def _lock(path: Path, fd: int) -> None:
    with _told(f"cannot lock the log {path}"):
        try:
            again(fcntl.flock, fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise StartError(
                f"cannot lock the log {path}: another process has locked it"
            ) from error
    with _told(f"cannot open the log {path}"):
        # A repair or a rotation in between leaves us with a lock on a file without this name.
        if not os.path.samestat(os.fstat(fd), path.stat()):
            raise StartError(f"the log {path} was replaced just now")


def _sync_name(path: Path) -> None:
    with _told(f"cannot sync the folder of the log {path}"), ExitStack() as opened:
        directory_fd = open_directory(path.parent)
        if directory_fd is not None:
            opened.callback(os.close, directory_fd)
        sync_directory(directory_fd)


@contextmanager
def _told(what: str) -> Iterator[None]:
    """Turn an error of the system, or of a path that no file can have, into a StartError."""
    try:
        yield
    except OSError as error:
        raise StartError(f"{what}: {error.strerror}") from error
    except ValueError as error:
        raise StartError(f"{what}: {error}") from error
