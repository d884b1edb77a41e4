"""Checks an index of a log: that each of its records agrees with the log."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from numbers_uring.cluster.collector.kernel import CollectKernel
from numbers_uring.cluster.collector.log_scan import LogScan
from numbers_uring.cluster.index import Record, read_index
from numbers_uring.cluster.partitions import index_name, log_name, range_of
from numbers_uring.errors import StartError
from numbers_uring.ingest.kernel import Memory
from numbers_uring.limits import LINE_BYTES
from numbers_uring.log.check import Log

_LOG_NAME = re.compile(r"numbers\.([0-9]{1,4})\.log")
_INDEX_NAME = re.compile(r"numbers\.([0-9]{1,4})\.index")


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexFindings:
    """What an index says, and what is wrong with it."""

    path: Path
    records: int
    """Those that agree with the log, of its last stream."""
    sequence: int
    """The last message that they have."""
    findings: list[str] = field(default_factory=list)


def log_of(path: Path) -> Path:
    """Return the log of an index; a path that is none stays as it is."""
    match = _INDEX_NAME.fullmatch(path.name)
    return path if match is None else path.with_name(log_name(int(match[1])))


def check_index(log: Log, bitmap: Memory) -> IndexFindings | None:
    """Compare a log with the index beside it; None if there is none.

    Whatever is in `bitmap`, before and afterwards, means nothing. Raises StartError where one of
    the two can't be read.
    """
    match = _LOG_NAME.fullmatch(log.path.name)
    if match is None:
        return None
    partition = int(match[1])
    path = log.path.with_name(index_name(partition))
    try:
        reading = read_index(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StartError(f"cannot read {path}: {error.strerror}") from error
    findings = [] if reading.damage is None else [reading.damage]
    known = reading.records.of_last_stream()
    if known and known[0].partition != partition:
        findings.append(f"it is of partition {known[0].partition}")
        known = []
    agreed = 0
    try:
        for record, finding in _disagreements(log, known, bitmap):
            if finding is None:
                agreed += 1
            else:
                findings.append(f"{finding}, message {record.sequence}")
                break
    except OSError as error:
        raise StartError(f"cannot read {log.path}: {error.strerror}") from error
    return IndexFindings(
        path=path,
        records=agreed,
        sequence=known[agreed - 1].sequence if agreed else 0,
        findings=findings,
    )


def _disagreements(
    log: Log, known: list[Record], bitmap: Memory
) -> Iterator[tuple[Record, str | None]]:
    """Yield each record with what the log has else; nothing more can be said behind the first."""
    if not known:
        return
    collected = range_of(known[0].partition, known[0].partitions)
    kernel = CollectKernel(collected, bitmap, LINE_BYTES)
    kernel.reset()
    scan = LogScan(log.fd, kernel)
    for record in known:
        reached = scan.take(record.log_bytes)
        if reached < record.log_bytes:
            yield record, f"the log agrees up to byte {reached} of {record.log_bytes}"
        elif kernel.sum != record.sum:
            yield record, f"the log has other numbers before byte {record.log_bytes}"
        else:
            yield record, None
