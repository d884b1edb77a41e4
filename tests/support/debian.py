"""Debian systems in folders: made by debootstrap, entered by chroot, or booted with systemd.

Nothing here names a mirror or a package index. Debian's packages come from where this host has its
own from, and pip in such a system is configured as pip is here.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from support.namespaces import AS_PID_1, children
from support.network import Host
from support.waiting import DEADLINE_S, wait_until

BUILD = Path(__file__).resolve().parents[2] / "build"
SYSTEMS = BUILD / "debian"
HOST_FILES = ("/etc/resolv.conf", "/etc/hosts")
HOST = "/mnt/host"
"""Where a system has the files of this host that pip's configuration names: certificates, say."""
BOOTED = ("dbus", "logrotate", "procps", "systemd", "systemd-sysv")
"""The packages that a system needs to be run by systemd, and to be looked at."""
PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
BOOT = """
    root=$1
    hostname numbers-check
    mount --make-rprivate /
    mount --bind "$root" "$root"
    cd "$root"
    mount -t proc proc proc
    mount -t sysfs -o ro sysfs sys
    mount -t cgroup2 cgroup2 sys/fs/cgroup
    mount -t tmpfs -o mode=755 tmpfs run
    mount -t tmpfs -o mode=755 tmpfs dev
    mkdir dev/pts dev/shm
    mount -t devpts -o newinstance,ptmxmode=0666,mode=620,gid=5 devpts dev/pts
    mount -t tmpfs -o mode=1777 tmpfs dev/shm
    for device in null zero full random urandom tty; do
        touch dev/$device
        mount --bind /dev/$device dev/$device
    done
    ln -s pts/ptmx dev/ptmx
    ln -s /proc/self/fd dev/fd
    pivot_root . mnt
    umount --lazy /mnt
    exec env -i container=numbers-check PATH="$2" /lib/systemd/systemd < /dev/null > /dev/null 2>&1
"""
"""Done in new namespaces: what systemd expects of a container, and then systemd."""


def call(*command: str | Path) -> None:
    """Show a command and run it; fail if it fails."""
    print("+", shlex.join(map(str, command)), flush=True)
    subprocess.run(command, check=True)


def needs_debootstrap(target: str) -> None:
    """End with one line where `make TARGET` can't do its work."""
    if (
        os.geteuid() != 0
        or shutil.which("debootstrap", path=f"{os.environ['PATH']}:{PATH}") is None
    ):
        sys.exit(f"make {target} needs root, and: apt-get install debootstrap")


def mirror() -> str:
    """Return the address that apt on this host gets Debian from."""
    done = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(REPO_URI) $(LABEL)", "Created-By: Packages"],
        capture_output=True,
        check=True,
        text=True,
    )
    found = [uri for uri, _, label in map(_columns, done.stdout.splitlines()) if label == "Debian"]
    if not found:
        sys.exit("apt on this host has no source of Debian's packages: run apt-get update")
    return found[0]


def _columns(line: str) -> tuple[str, str, str]:
    return line.partition(" ")


def system(suite: str, *packages: str) -> Path:
    """Return a Debian with these packages; it is kept for the next time, so use a copy of it."""
    name = "-".join([suite, *packages])
    root = SYSTEMS / name
    if not root.exists():
        unfinished = root.with_suffix(".unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        if packages:
            call("cp", "--archive", system(suite), unfinished)
            with entered(unfinished) as enter:
                call(*enter, "apt-get", "update", "--quiet=2")
                apt_install(enter, *packages)
        else:
            unfinished.parent.mkdir(parents=True, exist_ok=True)
            path = f"PATH={os.environ['PATH']}:{PATH}"
            bootstrap = ("debootstrap", "--variant=minbase", suite, unfinished, mirror())
            call("env", path, *bootstrap)
        unfinished.rename(root)
    return root


def copy_of(original: Path, name: str) -> Path:
    """Return a new copy of a system, in the place of an earlier one."""
    root = SYSTEMS / name
    shutil.rmtree(root, ignore_errors=True)
    call("cp", "--archive", original, root)
    return root


def apt_install(enter: list[str], *packages: str) -> None:
    """Install packages as the README says, but silently."""
    install = ("apt-get", "install", "--yes", "--quiet=2", "--no-install-recommends")
    call(*enter, "env", "DEBIAN_FRONTEND=noninteractive", *install, *packages)


def pip_settings() -> tuple[dict[str, str], set[Path]]:
    """Return pip's configuration here as variables, and the paths that they name below HOST."""
    done = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, check=True, text=True
    )
    variables = {}
    # The environment comes first in the list, and takes precedence.
    for line in reversed(done.stdout.splitlines()):
        key, _, value = line.partition("=")
        section, _, option = key.rpartition(".")
        if section in {"global", "install", ":env:"}:
            variables[f"PIP_{option.upper().replace('-', '_')}"] = value.strip("'\"")
    paths = set()

    def moved(word: re.Match[str]) -> str:
        path = Path(word[2])
        if not path.exists():
            return word[0]
        # The files of an index are beside its pages.
        paths.add(path.parent if path.name == "simple" else path)
        return f"{word[1]}{HOST}{path}"

    for name, value in variables.items():
        variables[name] = re.sub(r"(?<!\S)((?:file://)?)(/\S+)", moved, value)
    return variables, paths


