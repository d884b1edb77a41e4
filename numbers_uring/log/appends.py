"""The appends of compiled passes: see native/log/append.h."""

from typing import Any, NamedTuple

from numbers_uring._native import ffi, lib
from numbers_uring.limits import SLOW_APPEND_S


class AppendsEnd(NamedTuple):
    """What passes have done in a file."""

    end_bytes: int
    """The end of the file."""
    lines: int
    """Whole lines that they have appended."""
    last_line: bytes
    """The last of those."""
    as_expected: bool
    """Whether none of them has found anything unusual."""
    torn: bytes
    """What they have appended of a further line."""
    fstat_errno: int
    """Why the file could not be looked at, or 0."""
    write_errno: int
    """Why the last append failed, or 0."""


class CompiledAppends:
    """Lets compiled passes append to a file, by the caller's leave. Raises MemoryError."""

    def __init__(self) -> None:
        self.pointer: Any = ffi.gc(lib.nu_log_new(), lib.nu_log_free)
        """The `struct nu_log`."""
        if not self.pointer:
            raise MemoryError
        self._file: Any = ffi.new("struct nu_log_file *", {"slow_ns": int(SLOW_APPEND_S * 1e9)})
        self._end: Any = ffi.new("struct nu_log_end *")

    @property
    def lines(self) -> int:
        """Whole lines that were appended, to all files; from any thread."""
        return lib.nu_log_lines(self.pointer)  # type: ignore[no-any-return]

    @property
    def write_s(self) -> float:
        """Seconds spent in write(2); from any thread."""
        return lib.nu_log_write_ns(self.pointer) / 1e9  # type: ignore[no-any-return]

    def allow(self, fd: int, end_bytes: int) -> None:
        """Let passes append to the file, which ends there, until one finds something unusual."""
        self._file.fd, self._file.end_bytes = fd, end_bytes
        lib.nu_log_allow(self.pointer, self._file)

    def stop(self) -> AppendsEnd | None:
        """Let them no longer; return what they have done since `allow`, None where that is known.

        Waits for an append that has begun.
        """
        if not lib.nu_log_stop(self.pointer, self._end):
            return None
        end = self._end
        return AppendsEnd(
            end_bytes=end.end_bytes,
            lines=end.lines,
            last_line=bytes(ffi.buffer(end.last_line)) if end.lines else b"",
            as_expected=end.as_expected,
            torn=bytes(ffi.buffer(end.torn, end.torn_bytes)),
            fstat_errno=end.fstat_error,
            write_errno=end.write_error,
        )
