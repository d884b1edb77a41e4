"""The log of the real process under rotation, removal, failing calls, and kill -9."""

import contextlib
import grp
import os
import pwd
import random
import re
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from support.clients import is_closed
from support.faults import needs_strace, strace
from support.logs import GrowingLog, lines
from support.processes import ServerProcess
from support.unit_sandbox import unit_arguments
from support.waiting import DEADLINE_S, wait_until

Serve = Callable[..., ServerProcess]
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def _servers_start_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hundreds are started here, and measuring the coverage of each would take minutes."""
    monkeypatch.delenv("COVERAGE_PROCESS_CONFIG", raising=False)


@contextmanager
def flood(server: ServerProcess, total: int) -> Iterator[threading.Thread]:
    """Have a client send the numbers below `total`, in the background, and leave."""

    def send() -> None:
        with server.connect() as client, contextlib.suppress(OSError):
            for first in range(0, total, 1000):
                client.sendall(lines(range(first, min(first + 1000, total))))

    thread = threading.Thread(target=send, daemon=True)
    thread.start()
    yield thread
    thread.join(DEADLINE_S)
    assert not thread.is_alive()


def all_numbers(folder: Path) -> list[int]:
    numbers = []
    for path in sorted(folder.glob("numbers.log*")):
        data = path.read_bytes()
        assert re.fullmatch(rb"(?:[0-9]{9}\n)*", data), f"{path} has something else than lines"
        numbers += [int(line) for line in data.split()]
    return numbers


# Rotation.


def test_rotated_under_load_the_files_hold_every_number_once(
    serve: Serve, backend: str, tmp_path: Path
) -> None:
    server = serve("--backend", backend)
    log = server.log_path
    with flood(server, 2_000_000):
        for i in range(10):
            size = log.stat().st_size
            wait_until(lambda: log.stat().st_size > size or i > 5, "the log to grow")  # noqa: B023
            log.rename(log.with_name(f"numbers.log.{i}"))
            server.process.send_signal(signal.SIGHUP)
            # Not only for the new file: one that is renamed before it is locked stays unused.
            reopened = f"{i + 1} times"
            wait_until(lambda: server.stderr.count("is reopened") > i, reopened)  # noqa: B023
    server.send(lines([1_999_999, 2_000_000]))
    assert server.terminate() == 0
    assert sorted(all_numbers(tmp_path)) == list(range(2_000_001))
    assert server.reported() == (2_000_001, 1, 2_000_001)
    assert server.stderr.count("is reopened") == 10


NAMES = {"by number": "", "by date": "dateext\n    dateformat -%Y%m%d-%s"}
"""What a system's own logrotate.conf may set for all."""


@pytest.mark.same_with_reactors
@pytest.mark.skipif(shutil.which("logrotate") is None, reason="logrotate is not installed")
@pytest.mark.parametrize("names", NAMES)
def test_with_the_shipped_files_no_number_is_written_again_after_rotations_and_restarts(
    tmp_path: Path, names: str
) -> None:
    """The unit's command, and logrotate with our configuration; each server is killed but one."""
    log = tmp_path / "numbers-uring" / "numbers.log"
    log.parent.mkdir()
    tmp_path.chmod(0o755)
    arguments = unit_arguments(ROOT / "deploy" / "numbers-uring.service", "", tmp_path)
    for sent in range(0, 400, 100):
        with ServerProcess(log, *arguments[1:], has_log=False) as server:
            size = log.stat().st_size
            server.send(lines(range(sent + 50)))
            wait_until(lambda: log.stat().st_size == size + 500, "the new numbers")  # noqa: B023
            rotate(tmp_path, server, NAMES[names])
            server.send(lines(range(sent + 100)))
            wait_until(lambda: log.stat().st_size == 500, "the numbers behind the rotation")
            if sent == 0:
                assert server.stop() == 0
                assert server.reported() == (100, 50, 100)
    assert {path.suffix for path in log.parent.iterdir()} >= {".log", ".gz"}
    assert len(list(log.parent.iterdir())) == 5
    content = subprocess.run(
        ["zcat", "--force", *map(str, log.parent.iterdir())], check=True, capture_output=True
    ).stdout
    assert sorted(map(int, content.split())) == list(range(400))


