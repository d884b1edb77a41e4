"""Samples a process with py-spy: Python and C, not Linux; it stops the process for each sample."""

import ctypes
import os
import shutil
import sys
import time
from pathlib import Path

from numbers_uring.limits import PROFILE_POLL_S, PROFILE_PY_SPY_HZ, PROFILE_START_S
from numbers_uring.profiling.flame_graph import Stacks
from numbers_uring.profiling.reading import Reading
from numbers_uring.profiling.recording import RecordError, Recording, reason
from numbers_uring.profiling.stacks import py_spy_stacks

_PR_SET_PTRACER = 0x59616D61
_PR_SET_PTRACER_ANY = -1


class PySpyRecorder:
    """Records the process `pid`. Raises RecordError."""

    tool = "py-spy"
    hz = PROFILE_PY_SPY_HZ

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._recording = Recording(self.tool)
        try:
            self._record()
        except BaseException:
            self.discard()
            raise
        self.wait = self._recording.wait
        self.stop = self._recording.stop

    def _record(self) -> None:
        """Start py-spy, and return once it samples. Raises RecordError."""
        # Of the same virtual environment, where that is not activated.
        beside = Path(sys.executable).with_name("py-spy")
        py_spy = shutil.which("py-spy") or shutil.which(beside)
        if py_spy is None:
            raise RecordError("py-spy is not installed")
        if self._pid == os.getpid():
            _permit_tracing(_PR_SET_PTRACER_ANY)
        data = str(self._recording.data)
        self._recording.start(
            [
                *(py_spy, "record", "--pid", str(self._pid), "--native", "--format", "raw"),
                *("--output", data, "--rate", str(self.hz), "--duration", "unlimited"),
            ]
        )
        end_s = time.monotonic() + PROFILE_START_S
        while "Sampling process" not in self._recording.messages:
            if time.monotonic() > end_s or not self._recording.runs:
                raise self._recording.failure()
            time.sleep(PROFILE_POLL_S)
        if self._pid == os.getpid():
            _permit_tracing(self._recording.pid)

    def read(self, reading: Reading) -> Stacks:  # noqa: ARG002 - there is nothing to wait for
        """Return what was recorded, after `stop`. Raises RecordError."""
        try:
            with self._recording.data.open(encoding="utf-8", errors="replace") as lines:
                return py_spy_stacks(lines)
        except OSError as error:
            raise RecordError(reason(self._recording.messages, self.tool)) from error

    def discard(self) -> None:
        """End py-spy, and remove its files."""
        self._recording.discard()


def _permit_tracing(pid: int) -> None:
    """Let a child trace this process where Yama lets only parents, see prctl(2).

    Where there is no Yama this fails, and is not needed.
    """
    ctypes.CDLL(None).prctl(_PR_SET_PTRACER, ctypes.c_ulong(pid), 0, 0, 0)
