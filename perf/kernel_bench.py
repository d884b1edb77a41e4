"""Times the kernels against each other, in nanoseconds a number.

Variants take turns, piece by piece, on one bitmap, so that whatever else the machine does meets all
of them alike: compare within a run, not between runs. Each piece is laid into the arena, untimed,
as a receive would; the batch is reused, as if each piece were appended to the log at once.

    python perf/kernel_bench.py [--pages 4k] [--pieces 200] [--json]
"""

import argparse
import json
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from numbers_uring.ingest import bitmap
from numbers_uring.ingest.kernel import BoundKernel, Kernel, PythonKernel, Verdict
from numbers_uring.ingest.native import variants
from numbers_uring.limits import BITMAP_BYTES, LINE_BYTES, NUMBERS, RECEIVE_BYTES

PIECE_LINES = RECEIVE_BYTES // LINE_BYTES
PIECE_BYTES = PIECE_LINES * LINE_BYTES
BASELINE = "scalar"

Piece = Callable[[int], bytes]
"""Returns piece i of a mix."""


def piece_of(numbers: Iterator[int]) -> bytes:
    piece = b"".join(b"%09d\n" % number for number in numbers)
    assert len(piece) == PIECE_BYTES
    return piece


def random_piece(index: int) -> bytes:
    choices = random.Random(index)
    return piece_of(int(choices.random() * NUMBERS) for _ in range(PIECE_LINES))


def sequential_piece(index: int) -> bytes:
    first = index * PIECE_LINES % (NUMBERS - PIECE_LINES)
    return piece_of(iter(range(first, first + PIECE_LINES)))


def hot_piece(index: int) -> bytes:
    choices = random.Random(index)
    return piece_of(choices.randrange(8) * 111_111_111 for _ in range(PIECE_LINES))


class Mix(NamedTuple):
    name: str
    piece: Piece
    clears_bitmap: bool


# Duplicates are the pieces of the mix before them again: by then they have left the caches.
MIXES = (
    Mix("unique", random_piece, True),
    Mix("duplicate", random_piece, False),
    Mix("sequential", sequential_piece, True),
    Mix("hot", hot_piece, True),
)


class Spread(NamedTuple):
    median: float
    least: float
    most: float


def timed_ns(bound: BoundKernel) -> float:
    bound.batch_used = 0
    started_ns = time.perf_counter_ns()
    verdict = bound.ingest(0, PIECE_BYTES)
    taken_ns = time.perf_counter_ns() - started_ns
    assert verdict == Verdict.MORE
    return taken_ns / PIECE_LINES


def measure(kernels: list[Kernel], memory: bytearray, pieces: int) -> dict[str, dict[str, Spread]]:
    """Return for each mix and variant the spread over `pieces` pieces."""
    arena = bytearray(PIECE_BYTES)
    batch = bytearray(PIECE_BYTES)
    bounds = {kernel.variant: kernel.bind(arena, memory, batch) for kernel in kernels}
    table = {}
    for mix in MIXES:
        if mix.clears_bitmap:
            memoryview(memory)[:] = bytes(BITMAP_BYTES)
        times_ns: dict[str, list[float]] = {name: [] for name in bounds}
        laid_out = [mix.piece(index) for index in range(pieces * len(bounds))]
        for index, piece in enumerate(laid_out):
            # The order rotates by one a round: no variant always follows the same other one.
            turn = (index + index // len(bounds)) % len(bounds)
            name = list(bounds)[turn]
            arena[:] = piece
            times_ns[name].append(timed_ns(bounds[name]))
        table[mix.name] = {
            name: Spread(statistics.median(times), min(times), max(times))
            for name, times in times_ns.items()
        }
    return table


def allocate(pages: str) -> tuple[bytearray, int]:
    if pages == "huge":
        memory, huge_bytes = bitmap.allocate()
        return memory, huge_bytes or 0
    return bytearray(BITMAP_BYTES), 0


def show(table: dict[str, dict[str, Spread]]) -> None:
    print(f"{'ns a number':14}" + "".join(f"{mix:>30}" for mix in table))
    for name in next(iter(table.values())):
        cells = []
        for spreads in table.values():
            median, least, most = spreads[name]
            baseline = spreads.get(BASELINE)
            ratio = f"{baseline.median / median:.1f}x" if baseline else ""
            cells.append(f"{median:.1f} ({least:.1f}-{most:.1f}) {ratio:>6}")
        print(f"{name:14}" + "".join(f"{cell:>30}" for cell in cells))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pages", choices=["huge", "4k"], default="huge")
    parser.add_argument("--pieces", type=int, default=100, help="a variant and mix (%(default)s)")
    parser.add_argument("--python", action="store_true", help="the reference kernel too")
    parser.add_argument("--json", action="store_true", help="a JSON object instead of a table")
    arguments = parser.parse_args()

    alone = variants()
    kernels = [*alone, *(kernel.shared for kernel in alone)]
    if arguments.python:
        kernels.append(PythonKernel())
    memory, huge_bytes = allocate(arguments.pages)
    table = measure(kernels, memory, arguments.pieces)
    if arguments.json:
        spreads = {
            mix: {name: spread._asdict() for name, spread in row.items()}
            for mix, row in table.items()
        }
        print(json.dumps({"huge_bytes": huge_bytes, "ns_per_number": spreads}, indent=2))
        return
    print(f"{huge_bytes / BITMAP_BYTES:.0%} of the bitmap on huge pages; median (least-most) and")
    print(f"the ratio to {BASELINE}; {arguments.pieces} pieces of {PIECE_LINES} numbers each")
    show(table)


if __name__ == "__main__":
    main()
