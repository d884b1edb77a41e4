"""The units in deploy/: that they are right, tight, and leave the server what it needs."""

import gzip
import platform
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from numbers_uring.errors import ExitCode
from support.broker import Broker, init
from support.logs import lines
from support.metrics_client import health, scrape
from support.processes import CommandProcess, ServerProcess
from support.unit_sandbox import INSTALLED, settings, unit_arguments
from support.waiting import wait_until

ROOT = Path(__file__).resolve().parents[2]
SERVICE = ROOT / "deploy" / "numbers-uring.service"
SOCKET = ROOT / "deploy" / "numbers-uring.socket"
COLLECT = ROOT / "deploy" / "numbers-uring-collect@.service"
NODE = ROOT / "deploy" / "numbers-uring-node.service"
NATS = ROOT / "deploy" / "nats-server.service"


def sandbox(unit: Path) -> tuple[str, ...]:
    """Return what a command is run under to be confined as `unit` says."""
    return (
        *("setpriv", "--no-new-privs", "--bounding-set=-all", "--inh-caps=-all"),
        *(sys.executable, str(ROOT / "tests" / "support" / "unit_sandbox.py"), str(unit)),
    )


pytestmark = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd is not installed"
)
needs_x86_64 = pytest.mark.skipif(
    platform.machine() != "x86_64", reason="the sandbox knows the system calls of x86-64 alone"
)


@pytest.mark.parametrize("unit", [SERVICE, COLLECT, NODE, NATS], ids=lambda unit: unit.name)
def test_the_service_is_tight(unit: Path) -> None:
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--threshold=20", str(unit)],
        capture_output=True,
        check=False,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Overall exposure level" in done.stdout


def test_systemd_finds_nothing_wrong_with_the_units(tmp_path: Path) -> None:
    installed = str(Path(sys.executable).parent)
    for unit in (SERVICE, COLLECT, NODE, NATS):
        text = unit.read_text()
        folder = str(Path(INSTALLED).parent)
        assert folder in text
        (tmp_path / unit.name).write_text(text.replace(folder, installed))
    shutil.copy(SOCKET, tmp_path)
    done = subprocess.run(
        ["systemd-analyze", "verify", *map(str, sorted(tmp_path.iterdir()))],
        capture_output=True,
        check=False,
        text=True,
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


@needs_x86_64
def test_the_server_needs_no_call_that_the_service_may_not_make(
    serve: Callable[..., ServerProcess], backend: str, tmp_path: Path
) -> None:
    """All of its life, under the service's own filter, in which whatever is forbidden kills."""
    (tmp_path / "numbers.log.1").write_bytes(lines(range(50_000, 51_000)))
    (tmp_path / "numbers.log.2.gz").write_bytes(gzip.compress(lines(range(51_000, 52_000))))
    for first in (0, 10_000):
        server = serve(
            *("--backend", backend, "--host", "localhost", "--resume", "--max-clients", "100"),
            *("--seen", str(tmp_path / "numbers.log*")),
            prefix=sandbox(SERVICE),
            # Coverage is no part of the service.
            environment={"COVERAGE_PROCESS_CONFIG": ""},
        )
        assert "read 2 files of --seen: 2000 numbers in" in server.stderr
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


def environment_of(url: str) -> dict[str, str]:
    """Return what the .env files of deploy/ say, for the NATS server at `url`, and no coverage."""
    files = (ROOT / "deploy").glob("*.env")
    text = "".join(file.read_text().replace("nats://127.0.0.1:4222", url) for file in files)
    entries = [line.split("=", 1) for line in text.splitlines() if line[0] != "#"]
    return {**dict(entries), "COVERAGE_PROCESS_CONFIG": ""}


def taken_in(collector: CommandProcess) -> float:
    """Return how many numbers its partitions have taken in, together."""
    found = scrape(collector)
    return sum(found[name] for name in found if "collector_numbers_total" in name)


@needs_x86_64
def test_a_cluster_needs_no_call_that_its_services_may_not_make(tmp_path: Path) -> None:
    with Broker(tmp_path / "broker") as broker, ExitStack() as running:
        environment = environment_of(broker.url)
        init(broker.url, partitions=int(environment["NUMBERS_URING_SERVE_PARTITIONS"]))
        logs = tmp_path / "numbers-uring-collect"
        for first in (0, 1000):
            collector = CommandProcess(
                *unit_arguments(COLLECT, "0-7", tmp_path),
                *("--metrics", "127.0.0.1:0"),
                prefix=sandbox(COLLECT),
                environment=environment,
            )
            running.enter_context(collector)
            collector.wait_for("collecting partitions 0-7")
            assert unit_arguments(NODE, "", tmp_path) == ["serve"]
            node = ServerProcess(
                tmp_path / "no-log",
                *("--metrics", "127.0.0.1:0"),
                prefix=sandbox(NODE),
                environment=environment,
                has_log=False,
            )
            running.enter_context(node)
            node.send(lines(number * 1_000_000 // 2 for number in range(first, first + 1000)))
            wait_until(lambda collector=collector: taken_in(collector) == 1000, "the numbers")  # type: ignore[misc]
            assert health(collector) == health(node) == (200, "ok")
            assert node.stop() == 0
            assert collector.stop(signal.SIGTERM) == 0
        written = sum(len(log.read_bytes()) for log in logs.glob("*.log"))
        assert written == 10 * 2000


@needs_x86_64
def test_a_nats_server_needs_no_call_that_its_service_may_not_make(tmp_path: Path) -> None:
    (start,) = settings(NATS, "ExecStart")
    assert start == f"{Path(INSTALLED).parent}/nats-server --config /etc/nats/nats.conf"
    with Broker(tmp_path / "broker", prefix=sandbox(NATS)) as broker:
        init(broker.url, partitions=2)
        with ServerProcess(
            tmp_path / "no-log", "--forward", broker.url, "--partitions", "2", has_log=False
        ) as node:
            node.send(lines(range(1000)))
            assert node.terminate() == 0
        broker.reload()
        broker.kill()
        broker.start()
        stream = broker.run(lambda js: js.stream_info("numbers-0"))
        assert stream.state.messages > 0


def test_a_node_cannot_read_what_a_collector_may_know() -> None:
    users = (ROOT / "deploy" / "numbers-uring.sysusers").read_text()
    for name in ("User", "Group", "EnvironmentFile", "StateDirectory"):
        of_node, of_collector = set(settings(NODE, name)), set(settings(COLLECT, name))
        assert of_node.isdisjoint(of_collector), name
        if name == "User":
            assert all(f"\nu {user} - " in users for user in of_node | of_collector)


def test_what_ends_a_collector_for_good_is_not_started_again() -> None:
    prevented = {
        unit.name: settings(unit, "RestartPreventExitStatus")[0].split()
        for unit in (SERVICE, COLLECT, NODE)
    }
    usage = 2
    lost, failed = int(ExitCode.FAILED), int(ExitCode.LOG_FAILED)
    assert prevented == {
        SERVICE.name: [f"{usage}", f"{failed}"],
        COLLECT.name: [f"{lost}", f"{usage}", f"{failed}"],
        NODE.name: [f"{usage}"],
    }


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
    done = subprocess.run([*sandbox(SERVICE), sys.executable, "-c", forbidden], check=False)
    assert done.returncode == -signal.SIGSYS
