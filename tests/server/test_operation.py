"""The real process as its operators meet it: addresses, who may stop it, and what it tells."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from numbers_uring.limits import DISCONNECT_LOG_PER_S_MAX
from support.clients import is_closed
from support.logs import lines
from support.metrics_client import scrape
from support.processes import CommandProcess, ServerProcess, run_text
from support.waiting import DEADLINE_S, wait_until

Serve = Callable[..., ServerProcess]


def unix_client(path: Path) -> socket.socket:
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(DEADLINE_S)
    client.connect(str(path))
    return client


def send_and_leave(client: socket.socket, data: bytes) -> None:
    """Send, and wait until the server has taken all of it in."""
    with client:
        client.sendall(data)
        client.shutdown(socket.SHUT_WR)
        assert is_closed(client)


@pytest.fixture(params=["text", "json"])
def log_format(request: pytest.FixtureRequest) -> str:
    return str(request.param)


# Where it listens.


def test_clients_of_all_addresses_share_one_log(serve: Serve, backend: str, tmp_path: Path) -> None:
    path = tmp_path / "numbers.sock"
    server = serve("--backend", backend, "--listen", f"unix:{path}", "--listen", "[::1]:0")
    addresses = server.stderr.split("listening on ")[1].split(", ")[0].split(" and ")
    assert addresses[0] == f"127.0.0.1:{server.port}"
    assert addresses[1] == f"unix:{path}"
    send_and_leave(unix_client(path), lines(range(1000)))
    port = int(addresses[2].removeprefix("[::1]:"))
    send_and_leave(socket.create_connection(("::1", port)), lines(range(500, 1500)))
    send_and_leave(server.connect(), lines(range(1000, 2000)))
    with unix_client(path) as client:
        client.sendall(lines([2000]) + b"terminate\n")
        assert is_closed(client)
    assert server.wait() == 0
    assert server.logged_set() == set(range(2001))
    assert server.reported() == (2001, 1000, 2001)
    assert not path.exists()


@pytest.mark.same_with_reactors
def test_only_the_addresses_given_are_listened_on(tmp_path: Path) -> None:
    path = tmp_path / "numbers.sock"
    server = subprocess.Popen(
        [sys.executable, "-m", "numbers_uring", "serve", "--listen", f"unix:{path}"],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    with server:
        assert server.stderr is not None
        assert f"listening on unix:{path}, backend" in server.stderr.readline()
        server.terminate()
    assert server.returncode == 0
    assert not path.exists()


def test_unix_clients_take_turns_and_their_lines_may_be_cut_anywhere(
    serve: Serve, backend: str, tmp_path: Path
) -> None:
    path = tmp_path / "numbers.sock"
    server = serve("--backend", backend, "--listen", f"unix:{path}", "--max-clients", "2")

    def send(turn: int) -> None:
        # Each sends half of the numbers, with an unfinished line at the end.
        data = lines(range(turn * 50_000, turn * 50_000 + 100_000)) + b"1234"
        with unix_client(path) as client:
            for start in range(0, len(data), 50_021):
                client.sendall(data[start : start + 50_021])
            client.shutdown(socket.SHUT_WR)
            assert is_closed(client)

    threads = [threading.Thread(target=send, args=(turn,)) for turn in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE_S)
    assert server.stop() == 0
    assert server.logged_set() == set(range(250_000))
    assert server.reported() == (250_000, 150_000, 250_000)
    assert "4 left within a line" in server.stderr


def test_unix_clients_that_wait_when_the_stop_comes_are_not_forgotten(
    serve: Serve, backend: str, tmp_path: Path
) -> None:
    path = tmp_path / "numbers.sock"
    server = serve("--backend", backend, "--listen", f"unix:{path}", "--max-clients", "1")
    with unix_client(path) as first:
        first.sendall(lines([0]))
        waiting = [unix_client(path) for _ in range(50)]
        for number, client in enumerate(waiting, 1):
            client.sendall(lines([number]))
        first.sendall(b"terminate\n")
        assert server.wait() == 0
        for client in waiting:
            client.close()
    assert server.logged_set() == set(range(51))


@pytest.mark.same_with_reactors
def test_a_live_unix_socket_is_refused_and_one_left_by_a_kill_is_replaced(
    serve: Serve, tmp_path: Path
) -> None:
    path = tmp_path / "numbers.sock"
    first = serve("--listen", f"unix:{path}")
    second = run_text(
        [
            *(sys.executable, "-m", "numbers_uring", "serve"),
            *("--listen", f"unix:{path}", "--log-file", str(tmp_path / "other.log")),
        ],
        capture_output=True,
        timeout=DEADLINE_S,
    )
    assert second.returncode == 3
    assert second.stderr.startswith(f"numbers-uring: error: cannot listen on unix:{path}: ")
    assert not (tmp_path / "other.log").exists()
    send_and_leave(unix_client(path), lines([1]))
    first.kill()
    assert path.is_socket()
    third = serve("--listen", f"unix:{path}", "--resume")
    send_and_leave(unix_client(path), lines([1, 2]))
    assert third.stop() == 0
    assert third.logged() == [1, 2]


# Who may stop it.


@pytest.mark.parametrize(
    ("policy", "stopped_by_tcp", "stopped_by_unix"),
    [("any", True, True), ("local", True, True), ("never", False, False)],
)
def test_who_may_stop_it_from_this_host(
    serve: Serve,
    backend: str,
    tmp_path: Path,
    policy: str,
    stopped_by_tcp: bool,
    stopped_by_unix: bool,
) -> None:
    path = tmp_path / "numbers.sock"
    for connect, stopped in ((None, stopped_by_tcp), (unix_client, stopped_by_unix)):
        server = serve("--backend", backend, "--listen", f"unix:{path}", "--terminate", policy)
        with server.connect() if connect is None else connect(path) as client:
            client.sendall(lines([7]) + b"terminate\n" + lines([8]))
            assert is_closed(client)
        if not stopped:
            # It was an invalid line, and the server lives on.
            send_and_leave(server.connect(), lines([9]))
            assert server.stop() == 0
            assert "1 disconnected for an invalid line" in server.stderr
        assert server.wait() == 0
        assert server.logged() == ([7] if stopped else [7, 9])


@pytest.fixture
def hosts() -> Iterator[tuple[str, str]]:
    """Two network namespaces that reach each other at 192.0.2.1 and .2: two hosts, as it were."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("needs root, and ip of iproute2, to make network namespaces")
    first, second = f"nu{os.getpid()}a", f"nu{os.getpid()}b"
    made = subprocess.run(
        ["ip", "netns", "add", first], capture_output=True, check=False, text=True
    )
    if made.returncode:
        pytest.skip(f"network namespaces are not allowed here: {made.stderr.strip()}")
    try:
        for command in (
            f"netns add {second}",
            f"-n {first} link add eth0 type veth peer name eth0 netns {second}",
            f"-n {first} addr add 192.0.2.1/24 dev eth0",
            f"-n {second} addr add 192.0.2.2/24 dev eth0",
            f"-n {first} link set lo up",
            f"-n {first} link set eth0 up",
            f"-n {second} link set eth0 up",
        ):
            subprocess.run(["ip", *command.split()], check=True)
        yield first, second
    finally:
        subprocess.run(["ip", "netns", "del", first], check=True)
        subprocess.run(["ip", "netns", "del", second], check=False)


