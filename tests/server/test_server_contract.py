"""The real process over loopback: the contract as its users meet it."""

import contextlib
import os
import random
import resource
import signal
import socket
import statistics
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from numbers_uring.limits import NO_SPACE_RETRY_S
from ports import reserve_port
from support.clients import is_closed
from support.logs import lines, logged_so_far
from support.processes import ServerProcess
from support.waiting import DEADLINE_S, wait_until

Serve = Callable[..., ServerProcess]


@pytest.fixture(params=["native", "python"])
def kernel(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def parallel(calls: list[Callable[[], None]]) -> None:
    threads = [threading.Thread(target=call, daemon=True) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE_S)
        assert not thread.is_alive()


def pieces(data: bytes, sizes: Iterator[int]) -> Iterator[bytes]:
    position = 0
    while position < len(data):
        size = next(sizes)
        yield data[position : position + size]
        position += size


def memory_kib(server: ServerProcess, field: str) -> int:
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    return int(status.split(f"{field}:")[1].split()[0])


def cpu_s(server: ServerProcess) -> float:
    fields = Path(f"/proc/{server.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


# What it is for.


def test_the_log_is_the_set_of_the_numbers_and_the_reports_add_up(
    serve: Serve, backend: str, kernel: str
) -> None:
    server = serve("--backend", backend, "--kernel", kernel, "--report-interval", "0.05")
    generator = random.Random(1)
    streams = [[generator.randrange(200_000) for _ in range(40_000)] for _ in range(5)]
    parallel([lambda stream=stream: server.send(lines(stream)) for stream in streams])  # type: ignore[misc]
    assert server.terminate() == 0
    sent = {number for stream in streams for number in stream}
    assert server.logged_set() == sent
    assert server.reported() == (len(sent), 200_000 - len(sent), len(sent))
    assert len(server.reports) > 1


@pytest.mark.parametrize("max_clients", ["5", "50"])
def test_terminate_right_after_the_clients_have_left_loses_nothing(
    serve: Serve, backend: str, max_clients: str
) -> None:
    server = serve("--backend", backend, "--max-clients", max_clients)
    count = 200_000
    data = [lines(range(i * count, (i + 1) * count)) for i in range(5)]
    parallel([lambda piece=piece: server.send(piece) for piece in data])  # type: ignore[misc]
    assert server.terminate() == 0
    assert server.log_path.stat().st_size == 5 * count * 10
    assert server.logged_set() == set(range(5 * count))


@pytest.mark.same_with_reactors
def test_the_log_is_created_anew_and_the_start_line_says_all(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "numbers.log").write_bytes(lines(range(100)))
    server = serve("--max-clients", "7", "--backend", "epoll", "--kernel", "native")
    (start,) = server.stderr_lines
    for part in (
        f"127.0.0.1:{server.port}",
        "epoll",
        "kernel",
        "at most 7 clients",
        str(tmp_path / "numbers.log"),
    ):
        assert part in start
    server.send(lines([5]))
    assert server.terminate() == 0
    assert server.logged() == [5]


@pytest.mark.same_with_reactors
def test_ipv6_works(serve: Serve) -> None:
    server = serve("--host", "::1")
    assert "[::1]:" in server.stderr
    server.send(lines([1]))
    assert server.terminate() == 0
    assert server.logged() == [1]


@pytest.mark.same_with_reactors
def test_one_port_of_ipv4_and_of_ipv6_is_listened_on(serve: Serve, backend: str) -> None:
    port = reserve_port()
    options = [f"--listen=0.0.0.0:{port}", f"--listen=[::]:{port}", "--backend", backend]
    server = serve(*options, listen=())
    assert f"listening on 0.0.0.0:{port} and [::]:{port}, " in server.stderr
    for number, host in enumerate(("127.0.0.1", "::1")):
        with socket.create_connection((host, port), timeout=DEADLINE_S) as client:
            client.sendall(lines([number]))
    wait_until(lambda: server.logged_set() == {0, 1}, "both numbers")
    assert server.stop() == 0


@pytest.mark.same_with_reactors
def test_a_name_is_listened_on_at_each_of_its_addresses(serve: Serve) -> None:
    server = serve("--host", "localhost", listen=("--port", str(reserve_port())))
    addresses = {info[4][0] for info in socket.getaddrinfo("localhost", 0)}
    for i, address in enumerate(sorted(map(str, addresses))):
        with socket.create_connection((address, server.port), timeout=DEADLINE_S) as client:
            client.sendall(lines([i]))
    server.host = str(next(iter(addresses)))
    assert server.terminate() == 0
    assert server.logged_set() == set(range(len(addresses)))


# The protocol.

INVALID = [
    b"12345678\n",
    b"1234567890\n",
    b"123456789\r\n",
    b"+12345678\n",
    b"-12345678\n",
    b" 12345678\n",
    b"12345678 \n",
    b"1234 5678\n",
    b"12345678\0\n",
    b"\0\0\0\0\0\0\0\0\0\n",
    b"\n",
    b"\r\n",
    b"abcdefghi\n",
    b"12345678a\n",
    b"0x1234567\n",
    b"1.2345678\n",
    b"1e2345678\n",
    b"1_2345678\n",
    "١٢٣٤٥٦٧٨٩\n".encode(),
    "".join(chr(0xFF10 + digit) for digit in range(1, 10)).encode() + b"\n",
    b"\xb2\xb2\xb2\xb2\xb2\xb2\xb2\xb2\xb2\n",
    b"TERMINATE\n",
    b"Terminate\n",
    b"terminate\r\n",
    b" terminate\n",
    b"terminate \n",
    b"terminated\n",
    b"terminat\n",
    b"123456789terminate\n",
    b"\xef\xbb\xbf123456789\n",
    b"\xff" * 10,
]


@pytest.mark.parametrize("together", [True, False], ids=["one packet", "own packet"])
def test_an_invalid_line_ends_its_connection_without_a_word(
    serve: Serve, backend: str, kernel: str, together: bool
) -> None:
    server = serve("--backend", backend, "--kernel", kernel)
    for i, line in enumerate(INVALID):
        with server.connect() as client:
            if together:
                client.sendall(lines([2 * i]) + line + lines([2 * i + 1]))
            else:
                client.sendall(lines([2 * i]))
                wait_until(lambda: server.log_path.stat().st_size == 10 * (i + 1), "the number")  # noqa: B023
                client.sendall(line)
            assert is_closed(client), line
    assert server.terminate() == 0
    assert server.logged() == list(range(0, 2 * len(INVALID), 2))
    assert f"{len(INVALID)} disconnected for an invalid line" in server.stderr


@pytest.mark.parametrize("start", [b"x", b"12345678x", b"1234567890", b"termx", b"12t", b"t1"])
def test_the_first_wrong_byte_decides_without_a_newline(
    serve: Serve, backend: str, start: bytes
) -> None:
    server = serve("--backend", backend)
    with server.connect() as client:
        client.sendall(lines([1]) + start)
        assert is_closed(client)
    assert server.terminate() == 0
    assert server.logged() == [1]


@pytest.mark.parametrize("tail", [b"1", b"123456789", b"t", b"terminate"])
def test_an_incomplete_last_line_is_dropped_and_counted(
    serve: Serve, backend: str, tail: bytes
) -> None:
    server = serve("--backend", backend)
    server.send(lines([1]) + tail)
    server.send(lines([2]))
    assert server.terminate() == 0
    assert server.logged_set() == {1, 2}
    assert "1 left within a line" in server.stderr


def test_a_client_that_sends_a_byte_at_a_time_is_understood(serve: Serve, backend: str) -> None:
    server = serve("--backend", backend)
    with server.connect() as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in lines(range(100)):
            client.send(bytes([byte]))
    assert server.terminate() == 0
    assert server.logged() == list(range(100))


def test_packets_of_one_line_each_are_understood(serve: Serve, backend: str) -> None:
    server = serve("--backend", backend)
    with server.connect() as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for number in range(3000):
            client.send(b"%09d\n" % number)
    assert server.terminate() == 0
    assert server.logged() == list(range(3000))


def test_large_pieces_cut_anywhere_are_understood(serve: Serve, backend: str) -> None:
    server = serve("--backend", backend)
    generator = random.Random(2)
    sizes = iter(lambda: generator.randrange(1, 2**20), None)

    def send(first: int) -> None:
        with server.connect() as client:
            for piece in pieces(lines(range(first, first + 300_000)), sizes):
                client.sendall(piece)

    parallel([lambda i=i: send(i * 300_000) for i in range(5)])  # type: ignore[misc]
    assert server.terminate() == 0
    assert server.logged_set() == set(range(1_500_000))


def test_a_stream_without_a_newline_is_ended_early_with_flat_memory(
    serve: Serve, backend: str
) -> None:
    server = serve("--backend", backend)
    before_kib = memory_kib(server, "VmRSS")
    with server.connect() as client, contextlib.suppress(ConnectionResetError, BrokenPipeError):
        for _ in range(100):
            client.sendall(b"1" * 1_000_000)
        raise AssertionError("100 MB without a newline were taken")
    assert memory_kib(server, "VmHWM") - before_kib < 8 * 1024
    assert server.terminate() == 0
    assert server.logged() == []


# Clients that come, go, stay and vanish.


def test_thousands_of_connections_that_come_and_go_leave_nothing_behind(
    serve: Serve, backend: str
) -> None:
    server = serve("--backend", backend)
    descriptors = Path(f"/proc/{server.process.pid}/fd")
    before = len(list(descriptors.iterdir()))
    for i in range(2000):
        client = server.connect()
        if i % 4 == 1:
            client.sendall(b"%09d\n" % i)
        if i % 2:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()
    wait_until(lambda: len(list(descriptors.iterdir())) == before, "all slots to be free")
    server.send(lines([999_999_999]))
    assert server.terminate() == 0
    assert server.logged_set() == {*range(1, 2000, 4), 999_999_999}


def test_the_sixth_client_waits_until_a_slot_is_free(serve: Serve, backend: str) -> None:
    server = serve("--backend", backend, "--report-interval", "0.1")
    silent = [server.connect() for _ in range(5)]
    sixth = server.connect()
    sixth.sendall(lines([6]))
    seen = len(server.reports)
    wait_until(lambda: len(server.reports) >= seen + 3, "three more reports")
    assert server.logged() == []
    silent[2].close()
    wait_until(lambda: server.logged() == [6], "the sixth client's number")
    sixth.sendall(b"terminate\n")
    assert server.wait() == 0
    for client in (sixth, *silent[:2], *silent[3:]):
        assert is_closed(client)
        client.close()


@pytest.mark.alone
def test_silent_and_waiting_clients_cost_no_processor_time(serve: Serve, backend: str) -> None:
    server = serve("--backend", backend, "--report-interval", "0.5")
    clients = [server.connect() for _ in range(8)]
    clients[7].sendall(lines([1]) * 1000)
    wait_until(lambda: server.reports, "a report")
    before_s = cpu_s(server)
    seen = len(server.reports)
    wait_until(lambda: len(server.reports) >= seen + 2, "two more reports")
    assert cpu_s(server) - before_s <= 0.1
    for client in clients:
        client.close()


def test_where_asked_for_the_sixth_client_is_refused(serve: Serve, backend: str) -> None:
    server = serve("--backend", backend, "--when-full", "refuse")
    clients = [server.connect() for _ in range(5)]
    for client in clients:
        client.sendall(b"1")
    # The five are in as soon as the sixth is thrown out.
    for _ in range(3):
        # A refusal is a reset, which may come before the client knows that it is connected.
        with contextlib.suppress(ConnectionResetError), server.connect() as sixth:
            assert is_closed(sixth)
    clients.pop().close()
    wait_until(lambda: _is_served(server), "a free slot")
    for client in clients:
        client.close()
    # Not by a client: it may come before the slots are free again.
    assert server.stop() == 0
    assert " refused" in server.stderr
    assert " 0 refused" not in server.stderr


def _is_served(server: ServerProcess) -> bool:
    with contextlib.suppress(ConnectionError):
        server.send(lines([42]))
    return server.log_path.stat().st_size > 0


@pytest.mark.alone
def test_a_quiet_client_is_served_beside_a_flood(serve: Serve, backend: str) -> None:
    server = serve("--backend", backend)
    over = threading.Event()

    def flood() -> None:
        block = lines(range(100_000))
        with server.connect() as client, contextlib.suppress(OSError):
            while not over.is_set():
                client.sendall(block)

    flooding = threading.Thread(target=flood, daemon=True)
    flooding.start()
    wait_until(lambda: server.log_path.stat().st_size >= 1_000_000, "the flood")
    delays_s = []
    with server.connect() as quiet:
        for i in range(20):
            size = server.log_path.stat().st_size
            sent_s = time.monotonic()
            quiet.sendall(lines([900_000_000 + i]))
            wait_until(lambda: server.log_path.stat().st_size == size + 10, "the number")  # noqa: B023
            delays_s.append(time.monotonic() - sent_s)
    over.set()
    flooding.join(DEADLINE_S)
    assert statistics.median(delays_s) < 0.1
    assert server.terminate() == 0


def test_a_thousand_clients_at_once_are_served(serve: Serve, backend: str) -> None:
    server = serve("--backend", backend, "--max-clients", "1000")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 4096), hard))
    try:
        clients = [server.connect() for _ in range(1000)]
        for i, client in enumerate(clients):
            client.sendall(lines([i]))
        wait_until(lambda: server.log_path.stat().st_size == 10_000, "all numbers")
        for i, client in enumerate(clients):
            client.sendall(lines([1000 + i]))
            client.close()
        assert server.terminate() == 0
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert server.logged_set() == set(range(2000))


