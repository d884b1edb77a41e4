"""The collector's kernel: packed numbers to the lines of those that are new."""

import errno
from mmap import mmap
from typing import Any

from numbers_uring._native import ffi, lib
from numbers_uring.cluster.partitions import NUMBER_BYTES, Range, unpacked
from numbers_uring.errors import StartError
from numbers_uring.ingest.kernel import Memory
from numbers_uring.limits import LINE_BYTES, NUMBERS

_ZEROS = bytes(1 << 20)


class ForeignNumberError(Exception):
    """A message holds a number of another partition, or ends within a number."""


def collect_reference(
    packed: bytes, collected: Range, bitmap: Memory, batch: bytearray
) -> tuple[int, int, int]:
    """Append the new numbers' lines to `batch`, set their bits.

    Returns how many were new, their sum, and how many were not new. The specification in plain
    Python. Raises ForeignNumberError with nothing done.
    """
    if len(packed) % NUMBER_BYTES:
        raise ForeignNumberError
    numbers = unpacked(packed)
    if not all(collected.first <= number < collected.end for number in numbers):
        raise ForeignNumberError
    unique = total = 0
    for number in numbers:
        place, bit = number >> 3, 1 << (number & 7)
        if not bitmap[place] & bit:
            bitmap[place] |= bit
            batch += b"%09d\n" % number
            unique += 1
            total += number
    return unique, total, len(numbers) - unique


class CollectKernel:
    """The compiled kernel of one partition, with a batch of its own.

    `bitmap` has a bit for each of all numbers; of it the collected ones' bytes alone are touched,
    so that kernels of other partitions can work on the same one at the same time. Raises StartError
    where there is no memory for the batch.
    """

    def __init__(self, collected: Range, bitmap: Memory, batch_bytes: int) -> None:
        assert len(bitmap) * 8 == NUMBERS
        try:
            batch = mmap(-1, batch_bytes)
        except OSError as error:
            raise StartError("not enough memory for the buffers") from error
        self._collected = collected
        self._memory = bitmap
        self._lines = memoryview(batch)
        self._bitmap = ffi.from_buffer("uint8_t[]", bitmap, require_writable=True)
        self._batch = ffi.from_buffer("uint8_t[]", batch, require_writable=True)
        # Holds plain addresses: the two above keep what they point to alive.
        self._state: Any = ffi.new(
            "struct nu_collect *",
            {
                "bitmap": self._bitmap,
                "batch": self._batch,
                "batch_bytes": batch_bytes,
                "first": collected.first,
                "end": collected.end,
            },
        )

    @property
    def unique(self) -> int:
        """Numbers taken in, each once."""
        return self._state.unique  # type: ignore[no-any-return]

    @property
    def sum(self) -> int:
        """Their sum, modulo 2**64."""
        return self._state.sum  # type: ignore[no-any-return]

    @property
    def duplicate(self) -> int:
        """Numbers that were there before."""
        return self._state.duplicate  # type: ignore[no-any-return]

    def fits(self, packed_bytes: int) -> bool:
        """Return whether the lines of a message of that size fit into the batch, if all are new."""
        free_bytes = len(self._lines) - self._state.batch_used
        return packed_bytes // NUMBER_BYTES * LINE_BYTES <= free_bytes  # type: ignore[no-any-return]

    def take(self, packed: bytes) -> None:
        """Take in all numbers. Raises ForeignNumberError with nothing done; needs `fits`."""
        if len(packed) % NUMBER_BYTES:
            raise ForeignNumberError
        status = lib.nu_collect(self._state, ffi.from_buffer(packed), len(packed) // NUMBER_BYTES)
        if status == -errno.ERANGE:
            raise ForeignNumberError
        assert status == 0, status

    def take_lines(self, lines: bytes | bytearray | memoryview) -> int:
        """Take in lines that are in the log already.

        Returns how many bytes of them, up to the first that is no line, or whose number is of
        another partition or was taken in before.
        """
        count = len(lines) // LINE_BYTES
        return lib.nu_collect_lines(self._state, ffi.from_buffer(lines), count) * LINE_BYTES  # type: ignore[no-any-return]

    def lines(self) -> memoryview:
        """Return the batch; valid until the next `take`."""
        return self._lines[: self._state.batch_used]

    def clear(self) -> None:
        """Forget the batch: it is on file."""
        self._state.batch_used = 0

    def reset(self) -> None:
        """Forget all numbers of the partition, and what was counted."""
        first, end = self._collected.first // 8, -(-self._collected.end // 8)
        for start in range(first, end, len(_ZEROS)):
            stop = min(start + len(_ZEROS), end)
            self._memory[start:stop] = _ZEROS[: stop - start]
        self._state.batch_used = 0
        self._state.unique = self._state.sum = self._state.duplicate = 0
