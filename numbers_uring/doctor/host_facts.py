"""What the system says of itself in /proc, /sys and its calls; None wherever it says nothing."""

import os
import re
import resource
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_ESCAPED = re.compile(r"\\([0-7]{3})")
_CHOSEN = re.compile(r"\[(.+?)\]")

_CONTAINER_FILES = (
    ("docker", "/.dockerenv"),
    ("podman", "/run/.containerenv"),
    ("systemd", "/run/systemd/container"),
)

_CAP_IPC_LOCK = 14

_SECCOMP_MODES = {"0": "none", "1": "strict", "2": "filter"}

_NETWORK_TYPES = {
    *("9p", "afs", "ceph", "cifs", "glusterfs", "lustre", "nfs", "nfs4", "smb3"),
    *("fuse.ceph-fuse", "fuse.glusterfs", "fuse.rclone", "fuse.s3fs", "fuse.sshfs"),
}
_MEMORY_TYPES = {"ramfs", "tmpfs"}


def read_text(path: str | Path) -> str | None:
    """Return the file's text without white space around it."""
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").strip()
    except (OSError, ValueError):
        return None


def read_integer(path: str | Path) -> int | None:
    """Return the number that is all the file has."""
    return _integer(read_text(path))


def read_integers(path: str | Path) -> list[int] | None:
    """Return the file's numbers, where it has nothing else."""
    text = read_text(path)
    try:
        return [int(word) for word in text.split()] if text else None
    except ValueError:
        return None


def _integer(text: str | None) -> int | None:
    try:
        return int(text) if text is not None else None
    except ValueError:
        return None


def chosen(path: str | Path) -> str | None:
    """Return, of a line like `always [madvise] never`, what is in the brackets."""
    found = _CHOSEN.search(read_text(path) or "")
    return found[1] if found else None


def status(field: str) -> str | None:
    """Return a field of /proc/self/status, see proc_pid_status(5)."""
    return _field(read_text("/proc/self/status"), field)


def _field(text: str | None, field: str) -> str | None:
    for line in (text or "").splitlines():
        name, colon, value = line.partition(":")
        if colon and name == field:
            return value.strip()
    return None


def seccomp_mode() -> str | None:
    """Return `none`, `strict` or `filter`."""
    return _SECCOMP_MODES.get(status("Seccomp") or "")


def may_lock_memory() -> bool:
    """Return whether this process has CAP_IPC_LOCK, see capabilities(7)."""
    try:
        return bool(int(status("CapEff") or "0", 16) >> _CAP_IPC_LOCK & 1)
    except ValueError:
        return False


def container() -> str | None:
    """Return the kind of container that this host seems to be; None where it seems to be none."""
    for kind, path in _CONTAINER_FILES:
        try:
            if Path(path).exists():
                return kind
        except OSError:
            continue
    if "KUBERNETES_SERVICE_HOST" in os.environ:
        return "kubernetes"
    # As systemd and podman name it.
    return os.environ.get("container") or None  # noqa: SIM112


def limits(which: int) -> tuple[int | None, int | None]:
    """Return the soft and the hard limit, one of resource.RLIMIT_*; None is no limit."""
    soft, hard = (
        None if limit == resource.RLIM_INFINITY else limit for limit in resource.getrlimit(which)
    )
    return soft, hard


def megabytes(size_bytes: int) -> str:
    """Return the size as people read it, in units of a million bytes or more."""
    if size_bytes >= 10_000_000_000:
        return f"{size_bytes / 1e9:.0f} GB"
    return f"{size_bytes / 1e6:.0f} MB"


def limit_text(limit: int | None) -> str:
    """Return a resource limit in words."""
    return "unlimited" if limit is None else str(limit)


def known(value: object) -> object:
    """Return the value, or the word for none."""
    return "unknown" if value is None else value


# Memory.


def available_bytes() -> int | None:
    """Return the memory that is available without swapping, plus the free swap."""
    text = read_text("/proc/meminfo")
    found = [_field(text, field) for field in ("MemAvailable", "SwapFree")]
    kibibytes = [_integer(value.split()[0]) if value else None for value in found]
    if kibibytes[0] is None:
        return None
    return (kibibytes[0] + (kibibytes[1] or 0)) * 1024


