"""Opens the logs whose numbers `load` sends, once it is sure that they are lines of numbers."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from numbers_uring.cli.progress import bar_of_bytes
from numbers_uring.errors import StartError
from numbers_uring.ingest.bitmap import allocate
from numbers_uring.ingest.native import variants
from numbers_uring.load.model import LineFile
from numbers_uring.log.check import open_logs, total_bytes
from numbers_uring.log.scan import scan
from numbers_uring.system.diagnostics import Diagnostics
from numbers_uring.words import counted


@contextmanager
def open_line_files(paths: Sequence[Path], say: Diagnostics) -> Iterator[tuple[LineFile, ...]]:
    """Open `paths` and read them once; a torn tail is reported and left out.

    Raises StartError where one can't be read or has a line that is no number.
    """
    with open_logs(paths, lock=False) as logs:
        kernel, bitmap = variants()[0], allocate().memory
        files, torn = [], []
        with bar_of_bytes("check   ", total_bytes(logs)) as progress:
            for log in logs:
                try:
                    found = scan(log.fd, kernel, bitmap, progress=progress)
                except OSError as error:
                    raise StartError(f"cannot read {log.path}: {error.strerror}") from error
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
                files.append(LineFile(path=str(log.path), fd=log.fd, numbers=found.lines))
        del kernel, bitmap
        for line in torn:
            say(line)
        yield tuple(files)
