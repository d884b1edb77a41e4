"""The real process with listening sockets that it is handed."""

import fcntl
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest

from numbers_uring.limits import KEEPALIVE_IDLE_S
from support.clients import is_closed, sees_fin
from support.logs import lines
from support.processes import ServerProcess, failure
from support.waiting import DEADLINE_S, wait_until

Serve = Callable[..., ServerProcess]


def handed_down(
    stack: ExitStack, fds: Sequence[int], *, count: str | None = None, names: str = ""
) -> tuple[list[str], tuple[int, ...], dict[str, str]]:
    """Return a command's prefix, pass_fds and environment that hand it `fds` from 3 on."""
    high = [fcntl.fcntl(fd, fcntl.F_DUPFD, 60) for fd in fds]
    for fd in high:
        stack.callback(os.close, fd)
    moves = "".join(f"exec {3 + i}<&{fd} {fd}<&-; " for i, fd in enumerate(high))
    prefix = ["bash", "-c", f'{moves}export LISTEN_PID=$$; exec "$@"', "bash"]
    environment = {"LISTEN_FDS": str(len(fds)) if count is None else count}
    return prefix, tuple(high), {**environment, **({"LISTEN_FDNAMES": names} if names else {})}


def tcp_listener(host: str = "127.0.0.1") -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, 0), family=family)


def test_sockets_that_are_handed_down_take_the_place_of_the_default_address(
    serve: Serve, backend: str, tmp_path: Path
) -> None:
    path = tmp_path / "socket"
    with ExitStack() as stack:
        listeners = [tcp_listener(), tcp_listener("::1"), socket.socket(socket.AF_UNIX)]
        for listener in listeners:
            stack.enter_context(listener)
        listeners[2].bind(str(path))
        listeners[2].listen()
        assert all(listener.getblocking() for listener in listeners)
        prefix, fds, environment = handed_down(stack, [listener.fileno() for listener in listeners])
        server = serve(
            *("--backend", backend),
            listen=(),
            prefix=prefix,
            pass_fds=fds,
            environment=environment,
        )
        ports = [listener.getsockname()[1] for listener in listeners[:2]]
        said = f"listening on 127.0.0.1:{ports[0]} and [::1]:{ports[1]} and unix:{path}, backend"
        assert said in server.stderr
        # Set by the server, on what both have open.
        assert listeners[0].getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        assert listeners[1].getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == KEEPALIVE_IDLE_S
        server.send(lines([1]))
        with socket.create_connection(("::1", ports[1]), timeout=DEADLINE_S) as client:
            client.sendall(lines([2]))
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(DEADLINE_S)
            client.connect(str(path))
            client.sendall(lines([3]))
            wait_until(lambda: server.logged_set() == {1, 2, 3}, "all numbers")
            assert server.terminate() == 0
            assert is_closed(client)
        assert path.is_socket(), "the file is whose socket it is"


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
@pytest.mark.parametrize("reactors", ["1", "2"])
@pytest.mark.parametrize("end", ["killed", "log failed", "stopped"])
def test_clients_that_connected_before_the_start_are_as_all_others(
    serve: Serve, backend: str, host: str, reactors: str, end: str
) -> None:
    """As with socket activation, where the first client is why the server is started."""
    with ExitStack() as stack, tcp_listener(host) as listener:
        clients = [
            stack.enter_context(socket.create_connection(listener.getsockname()[:2], DEADLINE_S))
            for _ in range(4)
        ]
        for number, client in enumerate(clients):
            client.sendall(lines([number])[:-2])
            # Urgent data is a part of the stream, too.
            client.send(lines([number])[-2:-1], socket.MSG_OOB)
            client.sendall(b"\n")
        prefix, fds, environment = handed_down(stack, [listener.fileno()])
        if end == "log failed":
            if shutil.which("prlimit") is None:
                pytest.skip("prlimit is not installed")
            prefix = ["prlimit", "--fsize=15", *prefix]
            # Coverage would write its data under the same limit.
            environment["COVERAGE_PROCESS_CONFIG"] = ""
        server = serve(
            *("--backend", backend, "--reactors", reactors),
            listen=(),
            prefix=prefix,
            pass_fds=fds,
            environment=environment,
        )
        if end == "killed":
            wait_until(lambda: len(server.logged()) == 4, "all numbers")
            server.process.kill()
        elif end == "stopped":
            assert server.stop() == 0
        assert [sees_fin(client) for client in clients] == [end == "stopped"] * 4
        assert server.wait() == {"killed": -signal.SIGKILL, "log failed": 4, "stopped": 0}[end]
        assert len(server.logged_set()) == (1 if end == "log failed" else 4)


def test_addresses_that_are_asked_for_come_in_addition(serve: Serve, backend: str) -> None:
    with ExitStack() as stack, tcp_listener() as listener:
        prefix, fds, environment = handed_down(stack, [listener.fileno()])
        server = serve(
            *("--backend", backend, "--listen", "127.0.0.1:0"),
            listen=(),
            prefix=prefix,
            pass_fds=fds,
            environment=environment,
        )
        assert f"listening on 127.0.0.1:{listener.getsockname()[1]} and 127.0.0.1:" in server.stderr
        own_port = int(server.stderr.split(" and 127.0.0.1:")[1].split(",")[0])
        server.send(lines([1]))
        with socket.create_connection(("127.0.0.1", own_port), timeout=DEADLINE_S) as client:
            client.sendall(lines([2]))
        wait_until(lambda: server.logged_set() == {1, 2}, "both numbers")
        assert server.terminate() == 0


