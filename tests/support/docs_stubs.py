"""Stands in for what a test of the documentation must not run: docs_stubs.py NAME ARGUMENT...

Each checks what it was given as far as that goes without doing it, and fails on all that it does
not know. What failed is noted in the folder $DOCS_STATE, too, where no shell can lose it.
"""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
Arguments = Sequence[str]
BIN = Path(sys.executable).parent
UNITS = Path("/etc/systemd/system")
PODMAN_RUN = {
    "--detach": False,
    "--name": True,
    "--network": True,
    "--memory": True,
    "--publish": True,
    "--read-only": False,
    "--rm": False,
    "--volume": True,
}
"""The options that pages use, and whether a value follows."""


class UnexpectedError(Exception):
    """A stand-in was given what it does not know, or what would not work."""


def expect(condition: object, what: str) -> None:
    if not condition:
        raise UnexpectedError(what)


def state() -> Path:
    return Path(os.environ["DOCS_STATE"])


def output(*command: str | Path) -> str:
    done = subprocess.run(
        command, capture_output=True, check=False, text=True, stdin=subprocess.DEVNULL
    )
    expect(done.returncode == 0, f"{command}: {done.stdout}{done.stderr}")
    return done.stdout


def instead(program: str, *arguments: str) -> None:
    """Become the real program."""
    path = os.environ["PATH"].split(":", 1)[1]
    found = shutil.which(program, path=path)
    expect(found, f"no {program}")
    assert found is not None
    sys.stdout.flush()
    os.execve(found, [program, *arguments], {**os.environ, "PATH": path})


def has_options(help_text: str, arguments: Arguments) -> None:
    for option in (word for word in arguments if word.startswith("--")):
        expect(re.search(rf"{option}\b", help_text), f"no option {option}")


def make(arguments: Arguments) -> None:
    targets = [word for word in arguments if "=" not in word]
    path = os.environ["PATH"].split(":", 1)[1]
    real_make = shutil.which("make", path=path)
    expect(real_make, "no make")
    assert real_make is not None
    expect(output(real_make, "--dry-run", "--directory", ROOT, *arguments), "nothing to be made")
    if targets == ["serve"]:
        instead("numbers-uring", "serve")
    if targets == ["dist"]:
        dist = Path("dist")
        dist.mkdir()
        for suffix in (".tar.gz", "-any.whl"):
            (dist / f"numbers_uring{suffix}").touch()
        sums = output("sha256sum", *dist.iterdir()).replace("dist/", "")
        (dist / "SHA256SUMS").write_text(sums)


def python(arguments: Arguments) -> None:
    if arguments[:2] == ["-m", "venv"]:
        (folder,) = map(Path, arguments[2:])
        (folder / "bin").mkdir(parents=True)
        for name in ("pip", "python"):
            stand_in = shutil.which(name)
            assert stand_in is not None
            shutil.copy(stand_in, folder / "bin" / name)
    elif arguments[0] in {"perf/bench.py", "perf/cluster_bench.py", "perf/flame_graph.py"}:
        # These take minutes; that they work is another test's to say.
        has_options(output(sys.executable, *arguments[:1], "--help"), arguments[1:])
    else:
        os.execv(sys.executable, [sys.executable, *arguments])


def pip(arguments: Arguments) -> None:
    expect(arguments[0] == "install", "not an installation")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    packages = " ".join(sum(extras.values(), project["dependencies"]))
    ours = False
    for word in arguments[1:]:
        here = re.fullmatch(r"\.(?:\[(\w+)\])?", word)
        if here:
            expect(Path("pyproject.toml").is_file(), "no sources here")
            expect(here[1] is None or here[1] in extras, f"no extra {here[1]}")
        elif word.endswith(".whl"):
            expect(Path(word).is_file(), f"no file {word}")
        else:
            expect(word == "--quiet" or re.search(rf"\b{word}\b", packages), f"{word} is not used")
        ours = ours or bool(here) or word.endswith(".whl")
    prefix = Path(os.environ["DOCS_INVOKED_AS"]).parent.parent
    command = prefix / "bin" / "numbers-uring"
    if ours and not command.exists():
        command.symlink_to(BIN / "numbers-uring")
        output(sys.executable, ROOT / "share" / "build_share.py", prefix / "share")


