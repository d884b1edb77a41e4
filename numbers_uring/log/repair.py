"""Puts repaired copies in the place of logs that are not clean."""

import errno
import os
import signal
import stat
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from numbers_uring.errors import SinkError
from numbers_uring.ingest.kernel import Kernel
from numbers_uring.log.check import Findings, Progress, Stage, clear, total_bytes
from numbers_uring.log.directory import open_directory, sync_directory
from numbers_uring.log.scan import scan
from numbers_uring.system.signals import caught

_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True, slots=True)
class Repair:
    """A log that was replaced by a repaired copy, and what the copy does not have of it."""

    findings: Findings
    hard_links: int
    """Other names of the file, which still lead to the log as it was."""
    lost_attributes: Sequence[str]
    """Extended attributes, ACLs among them, that the copy could not be given."""


def repair_logs(
    findings: Sequence[Findings], kernel: Kernel, bitmap: bytearray, stage: Stage
) -> Iterator[Repair]:
    """Put a copy with the lines of new numbers in the place of each log that is not clean.

    Yields each repair once the log, which is locked, was replaced. Until then the copy lies beside
    the log, which is as it was; only kill -9 or a crash leaves a copy behind. Raises SinkError if
    that fails, and after SIGINT, SIGTERM or SIGHUP.
    """
    last = max((at for at, found in enumerate(findings) if not found.clean), default=-1)
    to_read = findings[: last + 1]
    clear(bitmap)
    stop = _StopRequest()
    with (
        caught(_STOP_SIGNALS, stop.note, unless_ignored=True),
        stage("repairing", total_bytes([found.log for found in to_read])) as progress,
    ):

        def tick(size: int) -> None:
            stop.obey()
            progress(size)

        for found in to_read:
            if found.clean:
                _read_again(found, kernel, bitmap, None, tick)
            else:
                yield _replace(found, kernel, bitmap, tick)


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
        raise SinkError(f"cannot repair {path}: {error.strerror}; it was not changed") from error
    if again != found.scan:
        raise SinkError(f"cannot repair {path}: another process is changing it")


def _replace(found: Findings, kernel: Kernel, bitmap: bytearray, progress: Progress) -> Repair:
    """Write the copy, sync it, rename it over the log, sync the directory."""
    path = found.log.path
    with ExitStack() as opened:
        try:
            target = path.resolve(strict=True)
            directory_fd = open_directory(target.parent)
            if directory_fd is not None:
                opened.callback(os.close, directory_fd)
            with _temporary_file(target.parent) as (copy, fd):
                _read_again(found, kernel, bitmap, partial(_write, fd), progress)
                hard_links = os.fstat(found.log.fd).st_nlink - 1
                _copy_owner_and_mode(found.log.fd, fd)
                lost_attributes = _copy_attributes(found.log.fd, fd)
                os.fsync(fd)
                # The sync may have taken long: the last moment for a signal to be heeded.
                progress(0)
                copy.rename(target)
        except OSError as error:
            raise SinkError(
                f"cannot repair {path}: {error.strerror}; it was not changed"
            ) from error
        try:
            sync_directory(directory_fd)
        except OSError as error:
            raise SinkError(
                f"{path} was repaired, but its folder cannot be synced: {error.strerror}; "
                "a power cut may bring the old log back"
            ) from error
    return Repair(found, hard_links, lost_attributes)


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
            raise OSError(errno.EIO, "write(2) wrote nothing")
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


def _copy_attributes(from_fd: int, to_fd: int) -> list[str]:
    """Copy the extended attributes, ACLs among them; return the names of those that failed."""
    try:
        names = os.listxattr(from_fd)
    except OSError:
        return []  # The file system has none.
    lost = []
    for name in names:
        try:
            os.setxattr(to_fd, name, os.getxattr(from_fd, name))
        except OSError:
            lost.append(name)
    return lost


class _StopRequest:
    """A stop signal that is noted, for a repair to end where nothing is half done."""

    def __init__(self) -> None:
        self._received: signal.Signals | None = None

    def note(self, number: signal.Signals) -> None:
        self._received = number

    def obey(self) -> None:
        """Raise SinkError if a signal has come."""
        if self._received is not None:
            raise SinkError(
                f"stopped by {self._received.name}: only logs reported as repaired were changed"
            )
