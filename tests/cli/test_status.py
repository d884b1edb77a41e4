"""`status`: what it shows of real servers and nodes, and what of ports that have no server."""

import fcntl
import json
import os
import pty
import signal
import socket
import struct
import subprocess
import sys
import termios
import threading
import tty
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from numbers_uring.addresses import TcpAddress
from numbers_uring.errors import StartError
from numbers_uring.metrics import scrape as metrics_scrape
from ports import reserve_port
from support.broker import broker_with_cluster
from support.clients import flood
from support.logs import lines
from support.metrics_client import scrape, shown_rows, url_of
from support.processes import CommandProcess, ServerProcess, assert_one_line_error, run_command
from support.waiting import DEADLINE_S, wait_until

Serve = Callable[..., ServerProcess]

METRICS = ("--metrics", "127.0.0.1:0")
FAST = """
import sys
from numbers_uring import limits
limits.STATUS_INTERVAL_S, limits.STATUS_HEADER_LINES = 0.05, 3
sys.argv = sys.argv[3:]
from numbers_uring.cli.main import main
sys.exit(main())
"""
"""Watches with twenty lines a second and a header above every third one."""


def shown(url: str) -> dict[str, Any]:
    done = run_command("status", url, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    assert isinstance(found, dict)
    return found


@contextmanager
def watching(*arguments: str) -> Iterator[CommandProcess]:
    with CommandProcess("status", *arguments, prefix=(sys.executable, "-c", FAST)) as process:
        yield process


def test_it_shows_what_a_server_has_taken_in_and_who_waits(serve: Serve, backend: str) -> None:
    server = serve("--backend", backend, "--max-clients", "1", *METRICS)
    url = url_of(server)
    with ExitStack() as clients:
        first = clients.enter_context(server.connect())
        first.sendall(lines([1, 2, 3, 1]))
        clients.enter_context(server.connect())
        waiting = "numbers_uring_connections_waiting"
        wait_until(lambda: scrape(server)[waiting] == 1, "the client that waits")
        wait_until(lambda: len(server.logged()) == 3, "the numbers")
        found = shown(url)
        done = run_command("status", f"{url}/metrics")
    uptime_s = found.pop("uptime_s")
    assert 0 < uptime_s < 2 * DEADLINE_S
    assert found.pop("version")
    assert found.pop("kernel")
    assert found.pop("held_back_s") == 0
    assert found == {
        "state": "ok",
        "backend": backend,
        "numbers_per_s": 0,
        "unique_per_s": 0,
        "received_bytes_per_s": 0,
        "unique": 3,
        "duplicate": 1,
        "received_bytes": 40,
        "connections": 1,
        "connections_max": 1,
        "connections_waiting": 1,
        "accepted": 1,
        "log_written_bytes": 30,
        "acknowledged": None,
        "in_flight": None,
    }
    assert (done.returncode, done.stderr) == (0, "")
    rows = dict(line.split("  ", 1) for line in done.stdout.splitlines())
    assert rows["clients"].strip() == "1 of at most 1, 1 waiting, 1 accepted since the start"
    assert rows["total"].strip() == "3 unique, 1 duplicate, 0.0 MB received"
    assert f"backend {backend}" in rows["server"]
    assert rows["state"].strip().startswith("ok, up 00:")
    assert rows["log"].strip() == "0.0 MB written"


def test_the_rates_are_those_of_a_second(serve: Serve) -> None:
    server = serve(*METRICS)
    with server.connect() as client:
        sender = threading.Thread(target=flood, args=(client, 0))
        sender.start()
        try:
            found = shown(url_of(server))
            assert 0 < found["unique_per_s"] <= found["numbers_per_s"]
            ratio = found["received_bytes_per_s"] / found["numbers_per_s"]
            # The two counters are not read at the same moment.
            assert 5 < ratio < 20
        finally:
            server.kill()
            sender.join(DEADLINE_S)


def test_it_works_for_a_node_and_names_the_command_for_collectors(tmp_path: Path) -> None:
    with broker_with_cluster(tmp_path / "broker", partitions=1) as broker, ExitStack() as running:
        collector = running.enter_context(
            CommandProcess(
                *("collect", "--nats", broker.url, "--partitions", "0"),
                *("--log-dir", str(tmp_path), *METRICS),
            )
        )
        collector.wait_for("collecting partition")
        forward = ("--forward", broker.url, "--partitions", "1")
        node = running.enter_context(
            ServerProcess(tmp_path / "no-log", *forward, *METRICS, has_log=False)
        )
        node.send(lines([1, 2]))
        acknowledged = "numbers_uring_forward_acknowledged_total"
        wait_until(lambda: scrape(node)[acknowledged] == 2, "the acknowledgements")
        found = shown(url_of(node))
        assert (found["acknowledged"], found["in_flight"]) == (2, 0)
        assert found["log_written_bytes"] is None
        text = run_command("status", url_of(node)).stdout
        assert "forwarded  2 acknowledged, 0 in flight" in text
        assert shown_rows(url_of(node))["forwarded"] == "2 acknowledged, 0 in flight"
        assert shown_rows(url_of(collector))["NATS server"].startswith("connected, ")
        done = run_command("status", url_of(collector))
        assert_one_line_error(done, 3, "collectors", "cluster status")


def test_a_watch_has_a_line_each_time_and_a_header_now_and_then(serve: Serve) -> None:
    url = url_of(serve(*METRICS))
    with watching(url, "--watch") as watch:
        wait_until(lambda: len(watch.stdout_lines) >= 9, "two headers and more")
        assert watch.stop() == 0
        assert watch.stderr == ""
    headers = [n for n, line in enumerate(watch.stdout_lines) if "numbers/s" in line]
    assert headers[:3] == [0, 4, 8]
    header, line = watch.stdout_lines[:2]
    assert len(header) == len(line) <= 121
    assert " 0/5 " in line
    assert " ok " in line


@pytest.mark.parametrize("columns", [40, 80, 121, 200])
def test_a_watch_fits_the_terminal(columns: int) -> None:
    leader, follower = pty.openpty()
    tty.setraw(follower)

    def resize(columns: int) -> None:
        fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))

    resize(columns)
    shown = b""

    def lines_with(words: bytes, count: int) -> None:
        nonlocal shown
        while shown.count(words) < count or not shown.endswith(b"\n"):
            shown += os.read(leader, 4096)

    try:
        # More numbers than their column has room for.
        with (
            scripted(10**12) as url,
            CommandProcess(
                *("status", "--watch", url), prefix=(sys.executable, "-c", FAST), stdout=follower
            ) as watch,
        ):
            lines_with(b"numbers/s", 2)
            widths = list(map(len, shown.decode().splitlines()))
            assert min(columns - 20, 110) < max(widths) <= columns
            assert b"clients" in shown
            resize(36)
            lines_with(b" numbers/s   clients\n", 1)
            assert watch.stop() == 0
    finally:
        os.close(follower)
        os.close(leader)
    header, line = shown.decode().splitlines()[:2]
    assert len(header) == len(line)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda each: each.name)
