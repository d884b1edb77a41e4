"""The command `load`: its options, and the load that they make."""

import json
import os
import shutil
from contextlib import ExitStack
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from numbers_uring import __version__
from numbers_uring.cli.help import Command, HelpList, option_group
from numbers_uring.cli.load_output import ProgressBars, result_line, result_table
from numbers_uring.cli.types import Fraction, Seconds, Whole
from numbers_uring.errors import ExitCode, StartError
from numbers_uring.limits import (
    LOAD_CLIENTS_MAX,
    LOAD_NUMBERS_MAX,
    LOAD_PLOT_SLICE_S,
    LOAD_PREPARE_BYTES_MAX,
    LOAD_RATE_MAX,
    LOAD_SEED_MAX,
    LOAD_SEND_BYTES_MAX,
)
from numbers_uring.load.model import LoadParameters, LoadResult, Mix, numbers_max
from numbers_uring.load.plot import LoadPlot
from numbers_uring.system.descriptors import raise_descriptor_limit
from numbers_uring.system.diagnostics import Diagnostics
from numbers_uring.system.stdio import PROGRAM, STDOUT
from numbers_uring.words import counted, counted_and

_HELP = """Send numbers to a server from many clients and measure how fast it takes them in.

A client sends its lines, shuts down its side and waits for the server to close the connection: its
numbers then count as accepted. It is an error if the server closes earlier or sends anything.

With FILEs, the numbers of these logs are sent instead of a mix, for example to a new cluster or
server. All files are read once before that: if a line is no number, nothing is sent. A torn tail is
left out and reported. A FILE that gzip has compressed is unpacked into the folder that TMPDIR
names, or else /tmp, until the end.

All lines of a mix are prepared before the clock starts if they fit in --prepare-bytes. Otherwise
the thread that sends makes them during the run; the result says which.

Every option can also be set from the environment: NUMBERS_URING_LOAD_PORT=5000 stands for
--port 5000.

Exit status: 0 all numbers were accepted, 1 some numbers were not accepted, or not in time, or the
plot could not be written, 2 wrong usage, 3 could not connect, or a FILE cannot be read or has a
line that is no number, 130 interrupted.
"""

_EXAMPLES = (
    ("Send ten million different numbers to the server on this host:", "load"),
    (
        "Send random ones for a minute, and then stop the server:",
        "load --mix random --duration 60 --terminate",
    ),
    ("Send the numbers of a log to another server:", "load --host numbers-1 numbers.log"),
)
_LISTS = (
    HelpList(
        "Mixes",
        "They depend only on --seed, --numbers and --duplicates, not on --clients.",
        (
            ("unique", "Each number at most once, in pseudo-random order."),
            ("random", "Independent and uniform over all 10^9 numbers; repeats by chance."),
            (
                "duplicate",
                "numbers - round(numbers * duplicates) different ones; the others repeat some of "
                "these.",
            ),
            (
                "sequential",
                "0, 1, 2, ...; each client sends a contiguous part, or with --duration blocks, in "
                "turn with the others.",
            ),
            ("hot", "Drawn from 1,000 numbers."),
        ),
    ),
    HelpList(
        "Times",
        "They are in milliseconds.",
        (
            (
                "drained",
                "From a client's last send until the server closes the connection: how far the "
                "server was behind at the end. One sample per client, not per line.",
            ),
            (
                "acknowledged",
                "From a send until the server's host acknowledged the bytes (TCP): the time in "
                "this host's send queue; the server may not have read them yet. At most one sample "
                "per millisecond, measured up to about 0.2 ms late.",
            ),
        ),
    ),
)

_DEFAULT = LoadParameters()


_OPTIONS_OF_MIX = {"numbers", "duration_s", "mix", "duplicates", "seed", "prepare_bytes"}


