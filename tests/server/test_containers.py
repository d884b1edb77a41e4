"""The server in namespaces as containers have them: PID 1, a read-only root, ...

A limit of memory has tests of its own, in test_memory_limit.py.
"""

import errno
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from numbers_uring.errors import StartError
from numbers_uring.limits import SIGNAL_REPEAT_S
from numbers_uring.net.listeners import listen_tcp
from ports import reserve_port
from support.faults import needs_strace, stalled_sync
from support.logs import lines
from support.namespaces import AS_PID_1, NOBODY, children, confined, run, without_rights
from support.processes import ServerProcess, assert_one_line_error
from support.waiting import DEADLINE_S, wait_until

pytestmark = pytest.mark.usefixtures("namespaces")

SERVE = (sys.executable, "-m", "numbers_uring", "serve", "--port", "0")
LINES = lines(range(100))


# Process number 1.


@contextmanager
def pid_1(log: Path, *options: str, setup: str = "") -> Iterator[tuple[ServerProcess, int]]:
    """Start a server as process number 1 of its namespace; give its number out here, too."""
    with ServerProcess(log, *options, prefix=confined(setup, *AS_PID_1)) as server:
        # Between us and the server is unshare, which waits for it and passes its exit code on.
        ((pid, _),) = children(server.process.pid)
        yield server, pid


def test_process_number_1_stops_and_reopens_its_log_as_any_other(
    backend: str, tmp_path: Path
) -> None:
    """The kernel keeps signals without a handler from it, and gives it orphans to look after."""
    log = tmp_path / "numbers.log"
    end = tmp_path / "end"
    os.mkfifo(end)
    with pid_1(log, "--backend", backend, setup=f"(cat '{end}' &)") as (server, pid):
        server.send(LINES)
        end.write_bytes(b"")
        wait_until(lambda: [state for _, state in children(pid)] == ["Z"], "a zombie")
        wait_until(lambda: log.read_bytes() == LINES, "the numbers")
        log.rename(tmp_path / "rotated")
        os.kill(pid, signal.SIGHUP)
        wait_until(log.exists, "the new log")
        server.send(lines(range(90, 110)))
        wait_until(lambda: log.read_bytes() == lines(range(100, 110)), "the other numbers")
        os.kill(pid, signal.SIGTERM)
        assert server.wait() == 0
        assert server.reported() == (110, 10, 110)
        assert "stopped by SIGTERM" in server.stderr


@needs_strace
def test_a_second_signal_ends_process_number_1_at_once(tmp_path: Path) -> None:
    with pid_1(tmp_path / "numbers.log") as (server, pid):
        with stalled_sync(pid, tmp_path / "trace") as sync_has_begun:
            os.kill(pid, signal.SIGTERM)
            wait_until(sync_has_begun, "the sync")
            time.sleep(2 * SIGNAL_REPEAT_S)
            os.kill(pid, signal.SIGTERM)
            wait_until(lambda: server.process.poll() is not None, "the process to end")
        assert server.wait() == 128 + signal.SIGTERM


# The root file system.


@pytest.fixture
def read_only_root(tmp_path: Path) -> str:
    """The set-up of a root that can't be written to, with `tmp_path`/mounted at /mnt that can."""
    mounted = tmp_path / "mounted"
    mounted.mkdir()
    mounted.chmod(0o777)
    return f"""
        mount --bind '{mounted}' /mnt
        mount -o remount,bind,ro /
        for other in /tmp /var/tmp /dev/shm; do
            if mountpoint -q $other; then mount -o remount,bind,ro $other; fi
        done
        ! touch /refused /tmp/refused 2>&-
    """


def test_on_a_read_only_root_the_log_may_be_on_a_mount(
    backend: str, read_only_root: str, tmp_path: Path
) -> None:
    confine = confined(f"{read_only_root}\nunset HOME TMPDIR\ncd /", "--mount")
    log = Path("/mnt/numbers.log")
    with ServerProcess(log, "--backend", backend, prefix=confine) as server:
        server.send(LINES)
        assert server.terminate() == 0
    assert (tmp_path / "mounted" / "numbers.log").read_bytes() == LINES


def test_a_log_on_a_read_only_root_is_said(read_only_root: str) -> None:
    confine = confined(f"{read_only_root}\ncd /", "--mount")
    for log in ("numbers.log", "/tmp/numbers.log", "/numbers.log"):
        done = run(*confine, *SERVE, "--log-file", log)
        assert_one_line_error(done, 3, "numbers.log", "Read-only file system")


def test_a_user_without_any_right_may_serve(
    backend: str, read_only_root: str, tmp_path: Path
) -> None:
    tried = run(*without_rights(), sys.executable, "-c", "import numbers_uring")
    if tried.returncode != 0:
        pytest.skip(f"this Python can't be run by another user: {tried.stderr.strip()}")
    confine = confined(read_only_root, "--mount")
    log = Path("/mnt/numbers.log")
    with ServerProcess(log, "--backend", backend, prefix=[*confine, *without_rights()]) as server:
        server.send(LINES)
        assert server.terminate() == 0
    written = tmp_path / "mounted" / "numbers.log"
    assert written.read_bytes() == LINES
    assert written.stat().st_uid == NOBODY
    done = run(*confine, *without_rights(), *SERVE, "--log-file", "/mnt/../numbers.log")
    assert_one_line_error(done, 3, "numbers.log", "Read-only file system")