def test_a_watch_as_json_ends_with_a_signal(serve: Serve, number: signal.Signals) -> None:
    url = url_of(serve(*METRICS))
    with watching(url, "--watch", "--json") as watch:
        wait_until(lambda: len(watch.stdout_lines) >= 2, "two lines")
        assert watch.stop(number) == 0
        assert watch.stderr == ""
    assert all(json.loads(line)["state"] == "ok" for line in watch.stdout_lines)


def test_a_watch_outlives_a_restart_of_its_server(serve: Serve) -> None:
    port = reserve_port()
    server = serve("--metrics", f"127.0.0.1:{port}")
    server.send(lines(range(1000)))
    with watching(f"http://127.0.0.1:{port}", "--watch", "--json") as watch:

        def last() -> dict[str, Any]:
            return dict(json.loads(watch.stdout_lines[-1])) if watch.stdout_lines else {}

        wait_until(lambda: last().get("unique") == 1000, "the numbers")
        assert server.stop() == 0
        watch.wait_for("cannot read the metrics at")
        count = len(watch.stdout_lines)
        serve("--metrics", f"127.0.0.1:{port}")
        wait_until(lambda: len(watch.stdout_lines) > count + 1, "lines of the next run")
        assert watch.stop() == 0
    assert watch.stderr.count("retrying") == len(watch.stderr_lines)
    anew = [json.loads(line) for line in watch.stdout_lines[count:]]
    assert anew[0]["numbers_per_s"] is None
    assert anew[-1]["numbers_per_s"] == 0
    assert anew[-1]["unique"] == 0


