"""Tries whether a server could open its log: nothing is made, changed or left behind."""

import errno
import fcntl
import os
import struct
from pathlib import Path

from numbers_uring.config import Fsync
from numbers_uring.errors import StartError
from numbers_uring.ingest.kernel import Kernel
from numbers_uring.limits import LINE_BYTES, PROBE_CHUNK_BYTES
from numbers_uring.log.opening import open_locked
from numbers_uring.log.scan import scan
from numbers_uring.system.output_file import file_exists, try_new_file

_FS_IOC_GETFLAGS = 0x80086601 if struct.calcsize("l") == 8 else 0x80046601
_FS_APPEND_FL = 0x20
"""What chattr(1) calls `a`, see ioctl_iflags(2)."""


def try_log(path: Path, fsync: Fsync, *, resume: bool) -> int | None:
    """Return the size, in bytes, of the log that a server would find at `path`; None: a new one.

    Takes the lock and gives it back at once, to see that it is free. Raises StartError as a server
    would.
    """
    try:
        # Through links, since a server would write, or make, what they lead to.
        target = Path(os.path.realpath(path))
        if not file_exists(target):
            try_new_file(target)
            return None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise StartError(f"cannot open the log {path}: {reason}") from error
    fd = open_locked(path, fsync)
    try:
        if resume:
            _try_reading(path)
        size = os.fstat(fd).st_size
        ends_whole = size == 0 or (resume and os.pread(fd, 1, size - 1) == b"\n")
        if not ends_whole and _is_append_only(fd):
            raise StartError(f"cannot truncate the log {path}: {os.strerror(errno.EPERM)}")
        return size
    finally:
        os.close(fd)


def _is_append_only(fd: int) -> bool:
    try:
        answer = fcntl.ioctl(fd, _FS_IOC_GETFLAGS, bytes(struct.calcsize("l")))
    except OSError:
        return False
    return bool(int.from_bytes(answer[:4], "little") & _FS_APPEND_FL)


def _try_reading(path: Path) -> None:
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
    except OSError as error:
        raise StartError(f"cannot read the log {path}: {error.strerror}") from error


def bad_line_near_ends(fd: int, kernel: Kernel, bitmap: bytearray) -> int | None:
    """Return the offset of a line that a start would refuse, looked for at both ends alone.

    That is PROBE_CHUNK_BYTES at each, so all of a file that is not longer than both. It is open as
    `fd`. Numbers found are set in `bitmap`. Raises OSError where the file can't be read.
    """
    size = os.fstat(fd).st_size
    starts = [0]
    if size > PROBE_CHUNK_BYTES:
        behind = max(size - PROBE_CHUNK_BYTES, PROBE_CHUNK_BYTES)
        starts.append(behind - behind % LINE_BYTES)
    for start in starts:
        piece = os.pread(fd, PROBE_CHUNK_BYTES + LINE_BYTES, start)
        if start + len(piece) < size:
            piece = piece[:PROBE_CHUNK_BYTES]
        offset = _bad_line(piece, kernel, bitmap)
        if offset is not None:
            return start + offset
    return None


def _bad_line(piece: bytes, kernel: Kernel, bitmap: bytearray) -> int | None:
    fd = os.memfd_create("log", os.MFD_CLOEXEC)
    try:
        with open(fd, "wb", closefd=False) as copy:
            copy.write(piece)
        return scan(fd, kernel, bitmap).first_bad_offset
    finally:
        os.close(fd)
