"""Signals to a real server, whatever its parent has made of them, until the process is gone."""

import os
import pty
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from numbers_uring.errors import ExitCode
from numbers_uring.limits import SIGNAL_REPEAT_S
from numbers_uring.system.signals import caught
from support.faults import needs_strace
from support.logs import lines
from support.processes import CommandProcess, ServerProcess
from support.waiting import DEADLINE_S, wait_until

Serve = Callable[..., ServerProcess]

NAMES = ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1")


def _after(python: str) -> list[str]:
    """Return a prefix that executes `python` and then what comes behind it."""
    program = f"import os, signal, sys\n{python}\nos.execvp(sys.argv[1], sys.argv[1:])"
    return [sys.executable, "-c", program]


BLOCKED = _after("signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())")
IGNORED = _after(f"for name in {NAMES}: signal.signal(getattr(signal, name), signal.SIG_IGN)")


@pytest.mark.parametrize("inherited", [BLOCKED, IGNORED], ids=["blocked", "ignored"])
class TestInherited:
    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
    def test_a_stop_signal_stops(
        self, serve: Serve, backend: str, inherited: list[str], number: signal.Signals
    ) -> None:
        server = serve("--backend", backend, prefix=inherited)
        server.send(lines([1]))
        wait_until(lambda: server.logged() == [1], "the number")
        assert server.stop(number) == 0
        assert f"stopped by {number.name}" in server.stderr

    def test_other_requests_are_done(self, serve: Serve, inherited: list[str]) -> None:
        server = serve("--report-interval", "1000", prefix=inherited)
        server.process.send_signal(signal.SIGUSR1)
        wait_until(lambda: server.reports, "the report")
        rotated = server.log_path.with_suffix(".1")
        server.log_path.rename(rotated)
        server.process.send_signal(signal.SIGHUP)
        wait_until(server.log_path.exists, "the new log")
        assert server.stop() == 0


def test_a_blocked_interrupt_ends_other_commands() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        arguments = ("load", "--port", str(port), "--numbers", "1000000", "--clients", "1")
        with CommandProcess(*arguments, prefix=BLOCKED) as load:
            listener.settimeout(DEADLINE_S)
            client, _ = listener.accept()
            with client:
                load.process.send_signal(signal.SIGINT)
                assert load.process.wait(DEADLINE_S) != 0


JOB = """
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
attributes = termios.tcgetattr(0)
attributes[3] |= termios.TOSTOP
termios.tcsetattr(0, termios.TCSANOW, attributes)
job = os.fork()
if job == 0:
    os.setpgid(0, 0)
    os.execvp(sys.argv[1], sys.argv[1:])
_, status = os.waitpid(job, os.WUNTRACED)
if os.WIFSTOPPED(status):
    os.kill(job, 9)
    sys.exit(99)
sys.exit(os.waitstatus_to_exitcode(status))
"""


def test_a_background_job_is_not_stopped_by_its_terminal(tmp_path: Path) -> None:
    master, slave = pty.openpty()
    path = tmp_path / "socket"
    command = [sys.executable, "-m", "numbers_uring", "serve", "--listen", f"unix:{path}"]
    process = subprocess.Popen(
        [sys.executable, "-c", JOB, *command, "--log-file", str(tmp_path / "numbers.log")],
        stdin=slave,
        stdout=slave,
        stderr=slave,
        start_new_session=True,
    )
    try:
        os.close(slave)
        wait_until(lambda: path.exists() or process.poll() is not None, "the socket")
        assert b"listening" in os.read(master, 4096)
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
            client.sendall(b"terminate\n")
        assert process.wait(DEADLINE_S) == 0
    finally:
        process.kill()
        process.wait()
        os.close(master)


def _end_under_signals(server: CommandProcess, *, apart_s: float = 0.001) -> int:
    """Send all signals over and over until the process is gone; return its exit code."""
    while server.process.poll() is None:
        for name in NAMES:
            server.process.send_signal(getattr(signal, name))
        time.sleep(apart_s)
    return server.wait()


@pytest.mark.parametrize("attempt", range(3))
@pytest.mark.parametrize("reactors", ["1", "2"])
def test_a_failed_run_ends_with_its_exit_code_whatever_signals_come(
    tmp_path: Path, backend: str, reactors: str, attempt: int
) -> None:
    options = ("--backend", backend, "--reactors", reactors)
    with (
        ServerProcess(
            tmp_path / "numbers.log",
            *options,
            prefix=["prlimit", "--fsize=100"],
            environment={"COVERAGE_PROCESS_CONFIG": ""},
        ) as server,
        server.connect() as client,
    ):
        client.sendall(lines(range(1000)))
        assert (tmp_path / "numbers.log").exists()
        wait_until(lambda: (tmp_path / "numbers.log").stat().st_size == 100, "the limit")
        assert _end_under_signals(server) == ExitCode.LOG_FAILED
        assert "File too large" in server.stderr_lines[-1]


@pytest.mark.parametrize("attempt", range(3))
def test_a_clean_run_ends_clean_whatever_signals_come_after_it(serve: Serve, attempt: int) -> None:
    server = serve()
    server.send(b"terminate\n")
    wait_until(lambda: "stopped by" in server.stderr, "the last line")
    assert _end_under_signals(server) == 0