def test_a_watch_that_no_one_reads_ends(serve: Serve) -> None:
    read_fd, write_fd = os.pipe()
    os.close(read_fd)
    url = url_of(serve(*METRICS))
    try:
        with CommandProcess("status", url, "--watch", stdout=write_fd) as watch:
            assert watch.wait() == 3
    finally:
        os.close(write_fd)
    assert "cannot write to standard output" in watch.stderr


@pytest.mark.parametrize("form", [(), ("--json",)], ids=" ".join)
@pytest.mark.parametrize("output", [">&-", ">/dev/full", "</dev/null >&0"])
def test_a_watch_that_cannot_be_written_ends(output: str, form: tuple[str, ...]) -> None:
    with scripted(1000) as url:
        shell = ("sh", "-c", f'exec "$@" {output}', "sh")
        prefix = (*shell, sys.executable, "-c", FAST)
        with CommandProcess("status", url, "--watch", *form, prefix=prefix) as watch:
            assert watch.wait() == 3
    assert "cannot write to standard output: " in watch.stderr
    assert len(watch.stderr_lines) == 1


# A server whose scrapes have what the test wants.


@contextmanager
def scripted(*accepted: int | None) -> Iterator[str]:
    """Serve metrics with so many accepted clients and numbers; None drops the connection.

    The last is repeated.
    """
    script = list(accepted)
    done = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer(path: bytes) -> bytes:
            if path == b"/healthz":
                return b'HTTP/1.0 200 OK\r\n\r\n{"status": "ok"}'
            count = script.pop(0) if len(script) > 1 else script[0]
            if count is None:
                return b""
            return f"""HTTP/1.0 200 OK\r\n\r\n\
numbers_uring_info{{backend="b",kernel="k",version="1"}} 1.0
numbers_uring_numbers_total{{result="unique"}} {count}
numbers_uring_numbers_total{{result="duplicate"}} 0.0
numbers_uring_received_bytes_total {10 * count}
numbers_uring_connections 1.0
numbers_uring_connections_max 5.0
numbers_uring_connections_accepted_total {count}
numbers_uring_held_back_seconds_total 0.0
numbers_uring_log_written_bytes_total {10 * count}
""".encode()

        def run() -> None:
            while True:
                client, _ = listener.accept()
                with client, suppress(OSError):
                    if done.is_set():
                        return
                    client.sendall(answer(client.recv(4096).split()[1]))

        thread = threading.Thread(target=run)
        thread.start()
        host, port = listener.getsockname()
        try:
            yield f"http://{host}:{port}"
        finally:
            done.set()
            socket.create_connection((host, port), timeout=DEADLINE_S).close()
            thread.join(DEADLINE_S)


def test_the_rate_is_what_came_on_top_by_the_time_it_took() -> None:
    with scripted(1_000_000, 3_000_000) as url:
        found = shown(url)
    # The pause is a second, and the host may be slow.
    assert 2_000_000 / DEADLINE_S < found["numbers_per_s"] <= 2_000_000
    assert found["received_bytes_per_s"] == pytest.approx(10 * found["numbers_per_s"])
    assert found["connections_waiting"] is found["uptime_s"] is None


def test_a_restart_between_two_scrapes_leaves_the_rates_unknown() -> None:
    with scripted(1000, 10, 1000, 10) as url:
        assert shown(url)["numbers_per_s"] is None
        assert "- numbers/s, - unique/s, - MB/s" in run_command("status", url).stdout


def test_a_watch_tells_once_of_each_time_without_a_server() -> None:
    with (
        scripted(1000, 1000, None, None, 5000, 5000, None, None, 9000) as url,
        watching(url, "--watch", "--json") as watch,
    ):
        wait_until(lambda: len(watch.stdout_lines) >= 5, "lines after the last time")
        assert watch.stop() == 0
        assert len(watch.stderr_lines) == 2
        assert all("retrying" in line for line in watch.stderr_lines)
    rates = [json.loads(line)["numbers_per_s"] for line in watch.stdout_lines]
    assert rates[:5] == [0, None, 0, None, 0]


# No server.


@pytest.mark.parametrize("options", [(), ("--json",), ("--watch",)], ids=" ".join)
def test_where_no_server_answers_is_one_line_and_exit_3(options: tuple[str, ...]) -> None:
    address = f"127.0.0.1:{reserve_port()}"
    done = run_command("status", f"http://{address}", *options)
    assert_one_line_error(done, 3, address, "Connection refused")