CLIENT = """
import socket, sys
with socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=60) as client:
    client.sendall(b"000000001\\nterminate\\n")
    client.recv(1)
"""


def test_another_host_can_send_but_not_stop_where_only_local_ones_may(
    serve: Serve, backend: str, hosts: tuple[str, str]
) -> None:
    first, second = (("ip", "netns", "exec", name) for name in hosts)
    server = serve(
        *("--backend", backend, "--host", "0.0.0.0", "--terminate", "local", "-v"), prefix=first
    )

    def client(host: tuple[str, ...], address: str) -> None:
        subprocess.run(
            [*host, sys.executable, "-c", CLIENT, address, str(server.port)],
            check=True,
            timeout=DEADLINE_S,
        )

    client(second, "192.0.2.1")
    wait_until(lambda: "client 192.0.2.2:" in server.stderr, "the disconnect")
    assert r"disconnected: invalid line 'terminate\n'" in server.stderr
    assert server.process.poll() is None
    client(first, "127.0.0.1")
    assert server.wait() == 0
    assert server.logged() == [1]


# What it tells.


def said(server: ServerProcess, log_format: str) -> list[str]:
    """Return the diagnostics' messages, after a check that each is a whole one."""
    if log_format == "text":
        assert all(line.startswith("numbers-uring: ") for line in server.stderr_lines)
        return [line.removeprefix("numbers-uring: ") for line in server.stderr_lines]
    return [json.loads(line)["message"] for line in server.stderr_lines]


