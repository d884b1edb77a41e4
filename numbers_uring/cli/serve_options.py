"""The options of `serve` and `doctor`, in the groups of their help; some are of `collect`, too."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from numbers_uring.addresses import PORT_MAX, Address, parse_address, parse_tcp_address
from numbers_uring.cli.environment import ENVIRONMENT_PREFIX
from numbers_uring.cli.help import option_group
from numbers_uring.cli.nats_options import ACCESS_OPTIONS, check_url
from numbers_uring.cli.types import Seconds, Whole
from numbers_uring.config import DEFAULT_ADDRESS, Fsync, LogFormat, Terminate, WhenFull
from numbers_uring.ingest.native import VARIANT_NAMES
from numbers_uring.limits import DISCONNECT_LOG_PER_S_MAX, PARTITIONS_MAX, REACTORS_MAX
from numbers_uring.system.diagnostics import Diagnostics

_Command = TypeVar("_Command", bound=Callable[..., Any])


class _Address(click.ParamType):  # type: ignore[type-arg] # generic only in click's newest
    """The result of `parse`, which raises ValueError for a text that is no address."""

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
    """Set the format at once, so that errors about the other options have it, too."""
    say = ctx.find_object(Diagnostics)
    if say is not None:
        say.form = LogFormat(value)
    return value


def _set_level(ctx: click.Context, parameter: click.Parameter, value: bool) -> bool:
    say = ctx.find_object(Diagnostics)
    if value and say is not None:
        say.level_min = logging.WARNING if parameter.name == "quiet" else logging.DEBUG
    return value


observing_options = (
    click.option(
        "--metrics",
        type=_Address(parse_tcp_address),
        metavar="HOST:PORT",
        help="Serve metrics for Prometheus, /healthz for probes and a page for a browser, at "
        "HOST:PORT or [IPV6]:PORT. "
        "Requires an extra: pip install 'numbers-uring[metrics]'.",
    ),
    click.option(
        "--report-interval",
        type=Seconds(min=0, min_open=True),
        default=10,
        help="Print a report on standard output every this many seconds.",
    ),
    click.option(
        "--quiet",
        "-q",
        is_flag=True,
        is_eager=True,
        callback=_set_level,
        help="Print only warnings and errors on standard error.",
    ),
    click.option(
        "--log-format",
        type=click.Choice([choice.value for choice in LogFormat]),
        default=LogFormat.TEXT.value,
        is_eager=True,
        callback=_set_format,
        help="Format of the messages on standard error: text, or one JSON object a line.",
    ),
)
"""Those that `collect` has, too."""

_LISTENING = option_group(
    "Listening",
    click.option(
        "--port",
        type=Whole(0, PORT_MAX),
        metavar="PORT",
        default=DEFAULT_ADDRESS.port,
        help="Listen on this port. 0 selects a free one, which the start line names.",
    ),
    click.option(
        "--host",
        metavar="HOST",
        default=DEFAULT_ADDRESS.host,
        help="Listen on this address or name, IPv4 or IPv6. 0.0.0.0 and :: stand for every "
        "interface.",
    ),
    click.option(
        "--listen",
        type=_Address(parse_address),
        multiple=True,
        metavar="ADDRESS",
        help="Listen on HOST:PORT, [IPV6]:PORT or unix:PATH; can be given several times. With it, "
        "the address of --host and --port is only used if one of them is given, too.",
    ),
    click.option(
        "--unix-mode",
        type=_Mode(),
        default="0660",
        metavar="MODE",
        help="Set the mode of the file of unix:PATH, in octal: it decides who may connect.",
    ),
    click.option(
        "--unix-group",
        metavar="GROUP",
        help="Set the group of the file of unix:PATH, a name or a number. The default is the one "
        "that Linux gives it.",
    ),
)

_CLIENTS = option_group(
    "Clients",
    click.option(
        "--max-clients",
        "--concurrent-connections",
        "max_clients",
        type=Whole(1, 1_000_000),
        default=5,
        envvar=[
            f"{ENVIRONMENT_PREFIX}_SERVE_MAX_CLIENTS",
            f"{ENVIRONMENT_PREFIX}_SERVE_CONCURRENT_CONNECTIONS",
        ],
        metavar="N",
        help="Serve at most this many clients at once.",
    ),
    click.option(
        "--when-full",
        type=click.Choice([choice.value for choice in WhenFull]),
        default=WhenFull.WAIT.value,
        help="Make a client beyond --max-clients wait until another one leaves, or disconnect it "
        "at once.",
    ),
    click.option(
        "--idle-timeout",
        type=Seconds(min=0),
        default=0,
        help="Disconnect a client this many seconds after its last complete line. 0: never.",
    ),
    click.option(
        "--terminate",
        type=click.Choice([choice.value for choice in Terminate]),
        default=Terminate.ANY.value,
        help='Accept "terminate" from any client; only from local ones, on a loopback address or a '
        "unix socket; or never. From others it is an invalid line.",
    ),
)

_LOG = option_group(
    "Log",
    click.option(
        "--log-file",
        type=click.Path(path_type=Path, readable=False),
        default="numbers.log",
        help="Write each number once, one a line, to this file. It is replaced at start unless "
        "--resume is given.",
    ),
    click.option(
        "--resume",
        is_flag=True,
        help="Keep the log of an earlier run: its numbers count as seen. A torn last line is cut.",
    ),
    click.option(
        "--seen",
        type=click.Path(path_type=Path, readable=False),
        multiple=True,
        metavar="FILE",
        help="Count the numbers of this file as seen, too, such as a rotated log, plain or "
        "compressed by gzip; can be given several times. Its name may be a pattern in quotes, such "
        "as 'numbers.log*', which may match no file. The log itself is left out.",
    ),
    click.option(
        "--fsync",
        type=click.Choice([choice.value for choice in Fsync]),
        default=Fsync.INTERVAL.value,
        help="Sync the log to disk before each wait for clients (always), about once a second "
        "(interval), or leave it to Linux (never). A power cut loses nothing, about the last "
        "second, or perhaps minutes; a crash of the server alone only what it had not written.",
    ),
    click.option(
        "--write-behind",
        type=click.Choice(["on", "off"]),
        default="on",
        help="on: write the log to disk as it grows and drop it from the page cache, which is "
        "faster for long runs and needs little memory. off: leave that to Linux, which accepts "
        "bursts faster than the disk while it has memory.",
    ),
)

_CLUSTER = option_group(
    "Cluster",
    click.option(
        "--forward",
        metavar="URL",
        callback=check_url,
        help="Run as a node of a cluster: publish new numbers to NATS JetStream at "
        "nats://HOST:PORT, or at a comma-separated list of them, in place of a log. Requires an "
        "extra: pip install 'numbers-uring[cluster]'.",
    ),
    click.option(
        "--partitions",
        type=Whole(1, PARTITIONS_MAX),
        metavar="P",
        help="The number of partitions of the cluster at --forward, as given to cluster init.",
    ),
    *ACCESS_OPTIONS,
)

_OBSERVING = option_group(
    "Observing",
    *observing_options,
    click.option(
        "--verbose",
        "-v",
        is_flag=True,
        is_eager=True,
        callback=_set_level,
        help="Log every client that is disconnected, and why. At most "
        f"{DISCONNECT_LOG_PER_S_MAX} a second get a line, others are counted.",
    ),
    click.option(
        "--profile",
        type=click.Path(path_type=Path, dir_okay=False),
        metavar="FILE",
        help="Record a profile with perf, or with py-spy where perf is not allowed. After the "
        "stop, write it to FILE as a flame graph (SVG).",
    ),
)

_TUNING = option_group(
    "Tuning",
    click.option(
        "--reactors",
        type=Whole(1, REACTORS_MAX),
        default=1,
        metavar="N",
        help="Serve clients from this many threads, to use more processors. Each has its own "
        "reactor, and clients are spread over them.",
    ),
    click.option(
        "--backend",
        type=click.Choice(["auto", "epoll", "uring"]),
        default="auto",
        help="The interface of Linux that serves the sockets. auto takes epoll, and warns if "
        "io_uring is not available.",
    ),
    click.option(
        "--kernel",
        type=click.Choice(["auto", "native", *VARIANT_NAMES, "python"]),
        default="auto",
        help="The code that parses and de-duplicates. auto and native: the fastest variant in C "
        "that the CPU supports; avx2, swar, scalar: that variant; python: the slow specification.",
    ),
)


def serve_options(command: _Command) -> _Command:
    """Decorate a command with the options of `serve`, the most used first."""
    for group in (_TUNING, _OBSERVING, _CLUSTER, _LOG, _CLIENTS, _LISTENING):
        command = group(command)
    return command