@pytest.mark.alone
def test_a_stop_with_five_thousand_clients_loses_nothing(serve: Serve, backend: str) -> None:
    count = 5000
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < count + 100:
        pytest.skip(f"only {hard} descriptors are allowed here")
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        server = serve("--backend", backend, "--max-clients", str(count))
        clients = [server.connect() for _ in range(count)]
        for i, client in enumerate(clients):
            client.sendall(lines([i]))
        begin_s = time.monotonic()
        assert server.stop() == 0
        stopped_s = time.monotonic() - begin_s
        for client in clients:
            client.close()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert server.logged_set() == set(range(count))
    assert stopped_s < 2, "a stop takes below a second, and this machine may be busy"


@pytest.mark.same_with_reactors
def test_the_descriptor_limit_is_raised_where_it_has_to_be(serve: Serve) -> None:
    server = serve("--max-clients", "300", prefix=["prlimit", "--nofile=64:4096"])
    clients = [server.connect() for _ in range(300)]
    for i, client in enumerate(clients):
        client.sendall(lines([i]))
    wait_until(lambda: server.log_path.stat().st_size == 3000, "all numbers")
    for client in clients:
        client.close()
    assert server.terminate() == 0


@pytest.mark.alone
def test_out_of_descriptors_the_server_lives_on(serve: Serve, backend: str) -> None:
    server = serve("--backend", backend, "--report-interval", "0.5")
    pid = server.process.pid
    with server.connect() as first:
        first.sendall(lines([1]))
        wait_until(lambda: server.logged() == [1], "the first number")
        limits = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (3, limits[1]))
        second = server.connect()
        second.sendall(lines([2]))
        wait_until(lambda: len(server.stderr_lines) == 2, "the warning")
        assert "cannot accept connections for now: Too many open files" in server.stderr
        before_s, seen = cpu_s(server), len(server.reports)
        wait_until(lambda: len(server.reports) >= seen + 3, "three more reports")
        assert cpu_s(server) - before_s <= 0.1
        first.sendall(lines([3]))
        wait_until(lambda: server.logged() == [1, 3], "the first client to be served")
        resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)
        wait_until(lambda: server.logged() == [1, 3, 2], "the second client to be served")
        second.close()
    assert len(server.stderr_lines) == 2
    assert server.terminate() == 0


