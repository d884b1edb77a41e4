"""The command `cluster verify`: its options."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from numbers_uring import __version__
from numbers_uring.cli.help import Command, option_group
from numbers_uring.cli.nats_options import access_of, broker_options
from numbers_uring.cli.progress import bar_of_bytes
from numbers_uring.errors import ExitCode
from numbers_uring.system.stdio import PROGRAM

if TYPE_CHECKING:
    from numbers_uring.cluster.verify.report import Report


def _different_folders(
    _context: click.Context, _parameter: click.Parameter, paths: tuple[Path, ...]
) -> tuple[Path, ...]:
    if len({path.resolve() for path in paths}) < len(paths):
        raise click.BadParameter("a folder is given twice.")
    return paths


_EXAMPLES = (
    ("Compare all logs in a folder with the streams:", "cluster verify --log-dir logs"),
    (
        "Compare two copies of the logs, too:",
        "cluster verify --log-dir logs --log-dir /mnt/copy",
    ),
)


@click.command(
    cls=Command,
    examples=_EXAMPLES,
    short_help="Compare the logs with the streams.",
)
@option_group(
    "Verification",
    click.option(
        "--log-dir",
        "folders",
        type=click.Path(path_type=Path, file_okay=False),
        multiple=True,
        required=True,
        metavar="DIR",
        callback=_different_folders,
        help="Verify the logs in this folder. Repeat it for each folder with logs or copies of "
        "them.",
    ),
    click.option(
        "--partitions",
        metavar="LIST",
        help="Verify these partitions, such as 0-3 or 0,2,8-9. Without it, all of the cluster.",
    ),
    click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object."),
)
@broker_options
@click.version_option(__version__, prog_name=PROGRAM)
def verify(
    nats: str, folders: tuple[Path, ...], partitions: str | None, as_json: bool, **options: Any
) -> int:
    """Verify that the logs in all DIRs have what the streams have, and nothing else.

    Each number of a message must be in the log of its partition, once; each line of a log must be
    of a message, unless the messages of that time were trimmed; each index must agree with its log;
    copies of a log must be equal, byte for byte, as far as both indexes say that they are synced.

    Nothing is changed. It can run beside collectors, but a log that is behind its stream is a
    finding: stop the nodes first, and wait until collectors have taken in everything.

    Exit status: 0 clean, 1 findings, 2 wrong usage, 3 the NATS server cannot be reached or has no
    cluster, or a file cannot be read.
    """
    import asyncio

    from numbers_uring.cluster.connection import connected, jetstream
    from numbers_uring.cluster.verify.run import logs_bytes, verify_cluster

    access = access_of(options)

    async def run(progress: Callable[[int], None]) -> "Report":
        async with connected(nats, f"{PROGRAM} cluster verify", access=access) as client:
            return await verify_cluster(jetstream(client), folders, partitions, progress)

    with bar_of_bytes("verifying", logs_bytes(folders)) as progress:
        report = asyncio.run(run(progress))
    click.echo(json.dumps(report.as_json()) if as_json else report.as_text())
    return ExitCode.CLEAN if report.clean else ExitCode.FAILED
