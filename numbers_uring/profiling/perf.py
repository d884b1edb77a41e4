"""Samples a process with perf: Python, C and, where the system permits it, Linux."""

import os
import re
import select
import shutil
import subprocess
from contextlib import suppress
from pathlib import Path

from numbers_uring.limits import (
    PROFILE_BYTES_MAX,
    PROFILE_HZ,
    PROFILE_STACK_BYTES,
    PROFILE_START_S,
)
from numbers_uring.profiling.flame_graph import Stacks
from numbers_uring.profiling.python_names import Names
from numbers_uring.profiling.reading import Reading
from numbers_uring.profiling.recording import RecordError, Recording
from numbers_uring.profiling.stacks import perf_stacks


class PerfRecorder:
    """Records the process `pid`, whose Python functions are named as `names` tells.

    Raises RecordError.
    """

    tool = "perf"
    hz = PROFILE_HZ

    def __init__(self, pid: int, names: Names) -> None:
        self._pid = pid
        self._names = names
        self._kept_fds: tuple[int, ...] = ()
        self._recording = Recording(self.tool)
        try:
            self._record()
        except BaseException:
            self.discard()
            raise
        self.wait = self._recording.wait
        self.stop = self._recording.stop

    def _record(self) -> None:
        """Start perf, and return once it samples. Raises RecordError."""
        try:
            control_read, control = os.pipe()
            # perf ends when its control is closed.
            self._kept_fds = (control,)
            try:
                answers, answers_write = os.pipe()
            except OSError:
                os.close(control_read)
                raise
            self._kept_fds = (control, answers)
        except OSError as error:
            raise RecordError(f"cannot create a pipe for perf: {error.strerror}") from error
        try:
            self._recording.start(
                self._command(control_read, answers_write), pass_fds=(control_read, answers_write)
            )
        finally:
            os.close(control_read)
            os.close(answers_write)
        try:
            os.write(control, b"enable\n")
            ready, _, _ = select.select([answers], [], [], PROFILE_START_S)
            begun = ready and os.read(answers, 16).startswith(b"ack")
        except BrokenPipeError:
            begun = False
        if not begun:
            raise self._recording.failure()

    def _command(self, control: int, answers: int) -> list[str]:
        perf = shutil.which("perf")
        if perf is None:
            raise RecordError("perf is not installed")
        unwind = "fp" if self._names is Names.FRAME_POINTERS else f"dwarf,{PROFILE_STACK_BYTES}"
        return [
            *(perf, "record", "--output", str(self._recording.data), "--pid", str(self._pid)),
            # Not cycles, which virtual machines often can't count.
            *("--event", "cpu-clock", "--freq", str(self.hz), "--call-graph", unwind),
            # The clock of Python's dump.
            *("--clockid", "CLOCK_MONOTONIC"),
            *("--no-buildid", "--no-buildid-cache", f"--max-size={PROFILE_BYTES_MAX}B"),
            # Copies of the stack are alike: this makes some 0.5 KB of 16.
            *(["--compression-level=1"] if _can_compress(perf) else []),
            *("--delay", "-1", f"--control=fd:{control},{answers}"),
        ]

    def read(self, reading: Reading) -> Stacks:
        """Return what was recorded, after `stop`. Raises RecordError."""
        data = self._recording.data
        if self._names is Names.JIT_DUMP:
            injected = data.with_name("injected")
            inject = ["perf", "inject", "--jit", "--input", str(data), "--output", str(injected)]
            for _ in reading.lines(inject):
                pass
            data = injected
        script = ["perf", "script", "--input", str(data), "--no-inline", "--fields", "ip,sym,dso"]
        return perf_stacks(reading.lines(script))

    def discard(self) -> None:
        """End perf, and remove its files and Python's."""
        self._recording.discard()
        for fd in self._kept_fds:
            os.close(fd)
        # perf makes a library of each function in the dump, and Python never removes its files.
        shared = Path("/tmp")
        left = [shared / f"jit-{self._pid}.dump", *shared.glob(f"jitted-{self._pid}-*.so")]
        if self._names is not Names.NONE:
            for path in [*left, shared / f"perf-{self._pid}.map"]:
                with suppress(OSError):
                    path.unlink()


def _can_compress(perf: str) -> bool:
    command = [perf, "version", "--build-options"]
    try:
        options = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=PROFILE_START_S
        )
    except (OSError, subprocess.SubprocessError):
        return False
    return re.search(r"zstd: \[ *on", options.stdout) is not None
