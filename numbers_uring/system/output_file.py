"""A file that gets its contents at the end of a run, and is found to be writable at the start."""

import os
import stat
from contextlib import suppress
from pathlib import Path
from typing import Self

from numbers_uring.errors import StartError


class OutputFile:
    """Opens `path` at once, and changes nothing in an existing file before `write` is called.

    As a context manager it closes the file, and removes one that it had made and nobody has
    written. Raises StartError where the file can't be opened, or is not a regular one.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._made = not path.exists()
        try:
            # Not to wait for the reader of a pipe, which is no regular file either.
            flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK
            self._fd = os.open(path, flags, 0o666)
        except OSError as error:
            raise StartError(f"cannot write {path}: {error.strerror}") from error
        if not stat.S_ISREG(os.fstat(self._fd).st_mode):
            os.close(self._fd)
            raise StartError(f"cannot write {path}: not a regular file")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def write(self, data: bytes) -> None:
        """Replace the contents by `data`. Raises OSError."""
        self._made = False
        os.ftruncate(self._fd, 0)
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(self._fd, rest) :]

    def close(self) -> None:
        """Close the file; once it is closed, do nothing."""
        if self._fd < 0:
            return
        os.close(self._fd)
        self._fd = -1
        if self._made:
            with suppress(OSError):
                self.path.unlink()
