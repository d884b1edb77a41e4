"""Reads a log that gzip has compressed as if it were not.

Not with the standard library's gzip, which reads 8 KiB at a time and computes the checksum by
itself: it takes a third longer. It also can't tell how much of the file it has read.
"""

import os
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from numbers_uring.errors import StartError
from numbers_uring.ingest.kernel import Kernel, Memory
from numbers_uring.limits import GZIP_READ_BYTES
from numbers_uring.log.scan import Scan, scan_chunks

_GZIP = b"\x1f\x8b"
_OTHERS = ((b"\x28\xb5\x2f\xfd", "zstd"), (b"\xfd7zXZ\0", "xz"), (b"BZh", "bzip2"))
_HEADER_AND_ZLIB_TRAILER = 16 + zlib.MAX_WBITS
"""What makes zlib read gzip's format, and check its sums."""


def is_compressed(path: Path, fd: int) -> bool:
    """Return whether the file open as `fd` is one of gzip, by its first bytes or else its name.

    An empty file has only its name. Raises OSError, and StartError where it is compressed by
    something else, or is none of gzip against its name.
    """
    begin = os.pread(fd, 6, 0)
    if begin.startswith(_GZIP):
        return True
    for magic, program in _OTHERS:
        if begin.startswith(magic):
            raise StartError(f"cannot read {path}: compressed by {program}, not by gzip")
    if path.suffix != ".gz":
        return False
    if not _GZIP.startswith(begin):
        raise StartError(f"cannot read {path}: not compressed by gzip")
    return True


def require_plain(path: Path, fd: int) -> None:
    """Raise StartError where the file open as `fd` is compressed, whatever its name is.

    Its lines would all be bad ones, and a repair would leave nothing of it. Raises OSError.
    """
    begin = os.pread(fd, 6, 0)
    for magic, program in ((_GZIP, "gzip"), *_OTHERS):
        if begin.startswith(magic):
            raise StartError(f"cannot read {path}: it is compressed by {program}; unpack it first")


class CompressedScan(NamedTuple):
    """What a compressed log holds."""

    scan: Scan
    """Its offsets are those of the log before it was compressed."""
    ends_early: bool
    """Whether the end of the file is missing, as while gzip still writes it."""


def scan_compressed(
    path: Path,
    fd: int,
    kernel: Kernel,
    bitmap: Memory,
    *,
    progress: Callable[[int], None] | None = None,
) -> CompressedScan:
    """Do what `scan` does with a file of gzip; `progress` is given the file's own bytes.

    Raises OSError, and StartError where the file is damaged.
    """
    reader = _GzipReader(path, fd)
    told_bytes = 0

    def tell(_chunk_bytes: int) -> None:
        nonlocal told_bytes
        new_bytes, told_bytes = reader.read_bytes - told_bytes, reader.read_bytes
        if progress is not None:
            progress(new_bytes)

    found = scan_chunks(reader.read_into, kernel, bitmap, progress=tell)
    return CompressedScan(found, reader.ends_early)


class _GzipReader:
    """Members of gzip one behind the other, as gzip(1) reads them; zeros may fill up the file."""

    def __init__(self, path: Path, fd: int) -> None:
        self._path = path
        self._fd = fd
        self._rest = b""
        self._member: zlib._Decompress | None = zlib.decompressobj(_HEADER_AND_ZLIB_TRAILER)
        self.read_bytes = 0
        """Of the compressed file."""
        self.ends_early = False
        """Whether the file ended within a member."""

    def read_into(self, chunk: memoryview, _offset: int = 0) -> int:
        """Put the next bytes into the chunk and return how many: 0 at the end."""
        while self._rest or self._fill():
            if self._member is None:
                self._rest = self._rest.lstrip(b"\0")
                if not self._rest:
                    continue
                self._member = zlib.decompressobj(_HEADER_AND_ZLIB_TRAILER)
            try:
                data = self._member.decompress(self._rest, len(chunk))
            except zlib.error as error:
                reason = str(error).rpartition(": ")[2]
                raise StartError(f"cannot read {self._path}: it is damaged: {reason}") from error
            if self._member.eof:
                self._rest = self._member.unused_data
                self._member = None
            else:
                self._rest = self._member.unconsumed_tail
            if data:
                chunk[: len(data)] = data
                return len(data)
        self.ends_early = self._member is not None
        return 0

    def _fill(self) -> bool:
        self._rest = os.pread(self._fd, GZIP_READ_BYTES, self.read_bytes)
        self.read_bytes += len(self._rest)
        return bool(self._rest)
