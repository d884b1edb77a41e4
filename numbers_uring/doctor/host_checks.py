"""Looks at what a server does not need to start, but has to live with."""

import importlib.metadata
import mmap
import os
import platform
import resource
import sys
import sysconfig
from pathlib import Path

from numbers_uring import __version__
from numbers_uring._native import lib
from numbers_uring.config import Config, Fsync
from numbers_uring.doctor.checks import Finding, Weight
from numbers_uring.doctor.host_facts import (
    container,
    file_system,
    limits,
    may_lock_memory,
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

_DEPENDENCIES = ("click", "cffi")
_EXTRAS = ("prometheus_client", "matplotlib")

_SUBMISSION_BYTES: int = lib.NU_URING_SQE_BYTES
_COMPLETION_BYTES: int = lib.NU_URING_CQE_BYTES
_BUFFER_BYTES: int = lib.NU_URING_BUF_BYTES
_INDEX_BYTES = 4
"""An entry of the array between submission queue and submissions, see io_uring_setup(2)."""


def megabytes(size_bytes: int) -> str:
    """Return the size as people read it, in units of a million bytes or more."""
    if size_bytes >= 10_000_000_000:
        return f"{size_bytes / 1e9:.0f} GB"
    return f"{size_bytes / 1e6:.0f} MB"


def limit_text(limit: int | None) -> str:
    """Return a resource limit in words."""
    return "unlimited" if limit is None else str(limit)


def look_at_surroundings(config: Config) -> list[Finding]:
    """Return a finding for each; none of them is a problem. What can't be read is unknown."""
    return [
        _look_at_disk(config),
        _look_at_file_size(),
        _look_at_locked_memory(config),
        _look_at_backlog(),
        _look_at_receive_window(),
        _look_at_processors(),
        _look_at_confinement(),
        _look_at_linux(),
        _look_at_python(),
        _look_at_program(),
    ]


# Where the log goes.


def _look_at_disk(config: Config) -> Finding:
    folder = config.log_path.parent
    found = file_system(folder)
    if found is None:
        return Finding(name="disk", weight=Weight.NOTE, text=f"{folder} can't be looked at")
    kind = found.type or "an unknown file system"
    text = (
        f"{megabytes(found.free_bytes)} free for {folder} on {kind}: "
        f"{found.free_bytes // LINE_BYTES // 1_000_000} million numbers"
    )
    weight, advice = Weight.OK, None
    if found.read_only:
        weight, advice = Weight.NOTE, "it is mounted read-only"
    elif found.free_bytes < FREE_DISK_BYTES_MIN or found.free_files == 0:
        text += ", no room for further files" if found.free_files == 0 else ""
        weight = Weight.NOTE
        advice = "make room: a server without any holds its clients back until there is some"
    elif found.is_memory and config.fsync is not Fsync.NEVER:
        weight = Weight.NOTE
        advice = (
            f"it is memory: whatever --fsync {config.fsync} says, a crash of the system loses it"
        )
    elif found.is_network:
        weight = Weight.NOTE
        advice = (
            "it is a network's: locks and syncs are what its server makes of them, "
            "and each write may wait for it"
        )
    return Finding(
        name="disk",
        weight=weight,
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


def _look_at_file_size() -> Finding:
    soft, hard = limits(resource.RLIMIT_FSIZE)
    return Finding(
        name="file_size",
        weight=Weight.OK if soft is None else Weight.NOTE,
        text=f"{limit_text(soft)} bytes a file",
        advice=None
        if soft is None
        else "a log that reaches it ends the server: ulimit -f unlimited, LimitFSIZE=infinity",
        values={"soft": soft, "hard": hard},
    )


# Limits of the system.


def _look_at_locked_memory(config: Config) -> Finding:
    soft, hard = limits(resource.RLIMIT_MEMLOCK)
    # Two of them: the one that was tried first may not have been given back yet.
    needed = 2 * _ring_bytes(config.connections_max)
    low = soft is not None and soft < needed and not may_lock_memory()
    return Finding(
        name="memlock",
        weight=Weight.NOTE if low else Weight.OK,
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


def _look_at_backlog() -> Finding:
    somaxconn = read_integer("/proc/sys/net/core/somaxconn")
    low = somaxconn is not None and somaxconn < BACKLOG_CONNECTIONS
    return Finding(
        name="backlog",
        weight=Weight.NOTE if low or somaxconn is None else Weight.OK,
        text=f"{_known(somaxconn)} clients may wait to be accepted, of {BACKLOG_CONNECTIONS}",
        advice=f"sysctl net.core.somaxconn={BACKLOG_CONNECTIONS}, as root" if low else None,
        values={
            "somaxconn": somaxconn,
            "wanted": BACKLOG_CONNECTIONS,
            "tcp_syncookies": read_integer("/proc/sys/net/ipv4/tcp_syncookies"),
            "tcp_abort_on_overflow": read_integer("/proc/sys/net/ipv4/tcp_abort_on_overflow"),
        },
    )


def _look_at_receive_window() -> Finding:
    window = read_integers("/proc/sys/net/ipv4/tcp_rmem")
    window_max = window[2] if window is not None and len(window) == 3 else None
    return Finding(
        name="receive_window",
        weight=Weight.OK if window_max is not None else Weight.NOTE,
        text=f"at most {_known(window_max)} bytes a client (net.ipv4.tcp_rmem)",
        values={
            "tcp_rmem_max": window_max,
            "rmem_max": read_integer("/proc/sys/net/core/rmem_max"),
        },
    )


def _look_at_processors() -> Finding:
    ours = len(os.sched_getaffinity(0))
    total = os.cpu_count()
    return Finding(
        name="processors",
        weight=Weight.OK,
        text=f"{ours} of {_known(total)}; a server uses one",
        values={"usable": ours, "total": total},
    )


def _look_at_confinement() -> Finding:
    seccomp, kind = seccomp_mode(), container()
    confined = seccomp in {"strict", "filter"} or kind is not None
    return Finding(
        name="confinement",
        weight=Weight.NOTE if confined else Weight.OK,
        text=f"container {kind or 'none'}, seccomp {_known(seccomp)}",
        advice="limits and files above are the container's or service's, not the host's"
        if confined
        else None,
        values={"container": kind, "seccomp": seccomp},
    )


# Versions.


def _look_at_linux() -> Finding:
    system = os.uname()
    paranoid = read_integer("/proc/sys/kernel/perf_event_paranoid")
    return Finding(
        name="linux",
        weight=Weight.OK,
        text=f"{system.release} on {system.machine}; perf_event_paranoid {_known(paranoid)}",
        values={
            "release": system.release,
            "machine": system.machine,
            "perf_event_paranoid": paranoid,
        },
    )


def _look_at_python() -> Finding:
    free_threaded = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))
    return Finding(
        name="python",
        weight=Weight.OK,
        text=f"{platform.python_version()}{', free-threaded' if free_threaded else ''}, "
        f"{sys.executable}",
        values={
            "version": platform.python_version(),
            "implementation": platform.python_implementation(),
            "free_threaded": free_threaded,
            "executable": sys.executable,
        },
    )


def _look_at_program() -> Finding:
    versions = {name: _version(name) for name in (*_DEPENDENCIES, *_EXTRAS)}
    told = [f"{name} {version}" for name, version in versions.items() if version is not None]
    absent = [name for name, version in versions.items() if version is None]
    text = f"numbers-uring {__version__}, {', '.join(told)}"
    return Finding(
        name="program",
        weight=Weight.OK,
        text=text + (f"; not installed: {', '.join(absent)}" if absent else ""),
        values={
            "version": __version__,
            "path": str(Path(__file__).parent),
            **versions,
        },
    )


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _known(value: object) -> object:
    return "unknown" if value is None else value
