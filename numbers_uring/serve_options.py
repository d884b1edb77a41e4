"""The options of `serve`, and the Config that they make."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from numbers_uring.config import Config, Fsync, WhenFull
from numbers_uring.native_kernel import VARIANT_NAMES

_Command = TypeVar("_Command", bound=Callable[..., Any])

ENVIRONMENT_PREFIX = "NUMBERS_URING"

SERVE_HELP = """
Take in numbers over TCP until a client says "terminate", or SIGTERM or SIGINT comes.

Clients send lines of exactly nine decimal digits, each ended by a newline. Every number that is
new goes to the log file, repeats are only counted, and any other line ends its client's
connection. Counts are reported on standard output; all else is said on standard error.

Every option can also be set from the environment: NUMBERS_URING_SERVE_PORT=5000 stands for
--port 5000.

Exit status: 0 stopped as asked and everything is on file, 1 the system failed the backend, 2
wrong usage, 3 could not start, 4 the log failed.
"""


class _Seconds(click.FloatRange):
    """Seconds as a fraction; `nan` and `inf`, which float() takes, are no times."""

    name = "seconds"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        seconds = float(super().convert(value, param, ctx))
        if not seconds < 1e9:
            self.fail(f"{value!r} is not a number of seconds.", param, ctx)
        return seconds


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
        "--host",
        metavar="HOST",
        default="127.0.0.1",
        help="Address or name to listen on, IPv4 or IPv6; 0.0.0.0 or :: for every interface.",
    ),
    click.option(
        "--port",
        type=click.IntRange(0, 65535),
        default=4000,
        help="TCP port to listen on; 0 takes a free one, named in the start line.",
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
        "--when-full",
        type=click.Choice([choice.value for choice in WhenFull]),
        default=WhenFull.WAIT.value,
        help="A client beyond --max-clients waits until one leaves, or is disconnected at once.",
    ),
    click.option(
        "--log-file",
        type=click.Path(path_type=Path),
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
        "--report-interval",
        type=_Seconds(min=0, min_open=True),
        default=10.0,
        help="Seconds between two reports on standard output.",
    ),
    click.option(
        "--idle-timeout",
        type=_Seconds(min=0),
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
)


def serve_options(command: _Command) -> _Command:
    """Decorate a command with the options of `serve`."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def serve_config(options: dict[str, Any]) -> Config:
    """Return what the options say."""
    return Config(
        backend=options["backend"],
        kernel=options["kernel"],
        host=options["host"],
        port=options["port"],
        connections_max=options["max_clients"],
        when_full=WhenFull(options["when_full"]),
        log_path=options["log_file"].absolute(),
        resume=options["resume"],
        fsync=Fsync(options["fsync"]),
        write_behind=options["write_behind"] == "on",
        report_interval_s=options["report_interval"],
        idle_timeout_s=options["idle_timeout"],
        profile_path=options["profile"],
    )
