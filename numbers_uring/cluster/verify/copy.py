"""One log of a partition, read from its first byte up to where its index says that it is synced."""

import os
import re
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Self

from numbers_uring.cluster.collector.kernel import CollectKernel
from numbers_uring.cluster.index import Reading, Record, read_index
from numbers_uring.cluster.partitions import NUMBER_BYTES, Range, index_name, log_name, range_of
from numbers_uring.cluster.verify.report import CopyReport
from numbers_uring.errors import StartError
from numbers_uring.ingest.bitmap import reserve
from numbers_uring.ingest.kernel import Memory
from numbers_uring.ingest.native import variants
from numbers_uring.limits import (
    HEADROOM_BYTES,
    LINE_BYTES,
    LOG_SCAN_CHUNK_BYTES,
    MESSAGE_BYTES_MAX,
    VERIFY_INDEX_RETRIES,
    VERIFY_INDEX_RETRY_S,
    VERIFY_LINES_MAX,
)
from numbers_uring.log.check import open_logs

_LINE = re.compile(rb"[0-9]{9}\n")
CHUNK_BYTES = LOG_SCAN_CHUNK_BYTES // LINE_BYTES * LINE_BYTES
BATCH_BYTES = MESSAGE_BYTES_MAX // NUMBER_BYTES * LINE_BYTES

Progress = Callable[[int], None]


class Findings:
    """Things of one kind that are wrong: the first one is described, the others are counted."""

    def __init__(self) -> None:
        self.first: str | None = None
        self.count = 0

    def add(self, text: str, count: int = 1) -> None:
        self.first = self.first or text
        self.count += count

    @property
    def text(self) -> str | None:
        if self.first is None or self.count <= 1:
            return self.first
        return f"{self.first}, and {self.count - 1} more like it"


class Copy:
    """A log with its index, open for reading; `folder` has to have at least one of the two.

    `look` is called now and then while the log is read, and may raise something. Raises StartError
    where one of them can't be read.
    """

    def __init__(
        self,
        folder: Path,
        partition: int,
        partitions: int,
        look: Callable[[], None] = lambda: None,
    ) -> None:
        self._look = look
        self.path = folder / log_name(partition)
        self.index_path = folder / index_name(partition)
        self.report = CopyReport(log=str(self.path))
        self.findings: list[str] = []
        self.missing = Findings()
        """Numbers of the stream's messages that are not in the log."""
        self._partition, self._partitions = partition, partitions
        self._range = range_of(partition, partitions)
        self.kernel = CollectKernel(self._range, reserve(), BATCH_BYTES)
        """Has the log's numbers once it is scanned."""
        self._opened = ExitStack()
        self._fd = -1
        # The index first: the log is never behind it.
        self._reading = self._read_index()
        self.size_bytes = 0
        self.end_bytes = 0
        """Where the scan has ended."""
        self.tail_bytes = 0
        """What the log has behind that."""
        self.has_whole_lines = True
        self.is_comparable = True
        """Whether the log is of the stream that there is."""
        self._records: list[Record] = []
        if self.path.exists():
            (log,) = self._opened.enter_context(open_logs([self.path], lock=False))
            self._fd, self.size_bytes = log.fd, log.size_bytes
        else:
            self.find("the log is missing")

    @staticmethod
    def exists(folder: Path, partition: int) -> bool:
        names = (log_name(partition), index_name(partition))
        return any((folder / name).exists() for name in names)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()

    def find(self, text: str) -> None:
        """Add a finding about this log."""
        self.findings.append(f"{self.path}: {text}")

    def _read_index(self) -> Reading | None:
        reading = self._try_index()
        for _ in range(VERIFY_INDEX_RETRIES):
            if reading is None or reading.damage is None:
                break
            # A collector may just be appending to it.
            time.sleep(VERIFY_INDEX_RETRY_S)
            reading = self._try_index()
        if reading is not None and reading.damage is not None:
            self.findings.append(f"{self.index_path}: {reading.damage}")
        return reading

    def _try_index(self) -> Reading | None:
        try:
            return read_index(self.index_path)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StartError(f"cannot read {self.index_path}: {error.strerror}") from error

    def read_index(self, stream_created_ns: int | None) -> None:
        """Compare the index with the stream's identity; None if there is no stream.

        Without an index, or with one of something else, the log is read to its end.
        """
        records = [] if self._reading is None else self._reading.records.of_last_stream()
        if not records and not self.size_bytes and stream_created_ns is not None:
            # A collector writes both when there is something.
            self._records = [
                Record(
                    partition=self._partition,
                    partitions=self._partitions,
                    stream_created_ns=stream_created_ns,
                )
            ]
            return
        if self._reading is None:
            self.find(f"it has no index {self.index_path.name}")
            return
        if not records:
            self.find(f"its index {self.index_path.name} has no record")
            return
        first = records[0]
        if (first.partition, first.partitions) != (self._partition, self._partitions):
            self.find(f"its index is of partition {first.partition} of {first.partitions}")
            self.is_comparable = False
        elif stream_created_ns not in (None, first.stream_created_ns):
            self.find("its index is of another stream, which was deleted")
            self.is_comparable = False
        else:
            self._records = records

    @property
    def last(self) -> Record | None:
        """The last record of the index; None if the log is read to its end."""
        return self._records[-1] if self._records else None

    def bytes_behind(self, sequence: int) -> int | None:
        """Return a size of the log that has all numbers up to a message; None if that is unknown.

        It is the smallest one that the index has.
        """
        if not self._records:
            return 0 if sequence == 0 else None
        return next((each.log_bytes for each in self._records if each.sequence >= sequence), None)

    def scan(self, progress: Progress) -> None:
        """Take the log's numbers in, and compare it with its index. Raises StartError."""
        last = self.last
        end = self.size_bytes // LINE_BYTES * LINE_BYTES if last is None else last.log_bytes
        if end > self.size_bytes:
            self.find(f"it has {self.size_bytes} of the {end} bytes that its index says")
            end = self.size_bytes
        scan = _Scan(self, self._range, progress)
        for record in self._records:
            if record.log_bytes > end:
                break
            scan.go_on(record.log_bytes)
            if not scan.found and self.kernel.sum != record.sum:
                self.find(
                    f"its index has another sum of the numbers before byte {record.log_bytes}, "
                    f"message {record.sequence}"
                )
                break
        scan.go_on(end)
        self.end_bytes, self.tail_bytes = end, self.size_bytes - end
        for findings in (scan.bad, scan.foreign, scan.repeated):
            if findings.text is not None:
                self.find(findings.text)
        if scan.gave_up:
            self.find("with so many lines that should not be there it was not read to its end")
        self.is_comparable = self.is_comparable and not scan.gave_up
        self.has_whole_lines = not scan.bad.count
        self.report.numbers = self.kernel.unique
        self.report.sequence = 0 if last is None else last.sequence

    def read(self, offset: int, size: int) -> bytes:
        """Return bytes of the log. Raises StartError."""
        self._look()
        try:
            return os.pread(self._fd, size, offset)
        except OSError as error:
            raise StartError(f"cannot read {self.path}: {error.strerror}") from error


