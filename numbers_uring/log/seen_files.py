"""Finds and opens the files of --seen, which a rotation may rename or compress meanwhile.

Not with the standard library's glob, which takes a folder that it cannot read for an empty one:
numbers would then be written again.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from numbers_uring.errors import StartError
from numbers_uring.limits import SEEN_LISTINGS_MAX
from numbers_uring.log.compressed import is_compressed
from numbers_uring.log.opening import open_regular

_WILDCARDS = frozenset("*?[")


@dataclass(frozen=True, slots=True, kw_only=True)
class SeenFile:
    """A file whose numbers count as seen, open to be read."""

    path: Path
    fd: int
    size_bytes: int
    compressed: bool


class SeenFiles:
    """The files that `patterns` match, each open once, until `close`.

    The last part of a pattern may have wildcards, and then need not match any file. The log itself,
    which `is_log` recognizes by its state, is left out. `make_room` is called with the number of
    files before they are opened. Raises StartError where one can't be opened or is of no use.
    """

    def __init__(
        self,
        patterns: Sequence[Path],
        *,
        is_log: Callable[[os.stat_result], bool],
        make_room: Callable[[int], None] = lambda _: None,
    ) -> None:
        self._patterns = patterns
        self._is_log = is_log
        self._make_room = make_room
        self._identities: set[tuple[int, int]] = set()
        self.files: list[SeenFile] = []
        with ExitStack() as on_error:
            on_error.callback(self.close)
            self._open_all()
            on_error.pop_all()

    def close(self) -> None:
        """Close the files; a second call does nothing."""
        for file in self.files:
            with suppress(OSError):
                os.close(file.fd)
        self.files.clear()
        self._identities.clear()

    def _open_all(self) -> None:
        missing: StartError | None = None
        for _ in range(SEEN_LISTINGS_MAX):
            try:
                self._open(list(_matches(self._patterns)))
                # A file that was renamed in between may have been listed under neither name.
                if self._has_all(_matches(self._patterns)):
                    return
            except StartError as error:
                if not isinstance(error.__cause__, FileNotFoundError):
                    raise
                missing = error
            self.close()
        raise missing or StartError("cannot read the files of --seen: they change all the time")

    def _open(self, paths: Sequence[Path]) -> None:
        self._make_room(len(paths))
        for path in paths:
            with ExitStack() as opened:
                fd = open_regular(path)
                opened.callback(os.close, fd)
                try:
                    state = os.fstat(fd)
                    if self._is_log(state) or _identity(state) in self._identities:
                        continue
                    compressed = is_compressed(path, fd)
                except OSError as error:
                    raise StartError(f"cannot read {path}: {error.strerror}") from error
                opened.pop_all()
                self._identities.add(_identity(state))
                self.files.append(
                    SeenFile(path=path, fd=fd, size_bytes=state.st_size, compressed=compressed)
                )

    def _has_all(self, paths: Iterator[Path]) -> bool:
        for path in paths:
            try:
                state = path.stat()
            except FileNotFoundError:
                return False
            except OSError as error:
                raise StartError(f"cannot open {path}: {error.strerror}") from error
            if not self._is_log(state) and _identity(state) not in self._identities:
                return False
        return True


def _identity(state: os.stat_result) -> tuple[int, int]:
    """Return what no other file has as long as this one is open."""
    return state.st_dev, state.st_ino


def _matches(patterns: Sequence[Path]) -> Iterator[Path]:
    """Yield the paths that the patterns stand for now. Raises StartError."""
    for pattern in patterns:
        if _WILDCARDS.isdisjoint(pattern.name):
            yield pattern
            continue
        try:
            names = sorted(path.name for path in pattern.parent.iterdir())
        except OSError as error:
            raise StartError(f"cannot list {pattern.parent}: {error.strerror}") from error
        for name in names:
            # As in a shell, a wildcard does not stand for the dot of a hidden file.
            hidden = name.startswith(".") and not pattern.name.startswith(".")
            if name == pattern.name or (fnmatchcase(name, pattern.name) and not hidden):
                yield pattern.parent / name
