"""Fixtures for all suites."""

import errno
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from numbers_uring.reactor.probe import receives
from support.notify_socket import NotifySocket
from support.outer_make import without_outer_make
from support.processes import ServerProcess
from support.selection import dealt, some_cases

for _name in set(os.environ) - set(without_outer_make(os.environ)):
    del os.environ[_name]

BACKENDS = os.environ.get("TEST_BACKENDS", "epoll uring").split()
CASES_MAX = int(os.environ.get("TEST_CASES_MAX", "0"))
"""How many cases of a test run, where it has more than that; 0 is all."""
WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "0"))


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    kept = some_cases(items, CASES_MAX) if CASES_MAX else items
    names = {item.nodeid for item in kept}
    config.hook.pytest_deselected(items=[item for item in items if item.nodeid not in names])
    items[:] = dealt(kept, WORKERS) if WORKERS else kept


@pytest.fixture(autouse=True, scope="session")
def _signals_have_their_defaults() -> None:
    """Shells ignore SIGINT, and nohup SIGHUP, in what they run; children inherit that."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., ServerProcess]]:
    """Start servers that end with the test; the log is numbers.log in `tmp_path`."""
    with ExitStack() as running:

        def start(*options: str, **settings: object) -> ServerProcess:
            server = ServerProcess(tmp_path / "numbers.log", *options, **settings)  # type: ignore[arg-type]
            return running.enter_context(server)

        yield start


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[NotifySocket]:
    """A service manager that listens."""
    with NotifySocket(str(tmp_path / "notify")) as listening:
        yield listening


@pytest.fixture(scope="session")
def ring() -> None:
    """Skip where the system has no io_uring or forbids it; any other failure is one."""
    try:
        assert receives()
    except OSError as error:
        if error.errno not in {errno.EPERM, errno.ENOSYS}:
            raise
        pytest.skip(f"no io_uring here: {error}")


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    """Each backend: every suite of the server's contract runs on all of TEST_BACKENDS."""
    if request.param == "uring":
        request.getfixturevalue("ring")
    return str(request.param)


@pytest.fixture(scope="session")
def namespaces() -> None:
    """Skip where no namespaces can be made."""
    done = subprocess.run(
        ["unshare", "--mount", "--net", "--pid", "--fork", "true"],
        capture_output=True,
        check=False,
        text=True,
    )
    if done.returncode != 0:
        pytest.skip(f"no namespaces can be made here: {done.stderr.strip()}")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    mounted = tmp_path / "disk"
    mounted.mkdir()
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(mounted)],
        capture_output=True,
        check=False,
        text=True,
    )
    if mount.returncode != 0:
        pytest.skip(f"no file system can be mounted here: {mount.stderr.strip()}")
    yield mounted
    subprocess.run(["umount", "--lazy", str(mounted)], check=True)
