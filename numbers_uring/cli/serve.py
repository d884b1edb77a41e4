"""The options of `serve`, and the Config that they make."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from numbers_uring import __version__
from numbers_uring.addresses import PORT_MAX, Address, TcpAddress, parse_address, parse_tcp_address
from numbers_uring.cli.commands import ENVIRONMENT_PREFIX
from numbers_uring.cli.nats_options import ACCESS_NAMES, ACCESS_OPTIONS, access_of, check_url
from numbers_uring.cli.types import Seconds
from numbers_uring.config import DEFAULT_ADDRESS, Config, Fsync, LogFormat, Terminate, WhenFull
from numbers_uring.ingest.native import VARIANT_NAMES
from numbers_uring.limits import DISCONNECT_LOG_PER_S_MAX, PARTITIONS_MAX, REACTORS_MAX
from numbers_uring.system.diagnostics import Diagnostics
from numbers_uring.system.stdio import PROGRAM

_Command = TypeVar("_Command", bound=Callable[..., Any])

_HELP = """
Take in numbers over TCP until a client says "terminate", or SIGTERM or SIGINT comes.

Clients send lines of exactly nine decimal digits, each ended by a newline. Every number that is
new goes to the log file, repeats are only counted, and any other line ends its client's
connection. Counts are reported on standard output; all else is said on standard error.

SIGHUP reopens the log after a rotation, SIGUSR1 asks for a report at once.

Every option can also be set from the environment: NUMBERS_URING_SERVE_PORT=5000 stands for
--port 5000.