@pytest.mark.parametrize(
    "url",
    [
        *("", "4001", "http://127.0.0.1", "http://127.0.0.1:0", "https://127.0.0.1:4001"),
        *("http://127.0.0.1:4001/other", "http://:4001", "http://127.0.0.1:65536", "unix:socket"),
        *("http://127.0.0.1:4001?", "user@127.0.0.1:4001", "a b:4001", "a\nb:4001", "a\tb:4001"),
    ],
)
def test_what_is_no_address_of_metrics_is_wrong_usage(url: str) -> None:
    assert_one_line_error(run_command("status", url), 2, "http://HOST:PORT")


@pytest.mark.parametrize("host", ["a..b", 300 * "a", "\udcff", "nowhere.invalid"])
def test_a_name_that_is_of_no_host_is_one_line_and_exit_3(host: str) -> None:
    assert_one_line_error(run_command("status", f"http://{host}:4001"), 3, ":4001")


def test_the_scheme_may_be_in_capitals() -> None:
    with scripted(1000) as url:
        assert run_command("status", url.upper()).returncode == 0


@pytest.mark.parametrize(
    ("begin", "piece"),
    [
        (b"HTTP/1.0 200 OK\r\n\r\n", b"numbers_uring_connections 1\n"),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 1000000\r\n\r\n", b"1"),
        (b"HTTP/1.0 200 OK\r\n", b"a: b\r\n"),
        (b"HTTP/1.0 200 ", b"O"),
        (b"", b"HTTP/1.0 100 Continue\r\n\r\n"),
    ],
)
def test_an_answer_without_an_end_is_not_awaited(
    monkeypatch: pytest.MonkeyPatch, begin: bytes, piece: bytes
) -> None:
    monkeypatch.setattr("numbers_uring.metrics.scrape.SCRAPE_S", 0.3)
    done = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def trickle() -> None:
            client, _ = listener.accept()
            with client, suppress(OSError):
                client.sendall(begin)
                while not done.wait(0.01):
                    client.sendall(piece)

        thread = threading.Thread(target=trickle)
        thread.start()
        try:
            with pytest.raises(StartError, match=r"cannot read the metrics .*: timed out"):
                metrics_scrape.scrape(TcpAddress(*listener.getsockname()))
        finally:
            done.set()
            thread.join(DEADLINE_S)


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"\0" * 100,
        b"SSH-2.0-other\r\n",
        b"HTTP/1.0 200 OK\r\n\r\n",
        b"HTTP/1.0 404 Not Found\r\n\r\nno such page",
        b"HTTP/1.0 200 OK\r\nContent-Length: 50\r\n\r\nless",
        b"HTTP/1.0 200 OK\r\n\r\n<html>\xff</html>",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nmany\r\n",
        b"HTTP/1.1 200 OK\r\n" + 200 * b"a: b\r\n",
        b"HTTP/9.9 200 OK\r\n\r\n",
        b"HTTP/1.0 200 OK\r\n\r\nnumbers_uring_connections many\n",
        b"HTTP/1.0 200 OK\r\n\r\nnumbers_uring_connections NaN\n",
    ],
    ids=lambda answer: repr(answer[-20:]),
)
def test_another_server_is_one_line_and_exit_3(answer: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            while not ended.is_set():
                client, _ = listener.accept()
                with client, suppress(OSError):
                    client.recv(4096)
                    client.sendall(answer)

        ended = threading.Event()
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            address = f"127.0.0.1:{listener.getsockname()[1]}"
            done = run_command("status", f"http://{address}")
        finally:
            ended.set()
            socket.create_connection(listener.getsockname()).close()
            thread.join(DEADLINE_S)
    assert_one_line_error(done, 3, address)
    assert "timed out" not in done.stderr
    assert "(" not in done.stderr  # as in IncompleteRead(0 bytes read)


def test_it_starts_without_the_library_of_metrics(serve: Serve) -> None:
    url = url_of(serve(*METRICS))
    code = "import sys; sys.modules['prometheus_client'] = None\n" + FAST.replace("[3:]", "[:]")
    done = subprocess.run(
        [sys.executable, "-c", code, "status", url],
        capture_output=True,
        check=False,
        text=True,
        timeout=DEADLINE_S,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "clients" in done.stdout
