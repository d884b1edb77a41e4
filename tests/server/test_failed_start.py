"""A start that fails leaves the log of an earlier run as it was, whichever call fails."""

import re
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.logs import lines
from support.processes import unstamped
from support.waiting import DEADLINE_S

OLD = lines(range(1000))
CALL = re.compile(r"^(\d+) +(\w+)\(")

ENDLESS = {"brk", "futex", "write"}
"""Calls whose failure says nothing here: the C library repeats them or ends the process for them.

brk(2) never returns an error, so the C library takes an injected one for an address. A write(2)
that fails loses a line of output, which is allowed, and which this test waits for.
"""

pytestmark = [
    pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed"),
    pytest.mark.timeout(600),
]


def run_server(log: Path, backend: str, *strace: str) -> tuple[int, list[str]]:
    """Run a server under strace until it has failed, or else stop it once it listens."""
    with subprocess.Popen(
        [
            *("strace", "-D", "-f", *strace, sys.executable, "-m", "numbers_uring", "serve"),
            *("--port", "0", "--backend", backend, "--reactors", "2", "--log-file", str(log)),
            *("--seen", str(log.with_name("numbers.log*"))),
        ],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        said = []
        try:
            for line in process.stderr:
                said.append(unstamped(line.rstrip()))
                if "listening on" in line:
                    process.send_signal(signal.SIGTERM)
            code = process.wait(DEADLINE_S)
        finally:
            process.kill()
    return code, said


def calls_of_start(trace: Path) -> Iterator[tuple[str, int]]:
    """Yield the calls from the first bind(2) to a little behind the log's truncation.

    Those of the main thread, as their name and how many of that name there were by then; the last
    of each name, which comes latest in the start.
    """
    counts: Counter[str] = Counter()
    found: dict[str, list[int]] = {}
    main, left = None, -1
    for line in trace.read_text(errors="replace").splitlines():
        call = CALL.match(line)
        if call is None:
            continue
        main = main or call[1]
        if call[1] != main:
            continue
        name = call[2]
        counts[name] += 1
        if name == "bind" and left < 0:
            left = 10**6
        if left > 0:
            left -= 1
            found.setdefault(name, []).append(counts[name])
        if name == "ftruncate":
            left = 12
    assert {"bind", "listen", "getsockname", "flock", "ftruncate"} <= set(found)
    for name, places in found.items():
        if name not in ENDLESS:
            yield from ((name, nth) for nth in places[-1:])


def test_whichever_call_of_a_start_fails_the_old_log_stays(backend: str, tmp_path: Path) -> None:
    log, trace = tmp_path / "numbers.log", tmp_path / "trace"
    log.write_bytes(OLD)
    log.with_name("numbers.log.1").write_bytes(OLD)
    code, said = run_server(log, backend, "-o", str(trace))
    assert code == 0, said
    failed = 0
    for name, nth in calls_of_start(trace):
        log.write_bytes(OLD)
        fault = f"inject={name}:error=EIO:when={nth}"
        strace = ("-o", str(trace), "-e", f"trace={name}", "-e", fault)
        code, said = run_server(log, backend, *strace)
        assert not any("Traceback" in line for line in said), (fault, said)
        if any("listening on" in line for line in said):
            continue
        failed += 1
        assert code == 3, (fault, said)
        assert said[-1].startswith("numbers-uring: error: "), (fault, said)
        assert log.read_bytes() == OLD, fault
    assert failed >= 5


STOPPED = """
import os, signal, time
from numbers_uring.server import run

make = run._make_server

def stop_then_make(parts):
    os.kill(os.getpid(), signal.SIGTERM)
    while parts.requests.stop is None:
        time.sleep(0.01)
    return make(parts)

run._make_server = stop_then_make
from numbers_uring.cli.main import main
main()
"""


def test_a_stop_that_comes_before_the_log_is_truncated_leaves_it(tmp_path: Path) -> None:
    log = tmp_path / "numbers.log"
    log.write_bytes(OLD)
    done = subprocess.run(
        [sys.executable, "-c", STOPPED, "serve", "--port", "0", "--log-file", str(log)],
        capture_output=True,
        check=False,
        text=True,
        timeout=DEADLINE_S,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert log.read_bytes() == OLD