Exit status: 0 stopped as asked and everything is on file, 1 the system failed the backend, 2
wrong usage, 3 could not start, 4 the log failed, or the NATS server did not acknowledge everything.
"""


class _Address(click.ParamType):  # type: ignore[type-arg] # generic only in click's newest
    """What `parse` makes of the text; it raises ValueError where that is no address."""

    name = "address"

    def __init__(self, parse: Callable[[str], Address]) -> None:
        self._parse = parse

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> Address:
        try:
            return self._parse(value)
        except ValueError as error:
            self.fail(f"{error}.", param, ctx)


class _Mode(click.ParamType):  # type: ignore[type-arg] # as above
    """The bits of chmod(1), in octal."""

    name = "mode"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        if not (value.isascii() and value.isdecimal()) or set(value) & {"8", "9"}:
            self.fail(f"{value!r} is not an octal mode such as 0660.", param, ctx)
        mode = int(value, 8)
        if mode > 0o777:
            self.fail(f"{value!r} is more than 0777.", param, ctx)
        return mode


def _set_format(ctx: click.Context, _parameter: click.Parameter, value: str) -> str:
    """Write diagnostics so from now on: what is wrong with the other options is said later."""
    say = ctx.find_object(Diagnostics)
    if say is not None:
        say.form = LogFormat(value)
    return value


def _set_level(ctx: click.Context, parameter: click.Parameter, value: bool) -> bool:
    say = ctx.find_object(Diagnostics)
    if value and say is not None:
        say.level_min = logging.WARNING if parameter.name == "quiet" else logging.DEBUG
    return value


_DIAGNOSTIC_OPTIONS = (
    click.option(
        "--log-format",
        type=click.Choice([choice.value for choice in LogFormat]),
        default=LogFormat.TEXT.value,
        is_eager=True,
        callback=_set_format,
        help="Diagnostics on standard error: text, or each a JSON object on a line of its own.",
    ),
    click.option(
        "--quiet",
        "-q",
        is_flag=True,
        is_eager=True,
        callback=_set_level,
        help="Only warnings and errors on standard error.",
    ),
)

metrics_option = click.option(
    "--metrics",
    type=_Address(parse_tcp_address),
    metavar="HOST:PORT",
    help="Serve metrics for Prometheus there, and /healthz for probes; or [IPV6]:PORT. Needs "
    "an extra: pip install 'numbers-uring[metrics]'.",
)
"""Of `serve` and `own`."""

_OPTIONS = (
    click.option(
        "--backend",
        type=click.Choice(["auto", "epoll", "uring"]),
        default="auto",
        help="How the sockets are served; auto takes the best one there is.",
    ),
    click.option(
        "--kernel",
        type=click.Choice(["auto", "native", *VARIANT_NAMES, "python"]),
        default="auto",
        help="What parses and de-duplicates. native: the fastest compiled variant that the CPU "
        "runs, which auto takes; the variants can be named, too; python: their slow specification.",
    ),
    click.option(
        "--listen",
        type=_Address(parse_address),
        multiple=True,
        metavar="ADDRESS",
        help="An address to listen on: HOST:PORT, [IPV6]:PORT or unix:PATH. Can be given several "
        "times; --host and --port are then only listened on where they are given, too.",
    ),
    click.option(
        "--host",
        metavar="HOST",
        default=DEFAULT_ADDRESS.host,
        help="Short for one --listen: its address or name, IPv4 or IPv6; 0.0.0.0 or :: for every "
        "interface.",
    ),
    click.option(
        "--port",
        type=click.IntRange(0, PORT_MAX),
        default=DEFAULT_ADDRESS.port,
        help="Short for one --listen: its port; 0 takes a free one, named in the start line.",
    ),
    click.option(
        "--unix-mode",
        type=_Mode(),
        default="0660",
        metavar="MODE",
        help="Who may connect to unix:PATH: the mode of its file, in octal.",
    ),
    click.option(
        "--unix-group",
        metavar="GROUP",
        help="The group of unix:PATH, a name or a number; without it, the one that the system "
        "gives.",
    ),
    click.option(
        "--max-clients",
        "--concurrent-connections",
        "max_clients",
        type=click.IntRange(1, 1_000_000),
        default=5,
        envvar=[
            f"{ENVIRONMENT_PREFIX}_SERVE_MAX_CLIENTS",
            f"{ENVIRONMENT_PREFIX}_SERVE_CONCURRENT_CONNECTIONS",
        ],
        metavar="N",
        help="Clients served at once.",
    ),
    click.option(
        "--reactors",
        type=click.IntRange(1, REACTORS_MAX),
        default=1,
        metavar="N",
        help="Threads that serve clients, each with a reactor of its own, to use more processors; "
        "clients are spread over them.",
    ),
    click.option(
        "--when-full",
        type=click.Choice([choice.value for choice in WhenFull]),
        default=WhenFull.WAIT.value,
        help="A client beyond --max-clients waits until one leaves, or is disconnected at once.",
    ),
    click.option(
        "--terminate",
        type=click.Choice([choice.value for choice in Terminate]),
        default=Terminate.ANY.value,
        help="Whose \"terminate\" stops the server: any client's; only a local one's, that is from "
        "a loopback address or a unix socket; or nobody's. Elsewhere it is an invalid line.",
    ),
    click.option(
        "--log-file",
        type=click.Path(path_type=Path, readable=False),
        default="numbers.log",
        help="The file that gets each number once, one a line; created anew at start.",
    ),
    click.option(
        "--resume",
        is_flag=True,
        help="Keep the log of an earlier run: its numbers count as seen, a torn last line is cut.",
    ),
    click.option(
        "--fsync",
        type=click.Choice([choice.value for choice in Fsync]),
        default=Fsync.INTERVAL.value,
        help="What a power cut or a crash of the system may lose (a crash of the server alone "
        "loses nothing that was taken in before it last waited). always: nothing, the disk has "
        "each number before the server waits again; interval: about the last second; never: "
        "whatever the system has not written yet, minutes perhaps.",
    ),
    click.option(
        "--write-behind",
        type=click.Choice(["on", "off"]),
        default="on",
        help="on: have the log written to disk as it grows and drop it from the page cache; faster "
        "for long runs, small in memory. off: leave that to the system, which takes bursts that "
        "are faster than the disk for as long as it has memory.",
    ),
    click.option(
        "--forward",
        metavar="URL",
        callback=check_url,
        help="Run as a node of a cluster: publish new numbers to NATS JetStream at "
        "nats://HOST:PORT, or at several servers with commas between, instead of writing a log. A "
        "number is reported once NATS has acknowledged it. Needs an extra: "
        "pip install 'numbers-uring[cluster]'.",
    ),
    click.option(
        "--partitions",
        type=click.IntRange(1, PARTITIONS_MAX),
        metavar="P",
        help="How many streams share the numbers of --forward: as many as the cluster was made "
        "with.",
    ),
    *ACCESS_OPTIONS,
    click.option(
        "--report-interval",
        type=Seconds(min=0, min_open=True),
        default=10.0,
        help="Seconds between two reports on standard output.",
    ),
    click.option(
        "--idle-timeout",
        type=Seconds(min=0),
        default=0.0,
        help="Disconnect a client this many seconds after its last complete line; 0 never does.",
    ),
    click.option(
        "--profile",
        type=click.Path(path_type=Path, dir_okay=False),
        metavar="FILE",
        help="Record where the time goes with perf, or py-spy where perf is not allowed, and draw "
        "it as a flame graph (SVG) after the stop.",
    ),
    metrics_option,
    *_DIAGNOSTIC_OPTIONS,
    click.option(
        "--verbose",
        "-v",
        is_flag=True,
        is_eager=True,
        callback=_set_level,
        help="Tell of every client that is disconnected, and why; at most "
        f"{DISCONNECT_LOG_PER_S_MAX} of them a second, others are counted.",
    ),
)


def diagnostic_options(command: _Command) -> _Command:
    """Decorate a command with the options of what is said on standard error."""
    for option in reversed(_DIAGNOSTIC_OPTIONS):
        command = option(command)
    return command


def serve_options(command: _Command) -> _Command:
    """Decorate a command with the options of `serve`."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


@click.command(help=_HELP, context_settings={"show_default": True})
@serve_options
@click.version_option(__version__, prog_name=PROGRAM)
@click.pass_obj
def serve(say: Diagnostics, /, **options: Any) -> None:
    """Run one server."""
    from numbers_uring.server.run import run_server

    run_server(serve_config(options), say)


def absolute(path: Path) -> Path:
    """Return the path as it is from the root; as it is where the working directory is gone.

    Then the system refuses it where it is used.
    """
    try:
        return path.absolute()
    except OSError:
        return path


def serve_config(options: dict[str, Any]) -> Config:
    """Return what the options of the current command say. Raises click.UsageError."""
    if options["quiet"] and options["verbose"]:
        raise click.UsageError("--quiet and --verbose exclude each other.")
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
    for name in ("log_file", "resume", "fsync", "write_behind"):
        if context.get_parameter_source(name) is not ParameterSource.DEFAULT:
            option = "--" + name.replace("_", "-")
            raise click.UsageError(f"{option} and --forward exclude each other: there is no log.")


def _listen_addresses(options: dict[str, Any]) -> list[Address]:
    """Return each address that is given once, the short form's first."""
    context = click.get_current_context()
    given = any(
        context.get_parameter_source(name) is not ParameterSource.DEFAULT
        for name in ("host", "port")
    )
    short = [TcpAddress(options["host"], options["port"])] if given else []
    return list(dict.fromkeys([*short, *options["listen"]]))