def rotate(folder: Path, server: ServerProcess, names: str) -> None:
    """Run logrotate as at the end of a day."""
    text = (ROOT / "deploy" / "logrotate.conf").read_text()
    user, group = pwd.getpwuid(os.geteuid()).pw_name, grp.getgrgid(os.getegid()).gr_name
    for theirs, ours in (
        ("/var/lib/numbers-uring/numbers.log", str(server.log_path)),
        ("su numbers-uring numbers-uring", f"su {user} {group}\n    {names}"),
        (
            "systemctl try-reload-or-restart numbers-uring.service",
            f"kill -HUP {server.process.pid}",
        ),
    ):
        assert theirs in text
        text = text.replace(theirs, ours)
    configuration, log = folder / "logrotate.conf", server.log_path
    configuration.write_text(text)
    configuration.chmod(0o644)
    # A date with seconds must be another one. The clocks of files and of time(2) are a tick behind.
    tick_s = 0.1
    before_s = int(max(path.stat().st_ctime for path in log.parent.iterdir()) + tick_s)
    if names and len(list(log.parent.iterdir())) > 1:
        wait_until(lambda: time.time() >= before_s + 1 + tick_s, "the next second")
    subprocess.run(
        ["logrotate", "--force", "--state", str(folder / "state"), str(configuration)], check=True
    )
    wait_until(log.exists, "the new log")


def test_a_removed_log_is_made_anew(serve: Serve, backend: str) -> None:
    server = serve("--backend", backend)
    with server.connect() as client:
        client.sendall(lines([1]))
        wait_until(lambda: server.logged() == [1], "the first number")
        server.log_path.unlink()
        client.sendall(lines([2]))
        wait_until(lambda: server.log_path.exists() and server.logged() == [2], "the second")
        client.sendall(lines([3]))
    assert server.terminate() == 0
    assert server.logged() == [2, 3]
    assert server.stderr.count("was removed") == 1


def test_a_truncated_log_goes_on_in_whole_lines(serve: Serve, backend: str) -> None:
    server = serve("--backend", backend)
    with server.connect() as client:
        client.sendall(lines([1, 2]))
        wait_until(lambda: server.logged() == [1, 2], "two numbers")
        os.truncate(server.log_path, 13)
        client.sendall(lines([3]))
        wait_until(lambda: server.log_path.stat().st_size == 20, "the third")
    assert server.terminate() == 0
    assert server.logged() == [1, 3]
    assert server.stderr.count("truncated by another process") == 1


# Syncing.


@needs_strace
def test_with_always_each_write_is_synced_before_the_next_wait(
    serve: Serve, backend: str, tmp_path: Path
) -> None:
    wait = {"epoll": "epoll_wait", "uring": "io_uring_enter"}[backend]
    server = serve("--fsync", "always", "--backend", backend)
    trace = tmp_path / "trace"
    with strace(server, trace, "-e", f"trace=write,fdatasync,{wait}"):
        for i in range(20):
            server.send(lines([i]))
        wait_until(lambda: len(server.logged()) == 20, "all numbers")
        assert server.terminate() == 0
    # Each thread for itself: a loop waits when its own writes are synced.
    calls: dict[str, list[str]] = {}
    for thread, call in re.findall(
        rf'^(\d+) +(?:<\.\.\. )?({wait}|fdatasync|write\(\d+, "[0-9]{{9}})',
        trace.read_text(),
        re.MULTILINE,
    ):
        calls.setdefault(thread, []).append(call)
    written = False
    for made in calls.values():
        writes = [i for i, call in enumerate(made) if call.startswith("write")]
        assert all(made[i + 1] == "fdatasync" for i in writes)
        written = written or bool(writes)
    assert written


@needs_strace
@pytest.mark.parametrize(("fsync", "synced"), [("never", False), ("interval", True)])
def test_a_stop_syncs_unless_never_is_asked_for(
    serve: Serve, tmp_path: Path, fsync: str, synced: bool
) -> None:
    server = serve("--fsync", fsync)
    trace = tmp_path / "trace"
    with strace(server, trace, "-e", "trace=fdatasync,fsync"):
        server.send(lines([1]))
        assert server.terminate() == 0
    assert ("fdatasync" in trace.read_text()) is synced


# Failing calls.


def assert_log_and_count_agree(server: ServerProcess, code: int) -> None:
    """Whole lines, none twice, and as many as were counted unless the server said how many less."""
    logged = server.logged_set()
    counted, _, _ = server.reported()
    if code == 0:
        assert len(logged) == counted
        return
    assert code == 4, server.stderr
    last = server.stderr_lines[-1]
    assert last.startswith("numbers-uring: error: ")
    lost = re.search(r"(\d+) counted numbers are lost", last)
    assert len(logged) + (int(lost[1]) if lost else 0) == counted


