"""Lines of new numbers, split by partition and packed: the areas that batches are taken from."""

from typing import Any

from numbers_uring._native import ffi, lib
from numbers_uring.cluster.partitions import NUMBER_BYTES, partition_width
from numbers_uring.limits import LINE_BYTES, NUMBERS

assert (lib.NU_LINE_BYTES, lib.NU_NUMBERS) == (LINE_BYTES, NUMBERS)


class Packer:
    """One area for each of `partitions`, with room for `area_bytes`; all allocated here.

    Not for several threads at once.
    """

    def __init__(self, partitions: int, area_bytes: int) -> None:
        assert area_bytes >= NUMBER_BYTES
        assert area_bytes % NUMBER_BYTES == 0
        area_numbers = area_bytes // NUMBER_BYTES
        memory = bytearray(partitions * area_bytes)
        self._width = partition_width(partitions)
        self._area_bytes = area_bytes
        self._memory = memoryview(memory)
        # These hold what the struct only has addresses of.
        self._areas: Any = ffi.from_buffer("uint32_t[]", memory, require_writable=True)
        self._used: Any = ffi.new("uint32_t[]", partitions)
        self._pack: Any = ffi.new("struct nu_pack *")
        result = lib.nu_pack_set(
            self._pack,
            self._width,
            partitions,
            area_numbers,
            self._areas,
            self._used,
        )
        assert result == 0, result

    def pack(self, lines: memoryview) -> int:
        """Pack whole lines of nine digits; return how many bytes of them were taken.

        Less than len(lines) means that the area of `partition_of` the next line is full.
        """
        assert len(lines) % LINE_BYTES == 0
        count: int = lib.nu_pack_lines(
            self._pack, ffi.from_buffer("uint8_t[]", lines), len(lines) // LINE_BYTES
        )
        return count * LINE_BYTES

    def partition_of(self, line: memoryview) -> int:
        """Return the partition of the number that `line` begins with."""
        return int(bytes(line[: LINE_BYTES - 1])) // self._width

    def occupied(self) -> list[int]:
        """Return the partitions whose areas have numbers, ascending."""
        return [partition for partition, used in enumerate(self._used) if used]

    def used(self, partition: int) -> int:
        """Return how many numbers are in the area."""
        return self._used[partition]  # type: ignore[no-any-return]

    def take(self, partition: int) -> bytes:
        """Return the area's numbers, packed, and leave it empty."""
        start = partition * self._area_bytes
        end = start + self._used[partition] * NUMBER_BYTES
        self._used[partition] = 0
        return bytes(self._memory[start:end])