def test_an_idle_client_is_disconnected_and_a_trickle_does_not_help(
    serve: Serve, backend: str
) -> None:
    idle_s = 2.0  # No less: on a busy machine the busy client gets no processor time for a second.
    server = serve("--backend", backend, "--idle-timeout", str(idle_s))
    trickler, busy = server.connect(), server.connect()
    trickler.sendall(lines([1]))
    trickler.settimeout(0.02)
    begin_s = time.monotonic()
    sent = 0
    closed = False
    while not closed and time.monotonic() - begin_s < DEADLINE_S:
        busy.sendall(lines([2]))
        with contextlib.suppress(TimeoutError):
            try:
                if sent < 9:
                    trickler.send(b"1")
                    sent += 1
                closed = trickler.recv(1) == b""
            except (ConnectionResetError, BrokenPipeError):
                closed = True
    assert time.monotonic() - begin_s >= idle_s
    busy.sendall(lines([3]))
    wait_until(lambda: server.logged_set() == {1, 2, 3}, "the busy client's number")
    assert is_closed(busy)
    assert server.terminate() == 0
    assert "2 for being idle" in server.stderr


# Stopping.


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_like_terminate(serve: Serve, backend: str, number: signal.Signals) -> None:
    server = serve("--backend", backend)
    with server.connect() as client, server.connect() as silent:
        client.sendall(lines(range(100_000)))
        assert server.stop(number) == 0
        assert is_closed(client)
        assert is_closed(silent)
    assert server.logged() == list(range(100_000))
    assert server.reported() == (100_000, 0, 100_000)
    assert f"stopped by {number.name}" in server.stderr


