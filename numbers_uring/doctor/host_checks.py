"""Checks what a server does not need to start, but has to live with."""

import mmap
import os
import resource

from numbers_uring._native import lib
from numbers_uring.config import Config, Fsync
from numbers_uring.doctor.checks import Check, Severity
from numbers_uring.doctor.host_facts import (
    container,
    file_system,
    known,
    limit_text,
    limits,
    may_lock_memory,
    megabytes,
    read_integer,
    read_integers,
    seccomp_mode,
)
from numbers_uring.limits import (
    BACKLOG_CONNECTIONS,
    FREE_DISK_BYTES_MIN,
    LINE_BYTES,
    RING_LARGE_BUFFERS,
    RING_QUEUED_MIN,
    RING_SMALL_BUFFERS,
    RING_SUBMISSIONS_MAX,
)

_SUBMISSION_BYTES: int = lib.NU_URING_SQE_BYTES
_COMPLETION_BYTES: int = lib.NU_URING_CQE_BYTES
_BUFFER_BYTES: int = lib.NU_URING_BUF_BYTES
_INDEX_BYTES = 4
"""An entry of the array between submission queue and submissions, see io_uring_setup(2)."""


def check_host(config: Config) -> list[Check]:
    """Return a check for each; none of them is a problem. What can't be read is unknown."""
    return [
        _check_disk(config),
        _check_file_size(),
        _check_locked_memory(config),
        _check_backlog(),
        _check_receive_window(),
        _check_processors(config),
        _check_confinement(),
    ]


# Where the log goes.


def _check_disk(config: Config) -> Check:
    folder = config.log_path.parent
    found = file_system(folder)
    if found is None:
        return Check(name="disk", severity=Severity.NOTE, text=f"{folder} cannot be examined")
    kind = found.type or "an unknown file system"
    text = (
        f"{megabytes(found.free_bytes)} free for {folder} on {kind}: "
        f"{found.free_bytes // LINE_BYTES // 1_000_000} million numbers"
    )
    severity, advice = Severity.OK, None
    if found.read_only:
        severity, advice = Severity.NOTE, "it is mounted read-only"
    elif found.free_bytes < FREE_DISK_BYTES_MIN or found.free_files == 0:
        text += ", no space for further files" if found.free_files == 0 else ""
        severity = Severity.NOTE
        advice = "free some space: a full disk makes a server hold its clients back"
    elif found.is_memory and config.fsync is not Fsync.NEVER:
        severity = Severity.NOTE
        advice = (
            f"it is memory: whatever --fsync {config.fsync} says, a crash of the system loses it"
        )
    elif found.is_network:
        severity = Severity.NOTE
        advice = (
            "it is a network file system: locks and syncs depend on its server, "
            "and each write may wait for it"
        )
    return Check(
        name="disk",
        severity=severity,
        text=text,
        advice=advice,
        values={
            "folder": str(folder),
            "type": found.type,
            "mount_point": found.mount_point,
            "free_bytes": found.free_bytes,
            "free_files": found.free_files,
            "read_only": found.read_only,
        },
    )


def _check_file_size() -> Check:
    soft, hard = limits(resource.RLIMIT_FSIZE)
    return Check(
        name="file_size",
        severity=Severity.OK if soft is None else Severity.NOTE,
        text=f"{limit_text(soft)} bytes a file",
        advice=None
        if soft is None
        else "a log that reaches it ends the server: ulimit -f unlimited, LimitFSIZE=infinity",
        values={"soft": soft, "hard": hard},
    )


# Limits of the system.


def _check_locked_memory(config: Config) -> Check:
    soft, hard = limits(resource.RLIMIT_MEMLOCK)
    # Two of them: the one that was tried first may not have been given back yet.
    needed = 2 * _ring_bytes(config.connections_max)
    low = soft is not None and soft < needed and not may_lock_memory()
    return Check(
        name="memlock",
        severity=Severity.NOTE if low else Severity.OK,
        text=f"{limit_text(soft)} bytes may be locked; --backend uring needs {needed}, "
        "but not of a privileged process",
        advice="for --backend uring: ulimit -l unlimited, LimitMEMLOCK=infinity, "
        "docker run --ulimit memlock=-1"
        if low
        else None,
        values={"soft": soft, "hard": hard, "needed": needed},
    )


def _ring_bytes(connections_max: int) -> int:
    """Return what the queues and the provided buffers' rings take, about."""
    queued = max(RING_QUEUED_MIN, 2 * connections_max)
    queued_rounded = 1 << (queued - 1).bit_length()
    return (
        RING_SUBMISSIONS_MAX * (_SUBMISSION_BYTES + _INDEX_BYTES)
        + queued_rounded * _COMPLETION_BYTES
        + (RING_SMALL_BUFFERS + RING_LARGE_BUFFERS) * _BUFFER_BYTES
        + 2 * mmap.PAGESIZE
    )


def _check_backlog() -> Check:
    somaxconn = read_integer("/proc/sys/net/core/somaxconn")
    low = somaxconn is not None and somaxconn < BACKLOG_CONNECTIONS
    return Check(
        name="backlog",
        severity=Severity.NOTE if low or somaxconn is None else Severity.OK,
        text=f"{known(somaxconn)} clients may wait to be accepted, of {BACKLOG_CONNECTIONS}",
        advice=f"sysctl net.core.somaxconn={BACKLOG_CONNECTIONS}, as root" if low else None,
        values={
            "somaxconn": somaxconn,
            "wanted": BACKLOG_CONNECTIONS,
            "tcp_syncookies": read_integer("/proc/sys/net/ipv4/tcp_syncookies"),
            "tcp_abort_on_overflow": read_integer("/proc/sys/net/ipv4/tcp_abort_on_overflow"),
        },
    )


def _check_receive_window() -> Check:
    window = read_integers("/proc/sys/net/ipv4/tcp_rmem")
    window_max = window[2] if window is not None and len(window) == 3 else None
    return Check(
        name="receive_window",
        severity=Severity.OK if window_max is not None else Severity.NOTE,
        text=f"at most {known(window_max)} bytes a client (net.ipv4.tcp_rmem)",
        values={
            "tcp_rmem_max": window_max,
            "rmem_max": read_integer("/proc/sys/net/core/rmem_max"),
        },
    )


def _check_processors(config: Config) -> Check:
    ours = len(os.sched_getaffinity(0))
    total = os.cpu_count()
    reactors = "a server" if config.reactors == 1 else f"a server with --reactors {config.reactors}"
    return Check(
        name="processors",
        severity=Severity.OK,
        text=f"{ours} of {known(total)}; {reactors} uses up to {config.reactors}",
        values={"usable": ours, "total": total},
    )


def _check_confinement() -> Check:
    seccomp, kind = seccomp_mode(), container()
    confined = seccomp in {"strict", "filter"} or kind is not None
    return Check(
        name="confinement",
        severity=Severity.NOTE if confined else Severity.OK,
        text=f"container {kind or 'none'}, seccomp {known(seccomp)}",
        advice="limits and files above are the container's or service's, not the host's"
        if confined
        else None,
        values={"container": kind, "seccomp": seccomp},
    )
