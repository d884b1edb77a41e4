"""A listening unix socket, and the file that it is found by."""

import errno
import fcntl
import grp
import os
import socket
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from numbers_uring.addresses import UnixAddress
from numbers_uring.errors import StartError
from numbers_uring.limits import BACKLOG_CONNECTIONS, DIRECTORY_LOCK_RETRY_S, DIRECTORY_LOCK_TRIES


class SocketFile:
    """The file of a socket that this process listens on."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._state = path.lstat()
        self._removed = False

    def remove(self) -> None:
        """Remove the file, unless that was done or another has its place.

        To be called while the socket still listens: then no other server takes the file for stale.
        """
        with suppress(OSError):
            if not self._removed and os.path.samestat(self._path.lstat(), self._state):
                self._path.unlink()
        self._removed = True


def listen_unix(
    address: UnixAddress, *, mode: int, group: str | None
) -> tuple[socket.socket, SocketFile]:
    """Listen on a unix socket, whose file gets `mode` and, unless it is None, `group`.

    A file that a dead server left is replaced. Raises StartError where another process
    listens there, or where it is no socket.
    """
    path = Path(address.path)
    with _failures_of(address), _locked(path.parent):
        if _is_stale(path):
            path.unlink()
        return _bind(path, mode, None if group is None else _group_id(group))


def try_unix(address: UnixAddress, *, group: str | None) -> None:
    """Raise StartError where `listen_unix` would; nothing is made or removed.

    Whether the folder's rights allow it is asked, not tried: that would show in the folder.
    """
    path = Path(address.path)
    with _failures_of(address), _locked(path.parent):
        stale = _is_stale(path)
        group_id = None if group is None else _group_id(group)
        if not os.access(path.parent, os.W_OK | os.X_OK, effective_ids=True):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        if os.geteuid() == 0:
            return
        folder = path.parent.stat()
        may_remove = os.geteuid() in {folder.st_uid, path.lstat().st_uid} if stale else True
        if folder.st_mode & stat.S_ISVTX and not may_remove:
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))
        if group_id is not None and group_id not in {os.getegid(), *os.getgroups()}:
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))


@contextmanager
def _failures_of(address: UnixAddress) -> Iterator[None]:
    """Turn them into StartErrors."""
    try:
        yield
    except BlockingIOError as error:
        raise StartError(
            f"cannot listen on {address}: another process has locked {Path(address.path).parent}"
        ) from error
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else error
        raise StartError(f"cannot listen on {address}: {reason}") from error
    except StartError as error:
        raise StartError(f"cannot listen on {address}: {error}") from error


def _bind(path: Path, mode: int, group_id: int | None) -> tuple[socket.socket, SocketFile]:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    file = None
    try:
        # No client can connect before listen(2), so the mode and the group are in time.
        listener.bind(os.fspath(path))
        file = SocketFile(path)
        if group_id is not None:
            os.chown(path, -1, group_id)
        path.chmod(mode)
        listener.listen(BACKLOG_CONNECTIONS)
    except OSError:
        if file is not None:
            file.remove()
        listener.close()
        raise
    return listener, file


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Let one server at a time replace files in the directory, wherever it can be locked.

    Two that start at once could otherwise both find the same stale file, and the second would
    remove what the first has just bound. Raises BlockingIOError where it stays locked.
    """
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for tries_left in reversed(range(DIRECTORY_LOCK_TRIES)):
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not tries_left:
                    raise
                time.sleep(DIRECTORY_LOCK_RETRY_S)
            except OSError:
                break  # A file system without locks.
        yield
    finally:
        os.close(fd)


def _is_stale(path: Path) -> bool:
    """Return whether a dead server left the file. Raises StartError where it is in use."""
    try:
        state = path.lstat()
    except FileNotFoundError:
        return False
    if not stat.S_ISSOCK(state.st_mode):
        raise StartError("the file exists and is not a socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        # EAGAIN, for instance, is a listener whose backlog is full.
        if probe.connect_ex(os.fspath(path)) != errno.ECONNREFUSED:
            raise StartError("another process listens there")
    return True


def _group_id(group: str) -> int:
    if group.isascii() and group.isdecimal():
        return int(group)
    try:
        return grp.getgrnam(group).gr_gid
    except KeyError as error:
        raise StartError(f"group {group!r} does not exist") from error
