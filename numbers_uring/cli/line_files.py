"""Opens the logs whose numbers `load` sends, once it is sure that they are lines of numbers."""

import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from numbers_uring.cli.progress import bar_of_bytes
from numbers_uring.errors import StartError
from numbers_uring.ingest.bitmap import allocate
from numbers_uring.ingest.kernel import Kernel, Memory
from numbers_uring.ingest.native import variants
from numbers_uring.load.model import LineFile
from numbers_uring.log.check import Log, open_logs, total_bytes
from numbers_uring.log.compressed import require_end, scan_either
from numbers_uring.log.scan import Scan
from numbers_uring.system.diagnostics import Diagnostics
from numbers_uring.words import counted


@contextmanager
def open_line_files(paths: Sequence[Path], say: Diagnostics) -> Iterator[tuple[LineFile, ...]]:
    """Open `paths` and read them once; a torn tail is reported and left out.

    What gzip has compressed is unpacked into a temporary file without a name. Raises StartError
    where one can't be read or unpacked, or has a line that is no number.
    """
    with open_logs(paths, lock=False) as logs, ExitStack() as unpacked:
        kernel, bitmap = variants()[0], allocate().memory
        files, torn = [], []
        with bar_of_bytes("check   ", total_bytes(logs)) as progress:
            for log in logs:
                fd = log.fd
                if log.compressed:
                    fd = unpacked.enter_context(_temporary_file())
                found = _read(log, fd, kernel, bitmap, progress)
                if found.bad_lines:
                    raise StartError(
                        f"cannot send {log.path}: the line at byte {found.first_bad_offset} is no "
                        "number"
                    )
                if found.torn_bytes:
                    torn.append(
                        f"{log.path}: a torn tail of {counted(found.torn_bytes, 'byte')} is not "
                        "sent"
                    )
                files.append(LineFile(path=str(log.path), fd=fd, numbers=found.lines))
        del kernel, bitmap
        for line in torn:
            say(line)
        yield tuple(files)


@contextmanager
def _temporary_file() -> Iterator[int]:
    try:
        file = tempfile.TemporaryFile(prefix="numbers-uring-", buffering=0)  # noqa: SIM115
    except OSError as error:
        raise StartError(f"cannot make a temporary file: {error.strerror}") from error
    with file:
        yield file.fileno()


def _read(
    log: Log, unpacked_fd: int, kernel: Kernel, bitmap: Memory, progress: Callable[[int], None]
) -> Scan:
    """Read a log, and write what was compressed to `unpacked_fd`."""

    def unpack(data: memoryview) -> None:
        try:
            while data:
                data = data[os.write(unpacked_fd, data) :]
        except OSError as error:
            raise StartError(
                f"cannot unpack {log.path} into {tempfile.gettempdir()}: {error.strerror}; "
                "TMPDIR can name another folder"
            ) from error

    found = scan_either(
        *(log.path, log.fd, kernel, bitmap),
        compressed=log.compressed,
        on_unpacked=unpack,
        progress=progress,
    )
    return require_end(log.path, found)
