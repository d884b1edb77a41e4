"""Writes an index: appends its records, and puts a new file in its place where that is needed."""

import errno
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

from numbers_uring.cluster.checkpoints import essential
from numbers_uring.cluster.index import Record, Records, read_index, thinned
from numbers_uring.errors import SinkError, StartError
from numbers_uring.limits import INDEX_RECORDS_MAX
from numbers_uring.log.calls import FileCalls, again
from numbers_uring.log.directory import open_directory, sync_directory
from numbers_uring.log.file import NO_SPACE
from numbers_uring.words import counted

_FLAGS = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC


class IndexFile:
    """The index at `path`, which no other process writes: it would have locked the log.

    The file stays as it is until `append`. `say` takes one line for the operator. The constructor
    raises StartError.
    """

    def __init__(self, path: Path, *, say: Callable[[str], None], calls: FileCalls) -> None:
        self.path = path
        self.records = Records()
        """The good ones in the file."""
        self._say = say
        self._calls = calls
        self._fd = -1
        self._is_whole = False
        """Whether `records` are all that is in the file open as `_fd`."""
        try:
            reading = read_index(path)
        except FileNotFoundError:
            return
        except OSError as error:
            raise StartError(f"cannot read the index {path}: {error.strerror}") from error
        self.records = reading.records
        if reading.damage is not None:
            say(
                f"the index {path} is damaged, {reading.damage}: "
                f"using the {counted(len(self.records), 'record')} before it"
            )

    def forget(self, kept: int) -> None:
        """Drop all but the first `kept` records; the file loses them at the next `append`."""
        if kept < len(self.records):
            self.records = Records(self.records.packed(kept))
            self._is_whole = False

    def append(self, records: Sequence[Record]) -> bool:
        """Write records; return False, with nothing done, if there is no space.

        Raises SinkError.
        """
        return self._has_space(partial(self._append, records))

    def sync(self) -> bool:
        """Have all records on disk; return False if there is no space. Raises SinkError."""
        return self._has_space(self._sync)

    def _has_space(self, step: Callable[[], None]) -> bool:
        try:
            step()
        except OSError as error:
            if error.errno in NO_SPACE:
                return False
            raise SinkError(f"cannot write the index {self.path}: {error.strerror}") from error
        return True

    def _append(self, records: Sequence[Record]) -> None:
        if self._is_whole and self._is_ours() and len(self.records) < INDEX_RECORDS_MAX:
            self._extend(records)
        else:
            self._replace(records)

    def _sync(self) -> None:
        if self._is_whole and self._is_ours():
            # What a sync has failed for may be lost: it is written anew then.
            self._is_whole = False
            again(self._calls.fdatasync, self._fd)
            self._is_whole = True
        else:
            self._replace(())

    def _is_ours(self) -> bool:
        """Return whether the file at `path` is the open one, with `records` and nothing else."""
        try:
            there, ours = self.path.stat(), self._calls.fstat(self._fd)
            if os.path.samestat(there, ours) and ours.st_size == self.records.packed_bytes:
                return True
        except FileNotFoundError:
            pass
        self._say(
            f"the index {self.path} was removed, replaced or changed by another process: "
            "writing it again"
        )
        return False

    def _extend(self, records: Sequence[Record]) -> None:
        before_bytes = self.records.packed_bytes
        # Where it is not as it was, the next append replaces it.
        self._is_whole = False
        try:
            self._write(self._fd, b"".join(record.pack() for record in records))
        except OSError:
            with suppress(OSError):
                again(self._calls.ftruncate, self._fd, before_bytes)
                self._is_whole = True
            raise
        self._is_whole = True
        for record in records:
            self.records.append(record)

    def _replace(self, records: Sequence[Record]) -> None:
        """Put a new file in the index's place, with what is worth keeping, and sync it."""
        all_records = Records(self.records.packed())
        for record in records:
            all_records.append(record)
        kept = thinned(all_records, essential)
        new = self.path.with_name(f"{self.path.name}.new")
        fd = self._calls.open(new, _FLAGS | os.O_TRUNC, 0o644)
        try:
            self._write(fd, kept.packed())
            again(self._calls.fdatasync, fd)
            new.rename(self.path)
            directory_fd = open_directory(self.path.parent)
            try:
                sync_directory(directory_fd)
            finally:
                if directory_fd is not None:
                    os.close(directory_fd)
        except OSError:
            os.close(fd)
            with suppress(OSError):
                new.unlink()
            raise
        self.close()
        self._fd, self._is_whole, self.records = fd, True, kept

    def _write(self, fd: int, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            size = again(self._calls.write, fd, rest)
            if size == 0:
                raise OSError(errno.EIO, "write(2) wrote nothing")
            rest = rest[size:]

    def close(self) -> None:
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            with suppress(OSError):  # What was told of it was synced.
                os.close(fd)
