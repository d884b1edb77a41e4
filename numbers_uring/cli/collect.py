"""The command `collect`: its options."""

from pathlib import Path
from typing import Any

import click

from numbers_uring import __version__
from numbers_uring.cli.help import Command, option_group
from numbers_uring.cli.nats_options import access_of, broker_options
from numbers_uring.cli.serve import absolute
from numbers_uring.cli.serve_options import observing_options
from numbers_uring.cluster.partitions import parse_partitions
from numbers_uring.limits import PARTITIONS_MAX
from numbers_uring.system.diagnostics import Diagnostics
from numbers_uring.system.stdio import PROGRAM, STDERR


def _partitions(_context: click.Context, _parameter: click.Parameter, text: str) -> str:
    try:
        parse_partitions(text, PARTITIONS_MAX)
    except ValueError as error:
        raise click.BadParameter(f"{error}.") from error
    return text


_EXAMPLES = (
    (
        "Collect four partitions of the cluster on this host:",
        "collect --partitions 0-3 --log-dir logs",
    ),
    (
        "Collect them from NATS on another host:",
        "collect --partitions 0-3 --log-dir logs --nats nats://nats-0:4222",
    ),
)


@click.command(cls=Command, examples=_EXAMPLES)
@option_group(
    "Partitions",
    click.option(
        "--partitions",
        metavar="LIST",
        required=True,
        callback=_partitions,
        help="Collect these partitions, such as 0-3 or 0,2,8-9.",
    ),
    click.option(
        "--log-dir",
        type=click.Path(path_type=Path, file_okay=False),
        required=True,
        metavar="DIR",
        help="Write the logs, numbers.P.log for each partition P, and their indexes, "
        "numbers.P.index, to this folder. It is created if it is missing.",
    ),
    click.option(
        "--replay",
        is_flag=True,
        help="Keep logs whose stream was made again, or has lost messages that are not in the log, "
        "and add what the stream has.",
    ),
)
@broker_options
@option_group("Observing", *observing_options)
@click.version_option(__version__, prog_name=PROGRAM)
@click.pass_obj
def collect(say: Diagnostics, /, **options: Any) -> None:
    """Collect partitions of a cluster: write their numbers to logs, each number once.

    A collector reads the streams of its partitions from where its log ends, in order, syncs new
    numbers to disk, and records its position in the index. All collectors of a partition, on any
    number of machines, write the same log. A log that is missing, was cut or was put back is
    completed from its stream.

    A collector writes reports to standard output and all other messages to standard error. SIGUSR1
    requests a report at once.

    Every option can also be set from the environment: NUMBERS_URING_COLLECT_PARTITIONS=0-3 stands
    for --partitions 0-3.

    Exit status: 0 stopped as requested, 1 a stream was made again, or the NATS server refuses the
    connection, 2 wrong usage, 3 could not start, 4 a log or an index failed.
    """
    from numbers_uring.cluster.collector.run import CollectConfig, run_collectors

    say.stamp_lines(STDERR)
    run_collectors(
        CollectConfig(
            url=options["nats"],
            access=access_of(options),
            partitions=options["partitions"],
            log_dir=absolute(options["log_dir"]),
            replay=options["replay"],
            report_interval_s=options["report_interval"],
            metrics=options["metrics"],
        ),
        say,
    )