@click.command(cls=Command, help=_HELP, examples=_EXAMPLES, lists=_LISTS)
@click.argument("files", metavar="[FILE]...", type=click.Path(path_type=Path), nargs=-1)
@option_group(
    "Server",
    click.option(
        "--port",
        type=Whole(1, 65535),
        metavar="PORT",
        default=_DEFAULT.port,
        help="Connect to this port.",
    ),
    click.option(
        "--host",
        metavar="HOST",
        default=_DEFAULT.host,
        help="Connect to this address or name, IPv4 or IPv6.",
    ),
    click.option(
        "--clients",
        type=Whole(1, LOAD_CLIENTS_MAX),
        metavar="N",
        default=_DEFAULT.clients,
        help="Open this many connections at once.",
    ),
    click.option(
        "--terminate",
        is_flag=True,
        help='At the end, stop the server by "terminate" from one more client.',
    ),
)
@option_group(
    "Numbers",
    click.option(
        "--numbers",
        type=Whole(1, LOAD_NUMBERS_MAX),
        metavar="N",
        default=_DEFAULT.numbers,
        help="Send this many numbers, over all clients. With --duration, the default is as many as "
        "the mix has.",
    ),
    click.option(
        "--duration",
        "duration_s",
        type=Seconds(min=0),
        metavar="SECONDS",
        default=0,
        help="Send for this many seconds, and then wait until the server has read everything. "
        "0: until all numbers are sent.",
    ),
    click.option(
        "--mix",
        type=click.Choice([mix.value for mix in Mix]),
        default=_DEFAULT.mix.value,
        help="Select the numbers to send; see below.",
    ),
    click.option(
        "--duplicates",
        type=Fraction(0, 1),
        metavar="SHARE",
        default=_DEFAULT.duplicates,
        help="The share of repeats in the mix duplicate, from 0 to 1.",
    ),
    click.option(
        "--seed",
        type=Whole(0, LOAD_SEED_MAX),
        metavar="N",
        default=_DEFAULT.seed,
        help="The seed of the random numbers or of their order.",
    ),
)
@option_group(
    "Sending",
    click.option(
        "--rate",
        type=Whole(0, LOAD_RATE_MAX),
        metavar="N",
        default=_DEFAULT.rate,
        help="Send this many numbers a second over all clients, evenly to the millisecond. 0: as "
        "fast as the server reads them.",
    ),
    click.option(
        "--timeout",
        "timeout_s",
        type=Seconds(min=0),
        metavar="SECONDS",
        default=0,
        help="Stop the run after this many seconds, with exit status 1. 0: never.",
    ),
    click.option(
        "--send-bytes",
        type=Whole(1, LOAD_SEND_BYTES_MAX),
        metavar="BYTES",
        default=_DEFAULT.send_bytes,
        help="Pass at most this many bytes to one send call, even if that cuts a line.",
    ),
    click.option(
        "--prepare-bytes",
        type=Whole(0, LOAD_PREPARE_BYTES_MAX),
        metavar="BYTES",
        default=_DEFAULT.prepare_bytes,
        help="Prepare all lines in memory if they need at most this many bytes. 0: make them "
        "during the run.",
    ),
)
@option_group(
    "Result",
    click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object."),
    click.option(
        "--plot",
        "plot_path",
        type=click.Path(path_type=Path, dir_okay=False),
        metavar="FILE",
        help="Plot the rate over time to FILE, whose name ends in .svg, .png or .pdf. Requires an "
        "extra: pip install 'numbers-uring[plot]'.",
    ),
)
@click.version_option(__version__, prog_name=PROGRAM)
@click.pass_context
def load(
    context: click.Context,
    /,
    *,
    files: tuple[Path, ...],
    as_json: bool,
    plot_path: Path | None,
    **options: Any,
) -> int:
    """Run one load."""
    say: Diagnostics = context.obj
    clients = options["clients"]
    # A file that is compressed is unpacked into another one.
    raise_descriptor_limit(clients + 2 * len(files), f"--clients {clients}")
    with ExitStack() as opened:
        if files:
            _refuse_options_of_mix(context)
            from numbers_uring.cli.line_files import open_line_files

            lines = opened.enter_context(open_line_files(files, say))
            options |= {"files": lines, "numbers": sum(file.numbers for file in lines)}
        elif options["duration_s"] and not _given(context, "numbers"):
            options["numbers"] = numbers_max(Mix(options["mix"]), options["duplicates"])
        parameters = _parameters(options)
        return _load_and_print(parameters, as_json=as_json, say=say, plot_path=plot_path)


