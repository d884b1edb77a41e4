"""Reads the files of --seen at a start: their numbers count as repeats."""

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import NamedTuple

from numbers_uring.errors import StartError
from numbers_uring.ingest.kernel import Kernel, Memory
from numbers_uring.limits import SEEN_POLL_S, SEEN_THREADS_MAX
from numbers_uring.log.compressed import CompressedScan, require_end, scan_either
from numbers_uring.log.progress import StartProgress
from numbers_uring.log.seen_files import SeenFile
from numbers_uring.system.threads import start_thread
from numbers_uring.words import counted


class Seen(NamedTuple):
    """What the files of --seen hold together."""

    files: int = 0
    numbers: int = 0
    """Different ones."""


def read_seen(
    files: Sequence[SeenFile],
    kernel: Kernel,
    bitmap: Memory,
    *,
    say: Callable[[str], None],
    stop_requested: Callable[[], bool],
) -> Seen:
    """Set the bits of the files' numbers in `bitmap`.

    `say` is told how far it is, and what was found. Raises StartError where a file can't be read,
    has something else than numbers before its end, or has no end and numbers that no other file
    has; StopRequestedError when `stop_requested` says so on the way.
    """
    if not files:
        say("no file matches --seen")
        return Seen()
    begin_s = time.monotonic()
    reading = f"reading {counted(len(files), 'file')} of --seen"
    size_bytes = sum(file.size_bytes for file in files)
    progress = StartProgress(reading, size_bytes, say, stop_requested)
    unique = duplicates = torn_files = torn_bytes = 0
    for group in _groups(files):
        for file, found in zip(group, _Reading(group, kernel, bitmap).run(progress), strict=True):
            _require_numbers(file, found)
            if found.ends_early:
                _require_copy(file, found, files)
                say(f"{file.path} has no end, as while it is compressed; others have its numbers")
            unique += found.scan.unique
            duplicates += found.scan.duplicates
            if found.scan.torn_bytes and not found.ends_early:
                torn_files += 1
                torn_bytes += found.scan.torn_bytes
    again = f", {duplicates} of them again" if duplicates else ""
    tails = "a torn tail" if torn_files == 1 else "torn tails"
    torn = f", {tails} of {counted(torn_bytes, 'byte')} left out" if torn_bytes else ""
    say(
        f"read {counted(len(files), 'file')} of --seen: {counted(unique + duplicates, 'number')}"
        f"{again}{torn} in {time.monotonic() - begin_s:.1f} s"
    )
    return Seen(len(files), unique)


def _groups(files: Sequence[SeenFile]) -> Iterator[list[SeenFile]]:
    """Yield the files, those that may be unfinished copies of others behind these.

    While gzip works, its unfinished file is beside the complete one. Where it was interrupted
    logrotate renames the unfinished one, so that it does not end in .gz, and starts again.
    """
    for compressed, suffixed in ((False, False), (True, True), (True, False)):
        group = [
            file
            for file in files
            if file.compressed is compressed
            and (not compressed or (file.path.suffix == ".gz") is suffixed)
        ]
        if group:
            yield group


def bad_line_text(file: SeenFile, offset: int) -> str:
    """Return why a file is refused that has something else than a number at `offset`."""
    if file.compressed:
        return f"cannot read {file.path}: uncompressed, the line at byte {offset} is not a number"
    return (
        f"cannot read {file.path}: the line at byte {offset} is not a number; "
        "remove it with 'numbers-uring check --repair'"
    )


def _require_numbers(file: SeenFile, found: CompressedScan) -> None:
    if found.scan.first_bad_offset is not None:
        raise StartError(bad_line_text(file, found.scan.first_bad_offset))


def _require_copy(file: SeenFile, found: CompressedScan, files: Sequence[SeenFile]) -> None:
    """Raise StartError unless other files have all that can be read of a file without its end."""
    original = file.path.with_suffix("")
    has_original = any(other.path == original and not other.compressed for other in files)
    if found.scan.unique or not (found.scan.duplicates or has_original):
        require_end(file.path, found)


class _EndedError(Exception):
    """Another thread has ended the reading."""


class _Reading:
    """Some files of one kind, each of which is read by whichever thread is free.

    Plain ones are read by one: its kernel waits for memory, and two would not be faster.
    """

    def __init__(self, files: Sequence[SeenFile], kernel: Kernel, bitmap: Memory) -> None:
        threads_max = len(os.sched_getaffinity(0)) if files[0].compressed else 1
        self._helpers_max = min(len(files), threads_max, SEEN_THREADS_MAX) - 1
        self._kernel = kernel.shared if self._helpers_max else kernel
        self._bitmap = bitmap
        self._found: dict[SeenFile, CompressedScan] = {}
        self._files = files
        self._waiting = deque(files)
        self._read_bytes = dict.fromkeys(files, 0)
        self._ended = False
        self._failure: Exception | None = None

    def run(self, progress: StartProgress) -> list[CompressedScan]:
        """Read them all; return what each one holds. Raises the first failure."""
        before_bytes = progress.read_bytes

        def look() -> None:
            progress.read_bytes = before_bytes + sum(self._read_bytes.values())
            progress.note(0)
            if self._failure is not None:
                raise self._failure

        helpers: list[threading.Thread] = []
        try:
            with suppress(StartError):  # This thread reads, too.
                for _ in range(self._helpers_max):
                    helpers.append(start_thread(self._help, "files of --seen"))
            self._read(look)
            for helper in helpers:
                while helper.is_alive():
                    helper.join(SEEN_POLL_S)
                    look()
            look()
        finally:
            self._ended = True
            for helper in helpers:
                helper.join()
        return [self._found[file] for file in self._files]

    def _help(self) -> None:
        def look() -> None:
            if self._ended:
                raise _EndedError

        try:
            self._read(look)
        except _EndedError:
            pass
        except Exception as error:
            self._failure = error

    def _read(self, look: Callable[[], None]) -> None:
        """Read one waiting file after the other; call `look` on the way, which may raise."""
        while self._waiting:
            try:
                file = self._waiting.popleft()
            except IndexError:
                return  # Another thread was faster.

            def note(chunk_bytes: int, file: SeenFile = file) -> None:
                self._read_bytes[file] += chunk_bytes
                look()

            self._found[file] = scan_either(
                *(file.path, file.fd, self._kernel, self._bitmap),
                compressed=file.compressed,
                progress=note,
            )
