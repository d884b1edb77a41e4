"""The index of a log: how far each of its stream's messages reaches, as a list of records.

An index is append-only. Each record is written after the log was synced up to it, and none is
believed behind a damaged one. The first record of a stream is its base, from which the log begins.
"""

import errno
import os
import stat
import struct
import zlib
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import overload

from numbers_uring.limits import (
    INDEX_LOG_BYTES_PER_RECORD,
    INDEX_RECORDS_KEPT,
    LINE_BYTES,
    PARTITIONS_MAX,
)

_FIELDS = struct.Struct("<IHHQQQQQQI16x")
_CHECKSUM = struct.Struct("<I")

RECORD_BYTES = _FIELDS.size + _CHECKSUM.size
"""The size of each record in the file."""

_MAGIC = int.from_bytes(b"NUI\1", "little")
"""The last byte is the version."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """The log when all messages up to `sequence` were taken in, and nothing else."""

    partition: int
    partitions: int
    stream_created_ns: int
    """When the stream was made, which tells it from another of the same name."""
    sequence: int = 0
    message_time_ns: int = 0
    """The time of that message in the stream; 0 if that is unknown."""
    log_bytes: int = 0
    sum: int = 0
    """The sum of the numbers in the log, modulo 2**64."""

    @property
    def count(self) -> int:
        """How many numbers are in the log."""
        return self.log_bytes // LINE_BYTES

    def pack(self) -> bytes:
        """Return the record as it is in the file, RECORD_BYTES."""
        fields = _FIELDS.pack(
            _MAGIC,
            self.partition,
            self.partitions,
            self.stream_created_ns,
            self.sequence,
            self.message_time_ns,
            self.log_bytes,
            self.count,
            self.sum,
            0,
        )
        return fields + _CHECKSUM.pack(zlib.crc32(fields))

    @staticmethod
    def unpack(packed: bytes | bytearray | memoryview) -> "Record":
        """Return what `pack` was given. Raises ValueError if that is no record."""
        if len(packed) != RECORD_BYTES:
            raise ValueError(f"{len(packed)} bytes")
        if _CHECKSUM.unpack_from(packed, _FIELDS.size)[0] != zlib.crc32(packed[: _FIELDS.size]):
            raise ValueError("a wrong checksum")
        magic, partition, partitions, created_ns, sequence, time_ns, log_bytes, count, total, _ = (
            _FIELDS.unpack_from(packed)
        )
        if magic != _MAGIC:
            raise ValueError("another version")
        if not partition < partitions <= PARTITIONS_MAX or log_bytes != count * LINE_BYTES:
            raise ValueError("values that no collector writes")
        return Record(
            partition=partition,
            partitions=partitions,
            stream_created_ns=created_ns,
            sequence=sequence,
            message_time_ns=time_ns,
            log_bytes=log_bytes,
            sum=total,
        )

    def follows(self, earlier: "Record") -> bool:
        """Return whether an index can have this record anywhere behind `earlier`."""
        if (self.partition, self.partitions) != (earlier.partition, earlier.partitions):
            return False
        if self.stream_created_ns != earlier.stream_created_ns:
            return True
        return self.sequence > earlier.sequence and self.log_bytes >= earlier.log_bytes


class Records(Sequence[Record]):
    """The good records of an index, in order; unpacked when they are asked for."""

    def __init__(self, packed: bytes = b"") -> None:
        self._packed = bytearray(packed)
        assert len(packed) % RECORD_BYTES == 0

    def __len__(self) -> int:
        return len(self._packed) // RECORD_BYTES

    @overload
    def __getitem__(self, at: int) -> Record: ...
    @overload
    def __getitem__(self, at: slice) -> list[Record]: ...
    def __getitem__(self, at: int | slice) -> Record | list[Record]:
        if isinstance(at, slice):
            return [self[each] for each in range(*at.indices(len(self)))]
        start = range(len(self))[at] * RECORD_BYTES
        return Record.unpack(self._packed[start : start + RECORD_BYTES])

    def append(self, record: Record) -> None:
        self._packed += record.pack()

    def packed(self, count: int | None = None) -> bytes:
        """Return them, or the first `count` of them, as they are in the file."""
        return bytes(self._packed[: None if count is None else count * RECORD_BYTES])

    @property
    def packed_bytes(self) -> int:
        """The size of a file with these records alone."""
        return len(self._packed)

    def of_last_stream(self) -> list[Record]:
        """Return the records of the stream that the last one is of, its base first."""
        created_ns = self[-1].stream_created_ns if self else None
        start = len(self)
        while start and self[start - 1].stream_created_ns == created_ns:
            start -= 1
        return self[start:]


@dataclass(frozen=True, slots=True)
class Reading:
    """What an index file holds."""

    records: Records
    """The good ones, up to the first damaged one."""
    damage: str | None
    """What is wrong behind them; None if nothing is."""


def read_records(packed: bytes) -> Reading:
    """Return the good records of an index with this content."""
    records = Records()
    last: Record | None = None
    for start in range(0, len(packed), RECORD_BYTES):
        try:
            record = Record.unpack(packed[start : start + RECORD_BYTES])
            if last is not None and not record.follows(last):
                raise ValueError("values that do not follow those before it")
        except ValueError as error:
            return Reading(records, f"the record at byte {start} has {error}")
        records.append(record)
        last = record
    return Reading(records, None)


def read_index(path: Path) -> Reading:
    """Return the good records of the index at `path`. Raises OSError; also where it is no file."""
    # A FIFO would block, and a device may never end.
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "it is not a regular file")
    with os.fdopen(fd, "rb") as file:
        return read_records(file.read())


def thinned(
    records: Records, essential: Callable[[Sequence[int]], Collection[int]] = lambda _: ()
) -> Records:
    """Return what stays of an index: the newest records, one for some bytes of the log, the bases.

    `essential` returns which of the last stream's sequences have to stay beside them.
    """
    if len(records) <= INDEX_RECORDS_KEPT:
        return records
    created_ns = records[-1].stream_created_ns
    newest = len(records) - INDEX_RECORDS_KEPT
    wanted = essential([record.sequence for record in records.of_last_stream()])
    kept = Records()
    before: Record | None = None
    for at, record in enumerate(records):
        is_base = before is None or record.stream_created_ns != before.stream_created_ns
        is_essential = record.stream_created_ns == created_ns and record.sequence in wanted
        chunk = record.log_bytes // INDEX_LOG_BYTES_PER_RECORD
        begins_chunk = before is None or chunk > before.log_bytes // INDEX_LOG_BYTES_PER_RECORD
        if is_base or is_essential or begins_chunk or at >= newest:
            kept.append(record)
        before = record
    return kept