def test_a_stop_signal_that_the_parent_ignored_stops_too(serve: Serve) -> None:
    server = serve(prefix=["sh", "-c", 'trap "" INT TERM; exec "$@"', "sh"])
    assert server.stop(signal.SIGINT) == 0


def test_the_same_signal_twice_at_once_is_one_request(serve: Serve) -> None:
    server = serve()
    server.send(lines([1]))
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGTERM):
        server.process.send_signal(number)
    assert server.wait() == 0
    assert server.logged() == [1]


def test_a_signal_after_a_clean_stop_changes_nothing(serve: Serve) -> None:
    for _ in range(5):
        server = serve()
        server.process.send_signal(signal.SIGTERM)
        wait_until(lambda: "stopped by" in server.stderr, "the last line")  # noqa: B023
        while server.process.poll() is None:
            server.process.send_signal(signal.SIGINT)
        assert server.wait() == 0


@pytest.mark.alone
@pytest.mark.parametrize("attempt", range(5))
def test_floods_do_not_delay_a_stop(serve: Serve, backend: str, attempt: int) -> None:
    server = serve("--backend", backend)
    started = threading.Barrier(5)

    def flood(first: int) -> None:
        block = lines(range(first, first + 100_000))
        with server.connect() as client, contextlib.suppress(OSError):
            client.sendall(block)
            started.wait(DEADLINE_S)
            for _ in range(10_000):
                client.sendall(block)

    floods = [threading.Thread(target=flood, args=(i * 100_000,), daemon=True) for i in range(4)]
    for thread in floods:
        thread.start()
    started.wait(DEADLINE_S)
    begin_s = time.monotonic()
    assert server.terminate() == 0
    stopped_s = time.monotonic() - begin_s
    for thread in floods:
        thread.join(DEADLINE_S)
    assert server.logged_set() == set(range(400_000))
    assert server.reported()[0] == 400_000
    assert stopped_s < 2, "a stop takes below a second, and this machine may be busy"


