"""Finds what is wrong with logs that belong together, and puts repaired copies in their place."""

import errno
import fcntl
import os
import signal
import stat
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from numbers_uring.errors import StartError
from numbers_uring.ingest.kernel import Kernel
from numbers_uring.limits import BITMAP_BYTES
from numbers_uring.log.scan import Scan, scan
from numbers_uring.log.writer import LogError
from numbers_uring.system.signals import caught

Progress = Callable[[int], None]
"""Told the size of each piece, in bytes, once it was taken in."""

Stage = Callable[[str, int], AbstractContextManager[Progress]]
"""Entered for each pass over files: what it is for, and how many bytes it is going to read."""

_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_ZEROS = bytes(BITMAP_BYTES // 125)


@dataclass(frozen=True, slots=True)
class Log:
    """A log that is open for a check, and locked where it is to be repaired."""

    path: Path
    fd: int
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """What is in one log; duplicates are told apart by the log that has the number first."""

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

    Raises StartError where one is no regular file, can't be read or, if it is to be locked, can't
    be written or is in use by another process.
    """
    with ExitStack() as opened:
        logs = []
        for path in paths:
            fd = _open(path, os.O_RDWR if lock else os.O_RDONLY)
            opened.callback(os.close, fd)
            if lock:
                _lock(path, fd)
            logs.append(Log(path, fd, os.fstat(fd).st_size))
        yield logs


def _open(path: Path, access: int) -> int:
    """Open a regular file; O_NONBLOCK, so that a FIFO without a peer does not hold us up."""
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


def _lock(path: Path, fd: int) -> None:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Whoever had the lock until now may have put another file in this one's place.
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
    _clear(bitmap)
    with stage("checking", _size_bytes(logs)) as progress:
        scans = [_read(log, kernel, bitmap, progress) for log in logs]
    # What repeats an earlier log is told from what repeats itself by reading the log again, alone:
    # a second bitmap would be dearer, and only a broken log needs it.
    unclear = [at for at, found in enumerate(scans) if at and found.duplicates]
    repeated = [0] * len(logs)
    if unclear:
        with stage("telling repeats apart", _size_bytes([logs[at] for at in unclear])) as progress:
            for at in unclear:
                _clear(bitmap)
                repeated[at] = _read(logs[at], kernel, bitmap, progress).unique - scans[at].unique
    return [
        Findings(log=log, scan=found, repeated=numbers)
        for log, found, numbers in zip(logs, scans, repeated, strict=True)
    ]


def _read(log: Log, kernel: Kernel, bitmap: bytearray, progress: Progress) -> Scan:
    try:
        return scan(log.fd, kernel, bitmap, progress=progress)
    except OSError as error:
        raise StartError(f"cannot read {log.path}: {error.strerror}") from error


def _size_bytes(logs: Sequence[Log]) -> int:
    return sum(log.size_bytes for log in logs)


def _clear(bitmap: bytearray) -> None:
    """Zero the bitmap where it is, without another 125 MB to copy from."""
    for start in range(0, BITMAP_BYTES, len(_ZEROS)):
        bitmap[start : start + len(_ZEROS)] = _ZEROS


def repair_logs(
    findings: Sequence[Findings], kernel: Kernel, bitmap: bytearray, stage: Stage
) -> Iterator[Findings]:
    """Put a copy with the lines of new numbers in the place of each log that is not clean.

    Yields each findings once its log, which is locked, was replaced. Until then the copy lies
    beside the log, which is as it was; only kill -9 or a crash leaves a copy behind. Raises
    LogError where that fails, and after SIGINT, SIGTERM or SIGHUP.
    """
    last = max((at for at, found in enumerate(findings) if not found.clean), default=-1)
    to_read = findings[: last + 1]
    _clear(bitmap)
    stop = _StopRequest()
    with (
        caught(_STOP_SIGNALS, stop.note, unless_ignored=True),
        stage("repairing", _size_bytes([found.log for found in to_read])) as progress,
    ):

        def tick(size: int) -> None:
            stop.obey()
            progress(size)

        for found in to_read:
            if found.clean:
                _read_again(found, kernel, bitmap, None, tick)
            else:
                _replace(found, kernel, bitmap, tick)
                yield found


def _read_again(
    found: Findings,
    kernel: Kernel,
    bitmap: bytearray,
    on_new: Callable[[memoryview], None] | None,
    progress: Progress,
) -> None:
    path = found.log.path
    try:
        again = scan(found.log.fd, kernel, bitmap, on_new=on_new, progress=progress)
    except OSError as error:
        raise LogError(f"cannot repair {path}: {error.strerror}; it is as it was") from error
    if again != found.scan:
        raise LogError(f"cannot repair {path}: another process is changing it")


def _replace(found: Findings, kernel: Kernel, bitmap: bytearray, progress: Progress) -> None:
    """Write the copy, sync it, rename it over the log, sync the directory."""
    path = found.log.path
    with ExitStack() as opened:
        try:
            target = path.resolve(strict=True)
            directory_fd = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            opened.callback(os.close, directory_fd)
            with _temporary_file(target.parent) as (copy, fd):
                _read_again(found, kernel, bitmap, partial(_write, fd), progress)
                _copy_owner_and_mode(found.log.fd, fd)
                os.fsync(fd)
                # The sync may have taken long: the last moment for a signal to be heeded.
                progress(0)
                copy.rename(target)
        except OSError as error:
            raise LogError(f"cannot repair {path}: {error.strerror}; it is as it was") from error
        try:
            os.fsync(directory_fd)
        except OSError as error:
            if error.errno != errno.EINVAL:  # Some file systems cannot sync a directory.
                raise LogError(
                    f"{path} was repaired, but its folder cannot be synced: {error.strerror}; "
                    "a power cut may bring the old log back"
                ) from error


@contextmanager
def _temporary_file(directory: Path) -> Iterator[tuple[Path, int]]:
    """Create a file and open it for writing; on any exception it is removed."""
    fd, name = tempfile.mkstemp(prefix=".numbers-uring-", suffix=".tmp", dir=directory)
    try:
        yield Path(name), fd
    except BaseException:
        with suppress(OSError):
            Path(name).unlink()
        raise
    finally:
        with suppress(OSError):  # Synced before, or removed.
            os.close(fd)


def _write(fd: int, lines: memoryview) -> None:
    while lines:
        size = os.write(fd, lines)
        if size == 0:
            raise OSError(errno.EIO, "write(2) took nothing")
        lines = lines[size:]


def _copy_owner_and_mode(from_fd: int, to_fd: int) -> None:
    """As far as it is permitted: only root may give a file away, or to a group it is not in."""
    status = os.fstat(from_fd)
    with suppress(OSError):
        os.fchown(to_fd, -1, status.st_gid)
    with suppress(OSError):
        os.fchown(to_fd, status.st_uid, -1)
    with suppress(PermissionError):
        os.fchmod(to_fd, stat.S_IMODE(status.st_mode))


class _StopRequest:
    """A stop signal that is noted, for a repair to end where nothing is half done."""

    def __init__(self) -> None:
        self._received: signal.Signals | None = None

    def note(self, number: signal.Signals) -> None:
        self._received = number

    def obey(self) -> None:
        """Raise LogError where a signal has come."""
        if self._received is not None:
            raise LogError(
                f"stopped by {self._received.name}: a log that is not called repaired is as it was"
            )
