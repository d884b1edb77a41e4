"""The lines that a load sends: a function of its mix, seed and size alone."""

from typing import Any

from numbers_uring._native import ffi, lib
from numbers_uring.limits import LINE_BYTES, NUMBERS
from numbers_uring.load.model import LoadParameters, Mix

assert (lib.NU_LINE_BYTES, lib.NU_NUMBERS) == (LINE_BYTES, NUMBERS)

_MIXES = {
    Mix.UNIQUE: lib.NU_MIX_UNIQUE,
    Mix.RANDOM: lib.NU_MIX_RANDOM,
    Mix.DUPLICATE: lib.NU_MIX_DUPLICATE,
    Mix.SEQUENTIAL: lib.NU_MIX_SEQUENTIAL,
    Mix.HOT: lib.NU_MIX_HOT,
}


def make_lines(
    parameters: LoadParameters, first: int, count: int, *, portable: bool = False
) -> bytearray:
    """Return numbers `first` to `first + count - 1` of a load as lines.

    They are a function of mix, seed, `numbers` and `duplicates` alone. `portable` chooses the plain
    path also where the CPU has a faster one.
    """
    lines = bytearray(count * LINE_BYTES)
    make = lib.nu_lines_portable if portable else lib.nu_lines
    out = ffi.from_buffer("uint8_t[]", lines, require_writable=True)
    make(make_sequence(parameters), first, count, out)
    return lines


def make_sequence(parameters: LoadParameters) -> Any:
    """Return the `struct nu_sequence` of a load, whose lines `nu_lines` writes."""
    sequence = ffi.new("struct nu_sequence *")
    result = lib.nu_sequence_set(
        sequence, _MIXES[parameters.mix], parameters.seed, parameters.numbers, parameters.distinct
    )
    assert result == 0, result
    return sequence