@needs_strace
@pytest.mark.parametrize("when", ["1", "3..5"])
@pytest.mark.parametrize(
    "fault",
    [
        "write:error=ENOSPC",
        "write:error=EDQUOT",
        "write:error=EIO",
        "write:error=EINTR",
        "write:error=EROFS",
        "write:retval=0",
        "fdatasync:error=EIO",
        "fdatasync:error=ENOSPC",
        "fdatasync:error=EINTR",
    ],
)
def test_after_any_failed_call_the_log_and_the_count_agree(
    serve: Serve, backend: str, tmp_path: Path, fault: str, when: str
) -> None:
    server = serve("--backend", backend, "--fsync", "always")
    call = fault.split(":", maxsplit=1)[0]
    with (
        strace(
            server,
            tmp_path / "trace",
            *("-P", str(server.log_path), "-e", f"trace={call}"),
            *("-e", f"inject={fault}:when={when}"),
        ),
        contextlib.suppress(OSError),
        server.connect() as client,
    ):
        for first in range(0, 6000, 1000):
            client.sendall(lines(range(first, first + 1000)))
            wait_until(
                lambda: (
                    server.log_path.stat().st_size >= (first + 1000) * 10  # noqa: B023
                    or server.process.poll() is not None
                ),
                "the numbers",
            )
    survivable = any(word in fault for word in ("ENOSPC", "EDQUOT", "EINTR"))
    survivable = survivable and not fault.startswith("fdatasync:error=ENOSPC")
    code = server.terminate() if survivable else server.wait()
    if survivable:
        assert server.logged() == list(range(6000))
    assert_log_and_count_agree(server, code)
    assert (code == 0) is survivable


# Stopping.


@pytest.mark.parametrize("attempt", range(int(os.environ.get("STOP_ROUNDS", "3"))))
def test_what_clients_sent_before_a_stop_is_complete_beside_floods(
    serve: Serve, backend: str, attempt: int
) -> None:
    """The talkers' numbers had reached this host before `terminate` was sent."""
    server = serve("--backend", backend, "--max-clients", "10")
    over = threading.Event()

    def flooding(first: int) -> None:
        block = lines(range(first, first + 10_000))
        with contextlib.suppress(OSError), server.connect() as client:
            while not over.is_set():
                client.sendall(block)

    floods = [
        threading.Thread(target=flooding, args=(500_000_000 + i * 10_000,), daemon=True)
        for i in range(4)
    ]
    for thread in floods:
        thread.start()
    talkers = [server.connect() for _ in range(4)]
    for i, client in enumerate(talkers):
        client.sendall(lines(range(i * 1000, (i + 1) * 1000)))
    assert server.terminate() == 0
    over.set()
    for thread in floods:
        thread.join(DEADLINE_S)
    for client in talkers:
        assert is_closed(client)
        client.close()
    assert set(range(4000)) <= server.logged_set()
    assert server.reported()[0] == len(server.logged())


def test_a_client_that_never_reads_or_closes_does_not_hold_a_stop_up(
    serve: Serve, backend: str
) -> None:
    server = serve("--backend", backend)
    with server.connect() as client:
        client.sendall(lines([1]))
        # A second holder of the connection, that never closes it.
        with subprocess.Popen(["sleep", "infinity"], pass_fds=[client.fileno()]) as child:
            try:
                assert server.terminate() == 0
            finally:
                child.kill()
    assert server.logged() == [1]


# kill -9.


class Client:
    """Sends its own numbers in short sessions, and knows which of them were drained."""

    def __init__(self, share: range, seed: int) -> None:
        numbers = list(share)
        random.Random(seed).shuffle(numbers)
        self._left = iter(numbers)
        self.sent: set[int] = set()
        self.drained: set[int] = set()

    def work(self, server: ServerProcess, killing: threading.Event) -> None:
        """Go on until the server is gone; what it closes by dying says nothing."""
        with contextlib.suppress(OSError):
            while True:
                batch = [number for number, _ in zip(self._left, range(500), strict=False)]
                self.sent.update(batch)
                with server.connect() as client:
                    client.sendall(lines(batch))
                    client.shutdown(socket.SHUT_WR)
                    assert client.recv(1) == b"", "the server spoke"
                if not killing.is_set():
                    self.drained.update(batch)


@pytest.mark.timeout(3600)
def test_a_kill_at_any_moment_leaves_whole_lines_and_all_that_was_drained(
    tmp_path: Path, backend: str
) -> None:
    rounds = int(os.environ.get("SOAK_ROUNDS", "8"))
    moments = random.Random(rounds)
    share = 10**9 // 5
    clients = [Client(range(i * share, i * share + 400_000), i) for i in range(5)]
    log = GrowingLog(tmp_path / "numbers.log")
    for _ in range(rounds):
        killing = threading.Event()
        with ServerProcess(tmp_path / "numbers.log", "--backend", backend, "--resume") as server:
            threads = [
                threading.Thread(target=client.work, args=(server, killing), daemon=True)
                for client in clients
            ]
            for thread in threads:
                thread.start()
            threading.Event().wait(moments.uniform(0.0, 0.1))  # Any moment will do.
            killing.set()
            server.process.kill()
            server.process.wait(DEADLINE_S)
            for thread in threads:
                thread.join(DEADLINE_S)
                assert not thread.is_alive()
        log.look()
        for client in clients:
            assert client.drained <= log.numbers
    assert log.numbers <= set().union(*(client.sent for client in clients))
    with ServerProcess(tmp_path / "numbers.log", "--backend", backend, "--resume") as server:
        assert server.terminate() == 0
        assert server.logged_set() == log.numbers