def test_each_disconnect_is_told_of_where_asked_for(
    serve: Serve, backend: str, log_format: str
) -> None:
    server = serve(
        *("--backend", backend, "--verbose", "--log-format", log_format),
        *("--max-clients", "1", "--when-full", "refuse", "--idle-timeout", "0.3"),
    )

    def told(count: int) -> None:
        wait_until(lambda: len(server.stderr_lines) >= count, f"{count} lines")

    client = server.connect()
    peer = f"127.0.0.1:{client.getsockname()[1]}"
    send_and_leave(client, lines([1]))
    told(2)
    send_and_leave(server.connect(), b"12")
    told(3)
    send_and_leave(server.connect(), lines([2]) + b"12345\r\n")
    told(4)
    with server.connect() as idle:
        # The reset of a refused client may come before connect returns.
        with suppress(ConnectionResetError), server.connect() as refused:
            assert is_closed(refused)
        assert is_closed(idle)
    told(6)
    assert server.terminate() == 0
    messages = said(server, log_format)
    assert messages[1] == f"client {peer} disconnected: end of stream"
    assert messages[2].endswith(" disconnected: left within a line")
    assert messages[3].endswith(r" disconnected: invalid line '12345\r\n'")
    assert sorted(message.rpartition(": ")[2] for message in messages[4:6]) == [
        "all slots are taken",
        "idle",
    ]
    assert messages[-2].endswith(" disconnected: the server stops")


def test_a_storm_of_disconnects_is_cut_short(serve: Serve, backend: str) -> None:
    server = serve("--backend", backend, "--verbose", "--max-clients", "100")
    clients = 20 * DISCONNECT_LOG_PER_S_MAX
    for _ in range(clients):
        server.send(b"x")
    assert server.stop() == 0
    told = [line for line in server.stderr_lines if " disconnected: " in line]
    left_out = [int(line.split()[1]) for line in server.stderr_lines if " more clients " in line]
    assert len(told) + sum(left_out) == clients
    assert len(told) < clients / 2


def ended_by_metrics(server: ServerProcess) -> dict[str, float]:
    name = "numbers_uring_connections_ended_total "
    found = scrape(server)
    return {key.removeprefix(name): found[key] for key in found if key.startswith(name)}


@pytest.mark.same_with_reactors
def test_json_has_the_figures_and_errors_too(serve: Serve, tmp_path: Path) -> None:
    server = serve(
        *("--log-format", "json", "--verbose", "--metrics", "127.0.0.1:0"),
        *("--max-clients", "1", "--when-full", "refuse"),
    )
    server.send(lines([1, 2, 2]))
    wait_until(lambda: ended_by_metrics(server)["eof"] == 1, "the client's end")
    with server.connect() as client:
        # The reset may be there before connect(2) returns.
        with suppress(ConnectionResetError), server.connect() as refused:
            assert is_closed(refused)
        client.sendall(b"x\xff'\n")
        assert is_closed(client)
    counted = ended_by_metrics(server)
    accepted = scrape(server)["numbers_uring_connections_accepted_total"]
    assert server.stop() == 0
    told = [json.loads(line) for line in server.stderr_lines]
    started, stopped = told[0], told[-1]
    (invalid,) = (each for each in told if each.get("reason") == "invalid")
    assert invalid["line"] == "x\xff'\n"
    assert started["event"] == "started"
    assert started["listen"] == [f"127.0.0.1:{server.port}"]
    assert stopped["event"] == "stopped"
    assert (stopped["unique"], stopped["duplicate"]) == (2, 1)
    assert (stopped["ended"], stopped["accepted"]) == (counted, accepted)
    assert (counted["eof"], counted["invalid"], counted["refused"]) == (1, 1, 1)
    for options, code in ((["--port", "x"], 2), (["--log-file", str(tmp_path)], 3)):
        failed = subprocess.run(
            [
                *(sys.executable, "-m", "numbers_uring", "serve", "--port", "0"),
                *(*options, "--log-format", "json"),
            ],
            capture_output=True,
            check=False,
            text=True,
            timeout=DEADLINE_S,
        )
        assert failed.returncode == code
        assert json.loads(failed.stderr)["level"] == "error"