@contextmanager
def mounted(*mounts: tuple[str, ...]) -> Iterator[None]:
    """Mount, and unmount in reverse; the last word of each is the place."""
    with ExitStack() as undo:
        for mount in mounts:
            subprocess.run(["mount", *mount], check=True)
            undo.callback(subprocess.run, ["umount", "--lazy", mount[-1]], check=True)
        yield


@contextmanager
def entered(root: Path) -> Iterator[list[str]]:
    """Give a system this host's network and pip's configuration.

    Yields what to put in front of a command that is to run in it.
    """
    for file in HOST_FILES:
        shutil.copy(file, f"{root}{file}")
    variables, paths = pip_settings()
    binds = []
    for path in paths:
        place = Path(f"{root}{HOST}{path}")
        if path.is_dir():
            place.mkdir(parents=True, exist_ok=True)
        else:
            place.parent.mkdir(parents=True, exist_ok=True)
            place.touch()
        binds.append(("--bind", "-o", "ro", str(path), str(place)))
    inside = ("-t", "proc", "proc", f"{root}/proc"), ("--bind", "/dev", f"{root}/dev")
    environment = [f"PATH={PATH}", *(f"{name}={value}" for name, value in variables.items())]
    with mounted(*inside, *binds):
        yield ["env", "-i", *environment, "chroot", str(root)]


class Machine:
    """A system that systemd runs, in namespaces of its own.

    It has the network of `host`, or none but its loopback.
    """

    def __init__(self, root: Path, host: Host | None = None) -> None:
        self.root = root
        self._prefix = [] if host is None else host.prefix
        self._net = ["--net"] if host is None else []
        self._group = _cgroup2() / f"numbers-check-{os.getpid()}-{root.name}"

    def __enter__(self) -> "Machine":
        self._group.mkdir()
        namespaces = (*AS_PID_1[:-1], "--mount", "--uts", "--ipc", "--cgroup", *self._net)
        join = f"echo $$ > '{self._group}/cgroup.procs'"
        unshare = shlex.join(["unshare", *namespaces, "sh", "-ec", BOOT, "sh"])
        self._outer = subprocess.Popen(
            [*self._prefix, "sh", "-ec", f'{join}\nexec {unshare} "$@"', "sh", self.root, PATH]
        )
        wait_until(self._inner, "process number 1")
        (pid,) = self._inner()
        name = Path(f"/proc/{pid}/comm")
        wait_until(lambda: self._inner() and name.read_text() == "systemd\n", "systemd")
        self._enter = ["nsenter", "--all", "--target", str(pid)]
        wait_until(lambda: self.run("test", "-S", "/run/systemd/private") == 0, "its socket")
        # It may be degraded: what needs hardware has none here.
        self.run("systemctl", "is-system-running", "--wait")
        return self

    def _inner(self) -> list[int]:
        assert self._outer.poll() is None, "systemd has not started"
        return [pid for pid, _ in children(self._outer.pid)]

    def run(self, *command: str) -> int:
        """Return the exit status of a command."""
        return self._run(*command).returncode

    def output(self, *command: str) -> str:
        """Show a command and return its output, with that on standard error; it must not fail."""
        print("#", shlex.join(command), flush=True)
        done = self._run(*command)
        assert done.returncode == 0, done.stdout
        return done.stdout

    def _run(self, *command: str) -> "subprocess.CompletedProcess[str]":
        environment = ("env", "-i", f"PATH={PATH}", "DEBIAN_FRONTEND=noninteractive")
        return subprocess.run(
            [*self._enter, *environment, *command],
            check=False,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=600,
        )

    def __exit__(self, *_error: object) -> None:
        self.run("systemctl", "poweroff")
        try:
            self._outer.wait(DEADLINE_S)
        finally:
            self._outer.kill()
            self._outer.wait(DEADLINE_S)
            for folder, _, _ in os.walk(self._group, topdown=False):
                Path(folder).rmdir()


def _cgroup2() -> Path:
    """Return where the tree of control groups is that systemd in a namespace can have a part of."""
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, place, kind, *_ = line.split()
        if kind == "cgroup2":
            return Path(place)
    sys.exit("there are no control groups of version 2 on this host")
