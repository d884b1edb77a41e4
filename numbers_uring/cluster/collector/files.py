"""The log of one partition and its index: what a start finds, and how both grow.

The log is a function of the stream. A start takes up the last record of the index that the log
agrees with. What the log has behind it, the tail, is neither trusted nor dropped: the stream's
messages come again from that record on, and the lines that they bring are compared with it.
"""

import errno
import os
import re
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from numbers_uring.cluster.collector.index_file import IndexFile
from numbers_uring.cluster.collector.kernel import CollectKernel
from numbers_uring.cluster.collector.log_scan import LogScan
from numbers_uring.cluster.index import Record, Records
from numbers_uring.cluster.partitions import index_name, log_name, stream_name
from numbers_uring.config import Fsync
from numbers_uring.errors import SinkError, StartError
from numbers_uring.limits import LINE_BYTES, LOG_SCAN_CHUNK_BYTES
from numbers_uring.log.calls import FileCalls
from numbers_uring.log.durability import Durability
from numbers_uring.log.file import LogFile
from numbers_uring.log.opening import open_locked
from numbers_uring.log.progress import StartProgress
from numbers_uring.words import counted

_LINE = re.compile(rb"[0-9]{9}\n")
_CHUNK_BYTES = LOG_SCAN_CHUNK_BYTES // LINE_BYTES * LINE_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class Stream:
    """What a start has to know of the partition's stream."""

    created_ns: int
    first_sequence: int
    """Of the first message that it still has."""
    was_put_back: bool = False
    """Whether it lacks the message of the last record, or has another one in its place."""


