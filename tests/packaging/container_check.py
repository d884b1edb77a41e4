"""Takes the Containerfile's steps for real, without an engine: `make container-check`, as root.

Each stage is a copy of a fresh Debian, and its steps are taken in a chroot. Then the image's
command runs as an engine would run it, with its user, its environment, a read-only root and a
network of its own, is probed, loaded and stopped.

CONTAINER_CHECK_BIND lists folders, with colons between them, that the stages can read while they
are built: a package index on this disk, say, or certificates. Variables PIP_* are handed on.
"""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from support.containerfile import CONTAINERFILE, Stage, stages
from support.namespaces import AS_PID_1, children, without_rights
from support.waiting import DEADLINE_S, wait_until

BUILD = CONTAINERFILE.with_name("build") / "container"
MIRROR = "http://deb.debian.org/debian"
HOST_FILES = ("/etc/resolv.conf", "/etc/hosts")


def call(*command: str | Path) -> None:
    print("+", shlex.join(map(str, command)), flush=True)
    subprocess.run(command, check=True)


def debian(base: str) -> Path:
    """Return a fresh system in the place of debian:SUITE-slim; it is kept for the next time."""
    suite = base.removeprefix("debian:").removesuffix("-slim")
    root = BUILD / f"debian-{suite}"
    if not root.exists():
        unfinished = root.with_suffix(".unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        call("debootstrap", "--variant=minbase", suite, unfinished, MIRROR)
        unfinished.rename(root)
    return root


@contextmanager
def mounted(*mounts: tuple[str, ...]) -> Iterator[None]:
    """Mount, and unmount in reverse; the last word of each is the place."""
    with ExitStack() as undo:
        for mount in mounts:
            Path(mount[-1]).mkdir(parents=True, exist_ok=True)
            subprocess.run(["mount", *mount], check=True)
            undo.callback(subprocess.run, ["umount", "--lazy", mount[-1]], check=True)
        yield


def build(stage: Stage, earlier: dict[str, Path]) -> Path:
    """Take the steps of one stage; return its root."""
    root = BUILD / (stage.name or "image")
    shutil.rmtree(root, ignore_errors=True)
    call("cp", "--archive", debian(stage.base), root)
    for file in HOST_FILES:
        shutil.copy(file, f"{root}{file}")
    binds = filter(None, os.environ.get("CONTAINER_CHECK_BIND", "").split(":"))
    with mounted(
        ("-t", "proc", "proc", f"{root}/proc"),
        ("--bind", "/dev", f"{root}/dev"),
        *(("--bind", "-o", "ro", folder, f"{root}{folder}") for folder in binds),
    ):
        folder = "/"
        for instruction, argument in stage.steps:
            print(f"{instruction} {argument}", flush=True)
            if instruction == "WORKDIR":
                folder = argument
                Path(f"{root}{folder}").mkdir(parents=True, exist_ok=True)
            elif instruction == "RUN":
                variables = [f"{name}={value}" for name, value in stage.environment.items()]
                passed = [f"{k}={v}" for k, v in os.environ.items() if k.startswith("PIP_")]
                path = "PATH=/usr/sbin:/usr/bin:/sbin:/bin"
                inside = ["env", "-i", path, *variables, *passed, "chroot", str(root)]
                call(*inside, "sh", "-c", f"cd {folder} && {argument}")
            elif instruction == "COPY":
                copy(argument, root, folder, earlier)
    return root


def copy(argument: str, root: Path, folder: str, earlier: dict[str, Path]) -> None:
    source_root = CONTAINERFILE.parent
    *sources, target = argument.split()
    if sources[0].startswith("--from="):
        source_root = earlier[sources.pop(0).removeprefix("--from=")]
    place = Path(f"{root}{Path(folder, target)}")
    for source in (source_root / source.lstrip("/") for source in sources):
        if source.is_dir():
            ignored = shutil.ignore_patterns("*.so", "__pycache__", "_native.c")
            # What another stage has made is taken as it is, the repository without what was built.
            keep = None if source_root != CONTAINERFILE.parent else ignored
            shutil.copytree(source, place, symlinks=True, ignore=keep, dirs_exist_ok=True)
        else:
            place.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, place)


def try_out(image: Stage, root: Path) -> None:
    """Run the image's command, probe it, load it, stop it."""
    assert not Path(f"{root}/usr/bin/gcc").exists(), "the image has a compiler"
    volume = image.one("VOLUME")
    user = int(image.one("USER").split(":")[0])
    environment = [f"{name}={value}" for name, value in image.environment.items()]
    enter = ["chroot", str(root), *without_rights(user), "env", "-i", *environment]
    setup = f"""
        ip link set lo up
        mount --bind '{root}' '{root}'
        mount --bind '{root}{volume}' '{root}{volume}'
        mount -o remount,bind,ro '{root}'
        mount -t proc proc '{root}/proc'
        mount -t tmpfs none '{root}/dev'
        cd '{root}'
    """
    confine = ["unshare", *AS_PID_1, "--mount", "--net", "sh", "-ec", f'{setup}\nexec "$@"', "sh"]
    work = ["env", f"--chdir={image.one('WORKDIR')}"]
    words = [*image.array("ENTRYPOINT"), *image.array("CMD")]
    server = subprocess.Popen([*confine, *enter, *work, *words])
    try:
        wait_until(lambda: children(server.pid), "process number 1")
        ((pid, _),) = children(server.pid)
        inside = ["nsenter", "--net", "--target", str(pid), *enter]

        def is_healthy() -> bool:
            assert server.poll() is None, "the server has ended"
            probe = subprocess.run(
                [*inside, *image.health_command], check=False, stderr=subprocess.DEVNULL
            )
            return probe.returncode == 0

        wait_until(is_healthy, "a good health")
        load = [*inside, *image.array("ENTRYPOINT"), "load", "--json"]
        done = subprocess.run(load, check=True, stdout=subprocess.PIPE, timeout=120)
        assert json.loads(done.stdout)["complete"], done.stdout
        assert is_healthy()
        os.kill(pid, signal.Signals[image.one("STOPSIGNAL")])
        assert server.wait(DEADLINE_S) == 0, server.returncode
    finally:
        server.kill()
        server.wait(DEADLINE_S)
    log = Path(f"{root}{image.environment['NUMBERS_URING_SERVE_LOG_FILE']}")
    assert log.stat().st_size == 10 * json.loads(done.stdout)["numbers"]
    assert log.stat().st_uid == user


def main() -> None:
    """Build all stages, then try the last one."""
    if os.geteuid() != 0 or shutil.which("debootstrap") is None:
        sys.exit("make container-check needs root, and: apt-get install debootstrap")
    BUILD.mkdir(parents=True, exist_ok=True)
    roots: dict[str, Path] = {}
    for stage in stages():
        roots[stage.name] = build(stage, roots)
    try_out(stages()[-1], roots[""])
    call("du", "--summarize", "--human-readable", roots[""])
    print("The image builds, serves, is healthy and stops.")


if __name__ == "__main__":
    main()
