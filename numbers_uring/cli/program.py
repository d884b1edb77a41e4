"""Runs the command; turns every failure into one line and an exit code."""

import os
import sys
from contextlib import suppress

import click
from click.exceptions import Exit, NoArgsIsHelpError
from click.shell_completion import shell_complete

from numbers_uring.cli.commands import COMPLETE_VARIABLE, cli
from numbers_uring.cli.environment import early_log_format, source_text
from numbers_uring.cli.interrupts import is_interrupt
from numbers_uring.cli.output import PrintedOutput
from numbers_uring.errors import ExitCode, Failure, StopRequestedError, UnexpectedError
from numbers_uring.system.diagnostics import Diagnostics
from numbers_uring.system.signals import unblock_signals
from numbers_uring.system.stdio import PROGRAM, STDERR, LineWriter, open_standard_streams


def run() -> int:
    """Run the command and return its exit code.

    A failure is one line on standard error; one that no one expected has its traceback behind it
    with --verbose. Raises KeyboardInterrupt.
    """
    printed = PrintedOutput()
    open_standard_streams()
    unblock_signals()
    say = Diagnostics(LineWriter(STDERR), form=early_log_format(sys.argv[1:]))
    say.take_over()
    try:
        with printed:
            return _run_command(say)
    except NoArgsIsHelpError as error:
        with suppress(OSError):
            error.show()
        return error.exit_code
    except click.UsageError as error:
        command = error.ctx.command_path if error.ctx else PROGRAM
        # Not all of click's messages end as sentences do.
        text = error.format_message()
        end = "" if text.endswith((".", "?", "!")) else "."
        say.error(f"{text}{end}{source_text(error)} Try '{command} --help'.")
        return error.exit_code
    except click.ClickException as error:
        say.error(error.format_message())
        return error.exit_code
    except StopRequestedError:
        return ExitCode.CLEAN
    except Exception as error:
        if is_interrupt(error):
            raise KeyboardInterrupt from error
        failure = error if isinstance(error, Failure) else UnexpectedError(error)
        say.error(str(failure))
        if isinstance(failure, UnexpectedError):
            say.log_traceback(failure.error)
        return failure.exit_code


def _run_command(say: Diagnostics) -> int:
    """Do what click's own main() does, which prints at an interrupt and hides a closed pipe."""
    # Options have their variables from cli.environment. click's own for --version would make each
    # command print it and end.
    settings = {"obj": say}
    question = os.environ.get(COMPLETE_VARIABLE)
    if question:
        code = shell_complete(cli, settings, PROGRAM, COMPLETE_VARIABLE, question)
        if code:
            raise click.UsageError(
                f"{COMPLETE_VARIABLE} is for completion scripts, and {question!r} is of none."
            )
        return code
    try:
        with cli.make_context(PROGRAM, sys.argv[1:], None, **settings) as context:
            code = cli.invoke(context)
    except Exit as end:
        return end.exit_code
    return code if isinstance(code, int) else ExitCode.CLEAN
