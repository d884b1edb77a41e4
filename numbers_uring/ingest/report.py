"""Counters to report lines, and when they are due: pure, no clock and no I/O."""

from typing import NamedTuple


class Counts(NamedTuple):
    """Numbers taken in since the start."""

    unique: int
    duplicate: int


def report_line(before: Counts, now: Counts) -> str:
    """Return the report on what came between `before` and `now`, without a newline."""
    return (
        f"Received {now.unique - before.unique} unique numbers, "
        f"{now.duplicate - before.duplicate} duplicates. Unique total: {now.unique}"
    )


def next_due_s(due_s: float, now_s: float, interval_s: float) -> float:
    """Return the first of due_s + k * interval_s, k >= 1, that lies after `now_s`.

    On time, that is the next interval's end, so no drift; after a stall the ends that were missed
    are left out, so no burst.
    """
    missed = max(now_s - due_s, 0) // interval_s
    return due_s + (missed + 1) * interval_s


def rate_text(per_s: float) -> str:
    """Return how many that is for people: 950 /s, 12.3 k/s, 12.3 M/s."""
    for unit, scale in (("M", 1e6), ("k", 1e3)):
        if per_s >= scale:
            return f"{per_s / scale:.1f} {unit}/s"
    return f"{per_s:.0f} /s"
