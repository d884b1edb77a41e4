"""The command `cluster`: creates a cluster's streams, and shows the cluster's status."""

import json
from typing import TYPE_CHECKING, Any

import click

from numbers_uring import __version__
from numbers_uring.cli.cluster_verify import verify
from numbers_uring.cli.help import Command, Group, option_group
from numbers_uring.cli.nats_options import access_of, broker_options
from numbers_uring.cli.types import Duration, Seconds, Sequences, Whole
from numbers_uring.errors import ExitCode
from numbers_uring.limits import COPIES_MAX, MESSAGE_BYTES_MAX, PARTITIONS_MAX
from numbers_uring.system.diagnostics import Diagnostics
from numbers_uring.system.stdio import PROGRAM
from numbers_uring.words import counted

if TYPE_CHECKING:
    from numbers_uring.cluster.status import ClusterStatus


@click.group(
    cls=Group,
    examples=(
        ("Create a cluster of four partitions, once:", "cluster init --partitions 4"),
        ("Show the status of a cluster, again every two seconds:", "cluster status --watch"),
    ),
)
@click.version_option(__version__, prog_name=PROGRAM)
def cluster() -> None:
    """Create a cluster's streams, show its status, verify its logs, skip messages."""


@cluster.command(
    cls=Command,
    short_help="Create the streams of a cluster, or change them.",
    examples=(
        ("Create a cluster of four partitions:", "cluster init --partitions 4"),
        (
            "Expect two copies of each, and trim what both have after a day:",
            "cluster init --partitions 4 --copies 2 --keep 1d",
        ),
    ),
)
@option_group(
    "Streams",
    click.option(
        "--partitions",
        type=Whole(1, PARTITIONS_MAX),
        required=True,
        metavar="P",
        help="Split all numbers into this many ranges, each with its own stream and log. It cannot "
        "be changed later.",
    ),
    click.option(
        "--copies",
        type=Whole(0, COPIES_MAX),
        metavar="K",
        help="Expect this many copies of each partition: 'cluster status' reports fewer as a "
        "problem, and nothing is trimmed before there are as many. 0, the default, expects none.",
    ),
    click.option(
        "--keep",
        type=Duration(min=0),
        metavar="DURATION",
        help="Trim from the streams what all copies have on disk and is older than this: seconds, "
        "or 15m, 12h, 7d. 0, the default, trims nothing.",
    ),
    click.option(
        "--replicas",
        type=click.Choice(["1", "3", "5"]),
        help="Store each message on this many NATS servers: 1, unless the cluster has more "
        "already. More than before makes the streams grow.",
    ),
    click.option(
        "--max-bytes",
        type=Whole(min=MESSAGE_BYTES_MAX),
        metavar="BYTES",
        help="Limit each stream to this size on the NATS server's disk; nodes pause at it. A new "
        "stream has space for each number of the partition four times. It can be raised later.",
    ),
)
@broker_options
@click.version_option(__version__, prog_name=PROGRAM)
@click.pass_obj
def init(
    say: Diagnostics,
    /,
    nats: str,
    partitions: int,
    replicas: str | None,
    max_bytes: int | None,
    copies: int | None,
    keep: float | None,
    **options: Any,
) -> None:
    """Create the missing streams and buckets of a cluster, and check the settings of the others.

    It can be run again at any time: to change --copies or --keep, or to grow --replicas or
    --max-bytes. What is not given stays as it is. It waits until new replicas have everything.

    Exit status: 0 all exist, 2 wrong usage, 3 the NATS server cannot be reached, or has streams or
    buckets with other settings, or new replicas make no progress.
    """
    import asyncio

    from numbers_uring.cluster.connection import connected, jetstream, url_text
    from numbers_uring.cluster.init import Made, init_cluster

    access = access_of(options)

    async def run() -> Made:
        async with connected(nats, f"{PROGRAM} cluster init", access=access) as client:
            return await init_cluster(
                jetstream(client),
                partitions,
                replicas=None if replicas is None else int(replicas),
                max_bytes=max_bytes,
                copies=copies,
                keep_s=keep,
                say=say.info,
            )

    made = asyncio.run(run())
    keep_s = made.settings.keep_s
    trimming = f"messages are kept for {keep_s:g} s" if keep_s else "nothing is trimmed"
    say.info(
        f"the cluster at {url_text(nats)} is ready: {counted(partitions, 'partition')}, "
        f"{counted(made.created, 'stream')} created, {partitions - made.created} existed before"
        f"{f', {made.changed} of them changed' if made.changed else ''}; replicas "
        f"{made.replicas}, copies {made.settings.copies}, {trimming}"
    )