def test_a_client_that_waits_when_the_stop_comes_is_not_forgotten(
    serve: Serve, backend: str
) -> None:
    server = serve("--backend", backend, "--max-clients", "1")
    with server.connect() as first, server.connect() as second:
        second.sendall(lines([2]))
        first.sendall(lines([1]) + b"terminate\n")
        assert server.wait() == 0
        assert is_closed(second)
    assert server.logged() == [1, 2]


def test_several_terminates_and_a_signal_at_once_are_one_stop(serve: Serve, backend: str) -> None:
    server = serve("--backend", backend)
    clients = [server.connect() for _ in range(4)]
    for i, client in enumerate(clients):
        client.sendall(lines([i]))
    # What comes after the first "terminate" need not be taken in.
    wait_until(lambda: server.logged_set() == set(range(4)), "all numbers")
    for client in clients:
        with contextlib.suppress(OSError):
            client.sendall(b"terminate\n")
    server.process.send_signal(signal.SIGTERM)
    assert server.wait() == 0
    for client in clients:
        client.close()
    assert server.logged_set() == set(range(4))


@pytest.mark.same_with_reactors
def test_the_port_can_be_used_again_at_once(serve: Serve) -> None:
    listen = ("--port", str(reserve_port()))
    first = serve(listen=listen)
    with first.connect() as client:
        client.sendall(lines([1]))
        assert first.terminate() == 0
    second = serve(listen=listen)
    assert second.port == first.port
    assert second.terminate() == 0


