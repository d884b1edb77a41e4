"""Chooses what samples the stacks of a process: perf, or py-spy where perf is not permitted.

The libraries weighed are cProfile and pyinstrument, which see Python alone, and py-spy by itself,
which does not see Linux and stops the process for each sample. Ours buys one picture of Python, our
C and Linux with a single option, and py-spy as the second choice instead of no profile.
"""

from collections.abc import Callable
from typing import Protocol

from numbers_uring.errors import StartError
from numbers_uring.profiling.flame_graph import Stacks
from numbers_uring.profiling.perf import PerfRecorder
from numbers_uring.profiling.py_spy import PySpyRecorder
from numbers_uring.profiling.python_names import Names
from numbers_uring.profiling.reading import Reading
from numbers_uring.profiling.recording import RecordError


class Recorder(Protocol):
    """A running recording, in a separate process that signals from a terminal do not reach."""

    tool: str
    hz: int

    wait: Callable[[], None]
    """Returns when the recording process has ended."""
    stop: Callable[[], None]
    """Ends the recording; at once where it has ended. Raises RecordError."""

    def read(self, reading: Reading) -> Stacks:
        """Return what was recorded, after `stop`. Raises RecordError."""

    def discard(self) -> None:
        """End and remove everything that is left."""


def start_recorder(pid: int, names: Names) -> Recorder:
    """Begin to record the process `pid`, whose Python functions are named as `names` tells.

    Raises StartError, with what would help, where neither perf nor py-spy can.
    """
    tools: tuple[Callable[[], Recorder], ...] = (
        lambda: PerfRecorder(pid, names),
        lambda: PySpyRecorder(pid),
    )
    reasons = []
    for start in tools:
        try:
            return start()
        except RecordError as error:
            reasons.append(str(error).rstrip("."))
    raise StartError(
        f"cannot record a profile: {'; '.join(reasons)} (install perf, as root "
        "'sysctl kernel.perf_event_paranoid=1'; or pip install py-spy)"
    )
