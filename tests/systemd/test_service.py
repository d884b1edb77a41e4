"""The real process as a service, and what it tells its manager."""

import fcntl
import shutil
import signal
import socket
import subprocess
import threading
from collections.abc import Callable
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import pytest

from numbers_uring.limits import RESUME_PROGRESS_S
from support.logs import lines
from support.notify_socket import NotifySocket, told
from support.processes import ServerProcess, failure
from support.waiting import DEADLINE_S, wait_until

Serve = Callable[..., ServerProcess]

WATCHDOG_S = 0.4
NEVER = ("--report-interval", "3600")


# States.


def test_it_is_ready_once_clients_can_be_served_and_says_when_it_stops(
    serve: Serve, backend: str, tmp_path: Path
) -> None:
    with NotifySocket(f"@{tmp_path}") as manager:
        seen = ("--seen", str(tmp_path / "numbers.log*"))
        (tmp_path / "numbers.log.1").write_bytes(lines([3]))
        server = serve("--backend", backend, "--resume", *seen, environment=told(manager))
        manager.wait_for("READY", "1")
        *starting, ready = manager.messages
        reading, read, resuming, resumed = starting[-4:]
        assert reading["STATUS"] == "reading the files of --seen"
        assert read["STATUS"].startswith("read 1 file of --seen: 1 number in")
        assert resuming["STATUS"] == f"resuming {server.log_path}"
        assert resumed["STATUS"].startswith(f"resumed {server.log_path}: 0 numbers")
        for message in (reading, read, resuming, resumed):
            assert int(message["EXTEND_TIMEOUT_USEC"]) > 2e6 * RESUME_PROGRESS_S
        assert ready["STATUS"] == (
            f"Listening on 127.0.0.1:{server.port}; 0 clients, 0 unique, 0 duplicates"
        )
        server.send(lines([1, 2, 1]))
        assert server.stop() == 0
        assert manager.values("READY") == ["1"]
        assert manager.values("STOPPING") == ["1"]
        assert manager.messages[len(starting) + 1].keys() >= {"STOPPING", "EXTEND_TIMEOUT_USEC"}
        last = manager.messages[-1]
        assert last["STATUS"].startswith("stopped by SIGTERM: 2 numbers written to ")
    assert len(server.stderr_lines) == 4


def test_the_status_goes_with_the_reports(
    serve: Serve, backend: str, manager: NotifySocket
) -> None:
    server = serve(*("--backend", backend, "--report-interval", "0.1"), environment=told(manager))
    with server.connect() as client:
        client.sendall(lines([*range(1000), 5, 6]))
        listening = f"Listening on 127.0.0.1:{server.port}; 1 client, 1000 unique, 2 duplicates, "
        manager.wait_for("STATUS", listening, count=2)
    rates = [
        text.rsplit(", ", 1)[1] for text in manager.values("STATUS") if text.startswith(listening)
    ]
    assert rates[0].endswith(" k/s")
    assert rates[1] == "0 /s"
    assert server.terminate() == 0


@pytest.mark.parametrize("reason", ["port", "lock", "content"])
def test_it_is_not_ready_where_it_cannot_start(
    tmp_path: Path, manager: NotifySocket, reason: str
) -> None:
    log = tmp_path / "numbers.log"
    log.write_bytes(lines([1]) + (b"x" * 10 if reason == "content" else b"") + lines([2]))
    before = log.read_bytes()
    with socket.create_server(("127.0.0.1", 0)) as taken, log.open() as file:
        if reason == "lock":
            fcntl.flock(file, fcntl.LOCK_EX)
        port = taken.getsockname()[1] if reason == "port" else 0
        code, said = failure(log, "--resume", "--port", str(port), environment=told(manager))
    assert code == 3
    assert len(said) == 1
    assert manager.values("READY") == []
    assert manager.values("STATUS")[-1] == said[0].removeprefix("numbers-uring: error: ")
    assert log.read_bytes() == before


def test_a_log_that_fails_is_told(serve: Serve, backend: str, manager: NotifySocket) -> None:
    server = serve(
        *("--backend", backend),
        prefix=["prlimit", "--fsize=12345"],
        # Coverage would write its data under the same limit.
        environment={"COVERAGE_PROCESS_CONFIG": "", **told(manager)},
    )
    with server.connect() as client:
        client.sendall(lines(range(5000)))
        assert server.wait() == 4
    assert manager.values("STOPPING") == ["1"]
    error = server.stderr_lines[-1].removeprefix("numbers-uring: error: ")
    assert manager.values("STATUS")[-1] == error


def test_a_reload_begins_and_ends(serve: Serve, backend: str, manager: NotifySocket) -> None:
    server = serve("--backend", backend, *NEVER, environment=told(manager))
    manager.wait_for("READY", "1")
    before = len(manager.messages)
    server.log_path.rename(server.log_path.with_suffix(".1"))
    server.process.send_signal(signal.SIGHUP)
    manager.wait_for("READY", "1", count=2)
    reloading, ready = manager.messages[before:]
    assert reloading["RELOADING"] == "1"
    assert int(reloading["MONOTONIC_USEC"]) > 0
    assert reloading["STATUS"].startswith("Reopening the log; ")
    assert ready["STATUS"].startswith("Listening on ")
    assert server.log_path.exists()
    assert server.stop() == 0


