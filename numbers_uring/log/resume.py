"""An earlier run's log, taken up again: its numbers into the bitmap, its torn tail cut off."""

import os
import time
from collections.abc import Callable

from numbers_uring.errors import StartError
from numbers_uring.ingest.kernel import Kernel, Memory
from numbers_uring.log.progress import StartProgress
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
    try:
        fd = log.open_for_reading()
        try:
            size_bytes = os.fstat(fd).st_size
            progress = StartProgress(f"resuming {log.path}", size_bytes, say, stop_requested)
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
    parts = [counted(found.lines, "number")]
    if found.duplicates:
        parts.append(f"{found.duplicates} of them again")
    if found.torn_bytes:
        parts.append(f"a torn tail of {counted(found.torn_bytes, 'byte')} cut off")
    return ", ".join(parts)