@pytest.mark.same_with_reactors
def test_quiet_leaves_warnings_and_reports(tmp_path: Path) -> None:
    log = tmp_path / "numbers.log"
    log.write_bytes(lines([1]) + b"00")
    arguments = ("serve", "--port", "0", "--quiet", "--log-file", str(log), "--resume")
    with CommandProcess(*arguments) as server:
        server.wait_for("torn tail")
        assert server.stop() == 0
    (line,) = server.stderr_lines
    assert "torn tail of 2 bytes" in line
    assert server.stdout_lines == ["Received 0 unique numbers, 0 duplicates. Unique total: 0"]


def test_a_report_can_be_asked_for_at_any_time(serve: Serve, backend: str) -> None:
    server = serve("--backend", backend, "--report-interval", "3600")
    for count in (1, 2):
        send_and_leave(server.connect(), lines(range(10 * count)))
        server.process.send_signal(signal.SIGUSR1)
        wait_until(lambda count=count: len(server.reports) == count, "the report")  # type: ignore[misc]
    assert server.stop() == 0
    assert server.reports == [
        "Received 10 unique numbers, 0 duplicates. Unique total: 10",
        "Received 10 unique numbers, 10 duplicates. Unique total: 20",
        "Received 0 unique numbers, 0 duplicates. Unique total: 20",
    ]


@pytest.mark.same_with_reactors
@pytest.mark.parametrize(
    "arguments",
    [
        ["--listen", "4000"],
        ["--listen", "::1:4000"],
        ["--listen", "unix:"],
        ["--listen", "unix:/" + "a" * 200],
        ["--unix-mode", "0999"],
        ["--unix-mode", "1777"],
        ["--terminate", "root"],
        ["--log-format", "xml"],
        ["--quiet", "--verbose"],
    ],
)
def test_what_cannot_be_meant_is_a_usage_error(arguments: list[str], tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "numbers_uring", "serve", *arguments],
        capture_output=True,
        check=False,
        cwd=tmp_path,
        text=True,
        timeout=DEADLINE_S,
    )
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("numbers-uring: error: ")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.same_with_reactors
@pytest.mark.parametrize(
    ("old", "said"),
    [(b"", None), (b"1", "(1 byte of"), (lines(range(50)), "(500 bytes of")],
    ids=["nothing", "a byte", "lines"],
)
def test_a_start_says_how_much_of_an_earlier_log_it_drops(
    serve: Callable[..., ServerProcess], tmp_path: Path, old: bytes, said: str | None
) -> None:
    log = tmp_path / "numbers.log"
    log.write_bytes(old)
    server = serve()
    assert log.read_bytes() == b""
    assert (said is None) == ("dropped" not in server.stderr)
    assert said is None or f"log {log} {said} an earlier run dropped), " in server.stderr_lines[0]
    assert server.terminate() == 0


@pytest.mark.same_with_reactors
def test_one_is_singular_in_the_lines_of_a_server(serve: Callable[..., ServerProcess]) -> None:
    server = serve("--max-clients", "1")
    assert "at most 1 client," in server.stderr
    server.send(lines([7]))
    wait_until(lambda: server.logged() == [7], "the number")
    assert server.stop() == 0
    assert "1 number written to" in server.stderr
    assert "1 client served" in server.stderr
