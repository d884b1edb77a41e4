"""Takes the steps that the pages have to install the server: `make install-check`, as root.

Each step is taken as a page has it, in a new Debian of each release, with the packages that the
pages name and no others. Commands of users run in a chroot, as a user without rights and as root;
those of a service run where systemd does, and those of a cluster on three such machines.
"""

import json
import re
import shutil
import socket
import subprocess
import sys
import textwrap
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
from support.network import lacking, network
from support.waiting import DEADLINE_S, wait_until

SUITES = ("bookworm", "trixie")
BY_USERS = (("README.md", "Two commands"), ("docs/operating.md", "Run"), ("docs/metrics.md", ""))
BY_ROOT = tuple(("docs/systemd.md", heading) for heading in ("Install", "Watch", "A cluster"))
SKIPPED = re.compile(r"make test|journalctl .* -f|curl |promtool |prometheus ")
"""What is no step of an installation: the tests, a view that stays, programs of others."""
NEEDS_NETWORK = re.compile(r"(\S*/)?(pip|python3) ")
PROGRAM = "/opt/numbers-uring/bin/numbers-uring"
PORTS = (4000, 4222)
READY = {
    "nats-server": "Server is ready",
    "collect": "collecting partitions",
    "serve": "listening on",
}
"""What is in the output of a command that stays once it can be used."""
NUMBERS = 100_000
BUILT_S = 600.0
STOP_S = 3.0
HOSTS = ("nats-0", "nats-1", "nats-2")
CERTIFICATES = "/root/certificates"


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
def staying(command: list[str], log: Path, ready: str = READY["serve"]) -> Iterator[None]:
    """Run a server until the block ends, from when it can be used."""
    with log.open("wb") as file:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT
        )
    try:
        wait_until(
            lambda: ready in log.read_text() or process.poll() is not None,
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
        server.close()
        take_steps_on_one_machine(root, become, folder)


def take_steps_on_one_machine(root: Path, become: list[str], folder: str) -> None:
    """Take the steps to try a cluster on one machine."""
    page = section("docs/cluster.md", "On one machine")
    ((_, install),) = steps("docs/cluster.md", "On one machine")
    subprocess.run([*become, "sh", "-euc", f"cd {folder}\n{install.text}"], check=True)
    settings, listed = re.findall(r"^```text\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    Path(f"{root}{folder}/nats.conf").write_text(settings)
    with ExitStack() as running:
        for line in listed.splitlines():
            print(line, flush=True)
            command = [*become, "sh", "-euc", f"cd {folder}\nexec {line}"]
            for word in line.replace("/", " ").split():
                if word in READY:
                    running.enter_context(staying(command, root / f"{word}.log", READY[word]))
                    break
            else:
                subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
        logs = Path(f"{root}{folder}/collected")
        wait_until(
            lambda: sum(log.stat().st_size for log in logs.glob("*.log")) == 10 * 1_000_000,
            "all numbers in the logs",
        )


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


class Cluster:
    """The three machines of docs/cluster.md, each run by systemd, on a network of their own."""

    def __init__(self, stack: ExitStack, base: Path, folder: str, suite: str) -> None:
        self._folder = folder
        page = section("docs/cluster.md", "On three machines")
        self._blocks = [
            textwrap.dedent(block)
            for block in re.findall(r"^ +```text\n(.*?)^ +```$", page, re.MULTILINE | re.DOTALL)
        ]
        net = stack.enter_context(network(len(HOSTS)))
        names = "".join(
            f"{host.address} {name}\n" for host, name in zip(net.hosts, HOSTS, strict=True)
        )
        self.machines = []
        for host, name in zip(net.hosts, HOSTS, strict=True):
            root = copy_of(base, f"{suite}-{name}")
            with (root / "etc/hosts").open("a") as file:
                file.write(names)
            machine = Machine(root, host)
            self.machines.append(machine)
            self._last = stack.enter_context(ExitStack())
            self._last.enter_context(machine)
            machine.output("hostname", name)
        first = self.machines[0]
        self._passwords = {
            user: first.output("sh", "-c", "echo n$(openssl rand -hex 24)").strip()
            for user in ("admin", "node", "collector", "route")
        }

    def _urls(self, user: str) -> str:
        return ",".join(f"tls://{user}:{self._passwords[user]}@{host}:4222" for host in HOSTS)

    def _filled(self, text: str) -> str:
        """Put passwords and names where the page has three dots."""
        text = re.sub(r"tls://(\w+):\.\.\.\S*", lambda found: self._urls(found[1]), text)
        text = re.sub(
            r"NUMBERS_(\w+)_PASSWORD=\.\.\.",
            lambda found: found[0].replace("...", self._passwords[found[1].lower()]),
            text,
        )
        text = re.sub(
            r"(\w+):\.\.\.@", lambda found: f"{found[1]}:{self._passwords[found[1]]}@", text
        )
        assert "..." not in text, text
        return text

    def give_certificates(self) -> None:
        """Make them on one host, and give each host its own."""
        (block,) = (
            block
            for block, _ in blocks((ROOT / "docs/security.md").read_text())
            if "sign()" in block
        )
        self.machines[0].output("sh", "-euc", f"mkdir {CERTIFICATES}; cd {CERTIFICATES}\n{block}")
        made = Path(f"{self.machines[0].root}{CERTIFICATES}")
        for machine, host in zip(self.machines, HOSTS, strict=True):
            machine.output("mkdir", "-p", "/etc/nats", "/etc/numbers-uring")
            nats, ours = (machine.root / "etc" / name for name in ("nats", "numbers-uring"))
            for kind in ("pem", "key"):
                shutil.copy(made / f"{host}.{kind}", nats / f"server.{kind}")
                shutil.copy(made / f"{host}-route.{kind}", nats / f"route.{kind}")
                for name in ("node", "collector"):
                    shutil.copy(made / f"{name}.{kind}", ours)
            for place, file in ((nats, "ca"), (nats, "routes-ca"), (ours, "ca")):
                shutil.copy(made / f"{file}.pem", place)

    def install(self) -> None:
        """Install on each host what needs no network, and write the settings."""
        lines = re.findall(r"(?:.*\\\n)*.*\n", self._blocks[0])
        steps_there = "".join(line for line in lines if not NEEDS_NETWORK.match(line))
        for machine, host in zip(self.machines, HOSTS, strict=True):
            machine.output("sh", "-euc", f"cd {self._folder}\n{steps_there}")
            etc = machine.root / "etc"
            change(etc / "nats/nats.conf", r'^server_name: ".*"$', f'server_name: "{host}"')
            (etc / "nats/nats.env").touch(0o600)
            (etc / "nats/nats.env").write_text(self._filled(self._blocks[1]))
            for file, user in (("collect.env", "collector"), ("node.env", "node")):
                change(etc / "numbers-uring" / file, r"^# (?=NUMBERS)", "")
                change(etc / "numbers-uring" / file, r"nats://.*", self._urls(user))
            with (etc / "numbers-uring/node.env").open("a") as settings:
                settings.write("NUMBERS_URING_SERVE_HOST=0.0.0.0\n")
            change(
                etc.parent / f"{self._folder[1:]}/deploy/firewall.nft",
                r"192\.0\.2\.\d+",
                "10.77.0.0",
            )
            machine.output("nft", "--file", f"{self._folder}/deploy/firewall.nft")

    def start(self) -> None:
        """Start everything, in the page's order, and make the streams."""
        servers, init = self._blocks[2].split("export ")
        for machine in self.machines:
            machine.output("sh", "-euc", servers)
        self._export = self._filled(f"export {init}").splitlines()[0]
        self.on_first(self._filled(f"export {init}"))
        for machine in self.machines:
            machine.output("sh", "-euc", self._blocks[3])

    def on_first(self, script: str) -> None:
        self.machines[0].output("sh", "-euc", f"cd {CERTIFICATES}\n{script}")

    def status(self) -> str:
        """Return what `cluster status` says, and then its exit status."""
        script = f"cd {CERTIFICATES}\n{self._export}\n{self._blocks[4]}"
        return self.machines[0].output("sh", "-uc", f"{script}\necho exit status $?")

    def logged(self) -> list[int]:
        """Return the size of each host's logs."""
        folders = (each.root / "var/lib/numbers-uring-collect" for each in self.machines)
        return [sum(log.stat().st_size for log in each.glob("*.log")) for each in folders]

    def stop_last_host(self) -> None:
        self._last.close()

    def load(self, host: str) -> None:
        sent = self.machines[1].output(
            PROGRAM, "load", "--json", "--host", host, "--numbers", str(NUMBERS)
        )
        assert json.loads(sent)["complete"], sent


def change(file: Path, pattern: str, replacement: str) -> None:
    """Edit a file as an operator would; what is to be changed must be there."""
    text, found = re.subn(pattern, replacement, file.read_text(), flags=re.MULTILINE)
    assert found, (file, pattern)
    file.write_text(text)


def take_steps_of_cluster(base: Path, suite: str) -> None:
    """Take the steps to run a cluster on three machines, and to lose one."""
    folder = checkout(base, "/root")
    page = section("docs/cluster.md", "On three machines")
    with entered(base) as enter:
        for line in re.findall(r"^ +(.*)\n", page, re.MULTILINE):
            if NEEDS_NETWORK.match(line):
                call(*enter, "sh", "-euc", f"cd {folder}\n{line}")
    with ExitStack() as stack:
        cluster = Cluster(stack, base, folder, suite)
        cluster.give_certificates()
        cluster.install()
        cluster.start()
        wait_until(lambda: cluster.status().endswith("exit status 0\n"), "a cluster in order")
        assert "problem:" not in cluster.status()
        cluster.load("nats-0")
        wait_until(
            lambda: cluster.logged() == [10 * NUMBERS] * len(HOSTS), "all numbers in all logs"
        )
        cluster.stop_last_host()
        assert "problem:" in cluster.status()
        cluster.load("nats-1")


def main() -> None:
    """Take all steps in each Debian."""
    needs_debootstrap("install-check")
    if lack := lacking():
        sys.exit(f"make install-check needs a network of namespaces: {lack}")
    for port in PORTS:
        with socket.socket() as server:
            if server.connect_ex(("127.0.0.1", port)) == 0:
                sys.exit(f"make install-check needs port {port}, which another process has")
    for suite in sys.argv[1:] or SUITES:
        root = copy_of(system(suite, *packages()), f"{suite}-user")
        call("chroot", root, "useradd", "--create-home", "newcomer")
        for user in ("newcomer", "root"):
            take_steps_of_user(root, user)
        take_steps_of_service(copy_of(system(suite, *packages(), *BOOTED), f"{suite}-service"))
        on_each = (*packages(), *BOOTED, "nftables", "openssl")
        take_steps_of_cluster(copy_of(system(suite, *on_each), f"{suite}-cluster"), suite)
        print(f"On {suite} each step to install the server works as it is written.")


if __name__ == "__main__":
    main()