class PartitionFiles:
    """The log and the index of one partition in `folder`, for one thread at a time.

    The constructor opens and locks them, and leaves them as they are; `start` comes next. `say`
    takes one line for the operator, `inform` one that is no warning. Raises StartError.
    """

    def __init__(
        self,
        folder: Path,
        partition: int,
        partitions: int,
        *,
        say: Callable[[str], None],
        inform: Callable[[str], None],
        calls: FileCalls | None = None,
    ) -> None:
        self.log_path = folder / log_name(partition)
        self.written_bytes = 0
        """Bytes of lines that this run has written to the log."""
        self.write_s = 0.0
        """Seconds spent in write(2) for the log."""
        self._partition = partition
        self._partitions = partitions
        self._say = say
        self._inform = inform
        calls = calls or FileCalls()
        self._index = IndexFile(folder / index_name(partition), say=say, calls=calls)
        fd = open_locked(self.log_path, Fsync.ALWAYS, calls.open)
        try:
            self._log = LogFile(self.log_path, fd, say=say, calls=calls)
        except OSError as error:
            os.close(fd)
            raise StartError(f"cannot open the log {self.log_path}: {error.strerror}") from error
        self._durability = Durability(
            self.log_path,
            self._log,
            Fsync.ALWAYS,
            write_behind=False,
            drop_synced=True,
            wake=lambda: None,
            calls=calls,
        )
        self.record = Record(partition=partition, partitions=partitions, stream_created_ns=0)
        """The last record, or that which a start begins from: the log is on disk up to it.

        From any thread, as `synced`.
        """
        self.synced = self.record
        """The last record that is on disk itself."""
        self._log_bytes = 0
        """What the stream's messages have brought of the log so far."""

    @property
    def records(self) -> Records:
        """What the index has."""
        return self._index.records

    @property
    def sync_s(self) -> float:
        """Seconds spent in fdatasync(2) for the log."""
        return self._durability.sync_s

    @property
    def tail_bytes(self) -> int:
        """What the log has of an earlier run that no message has brought yet."""
        return self._log.end_bytes - self._log_bytes

    def close(self) -> None:
        """Close the files, which unlocks them, without a sync."""
        self._index.close()
        self._durability.close()
        with suppress(OSError):
            self._log.close()

    # Starting.

    def start(
        self,
        kernel: CollectKernel,
        stream: Stream,
        *,
        replay: bool,
        progress: Callable[[str], None],
        stop_requested: Callable[[], bool],
    ) -> None:
        """Set `record` to where to go on, and take the log up to there in to the empty `kernel`.

        With `replay` a log of another stream, or of one that has lost messages which are not in the
        log for certain, counts as it is. `progress` is told how far a long scan is. Raises
        StartError; StopRequestedError if `stop_requested` returns True on the way.
        """
        told = StartProgress(
            f"resuming {self.log_path}", self._log.end_bytes, progress, stop_requested
        )
        scan = LogScan(self._log.fd, kernel, told)
        try:
            self._start(scan, stream, replay)
        except OSError as error:
            raise StartError(f"cannot read the log {self.log_path}: {error.strerror}") from error
        except SinkError as error:
            raise StartError(str(error)) from error
        self.synced = self.record
        self._log_bytes = self.record.log_bytes
        self._inform(
            f"resumed {self.log_path}: {counted(self.record.count, 'number')}, up to message "
            f"{self.record.sequence}, in {scan.seconds:.1f} s"
            + (f"; {counted(self.tail_bytes, 'byte')} to be compared" if self.tail_bytes else "")
        )

    def _start(self, scan: LogScan, stream: Stream, replay: bool) -> None:
        known = self._index.records.of_last_stream()
        base = Record(
            partition=self._partition,
            partitions=self._partitions,
            stream_created_ns=stream.created_ns,
        )
        if known:
            self._require_partition(known[0])
            if known[0].stream_created_ns != stream.created_ns:
                if not replay:
                    raise StartError(
                        f"the index {self._index.path} is of another stream "
                        f"{stream_name(self._partition)}, which was deleted: --replay keeps the "
                        "numbers of the log and adds those of the new stream"
                    )
                self._begin_anew(scan, stream, base)
                return
        known = known or [base]
        agreed = self._agreed(scan, known)
        is_lost = agreed is None or agreed.sequence + 1 < stream.first_sequence
        if replay and (is_lost or stream.was_put_back):
            self._begin_anew(scan, stream, base)
            return
        if agreed is None:
            raise StartError(
                f"the log {self.log_path} is not the one that its index begins with, of "
                f"{known[0].log_bytes} bytes: put that back, or keep this one with --replay"
            )
        self.record = agreed
        scan.rewind(agreed)
        if agreed != known[-1]:
            behind = len(known) - known.index(agreed) - 1
            self._index.forget(len(self._index.records) - behind)
            self._say(
                f"the log {self.log_path} has not what its index says of it behind byte "
                f"{agreed.log_bytes}: going on from message {agreed.sequence}"
            )

    def _require_partition(self, record: Record) -> None:
        if (record.partition, record.partitions) != (self._partition, self._partitions):
            raise StartError(
                f"the index {self._index.path} is of partition {record.partition} of "
                f"{record.partitions}, not of partition {self._partition} of {self._partitions}"
            )

    def _agreed(self, scan: LogScan, known: Sequence[Record]) -> Record | None:
        """Return the last record that the log agrees with."""
        agreed = None
        for record in known:
            if record.log_bytes > self._log.end_bytes or not scan.agrees(record):
                break
            agreed = record
        return agreed

    def _begin_anew(self, scan: LogScan, stream: Stream, base: Record) -> None:
        """Count all of the log as seen, and begin the stream from its first message."""
        whole_bytes = self._log.end_bytes - self._log.end_bytes % LINE_BYTES
        scan.restart()
        offset = scan.take(whole_bytes)
        if offset < whole_bytes:
            raise StartError(
                f"cannot resume the log {self.log_path}: the line at byte {offset} is not a number "
                "of this partition, or is a repeat; remove it with 'numbers-uring check --repair'"
            )
        if whole_bytes < self._log.end_bytes:
            self._cut(whole_bytes)
        self.record = Record(
            partition=base.partition,
            partitions=base.partitions,
            stream_created_ns=base.stream_created_ns,
            sequence=max(stream.first_sequence - 1, 0),
            log_bytes=whole_bytes,
            sum=scan.kernel.sum,
        )
        known = self._index.records.of_last_stream()
        if known and known[0].stream_created_ns == base.stream_created_ns:
            # The records of a stream go on from one base.
            self._index.forget(len(self._index.records) - len(known))
        self._durability.grown(self._log)
        if not (self._index.append([self.record]) and self._index.sync()):
            raise StartError(f"no space for the index {self._index.path}")
        self._say(
            f"the log {self.log_path} keeps its {counted(self.record.count, 'number')}: taking in "
            f"the stream {stream_name(self._partition)} from its first message"
        )

    # Growing.

    def append(self, lines: memoryview) -> int:
        """Add lines that messages bring, after those of all before; return how many bytes are in.

        Fewer than len(lines) mean that there is no space for the rest; the next call has to begin
        with that. Raises SinkError.
        """
        self._require_log()
        try:
            done = self._compare(lines) if self.tail_bytes else 0
            if done < len(lines):
                done += self._write(lines[done:])
        except OSError as error:
            raise SinkError(f"cannot write the log {self.log_path}: {error.strerror}") from error
        return done

    def _write(self, lines: memoryview) -> int:
        begin_s = time.monotonic()
        before_lines = self._log.lines
        try:
            written = self._log.append(lines)
        finally:
            self.write_s += time.monotonic() - begin_s
            self.written_bytes += (self._log.lines - before_lines) * LINE_BYTES
        self._log_bytes += written
        return written

    def commit(self, *records: Record) -> bool:
        """Sync the log, then write these records: the last one is `record` then.

        Nothing that goes by them is allowed before `sync`: a log may go on from an earlier record,
        as long as its stream has the messages behind that. Returns False if there is no space for
        them. Raises SinkError.
        """
        assert records[-1].log_bytes == self._log_bytes
        self._require_log()
        self._durability.grown(self._log)
        if not self._index.append(records if self.records else (self.record, *records)):
            return False
        self.record = records[-1]
        return True

    def sync(self) -> bool:
        """Sync the index: `synced` is `record` then. Return False if there is no space for it.

        Raises SinkError.
        """
        if not self._index.sync():
            return False
        self.synced = self.record
        return True

    def _require_log(self) -> None:
        """Raise SinkError where the log is no longer what we have made of it."""
        try:
            state = self.log_path.stat()
            ours = self._log.state()
            whole = os.path.samestat(state, ours) and ours.st_size == self._log.end_bytes
        except OSError:
            whole = False
        if not whole:
            raise SinkError(
                f"the log {self.log_path} was removed, replaced or changed by another process: "
                "the next start puts back what is missing, from the stream"
            )

    # The tail.

    def _compare(self, lines: memoryview) -> int:
        """Return how many bytes of these lines the tail has, and drop what was damaged of it."""
        done = 0
        while done < len(lines) and self.tail_bytes:
            size = min(_CHUNK_BYTES, len(lines) - done, self.tail_bytes)
            there = self._pread(size, self._log_bytes)
            wanted = bytes(lines[done : done + size])
            if there == wanted and size % LINE_BYTES == 0:
                done += size
                self._log_bytes += size
                continue
            same = _equal_lines(there, wanted) * LINE_BYTES
            done += same
            self._log_bytes += same
            self._judge(there[same : same + LINE_BYTES])
        return done

    def _pread(self, size: int, offset: int) -> bytes:
        data = os.pread(self._log.fd, size, offset)
        while len(data) < size:
            more = os.pread(self._log.fd, size - len(data), offset + len(data))
            if not more:
                raise OSError(errno.EIO, "the file became shorter")
            data += more
        return data

    def _judge(self, line: bytes) -> None:
        """Cut off a tail that goes on with `line`, not a line that the stream has."""
        offset = self._log_bytes
        if _LINE.fullmatch(line):
            raise SinkError(
                f"the log {self.log_path} has another number at byte {offset} than its stream: it "
                "is from elsewhere or was altered, and nothing was changed in it"
            )
        cut_bytes = self.tail_bytes
        self._cut(offset)
        self._say(
            f"the log {self.log_path} ended with {cut_bytes} damaged bytes, as after a power cut: "
            f"cut off at byte {offset}, and written again from the stream"
        )

    def _cut(self, size_bytes: int) -> None:
        try:
            self._log.truncate(size_bytes)
        except OSError as error:
            raise SinkError(f"cannot truncate the log {self.log_path}: {error.strerror}") from error
        self._durability.switch(self._log)


def _equal_lines(one: bytes, other: bytes) -> int:
    """Return how many whole lines two chunks of the same size have in common at their start."""
    for line in range(len(one) // LINE_BYTES):
        start = line * LINE_BYTES
        if one[start : start + LINE_BYTES] != other[start : start + LINE_BYTES]:
            return line
    return len(one) // LINE_BYTES
