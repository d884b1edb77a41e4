"""The load generator: what it sends, and what it says has become of it."""

import fcntl
import io
import json
import os
import pty
import re
import signal
import socket
import struct
import subprocess
import sys
import termios
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, suppress
from itertools import pairwise
from pathlib import Path
from typing import IO, Any

import click
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from numbers_uring._native import ffi, lib
from numbers_uring.cli.load import load
from numbers_uring.cli.load_output import ProgressBars, result_table
from numbers_uring.errors import ExitCode, StartError
from numbers_uring.limits import NUMBERS
from numbers_uring.load.latency import bucket_latency, exact_latency
from numbers_uring.load.lines import make_lines
from numbers_uring.load.model import Latency, LoadParameters, LoadResult, Mix, numbers_max
from numbers_uring.load.run import run_load
from ports import reserve_port
from support.peers import peer, read_all
from support.waiting import DEADLINE_S

COMMAND = [sys.executable, "-m", "numbers_uring"]
MIXES = list(Mix)


def parameters(mix: Mix, numbers: int = 1_000_000, **others: Any) -> LoadParameters:
    return LoadParameters(mix=mix, numbers=numbers, **others)


def numbers_of(lines: bytes | bytearray) -> list[int]:
    assert len(lines) % 10 == 0
    assert lines[9::10] == b"\n" * (len(lines) // 10)
    return [int(line) for line in lines.split()]


def made(load: LoadParameters, first: int = 0, count: int | None = None) -> list[int]:
    return numbers_of(make_lines(load, first, load.numbers if count is None else count))


# What is sent


@given(st.integers(0, NUMBERS - 1))
@example(0)
@example(9)
@example(99_999)
@example(100_000)
@example(NUMBERS - 1)
def test_a_number_is_written_as_nine_digits_and_a_newline(number: int) -> None:
    lines = make_lines(parameters(Mix.SEQUENTIAL, NUMBERS), number, 1)
    assert lines == b"%09d\n" % number


def test_every_part_of_a_number_is_written_right() -> None:
    load = parameters(Mix.SEQUENTIAL, NUMBERS)
    # The middle four digits and the last take all their values in the first run; the head, in the
    # second, one number from each of its values.
    assert make_lines(load, 0, 100_000) == b"".join(b"%09d\n" % n for n in range(100_000))
    for number in range(54_321, NUMBERS, 100_000):
        assert make_lines(load, number, 1) == b"%09d\n" % number


@given(st.sampled_from(MIXES), st.integers(0, NUMBERS - 2_000), st.integers(0, 1_200))
@example(Mix.UNIQUE, 99_999_000, 1_200)
@example(Mix.UNIQUE, 9_999, 256)
@example(Mix.DUPLICATE, 0, 257)
def test_the_fast_path_writes_what_the_portable_one_does(mix: Mix, first: int, count: int) -> None:
    load = parameters(mix, NUMBERS)
    assert make_lines(load, first, count) == make_lines(load, first, count, portable=True)


@pytest.mark.parametrize("make", ["nu_lines_portable", "nu_lines_avx2"])
def test_no_byte_beyond_the_lines_is_written(make: str) -> None:
    sequence: Any = ffi.new("struct nu_sequence *")
    assert lib.nu_sequence_set(sequence, lib.NU_MIX_UNIQUE, 1, 1000, 1) == 0
    for count in (0, 1, 2, 7, 8, 255, 256, 257, 511, 512, 513):
        out = bytearray(b"\xaa" * (count * 10 + 64))
        written = getattr(lib, make)(sequence, 0, count, ffi.from_buffer(out))
        if written is not None and written < 0:
            pytest.skip("this CPU or build has no AVX2")
        assert out[count * 10 :] == b"\xaa" * 64
        assert len(numbers_of(out[: count * 10])) == count


@given(st.sampled_from(MIXES), st.integers(0, 10**8), st.lists(st.integers(0, 700), max_size=6))
def test_how_a_sequence_is_cut_does_not_matter(mix: Mix, first: int, counts: list[int]) -> None:
    load = parameters(mix, NUMBERS)
    pieces = b""
    for count in counts:
        pieces += make_lines(load, first + len(pieces) // 10, count)
    assert pieces == make_lines(load, first, sum(counts))


@pytest.mark.parametrize("mix", MIXES)
def test_the_seed_decides(mix: Mix) -> None:
    first, again, other = (
        make_lines(parameters(mix, seed=seed), 12_345, 5_000) for seed in (7, 7, 8)
    )
    assert first == again
    assert (first == other) == (mix is Mix.SEQUENTIAL)


def index_of(number: int, rounds: Any) -> int:
    """Undo the permutation, round by round: the proof that it is one."""
    parts = {"head": number // 100_000, "middle": number // 10 % 10_000, "last": number % 10}
    others = {
        "head": ("middle", "last"),
        "middle": ("head", "last"),
        "last": ("head", "middle"),
    }
    for key, part in reversed(
        list(zip(rounds, ["head", "middle", "last", "head", "middle"], strict=True))
    ):
        first, second = (parts[name] for name in others[part])
        mixed = first * key.first_factor + second * key.second_factor + key.addend & 0xFFFF
        mixed = (mixed ^ mixed >> 7) * key.last_factor & 0xFFFF
        radix = 10 if part == "last" else 10_000
        parts[part] = (parts[part] - (mixed * radix >> 16)) % radix
    return parts["last"] * 10**8 + parts["head"] * 10**4 + parts["middle"]


@given(st.integers(0, NUMBERS - 1), st.integers(0, 2**64 - 1))
@example(0, 0)
@example(NUMBERS - 1, 2**64 - 1)
@example(99_999_999, 1)
def test_the_unique_order_can_be_undone(index: int, seed: int) -> None:
    sequence: Any = ffi.new("struct nu_sequence *")
    assert lib.nu_sequence_set(sequence, lib.NU_MIX_UNIQUE, seed, NUMBERS, 1) == 0
    load = parameters(Mix.UNIQUE, NUMBERS, seed=seed)
    (number,) = numbers_of(make_lines(load, index, 1))
    assert index_of(number, sequence.rounds) == index


def test_unique_numbers_are_distinct_in_and_between_ranges() -> None:
    load = parameters(Mix.UNIQUE, NUMBERS)
    found: set[int] = set()
    for first in (0, 100_000, 99_990_000, 500_000_000, NUMBERS - 100_000):
        found.update(made(load, first, 100_000))
    # 99,990,000 to 100,090,000 does not overlap with the others.
    assert len(found) == 500_000


def test_unique_numbers_are_spread_like_random_ones() -> None:
    numbers = made(parameters(Mix.UNIQUE), 0, 200_000)
    # 65,536 numbers share 8 KiB of a bitmap. Of n thrown at m places, m * (1 - 1/m)^n stay empty.
    places = NUMBERS // 65_536 + 1
    hit = len({number // 65_536 for number in numbers[:20_000]})
    expected = places * (1 - (1 - 1 / places) ** 20_000)
    assert abs(hit - expected) < 0.02 * expected
    for digit in range(9):
        counts = Counter(number // 10**digit % 10 for number in numbers)
        assert all(abs(counts[value] - 20_000) < 5 * 20_000**0.5 for value in range(10))


@given(st.integers(1, 3_000), st.floats(0, 1), st.integers(0, 99))
@example(1, 1.0, 0)
@example(3_000, 1.0, 0)
@example(3_000, 0.0, 0)
@settings(deadline=None)
def test_the_mix_duplicate_has_exactly_its_share_of_repeats(
    numbers: int, share: float, seed: int
) -> None:
    load = parameters(Mix.DUPLICATE, numbers, duplicates=share, seed=seed)
    assert len(set(made(load))) == max(1, numbers - round(numbers * share))


def test_repeats_are_spread_over_the_run_and_over_what_came_before() -> None:
    load = parameters(Mix.DUPLICATE, 100_000, duplicates=0.25)
    numbers = made(load)
    assert abs(len(set(numbers[:10_000])) - 7_500) <= 1
    seen = {number: place for place, number in reversed(list(enumerate(numbers)))}
    ages = [place - seen[number] for place, number in enumerate(numbers) if seen[number] < place]
    assert len(ages) == 25_000
    # Drawn evenly from all before, the age is a quarter of the run on average.
    assert abs(sum(ages) / len(ages) - 25_000) < 1_000


def test_the_mix_hot_draws_from_a_thousand_numbers() -> None:
    counts = Counter(made(parameters(Mix.HOT, 200_000)))
    assert len(counts) == 1_000
    assert max(counts.values()) < 300


def test_the_mix_random_repeats_as_chance_has_it() -> None:
    numbers = made(parameters(Mix.RANDOM, 1_000_000))
    repeats = len(numbers) - len(set(numbers))
    # n^2 / 2N = 500, and its root is 22.
    assert 350 < repeats < 650
    assert all(0 <= number < NUMBERS for number in numbers)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--clients", 0),
        ("--clients", 10_001),
        ("--numbers", 0),
        ("--numbers", 2**53 + 1),
        ("--send-bytes", 0),
        ("--send-bytes", 4 * 1024 * 1024 + 1),
        ("--seed", -1),
        ("--seed", 2**64),
        ("--rate", -1),
        ("--duplicates", 1.5),
        ("--duplicates", "nan"),
        ("--prepare-bytes", -1),
        ("--timeout", -1),
        ("--timeout", "nan"),
        ("--timeout", "inf"),
        ("--duration", -1),
    ],
)
def test_a_value_out_of_range_is_wrong_usage(option: str, value: object) -> None:
    with pytest.raises(click.BadParameter):
        load.make_context("load", [option, str(value)])


@pytest.mark.parametrize(
    ("mix", "numbers"),
    [(Mix.UNIQUE, NUMBERS + 1), (Mix.SEQUENTIAL, NUMBERS + 1), (Mix.DUPLICATE, 3 * NUMBERS)],
)
def test_a_mix_without_so_many_numbers_is_refused(mix: Mix, numbers: int) -> None:
    with pytest.raises(ValueError, match=str(NUMBERS)):
        LoadParameters(mix=mix, numbers=numbers)


@given(st.integers(0, 2**62))
@example(31)
@example(32)
@example(63)
@example(64)
def test_a_latency_lies_in_its_narrow_bucket(latency_ns: int) -> None:
    bucket = lib.nu_latency_bucket(latency_ns)
    least, after = lib.nu_latency_least_ns(bucket), lib.nu_latency_least_ns(bucket + 1)
    assert least <= latency_ns < after
    assert after - least <= max(1, least / 32)
    assert bucket < lib.NU_LOAD_LATENCIES


# What becomes of it


def read_line(stream: IO[bytes]) -> str:
    """A line, or "" at the end; a test that waits in vain is ended by its own time limit."""
    return stream.readline().decode()


class Server:
    """The real server, in a process of its own."""

    def __init__(self, directory: Path, *options: str, host: str = "127.0.0.1") -> None:
        self.log = directory / "numbers.log"
        self.process = subprocess.Popen(
            [*COMMAND, "serve", "--host", host, "--port", "0", "--log-file", self.log, *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=directory,
        )
        assert self.process.stderr
        line = read_line(self.process.stderr)
        match = re.search(r"listening on \S*:(\d+)[ ,]", line)
        if not match:
            self.close()
            pytest.fail(f"no start line but {line!r}")
        self.port = int(match[1])

    def stop(self) -> str:
        """Stop it as a user would; returns its reports."""
        self.process.send_signal(signal.SIGTERM)
        return self.outcome()

    def outcome(self) -> str:
        output, _ = self.process.communicate(timeout=DEADLINE_S)
        assert self.process.returncode == 0
        return output.decode()

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate(timeout=DEADLINE_S)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with closing(Server(tmp_path)) as running:
        yield running


def logged(server: Server) -> list[int]:
    return sorted(numbers_of(server.log.read_bytes()))


def reported(output: str) -> tuple[int, int, int]:
    """Unique and duplicate numbers over all reports, and the last total."""
    found = re.findall(
        r"Received (\d+) unique numbers, (\d+) duplicates\. Unique total: (\d+)", output
    )
    return sum(int(f[0]) for f in found), sum(int(f[1]) for f in found), int(found[-1][2])


def load_command(*options: object, **others: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, "load", *map(str, options)],
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
        **others,
    )


@pytest.mark.parametrize("send_bytes", [7, 10, 1_003, 65_536])
@pytest.mark.parametrize("prepare_bytes", [0, 10**9])
@pytest.mark.parametrize("clients", [1, 3])
def test_each_client_sends_its_part_byte_by_byte(
    send_bytes: int, prepare_bytes: int, clients: int
) -> None:
    received: list[bytes] = []
    with peer(lambda connection: received.append(read_all(connection))) as port:
        load = LoadParameters(
            port=port,
            clients=clients,
            numbers=5_000,
            send_bytes=send_bytes,
            prepare_bytes=prepare_bytes,
            timeout_s=DEADLINE_S,
        )
        result = run_load(load)
    assert result.complete, result
    assert result.prepared == bool(prepare_bytes)
    # Connections are accepted in the order they were made in.
    assert b"".join(received) == make_lines(load, 0, 5_000)


@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize("prepare_bytes", [0, 10**9])
def test_the_log_holds_exactly_what_was_sent(server: Server, mix: Mix, prepare_bytes: int) -> None:
    load = parameters(
        mix, 300_000, port=server.port, prepare_bytes=prepare_bytes, timeout_s=DEADLINE_S
    )
    result = run_load(load)
    assert result.complete, result
    assert result.numbers_taken == result.numbers_sent == 300_000
    assert result.numbers_not_taken_min == 0
    assert (result.clients_drained, result.clients_failed, result.clients_unfinished) == (5, 0, 0)
    assert result.drained_ms.samples == 5
    output = server.stop()
    expected = sorted(set(made(load)))
    assert logged(server) == expected
    unique, duplicates, total = reported(output)
    assert (unique, total) == (len(expected), len(expected))
    assert unique + duplicates == 300_000


@pytest.mark.parametrize("send_bytes", [7, 10, 123_457])
def test_lines_may_be_cut_anywhere(server: Server, send_bytes: int) -> None:
    load = parameters(
        Mix.UNIQUE, 20_000, port=server.port, send_bytes=send_bytes, timeout_s=DEADLINE_S
    )
    assert run_load(load).complete
    server.stop()
    assert logged(server) == sorted(made(load))


def test_many_clients_wait_for_a_few_places(tmp_path: Path) -> None:
    with closing(Server(tmp_path, "--max-clients", "5")) as server:
        load = parameters(Mix.UNIQUE, 200_000, port=server.port, clients=200, timeout_s=DEADLINE_S)
        result = run_load(load)
        assert result.complete, result
        assert result.clients_drained == 200
        server.stop()
        assert logged(server) == sorted(made(load))


def test_more_clients_than_numbers_are_no_error(server: Server) -> None:
    load = parameters(Mix.SEQUENTIAL, 3, port=server.port, clients=10, timeout_s=DEADLINE_S)
    result = run_load(load)
    assert result.complete, result
    assert result.drained_ms.samples == 3
    server.stop()
    assert logged(server) == [0, 1, 2]


def test_terminate_stops_the_server_with_everything_on_file(server: Server) -> None:
    done = load_command("--port", server.port, "--numbers", 100_000, "--terminate", "--json")
    assert done.returncode == 0, done
    assert json.loads(done.stdout)["terminated"] is True
    server.outcome()
    assert len(logged(server)) == 100_000


def test_ipv6_and_names_are_served(tmp_path: Path) -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError as error:
        pytest.skip(f"no IPv6 here: {error}")
    with closing(Server(tmp_path, host="::1")) as server:
        load = parameters(Mix.UNIQUE, 1_000, host="::1", port=server.port, timeout_s=DEADLINE_S)
        assert run_load(load).complete
    with closing(Server(tmp_path)) as server:
        load = parameters(
            Mix.UNIQUE, 1_000, host="localhost", port=server.port, timeout_s=DEADLINE_S
        )
        assert run_load(load).complete


def test_json_is_one_object_with_parameters_and_figures(server: Server) -> None:
    done = load_command(
        *("--port", server.port, "--numbers", 50_000, "--clients", 2, "--mix", "duplicate"),
        *("--duplicates", 0.25, "--seed", 9, "--prepare-bytes", 0, "--json"),
    )
    assert done.returncode == 0, done
    assert done.stderr == ""
    result = json.loads(done.stdout)
    assert done.stdout.count("\n") == 1
    for name, value in {
        "numbers": 50_000,
        "clients": 2,
        "mix": "duplicate",
        "duplicates": 0.25,
        "seed": 9,
        "send_bytes": 65_536,
        "prepared": False,
        "complete": True,
        "errors": {},
        "numbers_taken": 50_000,
    }.items():
        assert result[name] == value
    assert result["numbers_per_s"] == pytest.approx(50_000 / result["seconds"])
    assert result["bytes_per_s"] == pytest.approx(10 * result["numbers_per_s"])
    assert result["cpu_user_seconds"] + result["cpu_system_seconds"] >= 0
    assert set(result["drained_ms"]) == {"samples", "p50", "p90", "p99", "p999", "max"}
    server.stop()
    assert len(logged(server)) == 37_500


def test_the_result_is_one_line_and_the_environment_counts(server: Server) -> None:
    environment = os.environ | {
        "NUMBERS_URING_LOAD_PORT": str(server.port),
        "NUMBERS_URING_LOAD_NUMBERS": "12345",
    }
    done = load_command(env=environment)
    assert (done.returncode, done.stderr) == (0, "")
    assert re.fullmatch(
        r"Sent 12345 numbers \(0\.1 MB, mix unique, prepared\) from 5 clients in \d+\.\d+ s: "
        r"\S+ M numbers/s, \S+ MB/s taken in; "
        r"drained after last send p50 \S+ max \S+ ms \(5 samples\); "
        r"acknowledged after send .* \(\d+ samples?\)\n",
        done.stdout,
    )


def test_one_number_is_told_in_the_singular(server: Server) -> None:
    one = ("--port", server.port, "--numbers", 1, "--clients", 1)
    done = load_command(*one, "--duration", 5)
    assert done.stdout.startswith("Sent 1 number (0.0 MB, mix unique, prepared) from 1 client in ")
    assert done.stderr.endswith("with 1 number\n")


def test_a_rate_is_not_exceeded(server: Server) -> None:
    result = run_load(
        parameters(Mix.UNIQUE, 1_000, port=server.port, rate=2_000, timeout_s=DEADLINE_S)
    )
    assert result.complete, result
    assert result.seconds >= 0.4


def test_a_rate_holds_for_sends_that_are_no_lines(server: Server) -> None:
    load = parameters(
        Mix.UNIQUE, 600, port=server.port, rate=2_000, send_bytes=7, timeout_s=DEADLINE_S
    )
    result = run_load(load)
    assert result.complete, result
    assert result.seconds >= 0.2
    server.stop()
    assert logged(server) == sorted(made(load))


@pytest.mark.parametrize("mix", ["unique", "sequential"])
def test_more_numbers_than_there_are_is_wrong_usage(mix: str) -> None:
    done = load_command("--mix", mix, "--numbers", NUMBERS + 1)
    assert done.returncode == ExitCode.USAGE
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1


def test_a_refused_connection_is_one_line_and_exit_code_3() -> None:
    done = load_command("--port", reserve_port(), "--numbers", 10)
    assert done.returncode == ExitCode.NOT_STARTED
    assert done.stdout == ""
    assert re.fullmatch(r"numbers-uring: error: cannot connect to .*refused\n", done.stderr)


def test_an_unknown_host_is_exit_code_3() -> None:
    with pytest.raises(StartError, match="host"):
        run_load(parameters(Mix.UNIQUE, 1, host="a..b"))


def test_a_server_that_closes_in_the_middle_is_an_error() -> None:
    # Bytes are unread when it closes, so each client's connection is reset.
    with peer(lambda connection: connection.recv(1_000)) as port:
        done = load_command("--port", port, "--numbers", 2_000_000, "--clients", 3)
    assert done.returncode == ExitCode.FAILED, done
    assert re.match(r"Sent \d+ of 2000000 numbers .* 0 numbers taken in", done.stdout)
    clients = re.findall(r"error: .* \((\d) of 3 clients\)", done.stderr)
    assert sum(map(int, clients)) == 3, done
    assert re.search(r"at least \d+ numbers were not taken in", done.stderr)


def test_a_server_that_closes_before_the_end_of_a_slow_client_is_an_error() -> None:
    with peer(lambda connection: connection.recv(10, socket.MSG_WAITALL)) as port:
        result = run_load(
            parameters(
                Mix.UNIQUE, 1_000_000, port=port, clients=1, rate=1_000, timeout_s=DEADLINE_S
            )
        )
    assert not result.complete
    assert result.clients_failed == 1
    assert sum(result.errors.values()) == 1
    assert not result.timed_out
    assert result.numbers_taken == 0
    assert result.numbers_not_taken_min > 900_000


def test_a_server_that_answers_is_an_error() -> None:
    def answer(connection: socket.socket) -> None:
        connection.sendall(b"220 hello\r\n")
        with suppress(ConnectionResetError):
            read_all(connection)

    with peer(answer) as port:
        result = run_load(
            parameters(Mix.UNIQUE, 10_000, port=port, clients=1, rate=10, timeout_s=DEADLINE_S)
        )
    assert [text for text in result.errors if "answered" in text]


def test_the_client_that_says_terminate_is_none_of_the_others() -> None:
    def answer(connection: socket.socket) -> None:
        received = b""
        with suppress(ConnectionResetError):
            while piece := connection.recv(100):
                received += piece
                if received == b"terminate\n":
                    connection.sendall(b"no\n")

    with peer(answer) as port:
        done = load_command("--port", port, "--numbers", 10, "--clients", 2, "--terminate")
    assert done.returncode == 1
    assert done.stderr.endswith("error: terminate was answered\n")


def test_a_killed_server_is_an_error_and_no_hang(tmp_path: Path) -> None:
    with closing(Server(tmp_path, "--report-interval", "0.05")) as server:
        load = slow_load(server.port)
        await_numbers(server)
        server.process.kill()
        output, said = load.communicate(timeout=DEADLINE_S)
        assert load.returncode == ExitCode.FAILED
        assert json.loads(output)["clients_failed"] == 5
        assert b"Traceback" not in said


def slow_load(port: int, *others: str) -> subprocess.Popen[bytes]:
    options = ["--port", str(port), "--numbers", "100000000", "--rate", "100000", "--json", *others]
    return subprocess.Popen(
        [*COMMAND, "load", *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def await_numbers(server: Server) -> None:
    """Wait for a report that tells of numbers."""
    assert server.process.stdout
    deadline_s = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline_s:
        line = read_line(server.process.stdout)
        assert line, "the server is gone"
        if not line.startswith("Received 0 "):
            return
    pytest.fail("no numbers came")


def test_an_interrupted_load_says_how_far_it_came(tmp_path: Path) -> None:
    with closing(Server(tmp_path, "--report-interval", "0.05")) as server:
        load = slow_load(server.port)
        await_numbers(server)
        load.send_signal(signal.SIGINT)
        output, said = load.communicate(timeout=DEADLINE_S)
        assert load.returncode == 130
        result = json.loads(output)
        assert result["interrupted"] is True
        assert 0 < result["numbers_sent"] < 100_000_000
        assert said.decode().splitlines()[-1] == "numbers-uring: interrupted"
        assert b"Traceback" not in said


def test_a_server_that_reads_nothing_ends_with_the_time_limit() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        done = load_command("--port", port, "--numbers", 20_000_000, "--timeout", 0.3, "--json")
    assert done.returncode == ExitCode.FAILED
    result = json.loads(done.stdout)
    assert result["timed_out"] is True
    assert result["clients_unfinished"] == 5
    assert result["numbers_taken"] == 0
    assert "not done after 0.3 s" in done.stderr


def load_on_a_terminal(columns: int, *options: str, output: bool) -> tuple[str, str]:
    """Run a load whose standard error, and output if asked, is a terminal; return what both got."""
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    with open(leader, "rb", buffering=0) as screen, peer(read_all) as port:  # noqa: PTH123
        load = subprocess.Popen(
            [*COMMAND, "load", "--port", str(port), *options],
            stdout=follower if output else subprocess.PIPE,
            stderr=follower,
            env={name: value for name, value in os.environ.items() if name != "COLUMNS"},
        )
        os.close(follower)
        shown = b""
        with suppress(OSError):  # how a terminal without users says that it is at its end
            while piece := screen.read(4096):
                shown += piece
        printed, _ = load.communicate(timeout=DEADLINE_S)
    assert load.returncode == 0
    return shown.decode(), (printed or b"").decode()


def test_progress_with_the_rate_is_shown_on_a_terminal() -> None:
    shown, output = load_on_a_terminal(80, "--numbers", "1000", output=False)
    assert re.search(r"send .*100% .* \d\S* (M )?numbers/s", shown)
    assert output.startswith("Sent 1000 numbers")
    assert output.count("\n") == 1


@pytest.mark.parametrize("columns", [60, 80])
def test_the_result_is_a_table_on_a_terminal(columns: int) -> None:
    shown, _ = load_on_a_terminal(columns, "--numbers", "12345", "--clients", "3", output=True)
    table = shown.split("100%")[-1].splitlines()[1:]
    assert max(map(len, table)) < columns
    text = "\n".join(" ".join(line.split()) for line in table)
    assert "sent 12,345 numbers, 0.1 MB\ntaken in 12,345 numbers\n" in text
    assert "from 3 clients, mix unique, prepared\n" in text
    assert re.search(r"\nrate \S+ (M )?numbers/s, \S+ MB/s\n", text)
    assert "times in ms p50 p90 p99 p99.9 max samples\n" in text
    # One sample a client: too few for most percentiles.
    assert re.search(r"\ndrained \S*\d - - - \S*\d 3\n", text), text


@pytest.mark.parametrize("columns", [40, 50])
def test_on_a_narrow_terminal_the_times_are_below_each_other(columns: int) -> None:
    options = ("--numbers", "1234567", "--clients", "3", "--mix", "sequential")
    shown, _ = load_on_a_terminal(columns, *options, output=True)
    table = shown.split("100%")[-1].splitlines()[1:]
    assert max(map(len, table)) <= columns, table
    text = "\n".join(" ".join(line.split()) for line in table)
    assert "\ntaken in 1,234,567 numbers\nfrom 3 clients, mix sequential," in text
    assert "\ntimes in ms drained acknowledged\n" in text
    for title in ("p50", "max"):
        assert re.search(rf"^{re.escape(title)} \S*\d \S*\d$", text, re.MULTILINE), text
    assert re.search(r"\nsamples 3 \d+\Z", text), text


@pytest.mark.parametrize("columns", [40, 56, 80])
def test_no_figure_is_too_wide_for_the_table(columns: int) -> None:
    times = Latency(samples=99_999, p50=9e5, p90=9e5, p99=9e5, p999=9e5, max=9e5)
    result = LoadResult(
        parameters=parameters(Mix.SEQUENTIAL, NUMBERS, clients=10_000),
        prepared=False,
        prepare_seconds=0,
        seconds=5e5,
        numbers_sent=NUMBERS - 1,
        numbers_taken=NUMBERS - 2,
        numbers_not_taken_min=1,
        numbers_per_s=123_456_789,
        bytes_per_s=1.2e9,
        cpu_user_seconds=1,
        cpu_system_seconds=1,
        drained_ms=times,
        acknowledged_ms=times,
        clients_drained=1,
        clients_failed=1,
        clients_unfinished=1,
    )
    table = result_table(result, columns).splitlines()
    assert max(map(len, table)) <= columns, table
    assert "99,999" in table[-1]


def test_a_terminal_gets_json_if_it_is_asked_for() -> None:
    shown, _ = load_on_a_terminal(80, "--numbers", "1000", "--json", output=True)
    assert json.loads(shown.splitlines()[-1])["numbers_taken"] == 1000


def test_the_progress_bar_shows_the_rate_of_the_last_second(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The rate stays when all is sent, and the server is waited for."""
    screen = io.StringIO()
    monkeypatch.setattr(screen, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", screen)
    times = iter([0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    with ProgressBars(clock=lambda: next(times)) as bars:
        for numbers in (0, 5_000_000, 25_000_000, 28_000_000, 40_000_000, 40_000_000, 40_000_000):
            bars.show("send", numbers, 40_000_000)
    rates = re.findall(r"(\S+) M numbers/s", screen.getvalue())
    assert list(dict.fromkeys(rates)) == ["5", "20", "3", "12"]


def test_the_bar_of_a_duration_shows_how_much_of_it_has_passed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(screen, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", screen)
    times = iter([100.0, 100.5, 101.0, 103.0])
    with ProgressBars(duration_s=2.0, clock=lambda: next(times)) as bars:
        for numbers in (0, 10, 20, 20):
            bars.show("send", numbers, NUMBERS)
    shown = re.findall(r"(\d+)%", screen.getvalue())
    assert list(dict.fromkeys(shown)) == ["0", "25", "50", "100"]


# For a time


@pytest.mark.parametrize("send_bytes", [7, 10, 1_003, 65_536])
@pytest.mark.parametrize("prepare_bytes", [0, 10**9])
@pytest.mark.parametrize("clients", [1, 3])
def test_with_a_duration_clients_send_each_number_once_in_blocks(
    send_bytes: int, prepare_bytes: int, clients: int
) -> None:
    received: list[bytes] = []
    with peer(lambda connection: received.append(read_all(connection))) as port:
        load = LoadParameters(
            port=port,
            clients=clients,
            numbers=20_000,
            send_bytes=send_bytes,
            prepare_bytes=prepare_bytes,
            duration_s=2 * DEADLINE_S,
            timeout_s=DEADLINE_S,
        )
        result = run_load(load)
    assert result.complete, result
    assert result.ended_early
    sent = numbers_of(b"".join(received))
    assert sorted(sent) == sorted(made(load))
    assert load.block_numbers <= 20_000 // clients + 1
    places = {number: place for place, number in enumerate(made(load))}
    for each in received:
        followed = [places[number] for number in numbers_of(each)]
        jumps = [place for place, after in pairwise(followed) if after != place + 1]
        assert all((place + 1) % load.block_numbers == 0 for place in jumps)


@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize("rate", [0, 2_000_000])
def test_a_duration_ends_the_load_after_whole_lines(server: Server, mix: Mix, rate: int) -> None:
    seconds = 0.3 if rate else 0.1
    load = parameters(
        mix,
        numbers_max(mix, 0.5),
        port=server.port,
        rate=rate,
        send_bytes=1_003,
        duration_s=seconds,
        timeout_s=DEADLINE_S,
    )
    result = run_load(load)
    assert result.complete, result
    assert not result.ended_early
    assert result.seconds >= seconds
    assert 0 < result.numbers_sent == result.numbers_taken
    assert not rate or result.numbers_sent <= rate * (result.seconds + 0.1)
    unique, duplicates, _ = reported(server.stop())
    assert unique + duplicates == result.numbers_taken
    if not rate:  # Too many numbers for Python to look at each.
        return
    # It was the first part of the sequence, but for the last blocks.
    first = set(made(load, 0, result.numbers_sent))
    blocks = load.clients * load.block_numbers
    assert len(set(logged(server)) ^ first) <= 2 * blocks
    if mix is Mix.DUPLICATE:
        assert abs(duplicates / result.numbers_taken - 0.5) < 0.1


def test_a_duration_ends_clients_that_wait_for_a_slow_server() -> None:
    """They have no room for another byte, and end when the server reads."""
    with peer(lambda connection: (threading.Event().wait(0.5), read_all(connection))) as port:
        load = parameters(
            Mix.UNIQUE, NUMBERS, port=port, duration_s=0.2, clients=3, timeout_s=DEADLINE_S
        )
        result = run_load(load)
    assert result.complete, result
    assert result.numbers_sent > 0


def test_a_duration_ends_no_load_that_the_server_never_reads() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        done = load_command("--port", port, "--duration", 0.1, "--timeout", 0.5, "--json")
    assert done.returncode == ExitCode.FAILED
    result = json.loads(done.stdout)
    assert (result["timed_out"], result["complete"]) == (True, False)
    assert result["numbers_not_taken_min"] == 0


def test_with_a_duration_all_that_the_mix_has_may_be_sent(server: Server) -> None:
    options = ("--port", server.port, "--duration", 0.2, "--rate", 10_000)
    done = load_command(*options, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    result = json.loads(done.stdout)
    assert (result["duration_s"], result["numbers"]) == (0.2, NUMBERS)
    assert result["complete"] is True
    done = load_command(*options)
    assert re.match(r"Sent \d+ numbers \(", done.stdout)


def test_a_mix_that_ends_before_the_duration_says_so(server: Server) -> None:
    done = load_command("--port", server.port, "--duration", 1000, "--numbers", 100)
    assert done.returncode == 0
    assert done.stdout.startswith("Sent 100 numbers (")
    said = "numbers-uring: mix unique ended before --duration had passed, with 100 numbers\n"
    assert done.stderr == said


def test_an_interrupted_duration_is_not_complete(tmp_path: Path) -> None:
    with closing(Server(tmp_path, "--report-interval", "0.05")) as server:
        load = slow_load(server.port, "--duration", "1000")
        await_numbers(server)
        load.send_signal(signal.SIGINT)
        output, _ = load.communicate(timeout=DEADLINE_S)
        assert load.returncode == 130
        assert json.loads(output)["complete"] is False


@given(st.sampled_from(MIXES), st.floats(0, 1))
@example(Mix.DUPLICATE, 0.0)
@example(Mix.DUPLICATE, 1.0)
@example(Mix.DUPLICATE, 1 - NUMBERS / 2**53)
def test_a_mix_has_as_many_numbers_as_are_accepted(mix: Mix, duplicates: float) -> None:
    most = numbers_max(mix, duplicates)
    assert LoadParameters(mix=mix, numbers=most, duplicates=duplicates).numbers == most
    if mix in (Mix.UNIQUE, Mix.SEQUENTIAL) or (mix is Mix.DUPLICATE and most < 2**50):
        with pytest.raises(ValueError, match=str(NUMBERS)):
            LoadParameters(mix=mix, numbers=most + most // 1000, duplicates=duplicates)


# Percentiles

WHOLE = {"p50": 2, "p90": 10, "p99": 100, "p999": 1000}
"""How many samples each percentile takes."""


def percentiles(latency: Latency) -> dict[str, float]:
    found = {name: getattr(latency, name) for name in WHOLE}
    return {name: value for name, value in found.items() if value is not None}


@pytest.mark.parametrize("samples", [0, 1, 2, 5, 9, 10, 99, 100, 999, 1000, 12_345])
def test_a_percentile_takes_enough_samples(samples: int) -> None:
    times_ns = [index * 1_000_000 for index in range(1, samples + 1)]
    counts = [0] * lib.NU_LOAD_LATENCIES
    for time_ns in times_ns:
        counts[lib.nu_latency_bucket(time_ns)] += 1
    exact = exact_latency(times_ns)
    rough = bucket_latency(counts, samples * 1_000_000)
    for latency in (exact, rough):
        assert latency.samples == samples
        assert percentiles(latency).keys() == {
            name for name, needed in WHOLE.items() if samples >= needed
        }
    # At least one sample is above each of them, and as many are not as it says.
    for name, value in percentiles(exact).items():
        assert exact.max is not None
        assert value < exact.max
        assert value == -(-samples * (WHOLE[name] - 1) // WHOLE[name])
        assert value <= percentiles(rough)[name] <= value * 1.04
