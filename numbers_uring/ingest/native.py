"""The compiled kernels, behind the reference kernel's signature."""

import errno
from typing import Any

from numbers_uring._native import ffi, lib
from numbers_uring.ingest.kernel import BoundKernel, Kernel, Memory, Result, Verdict
from numbers_uring.limits import (
    BITMAP_BYTES,
    CHUNK_BYTES_MAX,
    COMPLETE_MIN,
    GATHER_BYTES,
    GATHER_PIECE_BYTES,
    LINE_BYTES,
    TAIL_BYTES_MAX,
    TAKE_BYTES_MAX,
)

assert (lib.NU_LINE_BYTES, lib.NU_BITMAP_BYTES) == (LINE_BYTES, BITMAP_BYTES)
assert tuple(Verdict) == (lib.NU_MORE, lib.NU_INVALID, lib.NU_TERMINATE)
assert ffi.sizeof("struct nu_tail") == TAIL_BYTES_MAX + 1


class _BoundNativeKernel:
    """Pointers are made here, once: a call costs about half a microsecond, half of it cffi's."""

    def __init__(
        self,
        function: Any,
        arena: Memory | memoryview,
        bitmap: Memory,
        batch: Memory | memoryview,
    ) -> None:
        self._function = function
        assert len(bitmap) == BITMAP_BYTES
        self._arena = ffi.from_buffer("uint8_t[]", arena)
        self._bitmap = ffi.from_buffer("uint8_t[]", bitmap, require_writable=True)
        self._batch = ffi.from_buffer("uint8_t[]", batch, require_writable=True)
        # Holds plain addresses: the three above keep what they point to alive.
        self._ingest: Any = ffi.new(
            "struct nu_ingest *",
            {"bitmap": self._bitmap, "batch": self._batch, "batch_bytes": len(batch)},
        )

    def ingest(self, start: int, stop: int) -> int:
        verdict: int = self._function(self._ingest, self._arena, start, stop)
        if verdict < 0:
            assert verdict == -errno.ENOBUFS, verdict
            raise ValueError("the batch has no room for the lines")
        return verdict

    def compile_intake(self, tails: bytearray, /) -> "CompiledIntake":
        name = self._function.__name__
        return CompiledIntake(ffi.addressof(lib, name), self._ingest, self._arena, tails)

    @property
    def consumed(self) -> int:
        return self._ingest.consumed  # type: ignore[no-any-return]

    @property
    def unique(self) -> int:
        return self._ingest.unique  # type: ignore[no-any-return]

    @property
    def duplicate(self) -> int:
        return self._ingest.duplicate  # type: ignore[no-any-return]

    @property
    def batch_used(self) -> int:
        return self._ingest.batch_used  # type: ignore[no-any-return]

    @batch_used.setter
    def batch_used(self, used_bytes: int) -> None:
        self._ingest.batch_used = used_bytes


class CompiledIntake:
    """What compiled passes take in with: a `struct nu_intake`, see native/ingest/intake.h.

    `ingest` and `arena` are the bound kernel's, which has to live as long as this.
    """

    def __init__(self, kernel: Any, ingest: Any, arena: Any, tails: bytearray) -> None:
        self._tails: Any = ffi.from_buffer("struct nu_tail[]", tails, require_writable=True)
        self._complete: Any = ffi.new("uint32_t[]", max(len(self._tails), COMPLETE_MIN))
        self._gathered: Any = ffi.new("uint8_t[]", GATHER_BYTES)
        self.pointer: Any = ffi.new(
            "struct nu_intake *",
            {
                "kernel": kernel,
                "ingest": ingest,
                "arena": arena,
                "tails": self._tails,
                "chunk_bytes_max": CHUNK_BYTES_MAX,
                "call_bytes_max": TAKE_BYTES_MAX,
                "gathered": self._gathered,
                "gather_bytes_max": GATHER_BYTES,
                "gather_piece_bytes_max": GATHER_PIECE_BYTES,
            },
        )

    def note_unwritten(self, flag: bytearray) -> None:
        """Set the byte to 1 before anything is taken in."""
        self._flag: Any = ffi.from_buffer("uint8_t[]", flag, require_writable=True)
        self.pointer.unwritten = self._flag

    def note_complete(self) -> None:
        """Make `complete` tell something."""
        self.pointer.complete, self.pointer.complete_max = self._complete, len(self._complete)

    @property
    def complete(self) -> list[int]:
        """The connections of which the last call has taken in at least one whole line."""
        return list(self._complete[0 : self.pointer.complete_count])

    @property
    def rejected(self) -> tuple[int, int]:
        """Where in the arena the line begins that was INVALID, and where its piece ends."""
        return self.pointer.rejected_start, self.pointer.rejected_stop


class NativeKernel:
    """One compiled variant, and its twin, if it is not that, for several threads."""

    def __init__(self, variant: str, function: Any, shared: Any = None) -> None:
        self.variant = variant
        self._function = function
        self._shared = shared

    @property
    def shared(self) -> Kernel:
        if self._shared is None:
            return self
        return NativeKernel(f"{self.variant}-shared", self._shared)

    def __call__(self, lines: memoryview, bitmap: Memory, batch: memoryview) -> Result:
        bound = _BoundNativeKernel(self._function, lines, bitmap, batch)
        verdict = Verdict(bound.ingest(0, len(lines)))
        return Result(verdict, bound.consumed, bound.unique, bound.duplicate)

    def bind(self, arena: Memory, bitmap: Memory, batch: Memory) -> BoundKernel:
        return _BoundNativeKernel(self._function, arena, bitmap, batch)


def _always() -> int:
    return 1


# The fastest first. A variant for another instruction set is one more row.
_VARIANTS = (
    ("avx2", lib.nu_cpu_has_avx2, lib.nu_ingest_avx2, lib.nu_ingest_avx2_shared),
    ("swar", _always, lib.nu_ingest_swar, lib.nu_ingest_swar_shared),
    ("scalar", _always, lib.nu_ingest_scalar, lib.nu_ingest_scalar_shared),
)

VARIANT_NAMES = tuple(name for name, *_ in _VARIANTS)


def variants() -> list[Kernel]:
    """Return the variants that this CPU runs, the fastest first."""
    return [
        NativeKernel(name, function, shared)
        for name, supported, function, shared in _VARIANTS
        if supported()
    ]