@cluster.command(
    cls=Command,
    short_help="Show nodes, partitions and copies, and what is wrong.",
    examples=(
        ("Show the cluster on this host:", "cluster status"),
        ("Show the status of a cluster, again every two seconds:", "cluster status --watch"),
    ),
)
@option_group(
    "Display",
    click.option(
        "--watch",
        type=Seconds(min=0.1),
        is_flag=False,
        flag_value=2.0,
        metavar="[SECONDS]",
        help="Show it again every this many seconds, 2 without a number, until SIGINT or SIGTERM. "
        "A terminal is redrawn; elsewhere one status follows the other.",
    ),
    click.option("--json", "as_json", is_flag=True, help="Print the status as one JSON object."),
)
@broker_options
@click.version_option(__version__, prog_name=PROGRAM)
@click.pass_obj
def status(
    say: Diagnostics, /, nats: str, as_json: bool, watch: float | None, **options: Any
) -> int:
    """Show nodes, partitions, their streams and copies, totals, and what is wrong.

    What collectors and nodes report of themselves may be some seconds old.

    Exit status: 0 nothing is wrong, or a --watch was ended by a signal, 1 a problem was shown, 2
    wrong usage, 3 the NATS server cannot be reached, or has no cluster, or one of another version.
    """
    import asyncio

    from numbers_uring.cluster.connection import connected, jetstream
    from numbers_uring.cluster.status import StatusReader
    from numbers_uring.cluster.status_text import as_text

    access = access_of(options)

    async def run() -> "ClusterStatus | None":
        name = f"{PROGRAM} cluster status"
        warn = say if watch is not None else lambda _text: None
        async with connected(nats, name, access=access, say=warn) as client:
            reader = StatusReader(jetstream(client))
            if watch is None:
                return await reader.read()
            from numbers_uring.cli.watch import watch_status

            await watch_status(client, reader, watch, as_json=as_json, say=say)
            return None

    found = asyncio.run(run())
    if found is None:
        return ExitCode.CLEAN
    click.echo(json.dumps(found.as_json()) if as_json else as_text(found))
    return ExitCode.FAILED if found.problems else ExitCode.CLEAN


cluster.add_command(verify)


@cluster.command(
    cls=Command,
    short_help="Forget a copy that is gone for good.",
    examples=(("Forget the copy with this id:", "cluster forget 5f0c3a9e12d47b68"),),
)
@click.argument("copy")
@option_group(
    "Safety",
    click.option(
        "--force", is_flag=True, help="Forget it although its collector reported just now."
    ),
)
@broker_options
@click.version_option(__version__, prog_name=PROGRAM)
@click.pass_obj
def forget(say: Diagnostics, /, nats: str, copy: str, force: bool, **options: Any) -> None:
    """Forget COPY, a copy that is gone for good, so that streams are trimmed without it.

    COPY is the id that 'cluster status' shows, and the file numbers.copy in the folder of its logs.
    If it starts again it is registered again, and may find that what it lacks was trimmed.

    Exit status: 0 forgotten, 2 wrong usage, 3 no such copy is registered, or it is in use, or the
    NATS server cannot be reached.
    """
    import asyncio

    from numbers_uring.cluster.connection import connected, jetstream
    from numbers_uring.cluster.forget import forget_copy

    access = access_of(options)

    async def run() -> list[int]:
        async with connected(nats, f"{PROGRAM} cluster forget", access=access) as client:
            return await forget_copy(jetstream(client), copy, force=force)

    partitions = asyncio.run(run())
    say.info(f"forgot copy {copy} of partitions {', '.join(map(str, partitions))}")


@cluster.command(
    cls=Command,
    short_help="Skip messages that are lost or damaged.",
    examples=(
        (
            "Skip message 17 of the stream of partition 0:",
            "cluster skip 0 17 --why 'disk failed'",
        ),
    ),
)
@click.argument("partition", type=Whole(0, PARTITIONS_MAX - 1))
@click.argument("sequence", type=Sequences())
@option_group(
    "Skip",
    click.option(
        "--why",
        default="",
        show_default=False,
        metavar="TEXT",
        help="Record this reason with the skip.",
    ),
    click.option(
        "--force",
        is_flag=True,
        help="Skip it although it is a proper batch, or a copy has passed it.",
    ),
)
@broker_options
@click.version_option(__version__, prog_name=PROGRAM)
@click.pass_obj
def skip(
    say: Diagnostics,
    /,
    nats: str,
    partition: int,
    sequence: tuple[int, int],
    why: str,
    force: bool,
    **options: Any,
) -> None:
    """Make all copies of PARTITION skip message SEQUENCE of its stream, or messages FIRST-LAST.

    For a message that the partition waits at, because the stream has lost it, or because it is no
    batch of numbers. If another copy has passed it, copy that one's log and index instead. A skip
    cannot be taken back.

    Exit status: 0 recorded, 2 wrong usage, 3 it is refused, or the NATS server cannot be reached.
    """
    import asyncio

    from numbers_uring.cluster.connection import connected, jetstream
    from numbers_uring.cluster.skip import skip_messages

    access = access_of(options)

    async def run() -> str:
        async with connected(nats, f"{PROGRAM} cluster skip", access=access) as client:
            return await skip_messages(
                jetstream(client), partition, *sequence, why=why, force=force
            )

    say.info(asyncio.run(run()))
