"""The units in deploy/: that they are right, tight, and leave the server what it needs."""

import platform
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from support import ServerProcess, lines, wait_until

ROOT = Path(__file__).resolve().parent.parent
SERVICE = ROOT / "deploy" / "numbers-uring.service"
SOCKET = ROOT / "deploy" / "numbers-uring.socket"
INSTALLED = "/opt/numbers-uring/bin/numbers-uring"
SANDBOX = (
    *("setpriv", "--no-new-privs", "--bounding-set=-all", "--inh-caps=-all"),
    *(sys.executable, str(ROOT / "tests" / "sandbox.py"), str(SERVICE)),
)

pytestmark = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd is not installed"
)
needs_x86_64 = pytest.mark.skipif(
    platform.machine() != "x86_64", reason="the sandbox knows the system calls of x86-64 alone"
)


def test_the_service_is_tight() -> None:
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--threshold=20", str(SERVICE)],
        capture_output=True,
        check=False,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Overall exposure level" in done.stdout


def test_systemd_finds_nothing_wrong_with_the_units(tmp_path: Path) -> None:
    installed = Path(sys.executable).parent / "numbers-uring"
    text = SERVICE.read_text()
    assert INSTALLED in text
    (tmp_path / SERVICE.name).write_text(text.replace(INSTALLED, str(installed)))
    shutil.copy(SOCKET, tmp_path)
    done = subprocess.run(
        ["systemd-analyze", "verify", *map(str, (tmp_path / SERVICE.name, tmp_path / SOCKET.name))],
        capture_output=True,
        check=False,
        text=True,
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


@needs_x86_64
def test_the_server_needs_no_call_that_the_service_may_not_make(
    serve: Callable[..., ServerProcess], backend: str
) -> None:
    """All of its life, under the service's own filter, in which whatever is forbidden kills."""
    for first in (0, 10_000):
        server = serve(
            *("--backend", backend, "--host", "localhost", "--resume", "--max-clients", "100"),
            prefix=SANDBOX,
            # Coverage is no part of the service.
            environment={"COVERAGE_PROCESS_CONFIG": ""},
        )
        server.send(lines(range(first, first + 5_000)))
        wait_until(lambda: server.log_path.stat().st_size == 50_000, "the numbers")  # noqa: B023
        rotated = server.log_path.with_suffix(f".{first}")
        server.log_path.rename(rotated)
        server.process.send_signal(signal.SIGHUP)
        wait_until(server.log_path.exists, "the new log")
        assert len(rotated.read_bytes()) == 50_000
        server.send(lines(range(first + 5_000, first + 10_000)))
        assert server.terminate() == 0
        assert server.logged_set() == set(range(first + 5_000, first + 10_000))
        server.log_path.write_bytes(b"")


@needs_x86_64
@pytest.mark.parametrize(
    "forbidden",
    [
        "import os; os.setpriority(os.PRIO_PROCESS, 0, 5)",
        "import os; os.chroot('/')",
        "import mmap; mmap.mmap(-1, 4096, prot=mmap.PROT_WRITE | mmap.PROT_EXEC)",
    ],
)
def test_the_sandbox_of_these_tests_does_kill(forbidden: str) -> None:
    done = subprocess.run([*SANDBOX, sys.executable, "-c", forbidden], check=False)
    assert done.returncode == -signal.SIGSYS