# Standard output, and stalls.


@pytest.mark.same_with_reactors
def test_a_closed_standard_output_gets_nothing_and_gives_nothing_to_the_log(
    serve: Serve,
) -> None:
    server = serve("--report-interval", "0.01", prefix=["sh", "-c", 'exec "$@" >&- <&-', "sh"])
    for i in range(200):
        server.send(lines([i]))
    assert server.terminate() == 0
    assert server.logged_set() == set(range(200))


@pytest.mark.same_with_reactors
def test_a_reader_of_reports_that_leaves_does_not_stop_the_server(serve: Serve) -> None:
    read_end, write_end = os.pipe()
    server = serve("--report-interval", "0.01", stdout=write_end)
    os.close(write_end)
    os.read(read_end, 10)
    os.close(read_end)
    for i in range(100):
        server.send(lines([i]))
    assert server.terminate() == 0
    assert server.logged_set() == set(range(100))


def test_a_full_pipe_does_not_stop_the_server_and_no_count_is_lost(serve: Serve) -> None:
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    filled = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            filled += os.write(write_end, b"x" * 4096)
    os.set_blocking(write_end, True)
    server = serve("--report-interval", "0.01", stdout=write_end)
    os.close(write_end)
    for i in range(100):
        server.send(lines([i]))
    wait_until(lambda: len(server.logged()) == 100, "all numbers")
    with os.fdopen(read_end, "rb") as reader:
        reader.read(filled)
        server.send(lines([100, 5]))
        assert server.terminate() == 0
        server.stdout_lines[:] = reader.read().decode().splitlines()
    assert server.reported() == (101, 1, 101)


@pytest.mark.alone
def test_a_stopped_process_catches_up_with_one_report(serve: Serve, backend: str) -> None:
    server = serve("--backend", backend, "--report-interval", "0.2")
    with server.connect() as client:
        client.sendall(lines([1]))
        wait_until(lambda: server.logged() == [1], "the number")
        server.process.send_signal(signal.SIGSTOP)
        wait_until(lambda: _state(server) == "T", "the process to stop")
        client.sendall(lines([2]))
        seen = len(server.reports)
        threading.Event().wait(1.5)  # Time itself is the subject: seven reports are missed.
        server.process.send_signal(signal.SIGCONT)
        wait_until(lambda: server.logged() == [1, 2], "the second number")
        assert server.stop() == 0
    assert len(server.reports) - seen <= 6, "a burst of the seven that were missed"
    assert server.reported() == (2, 0, 2)