def test_clients_that_come_between_two_runs_lose_nothing(serve: Serve, backend: str) -> None:
    """The socket stays open while no server runs; clients that connect wait for the next one."""
    with ExitStack() as stack, tcp_listener() as listener:
        prefix, fds, environment = handed_down(stack, [listener.fileno()])
        for run in range(2):
            with socket.create_connection(listener.getsockname(), timeout=DEADLINE_S) as client:
                client.sendall(lines([run, 7]))
                server = serve(
                    *("--backend", backend, "--resume"),
                    listen=(),
                    prefix=prefix,
                    pass_fds=fds,
                    environment=environment,
                )
                wait_until(lambda: run in server.logged_set(), "the number")  # noqa: B023
                assert server.stop() == 0
                assert is_closed(client)
        assert server.logged() == [0, 7, 1]


def test_sockets_meant_for_another_process_are_left_alone(serve: Serve) -> None:
    with tcp_listener() as listener:
        server = serve(environment={"LISTEN_FDS": "1", "LISTEN_PID": "1"})
        assert server.port != listener.getsockname()[1]
        assert " and " not in server.stderr.split(", backend")[0]
        assert server.stop() == 0


def _udp(stack: ExitStack, tmp_path: Path) -> int:
    return stack.enter_context(socket.socket(type=socket.SOCK_DGRAM)).fileno()


def _connected(stack: ExitStack, tmp_path: Path) -> int:
    listener = stack.enter_context(tcp_listener())
    return stack.enter_context(socket.create_connection(listener.getsockname())).fileno()


def _not_listening(stack: ExitStack, tmp_path: Path) -> int:
    bound = stack.enter_context(socket.socket())
    bound.bind(("127.0.0.1", 0))
    return bound.fileno()


def _packets(stack: ExitStack, tmp_path: Path) -> int:
    packets = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
    packets.bind(str(tmp_path / "packets"))
    packets.listen()
    return packets.fileno()


def _file(stack: ExitStack, tmp_path: Path) -> int:
    return stack.enter_context((tmp_path / "file").open("w")).fileno()


@pytest.mark.parametrize("make", [_udp, _connected, _not_listening, _packets, _file])
def test_a_descriptor_that_no_client_can_connect_to_is_refused(
    tmp_path: Path, make: Callable[[ExitStack, Path], int]
) -> None:
    log = tmp_path / "numbers.log"
    log.write_bytes(lines([1]))
    with ExitStack() as stack, tcp_listener() as listener:
        prefix, fds, environment = handed_down(
            stack, [listener.fileno(), make(stack, tmp_path)], names="good:bad"
        )
        code, said = failure(log, prefix=prefix, environment=environment, pass_fds=fds)
    assert code == 3
    assert len(said) == 1
    assert "the inherited descriptor 4 (bad)" in said[0]
    assert log.read_bytes() == lines([1])


@pytest.mark.parametrize("count", ["2", "999999999", "-1", "one", "", "1e3", "9" * 5000])
def test_more_descriptors_than_there_are_or_no_number_is_refused(
    tmp_path: Path, count: str
) -> None:
    with ExitStack() as stack, tcp_listener() as listener:
        prefix, fds, environment = handed_down(stack, [listener.fileno()], count=count)
        code, said = failure(
            tmp_path / "numbers.log", prefix=prefix, environment=environment, pass_fds=fds
        )
    assert code == 3
    assert len(said) == 1
    assert said[0].startswith("numbers-uring: error: ")
    assert ("descriptor 4" in said[0]) is (count in {"2", "999999999"})
    assert not (tmp_path / "numbers.log").exists()


@pytest.mark.skipif(
    shutil.which("systemd-socket-activate") is None, reason="systemd is not installed"
)
def test_the_first_client_starts_the_server_and_is_served(tmp_path: Path, backend: str) -> None:
    path, log = tmp_path / "socket", tmp_path / "numbers.log"
    launcher = subprocess.Popen(
        [
            *("systemd-socket-activate", "--listen", str(path), "--fdname", "numbers"),
            *(sys.executable, "-m", "numbers_uring", "serve"),
            *("--backend", backend, "--log-file", str(log)),
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    with launcher:
        try:
            wait_until(path.exists, "the socket")
            assert not log.exists()
            with socket.socket(socket.AF_UNIX) as client:
                client.settimeout(DEADLINE_S)
                # It has its name a moment before it listens.
                wait_until(lambda: client.connect_ex(str(path)) == 0, "the launcher to listen")
                client.sendall(lines([1, 2]) + b"terminate\n")
                assert is_closed(client)
            assert launcher.wait(DEADLINE_S) == 0
        finally:
            launcher.kill()
        assert launcher.stderr is not None
        assert (
            f"numbers-uring: listening on unix:{path}, backend {backend}" in launcher.stderr.read()
        )
    assert log.read_bytes() == lines([1, 2])


IPPROTO_MPTCP = 262


def test_a_multipath_tcp_listener_works(serve: Serve, backend: str) -> None:
    try:
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, IPPROTO_MPTCP)
    except OSError as error:
        pytest.skip(f"no MPTCP here: {error}")
    with ExitStack() as stack, listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        prefix, fds, environment = handed_down(stack, [listener.fileno()])
        server = serve(
            *("--backend", backend),
            listen=(),
            prefix=prefix,
            pass_fds=fds,
            environment=environment,
        )
        server.send(lines([1]))
        client = stack.enter_context(
            socket.socket(socket.AF_INET, socket.SOCK_STREAM, IPPROTO_MPTCP)
        )
        client.settimeout(DEADLINE_S)
        client.connect(listener.getsockname())
        client.sendall(lines([2, 3]))
        wait_until(lambda: server.logged_set() == {1, 2, 3}, "all numbers")
        client.sendall(lines([4]))
        assert server.terminate() == 0
        assert is_closed(client)
        assert server.logged_set() == {1, 2, 3, 4}
