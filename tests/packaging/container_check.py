"""Takes the Containerfile's steps for real, without an engine: `make container-check`, as root.

Each stage is a copy of a fresh Debian, and its steps are taken in a chroot. Then the image's
command runs as an engine would run it, with its user, its environment, a read-only root and a
network of its own, is probed, loaded and stopped.
"""

import json
import os
import shutil
import signal
import subprocess
from pathlib import Path

from support.containerfile import CONTAINERFILE, Stage, stages
from support.debian import call, copy_of, entered, needs_debootstrap, system
from support.namespaces import AS_PID_1, children, without_rights
from support.waiting import DEADLINE_S, wait_until


def build(stage: Stage, earlier: dict[str, Path]) -> Path:
    """Take the steps of one stage; return its root."""
    suite = stage.base.removeprefix("debian:").removesuffix("-slim")
    root = copy_of(system(suite), f"image-{stage.name or 'last'}")
    with entered(root) as enter:
        folder = "/"
        for instruction, argument in stage.steps:
            print(f"{instruction} {argument}", flush=True)
            if instruction == "WORKDIR":
                folder = argument
                Path(f"{root}{folder}").mkdir(parents=True, exist_ok=True)
            elif instruction == "RUN":
                variables = [f"{name}={value}" for name, value in stage.environment.items()]
                call(*enter, "env", *variables, "sh", "-c", f"cd {folder} && {argument}")
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
    needs_debootstrap("container-check")
    roots: dict[str, Path] = {}
    for stage in stages():
        roots[stage.name] = build(stage, roots)
    try_out(stages()[-1], roots[""])
    call("du", "--summarize", "--human-readable", roots[""])
    print("The image builds, serves, is healthy and stops.")


if __name__ == "__main__":
    main()
