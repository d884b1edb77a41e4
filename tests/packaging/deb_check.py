"""Builds and uses the Debian package in each Debian that it is for: `make deb-check`, as root.

The source distribution of `make dist` is built in a chroot with what debian/control asks for, and
lintian looks at the result. Then systemd runs a Debian in namespaces of its own, where the package
is installed, used, upgraded, removed and purged, with a start of the system in between.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

from support.debian import (
    BOOTED,
    BUILD,
    Machine,
    call,
    copy_of,
    entered,
    needs_debootstrap,
    system,
)
from support.waiting import wait_until

DIST = BUILD.with_name("dist")
SUITES = ("bookworm", "trixie")
SERVICE = "numbers-uring.service"
LATER = ("numbers-uring.socket", "numbers-uring-node.service", "numbers-uring-collect@0-3.service")
LOG = "/var/lib/numbers-uring/numbers.log"
CONFIG = "/etc/numbers-uring/serve.env"
METRICS = "127.0.0.1:4001"
NUMBERS = 100_000


def build(suite: str) -> Path:
    """Build the package in a new Debian; return its path on this host."""
    fields = (BUILD.parent / "debian" / "control").read_text()
    line = re.search(r"^Build-Depends: (.*)$", fields, re.MULTILINE)
    assert line is not None
    needed = [each.split()[0] for each in line[1].split(",")]
    root = copy_of(system(suite, "build-essential", *needed), f"{suite}-build")
    (archive,) = DIST.glob("*.tar.gz")
    folder = root / "build"
    folder.mkdir()
    call("tar", "--extract", "--gzip", "--file", archive, "--directory", folder)
    (sources,) = folder.iterdir()
    inside = f"/build/{sources.name}"
    epoch = f"SOURCE_DATE_EPOCH={os.environ['SOURCE_DATE_EPOCH']}"
    with entered(root) as enter:
        call(*enter, "env", epoch, f"{inside}/debian/build-package", "/root")
        (package,) = root.glob("root/*.deb")
    with entered(lint_root := copy_of(system(suite, "lintian"), f"{suite}-lint")) as enter:
        call("cp", package, lint_root)
        lint = ("lintian", "--allow-root", "--fail-on", "error,warning", "--tag-display-limit", "0")
        call(*enter, *lint, f"/{package.name}")
    return package


def control(package: Path, field: str) -> str:
    done = subprocess.run(
        ["dpkg-deb", "--field", package, field], capture_output=True, check=True, text=True
    )
    return done.stdout.strip()


def next_version(package: Path) -> Path:
    """Return the same package with a higher version."""
    folder = package.parent / "next"
    call("dpkg-deb", "--raw-extract", package, folder)
    fields = folder / "DEBIAN" / "control"
    version = control(package, "Version")
    fields.write_text(fields.read_text().replace(f"Version: {version}", f"Version: {version}+next"))
    made = package.with_name("next.deb")
    call("dpkg-deb", "--root-owner-group", "--build", folder, made)
    return made


def totals(machine: Machine) -> tuple[int, int]:
    """Return how many unique numbers the server has taken in, and how many duplicates."""
    status = json.loads(machine.output("numbers-uring", "status", "--json", f"http://{METRICS}"))
    return status["unique"], status["duplicate"]


def load(machine: Machine) -> None:
    """Send the same numbers each time, and see them arrive."""
    sent = machine.output("numbers-uring", "load", "--json", "--numbers", str(NUMBERS))
    assert json.loads(sent)["complete"], sent


def is_active(machine: Machine, unit: str = SERVICE) -> bool:
    return machine.run("systemctl", "--quiet", "is-active", unit) == 0


def try_out(root: Path) -> None:
    """Install, use, upgrade, remove and purge the package, with a restart of the system."""
    log = Path(f"{root}{LOG}")
    config = Path(f"{root}{CONFIG}")
    install = ("apt-get", "install", "--yes", "--no-install-recommends")
    with Machine(root) as machine:
        machine.output(*install, "/first.deb")
        # It serves at once, on loopback, as its own user; everything else waits to be asked.
        assert is_active(machine)
        assert machine.output("systemctl", "is-enabled", SERVICE).strip() == "enabled"
        for unit in LATER:
            assert not is_active(machine, unit)
            assert machine.run("systemctl", "--quiet", "is-enabled", unit) != 0
        show = ("systemctl", "show", "--value", "--property")
        pid = machine.output(*show, "MainPID", SERVICE).strip()
        assert machine.output("ps", "-o", "user=", "-p", pid).strip() == "numbers-uring"
        machine.output("numbers-uring", "--version")
        load(machine)
        wait_until(lambda: log.stat().st_size == 10 * NUMBERS, "the numbers")
        units = ("numbers-uring.service", *LATER)
        found = machine.output("systemd-analyze", "verify", "--man=no", *units)
        assert not found, found
        # A node and a collector have all that they need but a NATS server.
        nowhere = "nats://127.0.0.1:1"
        collect = ("collect", "--partitions", "0-3", "--log-dir", "/tmp", "--nats", nowhere)
        assert machine.run("numbers-uring", *collect) == 3
        # Its settings.
        with config.open("a") as file:
            file.write(f"NUMBERS_URING_SERVE_METRICS={METRICS}\n")
        settings = config.read_text()
        machine.output("systemctl", "restart", SERVICE)
        load(machine)
        assert totals(machine) == (0, NUMBERS)
        # A rotation.
        machine.output("logrotate", "--force", "/etc/logrotate.d/numbers-uring")
        wait_until(log.exists, "the new log")
        assert is_active(machine)
        machine.output("numbers-uring", "check", f"{LOG}.1")
        # A stop.
        machine.output("systemctl", "stop", SERVICE)
        assert machine.output(*show, "Result", SERVICE).strip() == "success"
    with Machine(root) as machine:
        # After a start of the system it serves again, and knows the numbers of the rotated log.
        assert is_active(machine)
        load(machine)
        assert totals(machine) == (0, NUMBERS)
        # The upgrade starts the new version.
        pid = machine.output(*show, "MainPID", SERVICE)
        machine.output("apt-get", "install", "--yes", "/next.deb")
        assert is_active(machine)
        assert machine.output(*show, "MainPID", SERVICE) != pid
        assert config.read_text() == settings
        load(machine)
        assert totals(machine)[0] == 0
        # Removed, it leaves settings and logs; purged, logs alone.
        logs = sorted(log.parent.iterdir())
        assert logs
        machine.output("apt-get", "remove", "--yes", "numbers-uring")
        assert not is_active(machine)
        assert machine.run("pgrep", "--full", "numbers-uring") == 1
        assert not Path(f"{root}/usr/lib/numbers-uring").exists()
        assert config.read_text() == settings
        assert sorted(log.parent.iterdir()) == logs
        machine.output("logrotate", "--force", "/etc/logrotate.d/numbers-uring")
        machine.output(*install, "/first.deb")
        assert is_active(machine)
        load(machine)
        logs = [path for path in sorted(log.parent.iterdir()) if path.stat().st_size]
        machine.output("apt-get", "purge", "--yes", "numbers-uring")
        assert not config.parent.exists()
        assert not Path(f"{root}/etc/logrotate.d/numbers-uring").exists()
        assert sorted(log.parent.iterdir()) == logs
        # Without a number there is nothing to keep.
        for path in log.parent.iterdir():
            path.unlink()
        machine.output(*install, "/first.deb")
        machine.output("apt-get", "purge", "--yes", "numbers-uring")
        assert not log.parent.exists()
        left = machine.output("systemctl", "list-units", "--all", "--plain", "--no-legend", "numb*")
        assert not left, left


def main() -> None:
    """Build and try the package in each Debian."""
    needs_debootstrap("deb-check")
    for suite in sys.argv[1:] or SUITES:
        package = build(suite)
        root = copy_of(system(suite, *BOOTED), f"{suite}-machine")
        with entered(root) as enter:
            depends = control(package, "Depends")
            call(*enter, "apt-get", "satisfy", "--yes", "--quiet=2", depends)
        call("cp", package, root / "first.deb")
        call("cp", next_version(package), root / "next.deb")
        try_out(root)
        print(f"{package.name} installs, serves, is upgraded, removed and purged.")
        built = DIST / package.name
        if built.exists():
            same = built.read_bytes() == package.read_bytes()
            print(f"It has {'the same bytes as' if same else 'other bytes than'} that in {DIST}.")


if __name__ == "__main__":
    main()
