"""A close that fails at the end of a run, of anything but the log, is no failure of the run."""

import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from support.faults import needs_strace, strace
from support.logs import lines
from support.processes import ServerProcess
from support.waiting import wait_until

Serve = Callable[..., ServerProcess]

pytestmark = needs_strace

CLOSE = re.compile(r"^(\d+) +close\(\d+<(.*?)>(?:\)| <unfinished)")


@pytest.fixture(params=["1", "2"])
def reactors(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def descriptors(server: ServerProcess) -> set[Path]:
    return set(Path(f"/proc/{server.process.pid}/fd").iterdir())


def stop_with(server: ServerProcess, trace: Path, *fault: str) -> int:
    """Stop a server whose only client has left; return its exit code."""
    before = descriptors(server)
    server.send(lines([1]))
    wait_until(lambda: server.logged() == [1], "the number")
    wait_until(lambda: descriptors(server) == before, "the close of the connection")
    with strace(server, trace, "-y", "-e", "trace=close", *fault):
        return server.stop()


def place_of_log(trace: Path, log: Path) -> int:
    """Return which of its thread's closes is that of the log."""
    closes: Counter[str] = Counter()
    for line in trace.read_text().splitlines():
        call = CLOSE.match(line)
        if call is not None:
            closes[call[1]] += 1
            if call[2] == str(log):
                return closes[call[1]]
    raise AssertionError("the log was not closed")


def test_closes_that_fail_are_no_failure_unless_of_the_log(
    serve: Serve, backend: str, reactors: str, tmp_path: Path
) -> None:
    options = ("--backend", backend, "--reactors", reactors)
    server = serve(*options)
    trace = tmp_path / "trace"
    assert stop_with(server, trace) == 0
    place = place_of_log(trace, server.log_path)
    for when in (f"1..{place - 1}", f"{place + 1}+", *(str(place + after) for after in (1, 2))):
        server = serve(*options)
        fault = ("-e", f"inject=close:error=EIO:when={when}")
        assert stop_with(server, trace, *fault) == 0, server.stderr
        assert "(INJECTED)" in trace.read_text()
        assert server.logged() == [1]
        assert len(server.stderr_lines) == 2
