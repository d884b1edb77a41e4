"""The command `serve`, and the Config that its options make."""

from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from numbers_uring import __version__
from numbers_uring.addresses import Address, TcpAddress
from numbers_uring.cli.help import Command
from numbers_uring.cli.nats_options import ACCESS_NAMES, access_of
from numbers_uring.cli.serve_options import serve_options
from numbers_uring.config import Config, Fsync, Terminate, WhenFull
from numbers_uring.system.diagnostics import Diagnostics
from numbers_uring.system.stdio import PROGRAM, STDERR

_HELP = """
Receive numbers over TCP, and write each of them once to a log.

Clients send lines of exactly nine decimal digits, each ended by a newline. The server writes every
new number to the log file, counts repeats, and closes the connection of a client that sends any
other line. It writes reports to standard output and all other messages to standard error.

A server stops when a client sends "terminate", or SIGTERM or SIGINT arrives. SIGHUP reopens the log
after a rotation. SIGUSR1 requests a report at once.

Every option can also be set from the environment: NUMBERS_URING_SERVE_PORT=5000 stands for
--port 5000.

Exit status: 0 stopped as requested and all numbers are in the log, 1 the backend failed, 2 wrong
usage, 3 could not start, 4 the log failed, or the NATS server did not acknowledge all numbers.
"""

_EXAMPLES = (
    ("Serve clients on this host, on port 4000, and write numbers.log:", "serve"),
    (
        "Serve on every interface; continue the log, which may have been rotated:",
        "serve --host 0.0.0.0 --resume --seen 'numbers.log*'",
    ),
    (
        "Serve up to 100 clients from two threads, and publish metrics:",
        "serve --max-clients 100 --reactors 2 --metrics 127.0.0.1:4001",
    ),
)


@click.command(cls=Command, help=_HELP, examples=_EXAMPLES)
@serve_options
@click.version_option(__version__, prog_name=PROGRAM)
@click.pass_obj
def serve(say: Diagnostics, /, **options: Any) -> None:
    """Run one server."""
    from numbers_uring.server.run import run_server

    config = serve_config(options)
    say.stamp_lines(STDERR)
    run_server(config, say)


def absolute(path: Path) -> Path:
    """Return the absolute path, or `path` itself where the working directory was removed.

    In that case opening it fails later.
    """
    try:
        return path.absolute()
    except OSError:
        return path


def serve_config(options: dict[str, Any]) -> Config:
    """Return the Config for the options of the current command. Raises click.UsageError."""
    if options["quiet"] and options["verbose"]:
        raise click.UsageError("--quiet and --verbose cannot be used together.")
    _check_forward(options)
    return Config(
        backend=options["backend"],
        kernel=options["kernel"],
        listen=_listen_addresses(options),
        unix_mode=options["unix_mode"],
        unix_group=options["unix_group"],
        connections_max=options["max_clients"],
        reactors=options["reactors"],
        when_full=WhenFull(options["when_full"]),
        terminate=Terminate(options["terminate"]),
        verbose=options["verbose"],
        log_path=absolute(options["log_file"]),
        resume=options["resume"],
        seen=list(map(absolute, options["seen"])),
        fsync=Fsync(options["fsync"]),
        write_behind=options["write_behind"] == "on",
        report_interval_s=options["report_interval"],
        idle_timeout_s=options["idle_timeout"],
        profile_path=options["profile"],
        forward=options["forward"],
        access=access_of(options),
        partitions=options["partitions"] or 0,
        metrics=options["metrics"],
    )


def _check_forward(options: dict[str, Any]) -> None:
    if options["forward"] is None:
        for name in ("partitions", *ACCESS_NAMES):
            if options[name] is not None:
                option = "--" + name.replace("_", "-")
                raise click.UsageError(f"{option} needs --forward.")
        return
    if options["partitions"] is None:
        raise click.UsageError("--forward needs --partitions, as many as the cluster has.")
    context = click.get_current_context()
    for name in ("log_file", "resume", "seen", "fsync", "write_behind"):
        if context.get_parameter_source(name) is not ParameterSource.DEFAULT:
            option = "--" + name.replace("_", "-")
            raise click.UsageError(
                f"{option} and --forward cannot be used together: there is no log."
            )


def _listen_addresses(options: dict[str, Any]) -> list[Address]:
    """Return each address that is given once, the short form's first."""
    context = click.get_current_context()
    given = any(
        context.get_parameter_source(name) is not ParameterSource.DEFAULT
        for name in ("host", "port")
    )
    short = [TcpAddress(options["host"], options["port"])] if given else []
    return list(dict.fromkeys([*short, *options["listen"]]))