def test_neither_proc_nor_dev_nor_standard_streams_are_needed(backend: str, tmp_path: Path) -> None:
    """What the start line says can't be seen then, so the kernel's list of sockets is asked."""
    log = tmp_path / "numbers.log"
    log.write_bytes(LINES[:-3])
    port = reserve_port()
    server = subprocess.Popen(
        [
            *confined(
                "umount --lazy /proc\nmount -t tmpfs none /dev\nexec <&- >&- 2>&-", "--mount"
            ),
            *SERVE[:-1],
            *(str(port), "--log-file", str(log), "--resume", "--backend", backend),
        ],
        env={},
    )
    try:

        def send(data: bytes) -> bool:
            try:
                with socket.create_connection(("127.0.0.1", port), timeout=DEADLINE_S) as client:
                    client.sendall(data)
            except ConnectionRefusedError:
                assert server.poll() is None
                return False
            return True

        wait_until(lambda: send(lines(range(95, 105))), "the server to listen")
        assert send(b"terminate\n")
        assert server.wait(DEADLINE_S) == 0
    finally:
        server.kill()
        server.wait(DEADLINE_S)
    assert log.read_bytes() == lines(range(105))


# Without IPv6.


@pytest.fixture
def without_ipv6(tmp_path: Path) -> list[str]:
    """A network with IPv4 alone, where localhost is ::1, too, as in most containers."""
    hosts = tmp_path / "hosts"
    hosts.write_text("127.0.0.1 localhost\n::1 localhost ip6-localhost\n")
    return confined(
        f"""
        ip link set lo up
        for setting in /proc/sys/net/ipv6/conf/*/disable_ipv6; do
            if test -e $setting; then echo 1 > $setting; fi
        done
        mount --bind '{hosts}' /etc/hosts
        """,
        *("--mount", "--net"),
    )


@pytest.mark.parametrize(
    ("host", "shown"),
    [
        ("127.0.0.1", "127.0.0.1:"),
        ("localhost", "127.0.0.1:"),
        ("0.0.0.0", "0.0.0.0:"),
    ],
)
def test_without_ipv6_the_hosts_of_ipv4_work(
    host: str, shown: str, without_ipv6: list[str], tmp_path: Path
) -> None:
    log = tmp_path / "numbers.log"
    with ServerProcess(log, "--host", host, prefix=without_ipv6) as server:
        assert f"listening on {shown}{server.port}, " in server.stderr
        done = run(
            *("nsenter", "--net", "--target", str(server.process.pid)),
            *(sys.executable, "-m", "numbers_uring", "load", "--port", str(server.port)),
            *("--numbers", "1000", "--terminate"),
        )
        assert done.returncode == 0, done.stderr
        assert server.wait() == 0
        assert len(server.logged_set()) == 1000


@pytest.mark.parametrize("host", ["::1", "ip6-localhost"])
def test_without_ipv6_a_host_of_ipv6_is_said(
    host: str, without_ipv6: list[str], tmp_path: Path
) -> None:
    log = tmp_path / "numbers.log"
    done = run(*without_ipv6, *SERVE, "--host", host, "--log-file", str(log))
    assert_one_line_error(done, 3, "cannot listen on", "::1")
    assert not log.exists()


def resolve_to(monkeypatch: pytest.MonkeyPatch, *addresses: tuple[str | int, ...]) -> None:
    """Have every name stand for `addresses`."""
    answer = [
        (socket.AF_INET if len(address) == 2 else socket.AF_INET6, 0, 0, "", address)
        for address in addresses
    ]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_args, **_options: answer)


def test_a_kernel_that_has_no_ipv6_at_all_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """It refuses the socket already, where one with IPv6 turned off refuses the address."""
    make = socket.socket

    def refuse(family: socket.AddressFamily, kind: socket.SocketKind) -> socket.socket:
        if family == socket.AF_INET6:
            raise OSError(errno.EAFNOSUPPORT, os.strerror(errno.EAFNOSUPPORT))
        return make(family, kind)

    monkeypatch.setattr(socket, "socket", refuse)
    with pytest.raises(StartError, match=r"\[::1\]:0: Address family not supported"):
        listen_tcp("::1", 0)
    resolve_to(monkeypatch, ("::1", 0, 0, 0), ("127.0.0.1", 0))
    (listener,) = listen_tcp("localhost", 0)
    assert listener.getsockname()[0] == "127.0.0.1"
    listener.close()


def test_an_address_that_is_taken_is_not_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        resolve_to(monkeypatch, ("127.0.0.2", port), ("127.0.0.1", port))
        with pytest.raises(StartError, match=f"127.0.0.1:{port}: Address already in use"):
            listen_tcp("localhost", port)
