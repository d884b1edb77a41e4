"""What can go wrong for good: one Failure, with the exit code that it means."""

from enum import IntEnum


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


class BackendError(Failure):
    """The system refused what a reactor, or a connection to the NATS server, depends on."""

    exit_code = ExitCode.FAILED


class SinkError(Failure):
    """Numbers can no longer be stored."""

    exit_code = ExitCode.LOG_FAILED


class StopRequestedError(Exception):
    """A stop was requested before the server had started: the command ends, clean."""
