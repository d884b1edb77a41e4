"""System calls of a running process, traced, delayed or made to fail by strace."""

import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from support.processes import CommandProcess
from support.waiting import DEADLINE_S

needs_strace = pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")


@contextmanager
def strace(
    traced: CommandProcess | int, trace: Path, *options: str, all_threads: bool = True
) -> Iterator[None]:
    """Trace, or interfere with, the system calls of a process, which may be given by number.

    Without `all_threads` it is those of the thread with this number.
    """
    pid = traced if isinstance(traced, int) else traced.process.pid
    tracer = subprocess.Popen(
        ["strace", *(["-f"] * all_threads), "-o", str(trace), *options, "-p", str(pid)],
        stderr=subprocess.PIPE,
        text=True,
    )
    assert tracer.stderr is not None
    try:
        said = tracer.stderr.readline()
        while "attached" not in said:
            assert tracer.poll() is None, said
            said = tracer.stderr.readline()
        yield
    finally:
        if tracer.poll() is None:
            tracer.terminate()
        tracer.wait(DEADLINE_S)
        tracer.stderr.close()


@contextmanager
def stalled_sync(traced: CommandProcess | int, trace: Path) -> Iterator[Callable[[], bool]]:
    """Slow down the log's syncs from outside, as a disk does that does not answer.

    Gives a function that returns whether a sync has begun.
    """
    slow = ("-e", "trace=fdatasync", "-e", "inject=fdatasync:delay_enter=1s")
    with strace(traced, trace, *slow):
        yield lambda: "fdatasync" in trace.read_text()
