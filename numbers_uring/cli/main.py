"""The program's outermost frame: handles interrupts, and modules that can't be imported.

Only what is loaded anyway is imported before `main` runs; everything else is below its boundary.
"""

import sys

from numbers_uring.cli.interrupts import is_interrupt

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

_NOT_STARTED, _INTERRUPTED = 3, 128 + 2
"""As in errors.ExitCode, which is not imported yet."""


def main() -> "NoReturn":
    """Run the command that was asked for, and exit with its code.

    An interrupt is silent. What can't be imported is one line, like every other failure, which
    cli.program tells.
    """
    code = _INTERRUPTED
    try:
        code = _run()
        # A signal that comes while Python ends must not change the exit code.
        _ignore_signals()
    except KeyboardInterrupt:
        # It may come twice: timeout(1) signals its child and then their group.
        try:
            _ignore_signals()
        except KeyboardInterrupt:
            _ignore_signals()
    _skip_collections()
    sys.exit(code)


def _run() -> int:
    try:
        from numbers_uring.cli.program import run

        return run()
    except Exception as error:
        if is_interrupt(error):
            raise KeyboardInterrupt from error
        _write_error(f"cannot load the program: {type(error).__name__}: {error}")
        return _NOT_STARTED


def _ignore_signals() -> None:
    import signal

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)


def _skip_collections() -> None:
    """Leave what is in cycles to the end of the process: Python would look for it twice."""
    import gc

    gc.freeze()


def _write_error(text: str) -> None:
    import os
    from contextlib import suppress

    with suppress(OSError):
        os.write(2, f"numbers-uring: error: {' '.join(text.split())}\n".encode(errors="replace"))