@needs_strace
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_that_cannot_be_waited_for_stop_the_server_later(
    serve: Serve, number: signal.Signals
) -> None:
    inject = "inject=rt_sigtimedwait:error=ENOSYS"
    options = ("-f", "--seccomp-bpf", "-o", os.devnull, "-e", "trace=rt_sigtimedwait", "-e", inject)
    server = serve(prefix=["strace", *options])
    server.send(lines([1]))
    wait_until(lambda: server.logged() == [1], "the number")
    assert "cannot wait for signals" in server.stderr
    (child,) = (
        Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children").read_text().split()
    )
    os.kill(int(child), number)
    assert server.wait() == 0
    assert server.logged() == [1]


HANGING = """
#include <unistd.h>
int fdatasync(int fd)
{
    (void)fd;
    for (;;)
        pause();
}
"""


@pytest.fixture
def hanging_sync(tmp_path: Path) -> dict[str, str]:
    """Return the environment of a server whose disk never answers a sync."""
    library = tmp_path / "hanging.so"
    compiler = ["cc", "-x", "c", "-shared", "-fPIC", "-o", str(library), "-"]
    subprocess.run(compiler, input=HANGING, text=True, check=True)
    return {"LD_PRELOAD": str(library), "COVERAGE_PROCESS_CONFIG": ""}


@pytest.mark.parametrize("is_serving", [True, False])
@pytest.mark.parametrize("reactors", ["1", "2"])
def test_a_second_stop_signal_ends_a_server_whose_disk_does_not_answer(
    serve: Serve, backend: str, hanging_sync: dict[str, str], reactors: str, is_serving: bool
) -> None:
    options = ("--backend", backend, "--reactors", reactors, "--fsync", "always")
    server = serve(*options, environment=hanging_sync)
    if is_serving:
        with server.connect() as client:
            client.sendall(lines([1]))
            wait_until(lambda: server.logged() == [1], "the number")
    while server.process.poll() is None:
        server.process.send_signal(signal.SIGTERM)
        time.sleep(2 * SIGNAL_REPEAT_S)
    assert server.wait() == 128 + signal.SIGTERM
    assert server.stderr_lines[-1].endswith("a second signal, SIGTERM: exiting at once")
    assert server.logged() == ([1] if is_serving else [])


def _run_with_requests(
    python: str, sleep_s: float = DEADLINE_S
) -> subprocess.CompletedProcess[str]:
    program = f"""
        import os, signal, time
        from numbers_uring.errors import SinkError
        from numbers_uring.system.signals import Requests
        requests = Requests(lambda text: os.write(1, text.encode()))
        {python}
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.2)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep({sleep_s})
        """
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        capture_output=True,
        check=False,
        text=True,
        timeout=DEADLINE_S,
    )


def test_neither_a_stop_nor_other_requests_wait_for_a_stop_signal_to_be_repeated() -> None:
    program = f"""
        import os, signal, time
        from numbers_uring.system import signals
        signals.SIGNAL_REPEAT_S = 2 * {DEADLINE_S}
        signals.SIGNAL_THREAD_END_S = {DEADLINE_S}
        with signals.Requests(print) as requests:
            for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGUSR1):
                os.kill(os.getpid(), number)
            while not requests.take_report():
                time.sleep(0.001)
            os.kill(os.getpid(), signal.SIGTERM)
            while signal.SIGTERM in signal.sigpending():
                time.sleep(0.001)
        print(requests.stop.name)
        """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        capture_output=True,
        check=False,
        text=True,
        timeout=DEADLINE_S / 2,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "SIGTERM\n", "")


def test_a_second_stop_signal_ends_the_process_as_a_shell_counts_it() -> None:
    done = _run_with_requests("")
    assert (done.returncode, done.stderr) == (128 + signal.SIGINT, "")
    assert done.stdout == "a second signal, SIGINT: exiting at once"


def test_a_second_stop_signal_while_a_failed_run_ends_has_its_exit_code() -> None:
    done = _run_with_requests("requests.failure = SinkError('the disk is gone')")
    assert (done.returncode, done.stderr) == (ExitCode.LOG_FAILED, "")
    assert done.stdout == "the disk is gone; a second signal, SIGINT: exiting at once"


def test_what_is_ignored_stays_so_to_the_very_end() -> None:
    done = _run_with_requests("with requests: pass", sleep_s=0)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_signals_are_caught_within_the_context_only() -> None:
    numbers = (signal.SIGHUP, signal.SIGUSR2)
    before = [signal.getsignal(number) for number in numbers]
    received: list[signal.Signals] = []
    with caught(numbers, received.append):
        for number in numbers:
            signal.raise_signal(number)
    assert received == list(numbers)
    assert [signal.getsignal(number) for number in numbers] == before


@pytest.mark.parametrize("unless_ignored", [False, True])
def test_what_was_ignored_can_stay_so(unless_ignored: bool) -> None:
    received: list[signal.Signals] = []
    before = signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    try:
        with caught((signal.SIGUSR2,), received.append, unless_ignored=unless_ignored):
            signal.raise_signal(signal.SIGUSR2)
        assert signal.getsignal(signal.SIGUSR2) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert received == ([] if unless_ignored else [signal.SIGUSR2])


def test_the_thread_that_takes_signals_ends_before_the_interpreter_does() -> None:
    code = """
        import os, signal, threading
        from numbers_uring.system.signals import Requests
        for number in (None, signal.SIGHUP, signal.SIGTERM):
            with Requests(print) as requests:
                if number is not None:
                    os.kill(os.getpid(), number)
            print(*(thread.name for thread in threading.enumerate()))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        check=True,
        text=True,
        timeout=DEADLINE_S,
    )
    assert done.stdout.splitlines() == ["MainThread"] * 3
