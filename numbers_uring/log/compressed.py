"""Reads a log as a server has written it, also where gzip has compressed it.

Not with the standard library's gzip, which reads 8 KiB at a time and computes the checksum by
itself: it takes a third longer. It also can't tell how much of the file it has read. isal, which is
installed where it has a package, takes half the time of zlib.
"""

import os
import re
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, Protocol, cast

from numbers_uring.errors import StartError
from numbers_uring.ingest.kernel import Kernel, Memory
from numbers_uring.limits import GZIP_READ_BYTES
from numbers_uring.log.scan import Scan, scan, scan_chunks

_GZIP = b"\x1f\x8b"
_OTHERS = ((b"\x28\xb5\x2f\xfd", "zstd"), (b"\xfd7zXZ\0", "xz"), (b"BZh", "bzip2"))
_FORMAT = 16 + zlib.MAX_WBITS
"""What makes an inflater read gzip's format, and check its sums."""
_ERROR_NUMBER = re.compile(r"Error -?[0-9]+ (?:while decompressing data: )?")


class Member(Protocol):
    """A member of a file of gzip that is decompressed, as zlib has it."""

    @property
    def eof(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    @property
    def unconsumed_tail(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int, /) -> bytes: ...


class Inflater(NamedTuple):
    """A library that decompresses."""

    begin: Callable[[int], Member]
    error: type[Exception]
    """What its members raise where the file is damaged."""


def inflater() -> Inflater:
    """Return the fastest one that is installed here."""
    try:
        # Most starts read no compressed log.
        from isal import igzip_lib, isal_zlib  # noqa: PLC0415
    except ImportError:
        return Inflater(zlib.decompressobj, zlib.error)
    # Its stub takes the class for an instance.
    return Inflater(isal_zlib.decompressobj, cast("type[Exception]", igzip_lib.IsalError))


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


class CompressedScan(NamedTuple):
    """What a log holds that may be compressed."""

    scan: Scan
    """Its offsets are those of the log before it was compressed."""
    ends_early: bool
    """Whether the end of the file is missing, as while gzip still writes it."""


def scan_either(
    path: Path,
    fd: int,
    kernel: Kernel,
    bitmap: Memory,
    *,
    compressed: bool,
    on_unpacked: Callable[[memoryview], None] | None = None,
    progress: Callable[[int], None] | None = None,
) -> CompressedScan:
    """Do what `scan` does with a log, or `scan_compressed` with a compressed one.

    Raises StartError where it can't be read, and what the two functions raise.
    """
    try:
        if compressed:
            return scan_compressed(
                path, fd, kernel, bitmap, on_unpacked=on_unpacked, progress=progress
            )
        return CompressedScan(scan(fd, kernel, bitmap, progress=progress), ends_early=False)
    except OSError as error:
        raise StartError(f"cannot read {path}: {error.strerror}") from error


def require_end(path: Path, found: CompressedScan) -> Scan:
    """Return what a log holds. Raises StartError where the end of the file is missing."""
    if found.ends_early:
        raise StartError(f"cannot read {path}: its end is missing, and perhaps numbers in it")
    return found.scan


def scan_compressed(
    path: Path,
    fd: int,
    kernel: Kernel,
    bitmap: Memory,
    *,
    on_unpacked: Callable[[memoryview], None] | None = None,
    progress: Callable[[int], None] | None = None,
) -> CompressedScan:
    """Do what `scan` does with a file of gzip; `progress` is given the file's own bytes.

    `on_unpacked` is given everything that was compressed, before it is parsed; the view is valid
    until it returns. Raises OSError, StartError where the file is damaged, and what the two raise.
    """
    reader = _GzipReader(path, fd)
    told_bytes = 0

    def tell(_chunk_bytes: int) -> None:
        nonlocal told_bytes
        new_bytes, told_bytes = reader.read_bytes - told_bytes, reader.read_bytes
        if progress is not None:
            progress(new_bytes)

    def read(chunk: memoryview, _offset: int) -> int:
        size = reader.read_into(chunk)
        if on_unpacked is not None:
            on_unpacked(chunk[:size])
        return size

    found = scan_chunks(read, kernel, bitmap, progress=tell)
    return CompressedScan(found, reader.ends_early)


class _GzipReader:
    """Members of gzip one behind the other, as gzip(1) reads them; zeros may fill up the file."""

    def __init__(self, path: Path, fd: int) -> None:
        self._path = path
        self._fd = fd
        self._rest = b""
        self._inflater = inflater()
        self._member: Member | None = self._inflater.begin(_FORMAT)
        self.read_bytes = 0
        """Of the compressed file."""
        self.ends_early = False
        """Whether the file ended within a member."""

    def read_into(self, chunk: memoryview) -> int:
        """Put the next bytes into the chunk and return how many: 0 at the end."""
        while self._rest or self._fill():
            if self._member is None:
                self._rest = self._rest.lstrip(b"\0")
                if not self._rest:
                    continue
                # isal waits for a whole header before it looks at it.
                if not self._rest.startswith(_GZIP) and self._rest != _GZIP[:1]:
                    raise StartError(
                        f"cannot read {self._path}: it is damaged: incorrect header check"
                    )
                self._member = self._inflater.begin(_FORMAT)
            try:
                data = self._member.decompress(self._rest, len(chunk))
            except self._inflater.error as error:
                reason = _ERROR_NUMBER.sub("", str(error))
                reason = reason[:1].lower() + reason[1:]
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
