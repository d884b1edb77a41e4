"""The numbers of logs, sent to a server by `load`."""

import gzip
import json
import os
import re
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from numbers_uring.cli.line_files import open_line_files
from numbers_uring.errors import ExitCode
from numbers_uring.load.model import LineFile, LoadParameters, LoadResult
from numbers_uring.load.run import run_load
from numbers_uring.system.diagnostics import Diagnostics
from numbers_uring.system.stdio import STDERR, LineWriter
from ports import reserve_port
from support.logs import lines, logged
from support.peers import peer, read_all
from support.processes import ServerProcess, assert_one_line_error, run_command
from support.waiting import DEADLINE_S

TAILS = {"digits": b"12345678", "zero bytes": b"\0" * 4096, "both": b"1" + b"\0" * 70_000}


def parts(folder: Path, *counts: int) -> list[Path]:
    """Write logs of so many numbers each, which follow each other."""
    paths: list[Path] = []
    first = 0
    for count in counts:
        paths.append(folder / f"numbers.{len(paths)}.log")
        paths[-1].write_bytes(lines(range(first, first + count)))
        first += count
    return paths


@contextmanager
def opened(*paths: Path) -> Iterator[tuple[LineFile, ...]]:
    with open_line_files(paths, Diagnostics(LineWriter(STDERR))) as files:
        yield files


def sent(port: int, files: tuple[LineFile, ...], **others: Any) -> LoadResult:
    numbers = sum(file.numbers for file in files)
    parameters = LoadParameters(
        port=port, files=files, numbers=numbers, timeout_s=DEADLINE_S, **others
    )
    return run_load(parameters)


@pytest.mark.parametrize("send_bytes", [7, 10, 1_003, 65_536])
@pytest.mark.parametrize("clients", [1, 3, 40])
def test_each_client_sends_its_part_of_all_files_byte_by_byte(
    tmp_path: Path, send_bytes: int, clients: int
) -> None:
    paths = parts(tmp_path, 0, 1, 2_000, 0, 10, 7_000, 3, 0)
    received: list[bytes] = []
    with (
        opened(*paths) as files,
        peer(lambda connection: received.append(read_all(connection))) as port,
    ):
        result = sent(port, files, clients=clients, send_bytes=send_bytes)
    assert result.complete, result
    assert not result.prepared
    # Connections are accepted in the order they were made in.
    assert b"".join(received) == lines(range(9_014))


@pytest.mark.parametrize("tail", TAILS.values(), ids=TAILS)
def test_a_torn_tail_is_left_out_and_reported(tmp_path: Path, tail: bytes) -> None:
    first, second = parts(tmp_path, 1_000, 500)
    with first.open("ab") as file:
        file.write(tail)
    with ServerProcess(tmp_path / "numbers.log") as server:
        done = run_command("load", "--port", str(server.port), str(first), str(second))
        assert done.returncode == 0, done
        said = f"numbers-uring: {first}: a torn tail of {len(tail)} bytes is not sent\n"
        assert done.stderr == said
        assert done.stdout.startswith("Sent 1500 numbers (0.0 MB, 2 files) from 5 clients in ")
        assert server.stop() == 0
    assert sorted(logged(tmp_path / "numbers.log")) == list(range(1_500))


def test_compressed_logs_are_sent_as_they_were(tmp_path: Path) -> None:
    paths = [*parts(tmp_path, 3_000, 0, 100_000), tmp_path / "numbers.log.1.gz"]
    with paths[2].open("ab") as file:
        file.write(TAILS["both"])
    for path in paths[1:3]:
        path.write_bytes(gzip.compress(path.read_bytes()))
    paths[3].write_bytes(gzip.compress(lines([7])) + gzip.compress(lines([8])))
    received: list[bytes] = []
    with (
        opened(*paths) as files,
        peer(lambda connection: received.append(read_all(connection))) as port,
    ):
        result = sent(port, files, clients=3, send_bytes=1_003)
    assert result.complete, result
    assert b"".join(received) == lines([*range(103_000), 7, 8])


def test_a_compressed_log_that_does_not_fit_where_it_is_unpacked_is_not_sent(
    tmp_path: Path,
) -> None:
    path = tmp_path / "numbers.log.1.gz"
    path.write_bytes(gzip.compress(lines(range(100_000))))
    limit = ("prlimit", "--fsize=100000", "env", f"TMPDIR={tmp_path}")
    done = run_command("load", "--port", str(reserve_port()), str(path), prefix=limit)
    text = f"cannot unpack {path} into {tmp_path}: File too large; TMPDIR can name another folder"
    assert_one_line_error(done, ExitCode.NOT_STARTED, text)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("size", [0, -20])
