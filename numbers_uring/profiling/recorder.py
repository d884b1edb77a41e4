"""Samples the stacks of a running process with perf, or with py-spy where perf is not allowed."""

import ctypes
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from enum import Enum
from pathlib import Path
from typing import Protocol

from numbers_uring.errors import StartError
from numbers_uring.limits import (
    PROFILE_BYTES_MAX,
    PROFILE_HZ,
    PROFILE_PY_SPY_HZ,
    PROFILE_STACK_BYTES,
    PROFILE_START_S,
    PROFILE_STOP_S,
)
from numbers_uring.profiling.flame_graph import Stacks
from numbers_uring.profiling.stacks import perf_stacks, py_spy_stacks

_PR_SET_PTRACER = 0x59616D61
_PR_SET_PTRACER_ANY = -1


class Names(Enum):
    """How perf learns the names of Python's functions in a process."""

    FRAME_POINTERS = "perf"
    """From a map of trampolines; frame pointers all the way lead through them."""
    JIT_DUMP = "perf_jit"
    """From a dump with unwind information: for an interpreter without frame pointers."""
    NONE = ""


class RecordError(Exception):
    """A recording can't be made, or can't be read; its text is the reason."""


def names_offered() -> Names:
    """Return which `-X` option makes this interpreter name its functions; NONE if there is none."""
    if sys.version_info < (3, 12):
        return Names.NONE
    if _has_frame_pointers():
        return Names.FRAME_POINTERS
    return Names.JIT_DUMP if sys.version_info >= (3, 13) else Names.NONE


def name_own_functions() -> Names:
    """Have this process' Python functions named for perf from now on, as far as that can be done.

    The dump has to be asked for when the interpreter starts; frame pointers alone need no more than
    this call. The trampolines make calls of Python functions a little slower.
    """
    if sys.version_info < (3, 12):
        return Names.NONE
    asked = sys._xoptions.get("perf_jit") or os.environ.get("PYTHON_PERF_JIT_SUPPORT", "0") != "0"
    if asked and sys.is_stack_trampoline_active():
        return Names.JIT_DUMP
    if not _has_frame_pointers():
        # Trampolines have no unwind information: whatever is below them would be lost.
        sys.deactivate_stack_trampoline()
        return Names.NONE
    if not sys.is_stack_trampoline_active():
        try:
            sys.activate_stack_trampoline("perf")
        except ValueError:  # not supported on this platform
            return Names.NONE
    return Names.FRAME_POINTERS


def _has_frame_pointers() -> bool:
    flags = (sysconfig.get_config_var(name) for name in ("CFLAGS", "PY_CORE_CFLAGS"))
    return any("-fno-omit-frame-pointer" in str(value) for value in flags)


class Recorder(Protocol):
    """A recording under way, in a process of its own that terminal signals don't reach."""

    tool: str
    hz: int

    @property
    def process(self) -> "subprocess.Popen[bytes]":
        """The recording process."""

    def stop(self) -> None:
        """End the recording; at once where it has ended. Raises RecordError."""

    def read(self, reading: "Reading") -> Stacks:
        """Return what was recorded, after `stop`. Raises RecordError."""

    def discard(self) -> None:
        """End and remove everything that is left."""


class Reading:
    """A bound on the time that recordings are read for; `cut` may be called from anywhere."""

    def __init__(self, seconds: float) -> None:
        self.was_cut = False
        self._child: subprocess.Popen[str] | None = None
        self._timer = threading.Timer(seconds, self.cut)
        self._timer.daemon = True
        self._timer.start()

    def cut(self) -> None:
        """End the reading; what was read until now counts."""
        self.was_cut = True
        if self._child is not None:
            self._child.kill()

    def lines(self, command: list[str]) -> Iterable[str]:
        """Give the lines that `command` prints. Raises RecordError where it failed by itself."""
        # What it says is short, or of no use: a pipe that nobody reads would hold it up.
        with (
            tempfile.TemporaryFile() as said,
            subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=said,
                text=True,
                errors="replace",
                start_new_session=True,
            ) as child,
        ):
            self._child = child
            if self.was_cut:
                child.kill()
            try:
                assert child.stdout is not None
                yield from child.stdout
            except BaseException:
                child.kill()
                raise
            finally:
                child.wait()
                self._child = None
            if child.returncode and not self.was_cut:
                said.seek(0)
                raise RecordError(_reason(said.read().decode(errors="replace"), command[0]))

    def close(self) -> None:
        self._timer.cancel()


def _reason(said: str, tool: str) -> str:
    """Return the first sentence of what a tool said that reads like one."""
    lines = [line.strip() for line in said.splitlines()]
    noise = re.compile(r"\W*$|Error:$|Events (dis|en)abled$")
    telling = [line for line in lines if not noise.match(line)]
    return telling[0] if telling else f"{tool} ended without a word"