@dataclass(frozen=True, slots=True)
class MemoryGroup:
    """A control group that limits our memory."""

    path: Path
    limit_bytes: int
    used_bytes: int
    """Without what the kernel drops before it kills: pages of files."""

    @property
    def left_bytes(self) -> int:
        return max(self.limit_bytes - self.used_bytes, 0)


@dataclass(frozen=True, slots=True)
class _GroupFiles:
    """What one version of control groups calls its files, and where they are usually mounted."""

    roots: tuple[str, ...]
    controller: str
    limit: str
    usage: str
    files: tuple[str, ...]


_GROUP_VERSIONS = (
    _GroupFiles(
        ("/sys/fs/cgroup", "/sys/fs/cgroup/unified"),
        "",
        "memory.max",
        "memory.current",
        ("active_file", "inactive_file"),
    ),
    _GroupFiles(
        ("/sys/fs/cgroup/memory",),
        "memory",
        "memory.limit_in_bytes",
        "memory.usage_in_bytes",
        ("total_active_file", "total_inactive_file"),
    ),
)


def tightest_memory_group() -> MemoryGroup | None:
    """Return, of our control group and those around it, the one that leaves us the least memory.

    Within a container the path in /proc may be the host's; then what is mounted is our own group.
    """
    found: list[MemoryGroup] = []
    for line in (read_text("/proc/self/cgroup") or "").splitlines():
        _, _, named = line.partition(":")
        controllers, _, path = named.partition(":")
        for version in _GROUP_VERSIONS:
            if version.controller in controllers.split(","):
                for root in version.roots:
                    found += _limited_groups(Path(root), path, version)
    return min(found, key=lambda group: group.left_bytes, default=None)


def _limited_groups(root: Path, path: str, version: _GroupFiles) -> Iterator[MemoryGroup]:
    own = root / path.lstrip("/")
    for group in (own, *own.parents):
        limit_bytes = read_integer(group / version.limit)
        used_bytes = read_integer(group / version.usage)
        # Version 1 has a number near 2**63 for no limit, version 2 the word max.
        if limit_bytes is not None and used_bytes is not None and limit_bytes < 2**62:
            yield MemoryGroup(group, limit_bytes, used_bytes - _file_bytes(group, version))
        if group == root:
            return


def _file_bytes(group: Path, version: _GroupFiles) -> int:
    total = 0
    for line in (read_text(group / "memory.stat") or "").splitlines():
        name, _, value = line.partition(" ")
        if name in version.files:
            total += _integer(value) or 0
    return total


# File systems.


@dataclass(frozen=True, slots=True)
class FileSystem:
    """Where a folder lies. A quota of the user's is not in these numbers."""

    type: str | None
    mount_point: str | None
    free_bytes: int
    """For us: without what is kept for the superuser."""
    free_files: int | None
    """None where the file system does not count them."""
    read_only: bool

    @property
    def is_network(self) -> bool:
        return self.type in _NETWORK_TYPES

    @property
    def is_memory(self) -> bool:
        return self.type in _MEMORY_TYPES


def file_system(folder: Path) -> FileSystem | None:
    """Return what `folder` lies on."""
    try:
        figures = os.statvfs(folder)
        resolved = folder.resolve()
    except (OSError, ValueError, RuntimeError):
        return None
    mount_point, kind = _mount(resolved) or (None, None)
    return FileSystem(
        type=kind,
        mount_point=mount_point,
        free_bytes=figures.f_bavail * figures.f_frsize,
        free_files=figures.f_favail if figures.f_files else None,
        read_only=bool(figures.f_flag & os.ST_RDONLY),
    )


def _mount(path: Path) -> tuple[str, str] | None:
    """Return the mount point and type for `path`; the last mount on a point covers the others."""
    best: tuple[str, str] | None = None
    for line in (read_text("/proc/self/mountinfo") or "").splitlines():
        before, separator, after = line.partition(" - ")
        fields = before.split()
        if not separator or len(fields) < 5:
            continue
        point = _ESCAPED.sub(lambda match: chr(int(match[1], 8)), fields[4])
        if path.is_relative_to(point) and (best is None or len(point) >= len(best[0])):
            best = point, after.split()[0]
    return best