def test_a_compressed_log_without_its_end_is_not_sent(tmp_path: Path, size: int) -> None:
    path = tmp_path / "numbers.log.1.gz"
    path.write_bytes(gzip.compress(lines(range(1_000)))[:size])
    done = run_command("load", "--port", str(reserve_port()), str(path))
    assert_one_line_error(done, ExitCode.NOT_STARTED, f"cannot read {path}: its end is missing")


def test_empty_logs_are_no_error(tmp_path: Path) -> None:
    with ServerProcess(tmp_path / "numbers.log") as server:
        port = str(server.port)
        done = run_command("load", "--port", port, *map(str, parts(tmp_path, 0, 0)))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("Sent 0 numbers ")


@pytest.mark.parametrize(
    "bad", [b"terminate\n", b"12345678\n", b"123456789\r\n", b"\n", b"0" * 4096 + b"\n", b"12 \0"]
)
def test_nothing_is_sent_if_a_line_of_any_file_is_no_number(tmp_path: Path, bad: bytes) -> None:
    good, wrong = parts(tmp_path, 1_000, 100_000)
    with wrong.open("ab") as file:
        file.write(bad + lines([1])[: 0 if bad.endswith(b"\0") else 10])
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        done = run_command("load", "--port", str(port), str(good), str(wrong))
        listener.setblocking(False)
        with pytest.raises(BlockingIOError):
            listener.accept()
    assert_one_line_error(done, ExitCode.NOT_STARTED, f"{wrong}: the line at byte 1000000 is no")


@pytest.mark.parametrize("what", ["missing", "folder", "fifo"])
def test_a_file_that_cannot_be_read_is_a_failed_start(tmp_path: Path, what: str) -> None:
    path = tmp_path / "numbers.log"
    if what == "folder":
        path.mkdir()
    elif what == "fifo":
        os.mkfifo(path)
    done = run_command("load", "--port", str(reserve_port()), str(path))
    assert_one_line_error(done, ExitCode.NOT_STARTED, f"cannot open {path}")


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("numbers", 10),
        ("duration", 1),
        ("mix", "hot"),
        ("duplicates", 0.5),
        ("seed", 1),
        ("prepare-bytes", 0),
    ],
)
@pytest.mark.parametrize("from_environment", [False, True])
def test_an_option_of_a_mix_is_wrong_usage_beside_files(
    tmp_path: Path, option: str, value: object, from_environment: bool
) -> None:
    (path,) = parts(tmp_path, 10)
    environment = {f"NUMBERS_URING_LOAD_{option.upper().replace('-', '_')}": str(value)}
    options = [] if from_environment else [f"--{option}", str(value)]
    done = run_command(
        "load", *options, str(path), environment=environment if from_environment else None
    )
    assert_one_line_error(done, ExitCode.USAGE, f"--{option} cannot be used with FILE")


def test_a_file_that_is_truncated_meanwhile_fails_the_clients_that_miss_lines(
    tmp_path: Path,
) -> None:
    first, second = parts(tmp_path, 100_000, 100_000)
    with ExitStack() as running:
        port = running.enter_context(peer(read_all))
        files = running.enter_context(opened(first, second))
        os.truncate(second, 999_990)
        result = sent(port, files, clients=4)
    assert not result.complete
    assert result.errors == {"a file was truncated while it was sent": 1}
    assert (result.clients_drained, result.clients_failed) == (3, 1)
    assert result.numbers_taken == 150_000


def test_json_names_the_files_in_place_of_a_mix(tmp_path: Path) -> None:
    paths = parts(tmp_path, 30, 20)
    with ServerProcess(tmp_path / "numbers.log") as server:
        port = str(server.port)
        done = run_command("load", "--json", "--port", port, *map(str, paths))
    assert done.returncode == 0, done
    found = json.loads(done.stdout)
    assert found["files"] == [
        {"path": str(paths[0]), "numbers": 30},
        {"path": str(paths[1]), "numbers": 20},
    ]
    assert found["numbers"] == found["numbers_taken"] == 50
    assert not {"mix", "seed", "duplicates", "prepare_bytes"} & found.keys()
    assert re.fullmatch(r"\{.*\}\n", done.stdout)