class _Tool:
    """The process, its files, and what perf and py-spy have in common."""

    tool: str
    hz: int

    def __init__(self, pid: int) -> None:
        """Begin to record. Raises RecordError."""
        self._pid = pid
        self._folder = tempfile.TemporaryDirectory(prefix="numbers-uring-profile-")
        self._data = Path(self._folder.name) / "recording"
        self._said = Path(self._folder.name) / "said"
        self.process: subprocess.Popen[bytes]
        try:
            self._record()
        except BaseException:
            self.discard()
            raise

    def _record(self) -> None:
        """Start the process, and return once it records. Raises RecordError."""
        raise NotImplementedError

    def _start(self, command: list[str], pass_fds: tuple[int, ...] = ()) -> None:
        """Start the process. Raises RecordError."""
        with self._said.open("wb") as said:
            try:
                self.process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=said,
                    stderr=said,
                    pass_fds=pass_fds,
                    start_new_session=True,
                )
            except OSError as error:
                raise RecordError(f"cannot run {command[0]}: {error.strerror}") from error

    def _fail(self) -> RecordError:
        """End the process that did not start to record; return why."""
        self._kill()
        return RecordError(_reason(self._said.read_text(errors="replace"), self.tool))

    def _kill(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(PROFILE_STOP_S)
        except subprocess.TimeoutExpired as error:
            self._kill()
            raise RecordError(f"{self.tool} did not end") from error

    def discard(self) -> None:
        if hasattr(self, "process"):
            self._kill()
        self._folder.cleanup()


class PerfRecorder(_Tool):
    """perf: Python, C and, where the system lets us see it, the kernel."""

    tool = "perf"
    hz = PROFILE_HZ

    def __init__(self, pid: int, names: Names) -> None:
        self._names = names
        self._kept_fds: tuple[int, ...] = ()
        super().__init__(pid)

    def _record(self) -> None:
        control_read, control = os.pipe()
        answers, answers_write = os.pipe()
        # perf ends when its control is closed.
        self._kept_fds = (control, answers)
        try:
            self._start(self._command(control_read, answers_write), (control_read, answers_write))
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
            raise self._fail()

    def _command(self, control: int, answers: int) -> list[str]:
        perf = shutil.which("perf")
        if perf is None:
            raise RecordError("there is no perf")
        unwind = "fp" if self._names is Names.FRAME_POINTERS else f"dwarf,{PROFILE_STACK_BYTES}"
        return [
            *(perf, "record", "--output", str(self._data), "--pid", str(self._pid)),
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
        data = self._data
        if self._names is Names.JIT_DUMP:
            data = data.with_name("injected")
            inject = ["perf", "inject", "--jit", "--input", str(self._data), "--output", str(data)]
            for _ in reading.lines(inject):
                pass
        script = ["perf", "script", "--input", str(data), "--no-inline", "--fields", "ip,sym,dso"]
        return perf_stacks(reading.lines(script))

    def discard(self) -> None:
        super().discard()
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
    options = subprocess.run(
        [perf, "version", "--build-options"], capture_output=True, text=True, check=False
    )
    return re.search(r"zstd: \[ *on", options.stdout) is not None


class PySpyRecorder(_Tool):
    """py-spy: Python and C, nothing of the kernel; it stops the process for each sample."""

    tool = "py-spy"
    hz = PROFILE_PY_SPY_HZ

    def _record(self) -> None:
        # Of the same virtual environment, where that is not activated.
        beside = Path(sys.executable).with_name("py-spy")
        py_spy = shutil.which("py-spy") or shutil.which(beside)
        if py_spy is None:
            raise RecordError("there is no py-spy")
        if self._pid == os.getpid():
            _let_be_traced(_PR_SET_PTRACER_ANY)
        self._start(
            [
                *(py_spy, "record", "--pid", str(self._pid), "--native", "--format", "raw"),
                *("--output", str(self._data), "--rate", str(self.hz), "--duration", "unlimited"),
            ]
        )
        end_s = time.monotonic() + PROFILE_START_S
        while b"Sampling process" not in self._said.read_bytes():
            if time.monotonic() > end_s or self.process.poll() is not None:
                raise self._fail()
            time.sleep(0.01)
        if self._pid == os.getpid():
            _let_be_traced(self.process.pid)

    def read(self, reading: Reading) -> Stacks:  # noqa: ARG002 - there is nothing to wait for
        try:
            with self._data.open(encoding="utf-8", errors="replace") as lines:
                return py_spy_stacks(lines)
        except OSError as error:
            said = self._said.read_text(errors="replace")
            raise RecordError(_reason(said, self.tool)) from error


def _let_be_traced(pid: int) -> None:
    """Let a child trace this process where Yama lets only parents, see prctl(2).

    Where there is no Yama this fails, and is not needed.
    """
    ctypes.CDLL(None).prctl(_PR_SET_PTRACER, ctypes.c_ulong(pid), 0, 0, 0)


def start_recorder(pid: int, names: Names) -> Recorder:
    """Begin to record the process `pid`, whose Python functions are named as `names` says.

    Raises StartError, with what would help, where neither perf nor py-spy can.
    """
    reasons = []
    tools: tuple[Callable[[], Recorder], ...] = (
        lambda: PerfRecorder(pid, names),
        lambda: PySpyRecorder(pid),
    )
    for start in tools:
        try:
            return start()
        except RecordError as error:
            reasons.append(str(error).rstrip("."))
    raise StartError(
        f"cannot record a profile: {'; '.join(reasons)} (to have one: install perf, as root "
        "'sysctl kernel.perf_event_paranoid=1'; or pip install py-spy)"
    )
