"""Compares all logs of one partition with its stream and with each other."""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from numbers_uring.cluster.collector.feed import Message
from numbers_uring.cluster.collector.kernel import CollectKernel, ForeignNumberError
from numbers_uring.cluster.collector.lookup import NoStreamError, StreamState, read_state
from numbers_uring.cluster.collector.reader import Reader, StreamReplacedError, malformed
from numbers_uring.cluster.collector.skips import Skips
from numbers_uring.cluster.collector.waits import Wait
from numbers_uring.cluster.partitions import range_of, stream_name
from numbers_uring.cluster.values import Skip, Trim
from numbers_uring.cluster.verify.copy import BATCH_BYTES, Copy, Findings, first_new_line
from numbers_uring.cluster.verify.report import PartitionReport
from numbers_uring.errors import StartError
from numbers_uring.ingest.bitmap import reserve
from numbers_uring.limits import LINE_BYTES, LOG_SCAN_CHUNK_BYTES
from numbers_uring.words import counted

if TYPE_CHECKING:
    from nats.js import JetStreamContext


async def verify_partition(
    js: "JetStreamContext",
    partition: int,
    partitions: int,
    folders: Sequence[Path],
    skips: Iterable[Skip],
    trim: Trim | None,
    progress: Callable[[int], None],
) -> PartitionReport:
    """Return what the logs of a partition in `folders` have, and what its stream.

    `skips` are an operator's decisions, and `trim` is what collectors have announced. What is
    stored after the start is not looked at. `progress` is called with sizes of logs that were read.
    Raises StartError, and what the client raises: nats.errors.Error, TimeoutError, OSError.
    """
    with ExitStack() as opened:
        copies = [
            opened.enter_context(Copy(folder, partition, partitions, _look))
            for folder in folders
            if Copy.exists(folder, partition)
        ]
        # The logs were opened before: the stream is never behind them.
        try:
            state = await read_state(js, stream_name(partition))
        except NoStreamError:
            state = None
        report = PartitionReport(partition=partition, copies=[copy.report for copy in copies])
        if not copies:
            report.findings.append("there is no log of it")
        for copy in copies:
            copy.read_index(None if state is None else state.created_ns)
            copy.scan(progress)
        for copy in copies[1:]:
            report.findings.extend(_difference(copies[0], copy))
        if state is None:
            report.findings.append(f"the stream {stream_name(partition)} does not exist")
        else:
            skipped = Skips(partition, state.created_ns)
            skipped.update(skips)
            comparison = _Comparison(report, state, copies, partitions, skipped, trim)
            await comparison.run(js)
        for copy in copies:
            report.findings.extend(copy.findings)
        return report


def _difference(first: Copy, second: Copy) -> list[str]:
    """Return a finding where two logs differ within what both indexes say is synced."""
    end = min(first.end_bytes, second.end_bytes)
    for offset in range(0, end, LOG_SCAN_CHUNK_BYTES):
        size = min(LOG_SCAN_CHUNK_BYTES, end - offset)
        one, other = first.read(offset, size), second.read(offset, size)
        if one != other:
            pairs = enumerate(zip(one, other, strict=True))
            at = next(at for at, (byte, another) in pairs if byte != another)
            line = (offset + at) // LINE_BYTES * LINE_BYTES
            texts = [
                copy.read(line, LINE_BYTES).decode(errors="backslashreplace").rstrip("\n")
                for copy in (first, second)
            ]
            return [
                f"{second.path} differs from {first.path} from the line at byte {line} on: "
                f"{texts[1]!r} and {texts[0]!r}"
            ]
    return []


