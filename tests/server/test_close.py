"""What a client sees of each way in which a server can end, and what is in the file then."""

import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from support.clients import flood, sees_fin
from support.faults import needs_strace, strace
from support.logs import lines
from support.namespaces import confined
from support.processes import ServerProcess
from support.waiting import wait_until

Serve = Callable[..., ServerProcess]

CLIENTS = 4
NUMBERS_EACH = 1000
COMMON = range(900_000, 900_100)
"""Every client sends these, too: they are new in one of the reactors and repeats in the others."""


@pytest.fixture(params=["1", "2"])
def reactors(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def numbers_of(client: int) -> list[int]:
    return [*range(client * NUMBERS_EACH, (client + 1) * NUMBERS_EACH), *COMMON]


ALL = {number for client in range(CLIENTS) for number in numbers_of(client)}


def on_file(path: Path) -> set[int]:
    """Return the numbers in the log at this moment, whole lines alone."""
    data = path.read_bytes()
    return {int(line) for line in data[: len(data) // 10 * 10].split()}


class Clients:
    """Clients of which each sends its numbers; every other one shuts its side down behind them."""

    def __init__(self, server: ServerProcess, stack: ExitStack) -> None:
        self.server = server
        self.sockets = [stack.enter_context(server.connect()) for _ in range(CLIENTS)]
        self.reset: set[int] = set()
        """Those whose connection was reset before they had sent all: later calls don't tell."""

    def send(self) -> None:
        for number, client in enumerate(self.sockets):
            try:
                client.sendall(lines(numbers_of(number)))
                if number % 2:
                    client.shutdown(socket.SHUT_WR)
            except OSError:
                self.reset.add(number)

    def assert_all_is_true(self, staying: bool | None, half_closed: bool | None) -> None:
        """Check what they see: a FIN (True), a reset (False) or either of them (None).

        When a client sees a FIN, all its numbers are in the file.
        """
        for number, client in enumerate(self.sockets):
            fin = number not in self.reset and sees_fin(client)
            if fin:
                assert set(numbers_of(number)) <= on_file(self.server.log_path), number
            expected = half_closed if number % 2 else staying
            assert expected is None or fin is expected, f"client {number} sees {fin=}"


def stop_by(number: signal.Signals) -> Callable[[ServerProcess], None]:
    return lambda server: server.process.send_signal(number)


def terminate(server: ServerProcess) -> None:
    with server.connect() as client:
        client.sendall(b"terminate\n")
        assert sees_fin(client)


@pytest.mark.parametrize(
    ("stop", "fsync"),
    [
        (terminate, "never"),
        (terminate, "always"),
        (stop_by(signal.SIGTERM), "interval"),
        (stop_by(signal.SIGTERM), "always"),
        (stop_by(signal.SIGINT), "never"),
    ],
    ids=[
        "terminate-never",
        "terminate-always",
        "SIGTERM-interval",
        "SIGTERM-always",
        "SIGINT-never",
    ],
)
def test_a_clean_stop_is_a_fin_and_everything_is_on_file(
    serve: Serve,
    backend: str,
    reactors: str,
    fsync: str,
    stop: Callable[[ServerProcess], None],
) -> None:
    server = serve(
        *("--backend", backend, "--reactors", reactors, "--fsync", fsync, "--max-clients", "3")
    )
    with ExitStack() as stack:
        clients = Clients(server, stack)
        clients.send()
        stop(server)
        clients.assert_all_is_true(True, True)
    assert server.wait() == 0
    assert server.logged_set() == ALL


@dataclass(frozen=True)
class Fault:
    """A fault that is there before the clients send, and what ends the server."""

    inject: str = ""
    """For strace, of calls with the log."""
    prefix: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    said: str = ""
    """Awaited before `end`."""
    end: signal.Signals | None = None
    exit_code: int = 4
    half_closed: bool | None = False


FAULTS = {
    "file size limit": Fault(prefix=("prlimit", "--fsize=100")),
    "write EIO": Fault("write:error=EIO"),
    "write EIO, once": Fault("write:error=EIO:when=1"),
    "write EFBIG": Fault("write:error=EFBIG"),
    "fdatasync EIO, always": Fault("fdatasync:error=EIO", options=("--fsync", "always")),
    "fdatasync EIO, always, once": Fault(
        "fdatasync:error=EIO:when=1", options=("--fsync", "always")
    ),
    # What is in the file counts there, and the sync comes a little later.
    "fdatasync EIO, interval": Fault(
        "fdatasync:error=EIO", options=("--fsync", "interval"), half_closed=None
    ),
    "stop on a full disk": Fault("write:error=ENOSPC", said="no space", end=signal.SIGTERM),
    "kill on a full disk": Fault(
        "write:error=ENOSPC", said="no space", end=signal.SIGKILL, exit_code=-signal.SIGKILL
    ),
}


@needs_strace
@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_whatever_fails_is_a_reset(
    serve: Serve, backend: str, reactors: str, fault: Fault, tmp_path: Path
) -> None:
    if fault.prefix and shutil.which(fault.prefix[0]) is None:
        pytest.skip(f"{fault.prefix[0]} is not installed")
    server = serve(
        *("--backend", backend, "--reactors", reactors, *fault.options),
        prefix=fault.prefix,
        # Coverage would write its data under the same limit.
        environment={"COVERAGE_PROCESS_CONFIG": ""} if fault.prefix else None,
    )
    with ExitStack() as stack:
        if fault.inject:
            log = ("-P", str(server.log_path), "-e", f"inject={fault.inject}")
            stack.enter_context(strace(server, tmp_path / "trace", *log))
        clients = Clients(server, stack)
        clients.send()
        if fault.end is not None:
            wait_until(lambda: fault.said in server.stderr, f"{fault.said}: {server.stderr}")
            server.process.send_signal(fault.end)
        clients.assert_all_is_true(False, fault.half_closed)
        assert server.wait() == fault.exit_code, server.stderr
    assert "Traceback" not in server.stderr
    if fault.exit_code == 4:
        counted, _, _ = server.reported()
        lost = counted - len(server.logged_set())
        assert (f"{lost} counted numbers are lost" in server.stderr) is bool(lost)


def test_a_kill_is_a_reset(serve: Serve, backend: str, reactors: str) -> None:
    server = serve("--backend", backend, "--reactors", reactors)
    with ExitStack() as stack:
        clients = Clients(server, stack)
        clients.send()
        wait_until(lambda: on_file(server.log_path) == ALL, "all numbers")
        server.process.kill()
        clients.assert_all_is_true(False, None)


@needs_strace
def test_a_backend_that_fails_is_a_reset_and_everything_is_on_file(
    serve: Serve, backend: str, reactors: str, tmp_path: Path
) -> None:
    call = {"epoll": "epoll_wait,epoll_pwait", "uring": "io_uring_enter"}[backend]
    server = serve("--backend", backend, "--reactors", reactors)
    with ExitStack() as stack:
        clients = Clients(server, stack)
        clients.send()
        wait_until(lambda: on_file(server.log_path) == ALL, "all numbers")
        fault = ("-e", f"trace={call}", "-e", f"inject={call}:error=EINVAL")
        stack.enter_context(strace(server, tmp_path / "trace", *fault))
        # A call that has begun is not failed: it is woken.
        with server.connect() as late:
            late.sendall(lines([1]))
            assert server.wait() == 1, server.stderr
        clients.assert_all_is_true(False, None)
    assert "the backend failed" in server.stderr_lines[-1]
    assert "Traceback" not in server.stderr
    assert server.logged_set() == ALL


def test_a_refused_client_is_reset(serve: Serve, backend: str, reactors: str) -> None:
    server = serve(
        *("--backend", backend, "--reactors", reactors),
        *("--max-clients", "2", "--when-full", "refuse"),
    )
    with server.connect() as first, server.connect() as second:
        for number, client in enumerate((first, second)):
            client.sendall(lines([number]))
        wait_until(lambda: on_file(server.log_path) == {0, 1}, "both to be served")
        # The reset may be there before connect(2) returns.
        with suppress(ConnectionResetError), server.connect() as third:
            assert not sees_fin(third)
    assert server.stop() == 0
    assert server.logged_set() == {0, 1}


@needs_strace
@pytest.mark.parametrize("slow", ["write", "fdatasync"])
@pytest.mark.parametrize("last", [b"invalid\n", b"terminate\n", b""], ids=repr)
def test_a_fin_comes_only_when_the_lines_before_are_stored(
    serve: Serve, backend: str, reactors: str, slow: str, last: bytes, tmp_path: Path
) -> None:
    server = serve("--backend", backend, "--reactors", reactors, "--fsync", "always")
    delay = ("-P", str(server.log_path), "-e", f"inject={slow}:delay_enter=300ms")
    trace = tmp_path / "trace"
    with strace(server, trace, *delay), server.connect() as first, server.connect() as second:
        first.sendall(lines([7]))
        wait_until(lambda: slow in trace.read_text(), "the slow call")
        # A repeat of what another reactor may have taken in.
        second.sendall(lines([8, 7]) + last)
        if not last:
            second.shutdown(socket.SHUT_WR)
        assert sees_fin(second)
        assert on_file(server.log_path) == {7, 8}
        if slow == "fdatasync":
            assert _synced_after_the_last_write(trace)
        assert sees_fin(first) if last == b"terminate\n" else server.stop() == 0
    assert server.wait() == 0


@needs_strace
def test_a_stop_stores_what_some_reactors_take_in_while_another_closes_its_clients(
    serve: Serve, backend: str, tmp_path: Path
) -> None:
    server = serve("--backend", backend, "--reactors", "4", "--fsync", "always")
    delay = ("-P", str(server.log_path), "-e", "inject=fdatasync:delay_enter=20ms")
    with strace(server, tmp_path / "trace", *delay), ExitStack() as stack:
        clients = [stack.enter_context(server.connect()) for _ in range(4)]
        senders = [
            threading.Thread(target=flood, args=(client, 200_000_000 * number))
            for number, client in enumerate(clients)
            if number != 1  # The first reactor has the first client, and drains last.
        ]
        for sender in senders:
            sender.start()
        wait_until(lambda: len(on_file(server.log_path)) > 1000, "the floods")
        server.process.send_signal(signal.SIGTERM)
        assert sees_fin(clients[1])
        code = server.wait()
        for sender in senders:
            sender.join()
    assert (code, server.stderr.count("error")) == (0, 0), server.stderr
    assert len(server.logged_set()) == server.reported()[2]


def _synced_after_the_last_write(trace: Path) -> bool:
    """Return whether a sync has begun behind each write; its delay is over before the FIN."""
    return trace.read_text().rstrip().count("fdatasync(") >= 2


def test_an_idle_client_sees_a_fin_when_its_numbers_are_on_file(
    serve: Serve, backend: str, reactors: str
) -> None:
    server = serve("--backend", backend, "--reactors", reactors, "--idle-timeout", "0.3")
    with ExitStack() as stack:
        clients = Clients(server, stack)
        clients.send()
        clients.assert_all_is_true(True, True)
    assert server.stop() == 0
    assert server.logged_set() == ALL


def test_a_unix_socket_cannot_reset(serve: Serve, backend: str, tmp_path: Path) -> None:
    path = tmp_path / "numbers.sock"
    server = serve("--backend", backend, "--listen", f"unix:{path}")
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(os.fspath(path))
        client.sendall(lines([1]))
        wait_until(lambda: on_file(server.log_path) == {1}, "the number")
        server.process.kill()
        assert sees_fin(client)


# What is still in the network.

CLIENT = """
import fcntl, socket, struct, sys, termios
client = socket.create_connection(("127.0.0.1", int(sys.argv[1])), timeout=60)
print("connected", flush=True)
sys.stdin.readline()
client.sendall(b"000000007\\n")
client.shutdown(socket.SHUT_WR)
print("sent", flush=True)
assert client.recv(1) == b""
print(struct.unpack("i", fcntl.ioctl(client, termios.TIOCOUTQ, bytes(4)))[0], flush=True)
"""
DROP = """
table ip lost {
    chain sent { type filter hook output priority 0; tcp dport PORT drop; }
}
"""


@pytest.mark.parametrize("is_lost", [False, True])
def test_unacknowledged_bytes_tell_a_fin_for_all_from_one_at_a_stop(
    serve: Serve, backend: str, namespaces: None, is_lost: bool
) -> None:
    if shutil.which("nft") is None or shutil.which("nsenter") is None:
        pytest.skip("nft or nsenter is not installed")
    server = serve("--backend", backend, prefix=confined("ip link set lo up", "--net"))
    inside = ("nsenter", "--net", f"--target={server.process.pid}")
    with subprocess.Popen(
        [*inside, sys.executable, "-c", CLIENT, str(server.port)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as client:
        assert client.stdin is not None
        assert client.stdout is not None
        assert client.stdout.readline() == "connected\n"
        if is_lost:
            rules = DROP.replace("PORT", str(server.port))
            if subprocess.run(
                [*inside, "nft", "-f", "-"], input=rules, text=True, check=False
            ).returncode:
                client.kill()
                pytest.skip("no packets can be dropped here")
        client.stdin.write("\n")
        client.stdin.flush()
        assert client.stdout.readline() == "sent\n"
        if is_lost:
            assert server.stop() == 0
        unacknowledged = int(client.stdout.readline())
    assert on_file(server.log_path) == (set() if is_lost else {7})
    assert (unacknowledged > 0) is is_lost
    assert is_lost or server.stop() == 0


# What delays a stop, or makes it forget a client.


@pytest.fixture
def no_descriptors() -> Callable[[ServerProcess], None]:
    prlimit = shutil.which("prlimit")
    if prlimit is None:
        pytest.skip("prlimit is not installed")

    def use_up(server: ServerProcess) -> None:
        fds = {int(path.name) for path in Path(f"/proc/{server.process.pid}/fd").iterdir()}
        limit = f"--nofile={max(fds) + 1}"
        subprocess.run([prlimit, f"--pid={server.process.pid}", limit], check=True)

    return use_up


@pytest.mark.parametrize("connected", [0, 1, 4])
def test_clients_that_wait_for_a_descriptor_when_the_stop_comes_are_taken_in(
    serve: Serve,
    backend: str,
    reactors: str,
    connected: int,
    no_descriptors: Callable[[ServerProcess], None],
) -> None:
    server = serve("--backend", backend, "--reactors", reactors, "--max-clients", "50")
    with ExitStack() as stack:
        served = [stack.enter_context(server.connect()) for _ in range(connected)]
        for number, client in enumerate(served):
            client.sendall(lines([number]))
        wait_until(lambda: len(on_file(server.log_path)) == connected, "the first numbers")
        no_descriptors(server)
        waiting = [stack.enter_context(server.connect()) for _ in range(6)]
        for number, client in enumerate(waiting, 100):
            client.sendall(lines([number]))
        wait_until(lambda: "cannot accept connections for now" in server.stderr, "the warning")
        assert server.stop() == 0, server.stderr
        for client in (*served, *waiting):
            assert sees_fin(client)
    assert server.logged_set() == {*range(connected), *range(100, 106)}


@needs_strace
@pytest.mark.parametrize("listen", ["--port=0", "unix"])
def test_a_backlog_that_cannot_be_counted_is_taken_in_all_the_same(
    serve: Serve, backend: str, reactors: str, tmp_path: Path, listen: str
) -> None:
    """As where getsockopt(TCP_INFO) is refused (gVisor, qemu-user)."""
    path = tmp_path / "numbers.sock"
    address = ("--listen", f"unix:{path}") if listen == "unix" else ()
    server = serve("--backend", backend, "--reactors", reactors, "--max-clients", "2", *address)

    def connect() -> socket.socket:
        if listen != "unix":
            return server.connect()
        client = socket.socket(socket.AF_UNIX)
        client.connect(os.fspath(path))
        return client

    with ExitStack() as stack:
        refused = ("-e", "trace=getsockopt", "-e", "inject=getsockopt:error=ENOPROTOOPT")
        clients = [stack.enter_context(connect()) for _ in range(8)]
        for number, client in enumerate(clients):
            client.sendall(lines([number]))
        wait_until(lambda: len(on_file(server.log_path)) == 2, "the first two")
        stack.enter_context(strace(server, tmp_path / "trace", *refused))
        assert server.stop() == 0, server.stderr
        assert all(map(sees_fin, clients))
    assert server.logged_set() == set(range(8))


@pytest.fixture(scope="module")
def numbers_of_writers() -> list[bytes]:
    """What each of eight clients writes: more than its send buffer takes."""
    return [lines(range(begin, begin + 300_000)) for begin in range(0, 2_400_000, 300_000)]


@needs_strace
@pytest.mark.parametrize("slow", ["recvfrom", "write", "fdatasync"])
def test_what_clients_had_written_before_a_stop_is_taken_in_on_a_slow_host(
    serve: Serve,
    backend: str,
    reactors: str,
    slow: str,
    tmp_path: Path,
    numbers_of_writers: list[bytes],
) -> None:
    """Most of it is in their own send buffers yet, because the server does not receive."""
    server = serve("--backend", backend, "--reactors", reactors, "--fsync", "always")
    delay = ("-e", f"trace={slow}", "-e", f"inject={slow}:delay_enter=50ms")
    sent = 0
    with ExitStack() as stack:
        stack.enter_context(strace(server, tmp_path / "trace", *delay))
        server.process.send_signal(signal.SIGSTOP)
        half_closed = []
        for number, data in enumerate(numbers_of_writers):
            client = stack.enter_context(server.connect())
            client.setblocking(False)
            sent += client.send(data) // 10
            if number % 2:
                client.close()
            else:
                client.shutdown(socket.SHUT_WR)
                half_closed.append(client)
        server.process.send_signal(signal.SIGTERM)
        server.process.send_signal(signal.SIGCONT)
        assert all(map(sees_fin, half_closed))
        assert server.wait() == 0, server.stderr
    assert len(server.logged_set()) == sent


@pytest.mark.alone
def test_thousands_of_silent_clients_in_the_backlog_do_not_delay_a_stop(
    serve: Serve, backend: str, reactors: str
) -> None:
    backlog = int(Path("/proc/sys/net/core/somaxconn").read_text())
    count = min(4096, backlog)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < count + 100:
        pytest.skip(f"only {hard} descriptors are allowed here")
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        server = serve("--backend", backend, "--reactors", reactors, "--max-clients", "1")
        with ExitStack() as stack:
            first = stack.enter_context(server.connect())
            first.sendall(lines([1]))
            wait_until(lambda: server.logged() == [1], "the first client")
            for _ in range(count):
                stack.enter_context(server.connect())
            begin_s = time.monotonic()
            assert server.stop() == 0
            stopped_s = time.monotonic() - begin_s
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert stopped_s < 2, "a stop takes below a second, and this machine may be busy"