def systemctl(arguments: Arguments) -> None:
    verb, *rest = arguments
    if verb == "daemon-reload":
        expect(not rest, "too many arguments")
        return
    verbs = {"disable", "enable", "reload", "restart", "start", "status", "stop"}
    expect(verb in verbs, f"no verb {verb}")
    units = [word for word in rest if word != "--now"]
    expect(units and (verb in {"disable", "enable"} or "--now" not in rest), "wrong arguments")
    for name in units:
        # Of an instance, the template is what there is.
        unit = re.sub(r"@[^.]+", "@", name)
        expect((UNITS / unit).read_bytes() == (ROOT / "deploy" / unit).read_bytes(), f"not {unit}")
        said = output("systemd-analyze", "verify", UNITS / unit)
        expect(not said, said)


def journalctl(arguments: Arguments) -> None:
    expect(arguments[0] == "-u" and list(arguments[2:]) == ["-f"], "wrong arguments")
    unit = re.sub(r"@[^.]+", "@", arguments[1])
    expect((ROOT / "deploy" / unit).is_file(), f"no unit {unit}")


def sysctl(arguments: Arguments) -> None:
    ours = [word for word in arguments if word.startswith("kernel.") and "=" in word]
    if ours:
        expect(ours == list(arguments), "wrong arguments")
        for setting in ours:
            name, _, value = setting.partition("=")
            path = Path("/proc/sys", *name.split("."))
            expect(path.is_file() and value.isdecimal(), f"no setting {setting}")
    else:
        instead("sysctl", *arguments)


def setcap(arguments: Arguments) -> None:
    capability, file = arguments
    expect(capability == "cap_perfmon+ep" and os.access(file, os.X_OK), "wrong arguments")


def ssh(arguments: Arguments) -> None:
    *options, host = arguments
    expect(options == ["-N", "-L", "4000:127.0.0.1:4000"], "wrong options")
    expect(host.endswith(".example.org"), "not an example's name")


def podman(arguments: Arguments) -> None:
    verb, *rest = arguments
    names = state() / "containers"
    known = names.read_text().split() if names.exists() else []
    if verb == "build":
        expect(rest == ["--format", "docker", "--tag", "numbers-uring", "."], "wrong arguments")
        expect(Path("Containerfile").is_file(), "no Containerfile")
    elif verb == "run":
        while rest[0].startswith("--"):
            option = rest.pop(0)
            expect(option in PODMAN_RUN, f"no option {option}")
            value = rest.pop(0) if PODMAN_RUN[option] else ""
            if option == "--name":
                names.write_text(value)
            if option == "--network":
                expect(value.removeprefix("container:") in known, f"no container {value}")
        expect(rest.pop(0) == "numbers-uring", "not the image")
        if rest:
            has_options(output(BIN / "numbers-uring", rest[0], "--help"), rest[1:])
    else:
        expect(verb in {"stop", "logs", "rm"} or rest.pop(0) == "run", f"no verb {verb}")
        expect(rest == known, f"no container {rest}")


class StandIn(NamedTuple):
    """What is run in a program's place, and why."""

    run: Callable[[Arguments], None]
    reason: str


STAND_INS = {
    "journalctl": StandIn(journalctl, "there is no journal where systemd does not run"),
    "make": StandIn(make, "tests that run the tests; a build; so make --dry-run, and the server"),
    "pip": StandIn(
        pip, "the network, and minutes of building: tests/packaging/test_dist.py installs"
    ),
    "podman": StandIn(
        podman, "no engine: tests/packaging/test_containerfile.py does what the image does"
    ),
    "python": StandIn(python, "venvs and measurements take long; all else is run"),
    "python3": StandIn(python, "venvs and measurements take long; all else is run"),
    "setcap": StandIn(setcap, "it would change the system's perf"),
    "ssh": StandIn(ssh, "the network"),
    "sysctl": StandIn(sysctl, "kernel.* is the whole system's; net.* is really set"),
    "systemctl": StandIn(systemctl, "systemd is not process number 1; tests/systemd/test_units.py"),
}
"""Everything that is not run as a page has it. Every other command is."""


def install(folder: Path) -> None:
    """Put the stand-ins, and what they stand beside in a venv, into `folder`."""
    folder.mkdir()
    (folder / "numbers-uring").symlink_to(BIN / "numbers-uring")
    for name in STAND_INS:
        path = folder / name
        path.write_text(
            f'#!/bin/sh\nDOCS_INVOKED_AS="$0" exec {sys.executable} {__file__} {name} "$@"\n'
        )
        path.chmod(0o755)


def main() -> None:
    """Run a stand-in, and note what it could not do."""
    name, *arguments = sys.argv[1:]
    try:
        STAND_INS[name].run(arguments)
    except (UnexpectedError, ValueError, IndexError, OSError) as error:
        message = f"stand-in: {name} {' '.join(arguments)}: {error!r}\n"
        with (state() / "failed").open("a") as failed:
            failed.write(message)
        sys.exit(message)


if __name__ == "__main__":
    main()