class _Scan:
    """Takes a log's lines in, and notes those that are no numbers, foreign ones, and repeats."""

    def __init__(self, copy: Copy, collected: Range, progress: Progress) -> None:
        self.bad, self.foreign, self.repeated = Findings(), Findings(), Findings()
        self._copy = copy
        self._range = collected
        self._progress = progress
        self._offset = 0
        self._within_bad = False

    @property
    def found(self) -> int:
        """How many lines should not be there."""
        return self.bad.count + self.foreign.count + self.repeated.count

    @property
    def gave_up(self) -> bool:
        """Whether they are so many that the rest of the log is not read."""
        return self.found > VERIFY_LINES_MAX

    def go_on(self, end: int) -> None:
        """Take in what is before byte `end`."""
        while self._offset < end and not self.gave_up:
            chunk = memoryview(self._copy.read(self._offset, min(CHUNK_BYTES, end - self._offset)))
            if not chunk:
                self.bad.add(f"the log was cut at byte {self._offset} meanwhile")
                return
            used = self._take(chunk)
            self._offset += used
            self._progress(used)

    def _take(self, chunk: memoryview) -> int:
        at = 0
        if self._within_bad:
            at = self._skip_bad(chunk, 0)
        while at < len(chunk) and not self.gave_up:
            at += self._copy.kernel.take_lines(chunk[at:])
            if at < len(chunk):
                at = self._note(chunk, at)
        return at

    def _note(self, chunk: memoryview, at: int) -> int:
        """Note what is wrong with the line at `at`; return where the next one begins."""
        line = bytes(chunk[at : at + LINE_BYTES])
        where = f"at byte {self._offset + at}"
        if _LINE.fullmatch(line) is None:
            self.bad.add(f"the line {where} is no number")
            return self._skip_bad(chunk, at)
        number = line[:-1].decode()
        if self._range.first <= int(number) < self._range.end:
            self.repeated.add(f"number {number} {where} is there a second time")
        else:
            self.foreign.add(f"number {number} {where} is of another partition")
        return at + LINE_BYTES

    def _skip_bad(self, chunk: memoryview, at: int) -> int:
        """Return where the line ends that `at` is in, which may go on in the next chunk."""
        newline = bytes(chunk[at:]).find(b"\n")
        self._within_bad = newline < 0
        return len(chunk) if newline < 0 else at + newline + 1


def first_new_line(copy: Copy, base_bytes: int, bitmap: Memory) -> Findings:
    """Return the numbers behind a log's first `base_bytes` that neither these nor `bitmap` has.

    Nothing is found in a log with lines that are no numbers, whose lines are not in their places.
    """
    found = Findings()
    if not copy.has_whole_lines:
        return found
    arena, batch = (bytearray(HEADROOM_BYTES + CHUNK_BYTES) for _ in range(2))
    chunk = memoryview(arena)[HEADROOM_BYTES:]
    kernel = variants()[0].bind(arena, bytearray(bitmap), batch)
    offset = 0
    while offset < copy.end_bytes:
        end = base_bytes if offset < base_bytes else copy.end_bytes
        lines = copy.read(offset, min(CHUNK_BYTES, end - offset))
        if not lines:
            break
        chunk[: len(lines)] = lines
        kernel.ingest(HEADROOM_BYTES, HEADROOM_BYTES + len(lines))
        used, kernel.batch_used = kernel.batch_used, 0
        if used and offset >= base_bytes:
            line = bytes(batch[:LINE_BYTES])
            at = next(
                i for i in range(0, len(lines), LINE_BYTES) if lines[i : i + LINE_BYTES] == line
            )
            found.add(
                f"number {line[:-1].decode()} at byte {offset + at} is in no message",
                used // LINE_BYTES,
            )
        offset += len(lines)
    return found