def _refuse_options_of_mix(context: click.Context) -> None:
    for parameter in context.command.params:
        if parameter.name in _OPTIONS_OF_MIX and _given(context, parameter.name):
            raise click.UsageError(f"{parameter.opts[0]} cannot be used with FILE.")


def _given(context: click.Context, name: str) -> bool:
    return context.get_parameter_source(name) is not ParameterSource.DEFAULT


def _parameters(options: dict[str, Any]) -> LoadParameters:
    """Return what the options say. Raises click.UsageError."""
    try:
        return LoadParameters(**options | {"mix": Mix(options["mix"])})
    except ValueError as error:
        raise click.UsageError(f"{error}.") from error


def _load_and_print(
    parameters: LoadParameters,
    *,
    as_json: bool,
    say: Diagnostics,
    plot_path: Path | None = None,
) -> int:
    """Run the load, print its result and return the exit code.

    Raises StartError, also where the plot that is asked for can't be made.
    """
    try:
        # Here and not at the top: the server also runs where the extension can't be loaded.
        generator = import_module("numbers_uring.load.run")
    except ImportError as error:
        raise StartError(f"cannot load the native load generator: {error}") from error
    with ExitStack() as parts:
        plot = parts.enter_context(LoadPlot(plot_path)) if plot_path is not None else None
        with ProgressBars(parameters.duration_s) as bars:
            told = [bars.show] if bars.wanted else []
            if plot is not None:
                told.append(plot.show)

            def progress(stage: str, numbers: int, numbers_all: int) -> None:
                for tell in told:
                    tell(stage, numbers, numbers_all)

            slice_s = {} if plot is None else {"slice_s": LOAD_PLOT_SLICE_S}
            result: LoadResult = generator.run_load(parameters, progress, **slice_s)
        plotted = plot is None or _write(plot, result, say)
    if as_json:
        click.echo(json.dumps(_flat(result)))
    else:
        columns = shutil.get_terminal_size().columns
        click.echo(result_table(result, columns) if os.isatty(STDOUT) else result_line(result))
    for text, clients in result.errors.items():
        # "terminate" has a client of its own.
        of = f" ({clients} of {counted(parameters.clients, 'client')})"
        say.error(text + ("" if text.startswith("terminate ") else of))
    if result.numbers_not_taken_min:
        missing = counted_and(result.numbers_not_taken_min, "number", "was", "were")
        say(f"at least {missing} not taken in")
    if result.ended_early:
        say(
            f"mix {parameters.mix} ended before --duration had passed, with "
            f"{counted(parameters.numbers, 'number')}"
        )
    if result.interrupted:
        say("interrupted")
        return 128 + 2
    return ExitCode.CLEAN if result.complete and plotted else ExitCode.FAILED


def _write(plot: LoadPlot, result: LoadResult, say: Diagnostics) -> bool:
    try:
        plot.write(result)
    except OSError as error:
        say.error(f"cannot write {plot.path}: {error.strerror}")
        return False
    return True


def _flat(result: LoadResult) -> dict[str, Any]:
    """Parameters and figures side by side."""
    fields = asdict(result)
    parameters: dict[str, Any] = fields.pop("parameters")
    if parameters["files"]:
        for name in _OPTIONS_OF_MIX - {"numbers"}:
            del parameters[name]
    for file in parameters["files"]:
        del file["fd"]
    return parameters | fields | {"complete": result.complete}