class _Comparison:
    """Takes in the stream's messages, and looks at each log when all of its messages have come."""

    def __init__(
        self,
        report: PartitionReport,
        state: StreamState,
        copies: Sequence[Copy],
        partitions: int,
        skipped: Skips,
        trim: Trim | None,
    ) -> None:
        self._report = report
        self._state = state
        self._stream = stream_name(report.partition)
        self._skipped = skipped
        self._bitmap = reserve()
        self._range = range_of(report.partition, partitions)
        self._kernel = CollectKernel(self._range, self._bitmap, BATCH_BYTES)
        is_trimmed = trim is not None and trim.stream_created_ns == state.created_ns
        self._trimmed_before = trim.sequence if trim is not None and is_trimmed else 1
        # A stream that never had a message begins at 0.
        self._first = max(1, state.first_sequence)
        self._uncovered = self._first - 1
        """The last message before the next one whose numbers are not known."""
        self._gaps, self._bad = Findings(), Findings()
        self._waiting = sorted(
            (copy for copy in copies if copy.is_comparable), key=self._last_of, reverse=True
        )
        """Those that are not looked at yet, the next one last."""

    def _last_of(self, copy: Copy) -> int:
        return self._state.last_sequence if copy.last is None else copy.last.sequence

    async def run(self, js: "JetStreamContext") -> None:
        report, state = self._report, self._state
        report.first_sequence, report.last_sequence = self._first, state.last_sequence
        # Damage to a stream's first message looks like a purge.
        self._note_gap(self._trimmed_before, self._first - 1)
        position = self._first - 1
        try:
            while position < state.last_sequence:
                position = await self._read(js, position)
        except StreamReplacedError as error:
            raise StartError(str(error)) from error
        while self._waiting:
            self._judge(self._waiting.pop())
        report.numbers = self._kernel.unique
        for findings in (self._gaps, self._bad):
            if findings.text is not None:
                report.findings.append(findings.text)

    async def _read(self, js: "JetStreamContext", position: int) -> int:
        """Take in what is behind `position`, up to what a collector would wait for.

        Returns where to go on: behind that.
        """
        reader = Reader(
            js,
            self._report.partition,
            position=position,
            time_ns=0,
            created_ns=self._state.created_ns,
            skipped=(),
            say=_ignore,
            inform=_ignore,
        )
        try:
            while reader.position < self._state.last_sequence:
                messages = await reader.read()
                for message in messages:
                    if message.sequence <= self._state.last_sequence:
                        self._take(message)
                if not messages and reader.waits is not None:
                    return self._pass(reader.waits)
            return reader.position
        finally:
            await reader.close()

    def _pass(self, wait: Wait) -> int:
        """Note messages that are in no replica of the stream; return the last one."""
        if wait.kind not in ("gap", "trimmed"):
            what = wait.text.removesuffix("; retrying")
            raise StartError(f"cannot verify partition {self._report.partition}: {what}")
        first, last = wait.first_sequence, min(wait.last_sequence, self._state.last_sequence)
        # What was trimmed meanwhile is on disk in as many logs as are wanted.
        if wait.kind == "gap":
            self._note_gap(first, last)
        self._judge_before(first)
        self._uncovered = last
        return last

    def _note_gap(self, first: int, last: int) -> None:
        skipped = self._skipped.count(first, last)
        self._report.skipped += skipped
        if first + skipped > last:
            return
        which = f"message {first} is" if first == last else f"messages {first} to {last} are"
        self._gaps.add(f"{which} missing in the stream {self._stream}")

    def _take(self, message: Message) -> None:
        sequence = message.sequence
        self._judge_before(sequence)
        if sequence in self._skipped:
            self._uncovered = sequence
            self._report.skipped += 1
            return
        why = malformed(message)
        if why is None:
            try:
                self._kernel.take(message.data)
            except ForeignNumberError:
                why = "has numbers of another partition"
        if why is not None:
            self._uncovered = sequence
            self._bad.add(f"message {sequence} of the stream {self._stream} {why}")
            return
        self._kernel.clear()
        for copy in self._waiting:
            copy.kernel.take(message.data)
            lines = copy.kernel.lines()
            if lines:
                number = bytes(lines[: LINE_BYTES - 1]).decode()
                copy.missing.add(
                    f"number {number} of message {sequence} is not in the log",
                    len(lines) // LINE_BYTES,
                )
                copy.kernel.clear()

    # What is said of a log.

    def _judge_before(self, sequence: int) -> None:
        """Judge the logs whose last message was before this one."""
        while self._waiting and self._last_of(self._waiting[-1]) < sequence:
            self._judge(self._waiting.pop())

    def _judge(self, copy: Copy) -> None:
        last = self._last_of(copy)
        copy.report.log_only = copy.kernel.unique - self._kernel.unique
        if copy.missing.text is not None:
            copy.find(copy.missing.text)
        if last > self._state.last_sequence:
            copy.find(
                f"its index ends at message {last}, and the stream at message "
                f"{self._state.last_sequence}: the stream was put back"
            )
        elif last < self._state.last_sequence:
            copy.find(
                f"it is {counted(self._state.last_sequence - last, 'message')} behind: its index "
                f"ends at message {last}, and the stream at message {self._state.last_sequence}"
            )
        elif copy.tail_bytes:
            copy.find(f"its last {copy.tail_bytes} bytes are not in its index")
        if last < self._uncovered:
            return
        base_bytes = copy.bytes_behind(self._uncovered)
        if copy.report.log_only and base_bytes is not None:
            found = first_new_line(copy, base_bytes, self._bitmap)
            if found.text is not None:
                copy.find(found.text)


def _look() -> None:
    """Raise CancelledError where an interrupt waits for the end of what does not await."""
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


def _ignore(_text: str) -> None:
    pass
