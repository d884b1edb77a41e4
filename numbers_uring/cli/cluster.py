"""The command `cluster`: makes a cluster's streams, and tells how the cluster is."""

import json
from typing import TYPE_CHECKING, Any

import click

from numbers_uring import __version__
from numbers_uring.cli.nats_options import access_of, engine_options
from numbers_uring.limits import MESSAGE_BYTES_MAX, PARTITIONS_MAX
from numbers_uring.system.diagnostics import Diagnostics
from numbers_uring.system.stdio import PROGRAM

if TYPE_CHECKING:
    from numbers_uring.cluster.status import ClusterStatus


@click.group()
@click.version_option(__version__, prog_name=PROGRAM)
def cluster() -> None:
    """Make and watch a cluster: many nodes that take numbers in, many owners of their logs."""


@cluster.command(context_settings={"show_default": True})
@engine_options
@click.option(
    "--partitions",
    type=click.IntRange(1, PARTITIONS_MAX),
    required=True,
    metavar="P",
    help="Into how many ranges all numbers are split, each with a stream and a log of its own. It "
    "can't be changed afterwards.",
)
@click.option(
    "--replicas",
    type=click.Choice(["1", "3", "5"]),
    default="1",
    help="On how many servers of the NATS server each message is kept.",
)
@click.option(
    "--max-bytes",
    type=click.IntRange(min=MESSAGE_BYTES_MAX),
    metavar="BYTES",
    help="Most disk space for a stream; when it is full, nodes hold clients back. By default, "
    "space for each number of the partition four times.",
)
@click.version_option(__version__, prog_name=PROGRAM)
@click.pass_obj
def init(
    say: Diagnostics,
    /,
    nats: str,
    partitions: int,
    replicas: str,
    max_bytes: int | None,
    **options: Any,
) -> None:
    """Make the streams and buckets of a cluster that are not there yet, and check the others.

    Exit status: 0 all is there, 2 wrong usage, 3 the NATS server can't be reached, or has something
    else than is needed.
    """
    import asyncio

    from numbers_uring.cluster.connection import connected, jetstream, url_text
    from numbers_uring.cluster.streams import init_cluster

    access = access_of(options)

    async def run() -> int:
        async with connected(nats, f"{PROGRAM} cluster init", access=access) as client:
            return await init_cluster(
                jetstream(client),
                partitions,
                replicas=int(replicas),
                max_bytes=max_bytes,
            )

    made = asyncio.run(run())
    say.info(
        f"the cluster at {url_text(nats)} is ready: {partitions} partitions, {made} streams made, "
        f"{partitions - made} there before"
    )


@cluster.command(context_settings={"show_default": True})
@engine_options
@click.option("--json", "as_json", is_flag=True, help="Tell it as one JSON object.")
@click.version_option(__version__, prog_name=PROGRAM)
def status(nats: str, as_json: bool, **options: Any) -> None:
    """Tell of nodes, partitions, owners, what waits in the streams, and totals.

    What owners and nodes say of themselves is some seconds old.

    Exit status: 0 told, 2 wrong usage, 3 the NATS server can't be reached or has no cluster.
    """
    import asyncio

    from numbers_uring.cluster.connection import connected, jetstream
    from numbers_uring.cluster.status import read_status

    access = access_of(options)

    async def run() -> "ClusterStatus":
        async with connected(nats, f"{PROGRAM} cluster status", access=access) as client:
            return await read_status(jetstream(client))

    found = asyncio.run(run())
    click.echo(json.dumps(found.as_json()) if as_json else found.as_text())
