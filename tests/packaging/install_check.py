"""Takes the steps that the pages have to install the server: `make install-check`, as root.

Each step is taken as a page has it, in a new Debian of each release, with the packages that the
README names and no others. Commands of users run in a chroot, as a user without rights and as root;
those of a service run where systemd does.
"""

import json
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from support.debian import (
    BOOTED,
    Machine,
    call,
    copy_of,
    entered,
    needs_debootstrap,
    system,
)
from support.docs_pages import ROOT, Command, blocks, commands
from support.waiting import DEADLINE_S, wait_until

SUITES = ("bookworm", "trixie")
BY_USERS = (("README.md", "Two commands"), ("docs/operating.md", "Run"), ("docs/metrics.md", ""))
BY_ROOT = tuple(("docs/systemd.md", heading) for heading in ("Install", "Watch", "A cluster"))
SKIPPED = re.compile(r"make test|journalctl .* -f|curl |promtool |prometheus ")
"""What is no step of an installation: the tests, a view that stays, programs of others."""
NEEDS_NETWORK = re.compile(r"(\S*/)?(pip|python3) ")
PROGRAM = "/opt/numbers-uring/bin/numbers-uring"
PORT = 4000
NUMBERS = 100_000
BUILT_S = 600.0
STOP_S = 3.0


def section(page: str, heading: str) -> str:
    """Return what a page has below a heading of the second level, or before the first one."""
    parts = re.split(r"^## (.*)\n", (ROOT / page).read_text(), flags=re.MULTILINE)
    found = dict(zip(["", *parts[1::2]], parts[::2], strict=True))
    return found[heading]


def steps(page: str, heading: str) -> list[tuple[str, Command]]:
    """Return the commands of a section, each with the shell that it says or any other."""
    found = []
    for block, _ in blocks(section(page, heading)):
        # Only bash has /dev/tcp.
        shell = "bash" if "/dev/tcp/" in block else "sh"
        kept = [line for line in re.findall(r"(?:.*\\\n)*.*\n", block) if not SKIPPED.match(line)]
        found += [(shell, command) for command in commands("".join(kept))]
    assert found, (page, heading)
    return found


def packages() -> list[str]:
    """Return the packages that the README names for `make serve`."""
    named = re.search(r"the packages\n`([^`]*)`", (ROOT / "README.md").read_text())
    assert named is not None
    return named[1].split()


def checkout(root: Path, home: str) -> str:
    """Put the sources into a home folder, as git has them; return their path in there."""
    folder = f"{home}/numbers-uring"
    Path(f"{root}{folder}").mkdir(parents=True)
    files = subprocess.run(["git", "ls-files", "-z"], capture_output=True, check=True, cwd=ROOT)
    archive = subprocess.run(
        ["tar", "--create", "--null", "--files-from=-"],
        capture_output=True,
        check=True,
        cwd=ROOT,
        input=files.stdout,
    )
    extract = ["tar", "--extract", "--no-same-owner", "--directory", f"{root}{folder}"]
    subprocess.run(extract, check=True, input=archive.stdout)
    return folder


@contextmanager
def staying(command: list[str], log: Path) -> Iterator[None]:
    """Run a server until the block ends, from when it can be used."""
    with log.open("wb") as file:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT
        )
    try:
        wait_until(
            lambda: "listening on" in log.read_text() or process.poll() is not None,
            command[-1],
            BUILT_S,
        )
        assert process.poll() is None, log.read_text()
        yield
        # A client may have stopped it already.
        with suppress(subprocess.TimeoutExpired):
            process.wait(STOP_S)
    finally:
        process.terminate()
        process.wait(DEADLINE_S)
    assert process.returncode == 0, log.read_text()


def take_steps_of_user(root: Path, user: str) -> None:
    """Take the steps to try the server, and to run it without a service manager."""
    home = "/root" if user == "root" else f"/home/{user}"
    folder = checkout(root, home)
    call("chroot", root, "chown", "--recursive", f"{user}:", home)
    with entered(root) as enter, ExitStack() as server:
        *environment, chroot, place = enter
        become = [*environment, f"HOME={home}", chroot, f"--userspec={user}:{user}", place]
        for page, heading in BY_USERS:
            for shell, step in steps(page, heading):
                print(f"{user}: {step.text}", end="", flush=True)
                text = f"exec {step.text}" if step.stays else step.text
                command = [*become, shell, "-euc", f"cd {folder}\n{text}"]
                if step.stays:
                    server.close()
                    server.enter_context(staying(command, root / "server.log"))
                else:
                    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)


def take_steps_of_service(root: Path) -> None:
    """Take the steps to run the server, and then a node and collectors, by systemd.

    The system that runs has no network: what needs one is done in its folder from outside.
    """
    folder = checkout(root, "/root")
    with entered(root) as enter, Machine(root) as machine:
        for page, heading in BY_ROOT:
            for _, step in steps(page, heading):
                for line in re.findall(r"(?:.*\\\n)*.*\n", step.text):
                    command = ("sh", "-euc", f"cd {folder}\n{line}")
                    if NEEDS_NETWORK.match(line):
                        call(*enter, *command)
                    else:
                        if "numbers-uring-collect@0-3" in line:
                            start_nats_server(machine)
                        machine.output(*command)
            if heading == "Watch":
                serves(machine, "numbers-uring.service")
        serves(machine, "numbers-uring-node.service")
        # Of the numbers that the node has sent to the streams.
        log = root / "var/lib/numbers-uring-collect/numbers.0.log"
        wait_until(lambda: log.exists() and log.stat().st_size > 0, "numbers in a collector's log")


def serves(machine: Machine, unit: str) -> None:
    """Send numbers to a service, which must count them."""
    machine.output("systemctl", "is-active", unit)
    machine.output(PROGRAM, "load", "--numbers", str(NUMBERS))
    status = machine.output(PROGRAM, "status", "--json", "http://127.0.0.1:4001")
    assert json.loads(status)["unique"] == NUMBERS, status


def start_nats_server(machine: Machine) -> None:
    """Start what a page takes for granted: a NATS server, with the streams of a cluster."""
    server = ("/opt/numbers-uring/bin/nats-server", "--jetstream", "--addr", "127.0.0.1")
    machine.output("systemd-run", "--unit=nats", *server, "--store_dir", "/var/lib/nats")
    init = (PROGRAM, "cluster", "init", "--partitions", "8")
    wait_until(lambda: machine.run(*init) == 0, "the streams of a cluster")


def main() -> None:
    """Take all steps in each Debian."""
    needs_debootstrap("install-check")
    with socket.socket() as server:
        if server.connect_ex(("127.0.0.1", PORT)) == 0:
            sys.exit(f"make install-check needs port {PORT}, which another process has")
    for suite in sys.argv[1:] or SUITES:
        root = copy_of(system(suite, *packages()), f"{suite}-user")
        call("chroot", root, "useradd", "--create-home", "newcomer")
        for user in ("newcomer", "root"):
            take_steps_of_user(root, user)
        take_steps_of_service(copy_of(system(suite, *packages(), *BOOTED), f"{suite}-service"))
        print(f"On {suite} each step to install the server works as it is written.")


if __name__ == "__main__":
    main()
