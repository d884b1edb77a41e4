"""Checks of the memory that a server takes at its start, and of the pages that it lies on."""

from numbers_uring.config import Config
from numbers_uring.doctor.checks import Check, Severity, Value
from numbers_uring.doctor.host_facts import (
    available_bytes,
    chosen,
    megabytes,
    read_integer,
    tightest_memory_group,
)
from numbers_uring.errors import StartError
from numbers_uring.ingest.bitmap import Bitmap
from numbers_uring.limits import (
    BATCH_BYTES,
    BITMAP_BYTES,
    HUGE_PAGES_SHARE_MIN,
    RECEIVE_BYTES,
    START_MEMORY_SPARE_BYTES,
)

_HUGE_PAGES = "/sys/kernel/mm/transparent_hugepage"


def require_memory(config: Config, values: dict[str, Value]) -> str:
    """Return how much is needed and available, in words.

    Raises StartError where the system would kill a server, or us: a server has no words for that.
    """
    group = tightest_memory_group()
    available = available_bytes()
    buffers_bytes = config.reactors * (BATCH_BYTES + RECEIVE_BYTES)
    needed = BITMAP_BYTES + buffers_bytes + START_MEMORY_SPARE_BYTES
    values |= {
        "needed_bytes": needed,
        "available_bytes": available,
        "group": None if group is None else str(group.path),
        "group_limit_bytes": None if group is None else group.limit_bytes,
        "group_left_bytes": None if group is None else group.left_bytes,
        "overcommit": read_integer("/proc/sys/vm/overcommit_memory"),
    }
    if group is not None and group.left_bytes < needed:
        raise StartError(
            f"the memory control group {group.path} leaves {megabytes(group.left_bytes)} of "
            f"{megabytes(group.limit_bytes)}, {megabytes(needed)} are needed: Linux "
            "would kill the server"
        )
    if available is not None and available < needed:
        raise StartError(
            f"{megabytes(available)} of memory are available, {megabytes(needed)} are "
            "needed: Linux might kill the server"
        )
    text = f"{megabytes(needed)} needed"
    text += f", {megabytes(available)} available" if available is not None else ""
    if group is not None:
        text += f", {megabytes(group.left_bytes)} left by the control group {group.path}"
    return text


def check_huge_pages(bitmap: Bitmap | None) -> Check:
    """Check how much of a bitmap lies on huge pages; None where there is no memory for one."""
    enabled, defrag = chosen(f"{_HUGE_PAGES}/enabled"), chosen(f"{_HUGE_PAGES}/defrag")
    modes = f"enabled {enabled or 'unknown'}, defrag {defrag or 'unknown'}"
    if bitmap is None:
        share, severity, text = None, Severity.NOTE, "not tried, for lack of memory"
    elif bitmap.huge_bytes is None:
        share, severity, text = None, Severity.NOTE, "unknown, /proc/self/smaps cannot be read"
    else:
        share = bitmap.huge_bytes / len(bitmap.memory)
        severity = Severity.OK if share >= HUGE_PAGES_SHARE_MIN else Severity.NOTE
        text = f"{share:.0%} of a bitmap lay on them"
    advice = None
    if severity is not Severity.OK:
        advice = (
            f"echo madvise > {_HUGE_PAGES}/enabled, as root; "
            if enabled == "never"
            else "echo 1 > /proc/sys/vm/compact_memory, as root, where memory is in pieces; "
        ) + "without them each number takes about a quarter longer"
    return Check(
        name="huge_pages",
        severity=severity,
        text=f"{text} ({modes})",
        advice=advice,
        values={"enabled": enabled, "defrag": defrag, "share": share},
    )
