"""What can go wrong for good: one Failure, with the exit code that it means."""

from collections.abc import Collection, Iterator
from enum import IntEnum
from pathlib import Path


class ExitCode(IntEnum):
    """The exit codes of all commands."""

    CLEAN = 0
    FAILED = 1
    """`check` found something, or the system failed the backend of `serve`."""
    USAGE = 2
    NOT_STARTED = 3
    LOG_FAILED = 4
    INTERRUPTED = 128 + 2
    """SIGINT, before there was anything to stop."""


class Failure(Exception):  # noqa: N818 - its kinds are errors
    """Ends the command; its text is the one line for the user."""

    exit_code: ExitCode


class StartError(Failure):
    """The command could not start."""

    exit_code = ExitCode.NOT_STARTED


class ExtraLibraryError(StartError):
    """`user`, an option or a part, needs a library of an extra; `error` is of its import."""

    def __init__(self, user: str, library: str, extra: str, error: ImportError) -> None:
        problem = f"{user} needs {library}, which can't be loaded: {error}"
        if isinstance(error, ModuleNotFoundError):
            problem = f"{user} needs {library} ({error}): pip install 'numbers-uring[{extra}]'"
        super().__init__(problem)


class BackendError(Failure):
    """The system refused what a reactor, or a connection to the NATS server, depends on."""

    exit_code = ExitCode.FAILED


class SinkError(Failure):
    """Numbers can no longer be stored."""

    exit_code = ExitCode.LOG_FAILED


class UnexpectedError(Failure):
    """What no one expected: a system call that no one guards has failed, or a bug of ours."""

    def __init__(self, error: Exception, exit_code: ExitCode = ExitCode.NOT_STARTED) -> None:
        super().__init__(_text(error))
        self.error = error
        self.exit_code = exit_code


def failure_of(error: Exception, *, has_started: bool, sink_wings: Collection[str]) -> Failure:
    """Return the error of a run as a Failure, with the exit code that it has at this time.

    After the start one that comes from `sink_wings`, packages or modules that store numbers, means
    that numbers can no longer be stored.
    """
    # A part that can't be closed is not why a run has failed.
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, Failure):
            return cause
        cause = cause.__context__
    if not has_started:
        return UnexpectedError(error)
    from_sink = _comes_from(error, sink_wings)
    return UnexpectedError(error, ExitCode.LOG_FAILED if from_sink else ExitCode.FAILED)


def _text(error: Exception) -> str:
    if isinstance(error, MemoryError):
        return "not enough memory (ulimit -v, MemoryMax=, docker run --memory)"
    return f"unexpected {type(error).__name__}{_place(error)}: {error}"


def _comes_from(error: Exception, wings: Collection[str]) -> bool:
    """Return whether one of these packages or modules was on the way to the error."""
    return any(any(map(path.is_relative_to, wings)) for path, _ in _frames(error))


def _place(error: Exception) -> str:
    places = [f" in {path}, line {line}" for path, line in _frames(error)]
    return places[-1] if places else ""


def _frames(error: Exception) -> Iterator[tuple[Path, int]]:
    """Yield the files of this package on the way to the error, each with the line."""
    package, trace = Path(__file__).parent, error.__traceback__
    while trace is not None:
        path = Path(trace.tb_frame.f_code.co_filename)
        if path.is_relative_to(package):
            yield path.relative_to(package), trace.tb_lineno
        trace = trace.tb_next


class StopRequestedError(Exception):
    """A stop was requested before the server had started: the command ends, clean."""
