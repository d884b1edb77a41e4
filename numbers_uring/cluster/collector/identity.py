"""The id of a copy: the folder of a collector's logs has it, and keeps it from run to run."""

import fcntl
import os
import re
import secrets
import stat
from dataclasses import dataclass
from pathlib import Path

from numbers_uring.errors import StartError
from numbers_uring.log.directory import open_directory, sync_directory

COPY_NAME = "numbers.copy"
"""The file that has the id."""

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_ID_BYTES = 6
_FILE_BYTES_MAX = 100
_ID = re.compile(rb"([0-9a-f]{%d})\n?" % (2 * _ID_BYTES))


@dataclass(frozen=True, slots=True)
class Identity:
    """A copy, and the run of the process that collects it."""

    copy: str
    path: Path
    """The file that has the id."""
    place: str
    """Names that very file on this host since its boot: a copied folder is another place."""
    run: str
    """Names this process."""


def identify(folder: Path) -> Identity:
    """Read the id in `folder`, or make one if there is none. Raises StartError."""
    path = folder / COPY_NAME
    try:
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
        fd = os.open(path, flags, 0o644)
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise StartError(f"{path} is not a regular file")
            # Another process with other partitions may start in this folder at the same moment.
            fcntl.flock(fd, fcntl.LOCK_EX)
            text = os.read(fd, _FILE_BYTES_MAX)
            if not text:
                text = secrets.token_hex(_ID_BYTES).encode() + b"\n"
                os.write(fd, text)
                os.fsync(fd)
                _sync_directory(folder)
            found = os.fstat(fd)
        finally:
            os.close(fd)
    except OSError as error:
        raise StartError(f"cannot read or make {path}: {error.strerror}") from error
    match = _ID.fullmatch(text)
    if match is None:
        raise StartError(f"{path} has no id of a copy: remove it, and the next start makes one")
    place = f"{_boot_id()}.{found.st_dev}.{found.st_ino}"
    return Identity(match[1].decode(), path, place, secrets.token_hex(8))


def _sync_directory(folder: Path) -> None:
    fd = open_directory(folder)
    try:
        sync_directory(fd)
    finally:
        if fd is not None:
            os.close(fd)


def _boot_id() -> str:
    """Return what tells this boot from others; a random text where /proc is hidden."""
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:
        return secrets.token_hex(8)
