"""Records the server while it runs, and draws a flame graph once it has stopped."""

import os
import platform
import signal
import sys
import time
from collections import Counter
from contextlib import closing, suppress
from functools import partial
from pathlib import Path

from numbers_uring.errors import BackendError, SinkError, StartError
from numbers_uring.limits import PROFILE_BYTES_MAX, PROFILE_READ_S, SIGNAL_REPEAT_S
from numbers_uring.profiling.flame_graph import Origin, Stacks, render, shares
from numbers_uring.profiling.python_names import Names, name_own_functions, names_offered
from numbers_uring.profiling.reading import Reading
from numbers_uring.profiling.recorder import Recorder, start_recorder
from numbers_uring.profiling.recording import RecordError
from numbers_uring.system import signals
from numbers_uring.system.diagnostics import Diagnostics
from numbers_uring.system.output_file import OutputFile
from numbers_uring.system.signals import STOP_SIGNALS, Requests, caught, unblocked
from numbers_uring.system.threads import start_thread
from numbers_uring.words import counted


def refuse_the_log(path: Path, log_path: Path) -> None:
    """Raise StartError where the picture would get the log's place."""
    # What can't be resolved can't be opened either, which says why.
    with suppress(OSError, RuntimeError):
        same = path.resolve() == log_path.resolve()
        # By another hard link, too.
        if same or (path.exists() and log_path.exists() and path.samefile(log_path)):
            raise StartError(f"the profile would replace the log {path}")


class Profile:
    """A flame graph of this process in `path`, from `start` until the context is left.

    Leaving the context draws it, unless the server did not start. That takes as long as the
    recording is read, PROFILE_READ_S at most, or until a stop signal; it raises nothing. `say` logs
    what the picture will not show at the start, what it shows or why there is none at the end, and
    a recording that ends early. Main thread only. Raises StartError where `path` can't be written,
    or is the log.
    """

    def __init__(self, path: Path, log_path: Path, say: Diagnostics) -> None:
        refuse_the_log(path, log_path)
        self._say = say
        self._output = OutputFile(path)
        self._recorder: Recorder | None = None
        self._names = Names.NONE
        self._about = ""
        self._stopping = False

    def __enter__(self) -> "Profile":
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        try:
            if error is not None and not isinstance(error, (BackendError, SinkError)):
                self._discard()
            elif self._recorder is not None:
                self._finish(self._recorder)
        finally:
            self._output.close()

    def start(self, about: str) -> None:
        """Begin to record; `about` says on the picture what is seen there.

        Raises StartError where nothing can record this process.
        """
        self._about = about
        self._names = name_own_functions()
        with unblocked():
            self._recorder = start_recorder(os.getpid(), self._names)
        self._say.info(
            f"recording a profile for {self._output.path} with {self._recorder.tool}, "
            f"{self._recorder.hz} samples a second{self._missing()}"
        )
        start_thread(partial(self._watch, self._recorder), "profile")

    def _missing(self) -> str:
        assert self._recorder is not None
        if self._recorder.tool == "py-spy":
            return ", without Linux"
        if self._names is not Names.NONE:
            return ""
        offered = names_offered()
        if offered is Names.NONE:
            return ", without names of Python's functions: this Python does not provide them"
        return (
            ", without names of Python's functions: they need "
            f"'{Path(sys.executable).name} -X {offered.value} -m numbers_uring serve'"
        )

    def _watch(self, recorder: Recorder) -> None:
        """Log a warning when the recording ends before the server does."""
        recorder.wait()
        if not self._stopping:
            self._say(
                f"the recording of the profile ended early: {recorder.tool} was stopped, or had "
                f"written {PROFILE_BYTES_MAX // 2**20} MiB"
            )

    def _discard(self) -> None:
        """End the recording of a server that did not start."""
        self._stopping = True
        if self._recorder is not None:
            with suppress(OSError):
                self._recorder.discard()

    def _finish(self, recorder: Recorder) -> None:
        self._stopping = True
        begin_s = time.monotonic()
        try:
            with closing(Reading(PROFILE_READ_S)) as reading:

                def cut(_number: signal.Signals) -> None:
                    # A repeat of the signal that ended the run is no further one.
                    if time.monotonic() - begin_s > SIGNAL_REPEAT_S:
                        reading.cut()

                # Ignored before and behind that, as after a run without a profile.
                with caught(STOP_SIGNALS, cut):
                    recorder.stop()
                    stacks = recorder.read(reading)
                self._draw(recorder, _without_watching(stacks), reading)
        except (RecordError, OSError) as error:
            self._say(f"no profile in {self._output.path}: {error}")
        except MemoryError:
            self._say(f"no profile in {self._output.path}: there is too little memory to draw it")
        finally:
            with suppress(OSError):
                recorder.discard()

    def _draw(self, recorder: Recorder, stacks: Stacks, reading: Reading) -> None:
        if not stacks:
            raise RecordError(
                "its reading was cut short" if reading.was_cut else "nothing was sampled"
            )
        picture = render(
            stacks,
            title="numbers-uring serve: where the time goes",
            subtitle=f"{self._about}; "
            f"{counted(stacks.total(), 'sample')} at {recorder.hz} Hz by {recorder.tool}, "
            f"Python {_version()}, Linux {platform.release()}",
        )
        self._output.write(picture.encode())
        own = shares(stacks)
        unseen = _unseen_linux(recorder, stacks)
        shown = ", ".join(
            f"{origin.label} {100 * own[origin]:.0f} %{unseen if origin is Origin.LINUX else ''}"
            for origin in Origin
        )
        self._say.info(
            f"profile in {self._output.path}: {counted(stacks.total(), 'sample')}: {shown}"
            f"{', the rest was not read in time' if reading.was_cut else ''}"
        )


def _without_watching(stacks: Stacks) -> Stacks:
    """Leave out threads that only wait for events: py-spy takes waiting for work."""
    names = {
        f"{Profile._watch.__qualname__} ({Path(__file__).name})",
        f"{Requests.take_signals.__qualname__} ({Path(signals.__file__).name})",
    }
    return Counter(
        {
            stack: count
            for stack, count in stacks.items()
            if all(frame.name not in names for frame in stack)
        }
    )


def _unseen_linux(recorder: Recorder, stacks: Stacks) -> str:
    """Return why perf has seen nothing of Linux, if it has not."""
    seen = any(frame.origin is Origin.LINUX for stack in stacks for frame in stack)
    if seen or recorder.tool != "perf":
        return ""
    with suppress(OSError):
        setting = Path("/proc/sys/kernel/perf_event_paranoid").read_text(encoding="ascii").strip()
        return f" (not to be seen: kernel.perf_event_paranoid is {setting})"
    return ""


def _version() -> str:
    return ".".join(platform.python_version_tuple()[:2])