def _state(server: ServerProcess) -> str:
    return Path(f"/proc/{server.process.pid}/stat").read_text().rsplit(")", 1)[1].split()[0]


@pytest.mark.alone
def test_reports_keep_to_their_grid_under_load(serve: Serve, backend: str) -> None:
    server = serve("--backend", backend, "--report-interval", "0.1")
    begin_s = time.monotonic()
    with server.connect() as client:
        block = lines(range(20_000))
        while time.monotonic() - begin_s < 1.0:
            client.sendall(block)
    assert server.terminate() == 0
    took_s = time.monotonic() - begin_s
    # A busy machine may stall the server, and a stall is one report.
    assert len(server.reports) >= 5
    assert len(server.reports) <= took_s / 0.1 + 3


# The disk.


def test_on_a_full_disk_clients_are_held_back_and_nothing_is_lost(
    backend: str, small_disk: Path
) -> None:
    filler = small_disk / "filler"
    filler.write_bytes(b"x" * 900_000)
    data = lines(range(60_000))
    with (
        ServerProcess(small_disk / "numbers.log", "--backend", backend) as server,
        server.connect() as client,
    ):
        client.sendall(data)
        wait_until(lambda: len(server.stderr_lines) == 2, "the word on the full disk")
        assert "no space for the log" in server.stderr
        # The retry of each second writes what has room, and cuts an unfinished line off again.
        sizes_bytes = []
        end_s = time.monotonic() + 2.5 * NO_SPACE_RETRY_S
        while time.monotonic() < end_s:
            held = logged_so_far(server.log_path)
            assert held == list(range(len(held)))
            sizes_bytes.append(server.log_path.stat().st_size)
            time.sleep(0.01)
        torn = [size for size in sizes_bytes if size % 10]
        assert len(torn) < len(sizes_bytes) / 10, "a torn line stays there"
        filler.unlink()
        wait_until(lambda: len(logged_so_far(server.log_path)) == 60_000, "the rest")
        assert server.terminate() == 0
        assert server.logged() == list(range(60_000))
        assert "there is space for the log" in server.stderr
        assert server.reported() == (60_000, 0, 60_000)


@pytest.mark.alone
def test_a_stop_on_a_full_disk_says_what_is_lost(backend: str, small_disk: Path) -> None:
    (small_disk / "filler").write_bytes(b"x" * 900_000)
    with (
        ServerProcess(small_disk / "numbers.log", "--backend", backend) as server,
        server.connect() as client,
    ):
        client.sendall(lines(range(60_000)))
        wait_until(lambda: len(server.stderr_lines) == 2, "the word on the full disk")
        begin_s = time.monotonic()
        assert server.stop() == 4
        assert time.monotonic() - begin_s < 2
        counted, _, _ = server.reported()
        lost = counted - len(server.logged())
        assert lost > 0
        assert f"{lost} counted numbers are lost" in server.stderr_lines[-1]


def test_a_file_size_limit_ends_the_server_with_whole_lines(serve: Serve, backend: str) -> None:
    server = serve(
        *("--backend", backend),
        prefix=["prlimit", "--fsize=12345"],
        # Coverage would write its data under the same limit.
        environment={"COVERAGE_PROCESS_CONFIG": ""},
    )
    with server.connect() as client:
        client.sendall(lines(range(5000)))
        assert server.wait() == 4
    assert server.logged() == list(range(1234))
    assert "File too large" in server.stderr_lines[-1]
    counted, _, _ = server.reported()
    assert f"{counted - 1234} counted numbers are lost" in server.stderr_lines[-1]


def test_what_was_taken_in_before_the_last_wait_survives_a_kill(serve: Serve, backend: str) -> None:
    server = serve("--backend", backend, "--report-interval", "0.05")
    with server.connect() as client:
        for i in range(50):
            client.sendall(lines([i]))
        wait_until(lambda: server.reports and server.reported()[0] == 50, "the report")
        server.process.kill()
        server.process.wait(DEADLINE_S)
    assert server.logged() == list(range(50))
