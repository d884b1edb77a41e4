"""Failures of a collector that no one expected: one line, the exit code of its stage and place."""

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from support.broker import Broker
from support.collectors import collect_arguments, publish, sample
from support.processes import unstamped
from support.waiting import DEADLINE_S

PROGRAM = """
import asyncio, os, sys, time
from numbers_uring.cluster.collector import collector, files, index_file, reader, run
from numbers_uring.log import file, writer

def fails(*_, **__):
    raise {error}

async def fails_later(*_, **__):
    raise {error}

{fault}
from numbers_uring.cli.main import main
main()
"""

PLACES = {
    "before the start": ("files.PartitionFiles.start = fails", 3),
    "at its announcement": ("run._Collectors._tell_start = fails", 1),
    "in a read": ("reader.Reader.read = fails_later", 1),
    "in a report": ("run._Collectors._report = fails", 1),
    "in a thread of the pool": ("collector.PartitionCollector._take_in = fails", 1),
    "in the log": ("file.LogFile.append = lambda *_: fails()", 4),
    "in the index": ("index_file.IndexFile.append = fails", 4),
    "in the sync of the index": ("index_file.IndexFile.sync = fails", 4),
}


@pytest.fixture
def failing(
    broker: Broker, partition: int, tmp_path: Path
) -> Iterator[Callable[..., "subprocess.Popen[str]"]]:
    """Start collectors in which something fails, on a stream with a message."""
    publish(broker, partition, sample(partition, 100))
    with ExitStack() as running:

        def start(fault: str, error: str, *options: str) -> "subprocess.Popen[str]":
            program = PROGRAM.format(fault=fault, error=error)
            arguments = collect_arguments(broker.url, partition, tmp_path / "logs")
            process = subprocess.Popen(
                [sys.executable, "-c", program, *arguments, "--quiet", *options],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            running.callback(process.kill)
            return running.enter_context(process)

        yield start


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(
    ("error", "words"),
    [("RuntimeError('two\\nlines')", "RuntimeError"), ("MemoryError", "not enough memory")],
)
def test_what_no_one_expected_has_the_exit_code_of_its_time_and_place(
    failing: Callable[..., "subprocess.Popen[str]"], place: str, error: str, words: str
) -> None:
    fault, code = PLACES[place]
    # A failed part ends the run at once, not when it is stopped.
    process = failing(fault, error, "--report-interval", "0.2")
    _, stderr = process.communicate(timeout=DEADLINE_S)
    (line,) = unstamped(stderr).splitlines()
    assert (process.returncode, line[:22]) == (code, "numbers-uring: error: ")
    assert words in line


UNREADABLE = """
from asyncio import selector_events
from numbers_uring.system import signals

read, tell_start, has_started = {place}, run._Collectors._tell_start, []
{place} = lambda its: fails() if has_started else read(its)

def start(*arguments):
    has_started.append(True)
    tell_start(*arguments)

run._Collectors._tell_start = start
"""


@pytest.mark.parametrize(
    "place",
    ["signals.Requests.quiet", "selector_events.BaseSelectorEventLoop._read_from_self"],
    ids=["requests", "threads"],
)
def test_a_loop_that_cannot_read_its_wake_ups_ends_with_one_line(
    failing: Callable[..., "subprocess.Popen[str]"], place: str
) -> None:
    process = failing(UNREADABLE.format(place=place), "OSError(5, 'a fault')")
    _, stderr = process.communicate(timeout=DEADLINE_S)
    (line,) = unstamped(stderr).splitlines()
    assert (process.returncode, line[:22]) == (1, "numbers-uring: error: ")
    assert "a fault" in line


@pytest.mark.parametrize(
    "fault",
    [
        "from numbers_uring.system import signals; signals.Requests.wake = lambda _: None",
        "asyncio.selector_events.BaseSelectorEventLoop._write_to_self = lambda _: None",
    ],
    ids=["requests", "threads"],
)
def test_a_stop_whose_wake_up_fails_is_seen(
    failing: Callable[..., "subprocess.Popen[str]"], fault: str
) -> None:
    process = failing(fault, "OSError", "--report-interval", "0.2")
    assert process.stdout is not None
    assert process.stdout.readline()
    process.send_signal(signal.SIGTERM)
    _, stderr = process.communicate(timeout=DEADLINE_S)
    assert (process.returncode, stderr) == (0, "")


def test_a_start_without_an_event_loop_ends_with_one_line(
    failing: Callable[..., "subprocess.Popen[str]"],
) -> None:
    fault = "from asyncio import events; events.new_event_loop = fails"
    process = failing(fault, "OSError(24, 'a fault')")
    _, stderr = process.communicate(timeout=DEADLINE_S)
    (line,) = unstamped(stderr).splitlines()
    assert (process.returncode, line[:22]) == (3, "numbers-uring: error: ")


@pytest.mark.parametrize(
    ("fault", "code"),
    [(PLACES["in a read"][0], 1), (PLACES["in the log"][0], 4)],
    ids=["broker", "log"],
)
def test_a_second_stop_signal_while_a_failed_collector_ends_has_its_exit_code(
    failing: Callable[..., "subprocess.Popen[str]"], fault: str, code: int
) -> None:
    hangs = """
from numbers_uring.cluster.collector import run

async def hang(client):
    os.write(1, b"ending\\n")
    await asyncio.sleep(3600)

from numbers_uring.cluster import connection
connection._close = hang
"""
    process = failing(fault + hangs, "RuntimeError('a fault')")
    assert process.stdout is not None
    while process.stdout.readline() not in {"ending\n", ""}:
        pass
    process.send_signal(signal.SIGTERM)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.5)
    process.send_signal(signal.SIGTERM)
    _, stderr = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == code
    assert "a fault; a second signal, SIGTERM: exiting at once" in stderr