# The watchdog.


def gaps_s(times_s: list[float]) -> list[float]:
    return [later_s - sooner_s for sooner_s, later_s in pairwise(times_s)]


def test_the_watchdog_is_fed_while_idle_under_load_and_while_clients_are_held_back(
    backend: str, small_disk: Path, manager: NotifySocket
) -> None:
    filler = small_disk / "filler"
    filler.write_bytes(b"x" * 900_000)
    over = threading.Event()

    def flood(server: ServerProcess) -> None:
        with suppress(OSError), server.connect() as client:
            while not over.is_set():
                client.sendall(lines(range(5000)))

    def wait_for_heartbeats() -> None:
        seen = len(manager.values("WATCHDOG"))
        manager.wait_for("WATCHDOG", "1", count=seen + 6)

    with ServerProcess(
        small_disk / "numbers.log",
        *("--backend", backend, *NEVER),
        environment=told(manager, WATCHDOG_S),
    ) as server:
        wait_for_heartbeats()
        flooding = threading.Thread(target=flood, args=(server,), daemon=True)
        flooding.start()
        wait_for_heartbeats()
        over.set()
        flooding.join(DEADLINE_S)
        with server.connect() as client:
            client.sendall(lines(range(60_000)))
            manager.wait_for("STATUS", "No space for the log, clients are held back; 1 client, ")
            wait_for_heartbeats()
            filler.unlink()
            manager.wait_for("STATUS", "Listening on ", count=2)
            wait_for_heartbeats()
        assert server.terminate() == 0
        assert manager.values("READY") == ["1"]


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
def test_a_loop_that_is_stuck_feeds_nothing(
    serve: Serve, backend: str, manager: NotifySocket, tmp_path: Path
) -> None:
    stuck_s = 2
    server = serve("--backend", backend, *NEVER, environment=told(manager, WATCHDOG_S))
    trace = (
        *("strace", "-f", "-o", str(tmp_path / "trace"), "-P", str(server.log_path)),
        *("-e", "trace=write", "-e", f"inject=write:delay_enter={stuck_s}s"),
        *("-p", str(server.process.pid)),
    )
    with subprocess.Popen(trace, stderr=subprocess.PIPE, text=True) as tracer:
        assert tracer.stderr is not None
        while "attached" not in (said := tracer.stderr.readline()):
            assert tracer.poll() is None, said
        manager.wait_for("WATCHDOG", "1", count=2)
        server.send(lines([1]))
        wait_until(lambda: server.logged() == [1], "the number")
        manager.wait_for("WATCHDOG", "1", count=len(manager.values("WATCHDOG")) + 2)
        tracer.terminate()
    assert max(gaps_s(manager.times_s("WATCHDOG"))) > stuck_s - 2 * WATCHDOG_S
    assert server.stop() == 0


# A manager that is not there, or does not listen.


def test_a_manager_that_goes_away_does_not_matter(
    serve: Serve, backend: str, manager: NotifySocket
) -> None:
    server = serve(
        *("--backend", backend, "--report-interval", "0.01"),
        environment=told(manager, WATCHDOG_S),
    )
    manager.wait_for("READY", "1")
    manager.close()
    for number in range(20):
        server.send(lines([number]))
    seen = len(server.reports)
    wait_until(lambda: len(server.reports) > seen + 5, "more reports")
    server.process.send_signal(signal.SIGHUP)
    assert server.terminate() == 0
    assert server.logged() == list(range(20))
    assert "service manager" not in server.stderr


def test_a_manager_that_does_not_read_delays_no_client_and_learns_of_the_state_later(
    serve: Serve, backend: str, manager: NotifySocket
) -> None:
    filled = manager.fill()
    server = serve("--backend", backend, "--report-interval", "0.01", environment=told(manager))
    wait_until(lambda: len(server.reports) > 5, "reports")
    server.send(lines([1]))
    wait_until(lambda: server.logged() == [1], "the number")
    # Read from here on.
    manager.wait_for("READY", "1")
    assert manager.values("FILL") == ["1"] * filled
    assert manager.messages[filled]["READY"] == "1"
    manager.fill()
    assert server.terminate() == 0
    assert "service manager" not in server.stderr


def test_a_manager_that_cannot_be_reached_is_one_warning(serve: Serve, tmp_path: Path) -> None:
    missing = str(tmp_path / "missing")
    server = serve("--report-interval", "0.01", environment={"NOTIFY_SOCKET": missing})
    wait_until(lambda: len(server.reports) > 5, "reports")
    assert server.terminate() == 0
    assert server.stderr.count(missing) == 1
