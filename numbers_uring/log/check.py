"""Finds what is wrong with logs that belong together."""

import fcntl
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from numbers_uring.errors import StartError
from numbers_uring.ingest.kernel import Kernel
from numbers_uring.limits import BITMAP_BYTES
from numbers_uring.log.compressed import is_compressed, require_end, scan_either
from numbers_uring.log.opening import open_regular
from numbers_uring.log.scan import Scan

Progress = Callable[[int], None]
"""Called with the size of each chunk, in bytes, once it was taken in."""

Stage = Callable[[str, int], AbstractContextManager[Progress]]
"""Entered for each pass over files: what it is for, and how many bytes it is going to read."""

_ZEROS = bytes(BITMAP_BYTES // 125)


@dataclass(frozen=True, slots=True)
class Log:
    """A log that is open for a check, and locked if it is to be repaired."""

    path: Path
    fd: int
    size_bytes: int
    compressed: bool
    """By gzip; the size is that of the file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """The contents of one log; `repeated` counts numbers that an earlier log has."""

    log: Log
    scan: Scan
    """Its duplicates are the lines whose number is further up in this log or in an earlier one."""
    repeated: int
    """Numbers that an earlier log has, too; each counts once, however often it is in this one."""

    @property
    def duplicates(self) -> int:
        """Lines whose number is further up in this log."""
        return self.scan.duplicates - self.repeated

    @property
    def clean(self) -> bool:
        """Whether the log is as a server leaves it."""
        return not (self.scan.duplicates or self.scan.bad_lines or self.scan.torn_bytes)


@contextmanager
def open_logs(paths: Sequence[Path], *, lock: bool) -> Iterator[list[Log]]:
    """Open `paths`, no two of them the same file; close, and so unlock, them at exit.

    Raises StartError where one is no regular file, can't be read or, if it is to be locked, is
    compressed, can't be written or is in use by another process.
    """
    with ExitStack() as opened:
        logs = []
        for path in paths:
            fd = open_regular(path, os.O_RDWR if lock else os.O_RDONLY)
            opened.callback(os.close, fd)
            try:
                compressed = is_compressed(path, fd)
            except OSError as error:
                raise StartError(f"cannot read {path}: {error.strerror}") from error
            if lock:
                if compressed:
                    raise StartError(
                        f"cannot repair {path}: it is compressed by gzip; unpack it first"
                    )
                _lock(path, fd)
            logs.append(Log(path, fd, os.fstat(fd).st_size, compressed))
        yield logs


def _lock(path: Path, fd: int) -> None:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # The process that had the lock until now may have put another file in this one's place.
        replaced = not os.path.samestat(os.fstat(fd), path.stat())
    except BlockingIOError as error:
        raise StartError(f"cannot repair {path}: it is in use by another process") from error
    except OSError as error:
        raise StartError(f"cannot lock {path}: {error.strerror}") from error
    if replaced:
        raise StartError(f"cannot repair {path}: another process has just replaced it")


def check_logs(
    logs: Sequence[Log], kernel: Kernel, bitmap: bytearray, stage: Stage
) -> list[Findings]:
    """Read the logs in order and return each one's findings.

    Whatever is in `bitmap`, before and afterwards, means nothing. Raises StartError where a log
    can't be read.
    """
    clear(bitmap)
    with stage("checking", total_bytes(logs)) as progress:
        scans = [_read(log, kernel, bitmap, progress) for log in logs]
    # Repeats of an earlier log and of this one are separated by reading this log again, alone:
    # a second bitmap would be dearer, and only a broken log needs it.
    unclear = [at for at, found in enumerate(scans) if at and found.duplicates]
    repeated = [0] * len(logs)
    if unclear:
        with stage("telling repeats apart", total_bytes([logs[at] for at in unclear])) as progress:
            for at in unclear:
                clear(bitmap)
                repeated[at] = _read(logs[at], kernel, bitmap, progress).unique - scans[at].unique
    return [
        Findings(log=log, scan=found, repeated=numbers)
        for log, found, numbers in zip(logs, scans, repeated, strict=True)
    ]


def _read(log: Log, kernel: Kernel, bitmap: bytearray, progress: Progress) -> Scan:
    found = scan_either(
        log.path, log.fd, kernel, bitmap, compressed=log.compressed, progress=progress
    )
    return require_end(log.path, found)


def total_bytes(logs: Sequence[Log]) -> int:
    return sum(log.size_bytes for log in logs)


def clear(bitmap: bytearray) -> None:
    """Zero the bitmap where it is, without another 125 MB to copy from."""
    for start in range(0, BITMAP_BYTES, len(_ZEROS)):
        bitmap[start : start + len(_ZEROS)] = _ZEROS
