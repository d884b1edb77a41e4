"""What a kernel is, and the reference kernel in plain Python: the executable specification."""

from contextlib import AbstractContextManager, nullcontext
from enum import IntEnum
from mmap import mmap
from threading import Lock
from typing import Any, NamedTuple, Protocol

from numbers_uring.limits import LINE_BYTES

TERMINATE_LINE = b"terminate\n"

Memory = bytearray | mmap
"""Memory that stays where it is. A kernel that keeps it is given the object, not a view of it:
CPython 3.11 crashes when it collects a cycle with a memoryview whose buffer C code still holds."""


class Verdict(IntEnum):
    """What a kernel says of the bytes it was given."""

    MORE = 0
    """Every line was taken in; at most 9 bytes, the start of a further line, are left."""
    INVALID = 1
    """The bytes after the consumed ones cannot begin a valid line."""
    TERMINATE = 2
    """The last consumed line is `terminate`; what follows it was not parsed."""


class Result(NamedTuple):
    """What one kernel call did."""

    verdict: Verdict
    consumed: int
    """Bytes of whole lines from the start of the input, a `terminate` line included."""
    unique: int
    """Numbers not seen before; the batch holds their lines, 10 bytes each, in order."""
    duplicate: int


class CompiledIntake(Protocol):
    """What compiled passes take many pieces in with, on the memory of an Intake."""

    pointer: Any
    """The `struct nu_intake`."""

    def note_unwritten(self, flag: bytearray, /) -> None:
        """Set the byte to 1 before anything is taken in."""

    def note_complete(self) -> None:
        """Make `complete` tell something."""

    @property
    def complete(self) -> list[int]:
        """The connections of which the last call has taken in at least one whole line."""

    @property
    def rejected(self) -> tuple[int, int]:
        """Where in the arena the line begins that was INVALID, and where its piece ends."""


class BoundKernel(Protocol):
    """A kernel bound to its arena, bitmap and batch, for the hot path.

    `batch_used`, `unique` and `duplicate` grow with each call; the code that
    takes the lines away lowers `batch_used`. `consumed` is the last call's.
    """

    batch_used: int

    @property
    def consumed(self) -> int: ...
    @property
    def unique(self) -> int: ...
    @property
    def duplicate(self) -> int: ...

    def ingest(self, start: int, stop: int) -> int:
        """Take in arena[start:stop] and return a Verdict, or a plain int equal to one.

        Raises ValueError where the batch has less room than stop - start bytes.
        """

    def compile_intake(self, tails: bytearray, /) -> "CompiledIntake | None":
        """Return what compiled passes take in with; None where the kernel is not compiled.

        `tails` is LINE_BYTES long for each connection: its tail, and in the last byte the length.
        """


class Kernel(Protocol):
    """One implementation of the protocol's lines."""

    @property
    def variant(self) -> str:
        """Name the implementation for the start line."""

    @property
    def shared(self) -> "Kernel":
        """The same for several threads with one bitmap: each number is new to exactly one.

        Itself where it is such a kernel.
        """

    def __call__(self, lines: memoryview, bitmap: Memory, batch: memoryview) -> Result:
        """Take in `lines`, set their bits in `bitmap`, put the new ones into `batch`.

        `bitmap` is BITMAP_BYTES long: bit n & 7 of byte n >> 3 stands for number n. `batch` is
        written from its start and must be at least as long as `lines`, else ValueError. No view is
        kept.
        """

    def bind(self, arena: Memory, bitmap: Memory, batch: Memory) -> BoundKernel:
        """Keep the three for the life of the returned object; `arena` is where pieces will lie."""


def _can_become_a_line(start: bytes) -> bool:
    return not start or start.isdigit() or TERMINATE_LINE.startswith(start)


def ingest(lines: memoryview, bitmap: Memory, batch: memoryview) -> Result:
    """Take in `lines` as Kernel.__call__ says, one line at a time."""
    if len(batch) < len(lines):
        raise ValueError("the batch has no room for the lines")
    data = bytes(lines)
    position = used = unique = duplicate = 0
    verdict = Verdict.MORE
    while position + LINE_BYTES <= len(data):
        line = data[position : position + LINE_BYTES]
        digits = line[:-1]
        if not (digits.isdigit() and line.endswith(b"\n")):
            if line != TERMINATE_LINE:
                return Result(Verdict.INVALID, position, unique, duplicate)
            return Result(Verdict.TERMINATE, position + LINE_BYTES, unique, duplicate)
        position += LINE_BYTES
        number = int(digits)
        byte, bit = number >> 3, 1 << (number & 7)
        if bitmap[byte] & bit:
            duplicate += 1
            continue
        bitmap[byte] |= bit
        batch[used : used + LINE_BYTES] = line
        used += LINE_BYTES
        unique += 1
    if not _can_become_a_line(data[position:]):
        verdict = Verdict.INVALID
    return Result(verdict, position, unique, duplicate)


class _BoundPythonKernel:
    def __init__(
        self,
        arena: Memory,
        bitmap: Memory,
        batch: Memory,
        lock: AbstractContextManager[object],
    ) -> None:
        self._lock = lock
        self._arena = memoryview(arena)
        self._bitmap = bitmap
        self._batch = memoryview(batch)
        self.batch_used = self.consumed = self.unique = self.duplicate = 0

    def compile_intake(self, _: bytearray, /) -> None:
        return None

    def ingest(self, start: int, stop: int) -> int:
        with self._lock:
            result = ingest(self._arena[start:stop], self._bitmap, self._batch[self.batch_used :])
        self.consumed = result.consumed
        self.unique += result.unique
        self.duplicate += result.duplicate
        self.batch_used += result.unique * LINE_BYTES
        return result.verdict


class PythonKernel:
    """The reference kernel: slow, and right by inspection."""

    def __init__(self, lock: AbstractContextManager[object] | None = None) -> None:
        self._lock = lock
        self.variant = "python" if lock is None else "python-shared"

    @property
    def shared(self) -> "PythonKernel":
        return PythonKernel(Lock()) if self._lock is None else self

    def __call__(self, lines: memoryview, bitmap: Memory, batch: memoryview) -> Result:
        return ingest(lines, bitmap, batch)

    def bind(self, arena: Memory, bitmap: Memory, batch: Memory) -> BoundKernel:
        return _BoundPythonKernel(arena, bitmap, batch, self._lock or nullcontext())
