"""The servers that bench.py compares with do the task that they stand for."""

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from support.clients import is_closed
from support.logs import lines
from support.waiting import DEADLINE_S

PROGRAM = Path(__file__).parents[2] / "perf" / "peers.py"


@contextmanager
def peer(name: str, log: Path) -> Iterator[tuple["subprocess.Popen[str]", int]]:
    command = [sys.executable, str(PROGRAM), name, "0", str(log)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        started = re.search(r"listening on 127\.0\.0\.1:(\d+)", process.stderr.readline())
        assert started is not None
        yield process, int(started[1])
        assert process.stderr.read() == ""
    finally:
        process.kill()
        process.wait(DEADLINE_S)
        process.stderr.close()


def send(port: int, *pieces: bytes) -> None:
    """Send them, and wait until the server has closed the connection."""
    with socket.create_connection(("127.0.0.1", port), timeout=DEADLINE_S) as client:
        for piece in pieces:
            client.sendall(piece)
        client.shutdown(socket.SHUT_WR)
        assert is_closed(client)


@pytest.mark.parametrize("stop", ["terminate", "SIGTERM"])
@pytest.mark.parametrize("name", ["threads", "asyncio", "uvloop"])
def test_each_keeps_new_numbers_of_valid_lines_and_stops(
    name: str, stop: str, tmp_path: Path
) -> None:
    log = tmp_path / "numbers.log"
    with peer(name, log) as (process, port):
        send(port, lines([1, 2, 1])[:15], lines([1, 2, 1])[15:])
        send(port, lines([3]) + b"12345678\n" + lines([4]))
        send(port, lines([5]) + b"1234567890")
        assert sorted(log.read_bytes().split()) == lines([1, 2, 3, 5]).split()
        if stop == "terminate":
            send(port, lines([2, 6]) + b"terminate\n")
        else:
            os.kill(process.pid, signal.SIGTERM)
        assert process.wait(DEADLINE_S) == 0
    assert len(log.read_bytes()) == (50 if stop == "terminate" else 40)
