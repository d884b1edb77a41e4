"""The command line: options to parameters, and failures to exit codes."""

import sys
from pathlib import Path
from typing import Any, NoReturn

import click

from numbers_uring import __version__
from numbers_uring.cli.check import check
from numbers_uring.cli.cluster import cluster
from numbers_uring.cli.completion import completion
from numbers_uring.cli.doctor import doctor
from numbers_uring.cli.load import LOAD_HELP, load_and_print, load_options, load_parameters
from numbers_uring.cli.own import own
from numbers_uring.cli.serve import (
    ENVIRONMENT_PREFIX,
    SERVE_HELP,
    serve_config,
    serve_options,
)
from numbers_uring.errors import ExitCode, Failure, StopRequestedError
from numbers_uring.server.run import run_server
from numbers_uring.system.descriptors import raise_descriptor_limit
from numbers_uring.system.diagnostics import Diagnostics
from numbers_uring.system.signals import unblock_signals
from numbers_uring.system.stdio import PROGRAM, STDERR, LineWriter, open_standard_streams

_CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


@click.group(context_settings=_CONTEXT)
@click.version_option(__version__, prog_name=PROGRAM)
def cli() -> None:
    """A TCP number server for Linux: takes in nine-digit numbers, keeps each once."""


cli.add_command(check)
cli.add_command(cluster)
cli.add_command(completion)
cli.add_command(doctor)
cli.add_command(own)


@cli.command(help=SERVE_HELP, context_settings={"show_default": True})
@serve_options
@click.version_option(__version__, prog_name=PROGRAM)
@click.pass_obj
def serve(say: Diagnostics, /, **options: Any) -> None:
    """Run one server."""
    run_server(serve_config(options), say)


@cli.command(help=LOAD_HELP, context_settings={"show_default": True})
@load_options
@click.pass_obj
def load(say: Diagnostics, /, *, as_json: bool, plot_path: Path | None, **options: Any) -> int:
    """Run one load."""
    parameters = load_parameters(options)
    raise_descriptor_limit(parameters.clients, f"--clients {parameters.clients}")
    return load_and_print(parameters, as_json=as_json, say=say, plot_path=plot_path)


def main() -> NoReturn:
    """Run the command; every failure is one line on standard error and an ExitCode."""
    open_standard_streams()
    unblock_signals()
    say = Diagnostics(LineWriter(STDERR))
    say.take_over_libraries()

    def fail(text: str, code: int) -> NoReturn:
        say.error(text)
        sys.exit(code)

    try:
        code = cli.main(
            prog_name=PROGRAM,
            auto_envvar_prefix=ENVIRONMENT_PREFIX,
            standalone_mode=False,
            obj=say,
        )
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        sys.exit(error.exit_code)
    except click.UsageError as error:
        command = error.ctx.command_path if error.ctx else PROGRAM
        fail(f"{error.format_message()} Try '{command} --help'.", error.exit_code)
    except click.ClickException as error:
        fail(error.format_message(), error.exit_code)
    except Failure as error:
        fail(str(error), error.exit_code)
    except StopRequestedError:
        sys.exit(ExitCode.CLEAN)
    except (KeyboardInterrupt, click.Abort):
        sys.exit(ExitCode.INTERRUPTED)
    sys.exit(code if isinstance(code, int) else ExitCode.CLEAN)
