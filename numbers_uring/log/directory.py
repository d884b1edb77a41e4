"""Syncs a directory, so that the disk has the names of the files in it."""

import errno
import os
from pathlib import Path

from numbers_uring.log.calls import again

_UNSUPPORTED = {errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS}


def open_directory(path: Path) -> int | None:
    """Return a descriptor for `sync_directory`; None if we may not read the directory.

    Raises OSError.
    """
    try:
        return again(os.open, path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except PermissionError:
        return None


def sync_directory(fd: int | None) -> None:
    """Sync the directory, if we may and if the file system can. Raises OSError."""
    if fd is None:
        return
    try:
        again(os.fsync, fd)
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
