"""An earlier run's log, taken up again: its numbers into the bitmap, its torn tail cut off."""

import os
import time
from collections.abc import Callable

from numbers_uring.errors import StartError, StopRequestedError
from numbers_uring.ingest.kernel import Kernel, Memory
from numbers_uring.limits import RESUME_PROGRESS_S
from numbers_uring.log.scan import Scan, scan
from numbers_uring.log.writer import NumbersLog
from numbers_uring.words import counted


def resume(
    log: NumbersLog,
    kernel: Kernel,
    bitmap: Memory,
    *,
    say: Callable[[str], None],
    warn: Callable[[str], None],
    stop_requested: Callable[[], bool],
) -> Scan:
    """Set the bits of the log's numbers in `bitmap`, and make `log` append after its last line.

    Returns what was found.

    `say` is told how far it is and what was found, `warn` that instead where a torn tail was cut.
    Raises StartError, with the file as it was, where it has something else than numbers before its
    end; StopRequestedError, likewise, when `stop_requested` says so on the way.
    """
    begin_s = time.monotonic()
    progress = _Progress(log, say, stop_requested)
    try:
        fd = log.open_for_reading()
        try:
            progress.size_bytes = os.fstat(fd).st_size
            found = scan(fd, kernel, bitmap, progress=progress.note)
        finally:
            os.close(fd)
    except OSError as error:
        raise StartError(f"cannot read the log {log.path}: {error.strerror}") from error
    if found.first_bad_offset is not None:
        raise StartError(
            f"cannot resume the log {log.path}: the line at byte {found.first_bad_offset} is not a "
            "number; remove it with 'numbers-uring check --repair'"
        )
    log.keep(found.consumed_bytes)
    report = warn if found.torn_bytes else say
    report(f"resumed {log.path}: {_summary(found)} in {time.monotonic() - begin_s:.1f} s")
    return found


def _summary(found: Scan) -> str:
    parts = [counted(found.unique, "number")]
    if found.duplicates:
        parts.append(f"{found.duplicates} of them again")
    if found.torn_bytes:
        parts.append(f"a torn tail of {counted(found.torn_bytes, 'byte')} cut off")
    return ", ".join(parts)


class _Progress:
    def __init__(
        self, log: NumbersLog, say: Callable[[str], None], stop_requested: Callable[[], bool]
    ) -> None:
        self.size_bytes = 0
        self._log = log
        self._say = say
        self._stop_requested = stop_requested
        self._read_bytes = 0
        self._due_s = time.monotonic() + RESUME_PROGRESS_S

    def note(self, chunk_bytes: int) -> None:
        if self._stop_requested():
            raise StopRequestedError
        self._read_bytes += chunk_bytes
        if time.monotonic() >= self._due_s:
            self._due_s += RESUME_PROGRESS_S
            share = 100 * self._read_bytes // max(self.size_bytes, 1)
            self._say(f"resuming {self._log.path}: {share} % of {self.size_bytes / 1e9:.1f} GB")
