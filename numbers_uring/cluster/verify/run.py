"""Verifies the logs in some folders against the streams of a cluster, partition by partition."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from numbers_uring.cluster.bucket import Buckets
from numbers_uring.cluster.connection import broker_errors
from numbers_uring.cluster.partitions import parse_partitions
from numbers_uring.cluster.verify.partition import verify_partition
from numbers_uring.cluster.verify.report import Report
from numbers_uring.errors import StartError

if TYPE_CHECKING:
    from nats.js import JetStreamContext


async def verify_cluster(
    js: "JetStreamContext",
    folders: Sequence[Path],
    wanted: str | None,
    progress: Callable[[int], None],
) -> Report:
    """Return what the logs in `folders` and the streams have.

    `wanted` is a list of partitions such as 0-3,8; None stands for all. `progress` is called with
    the sizes of logs that were read. One partition is in memory at a time. Raises StartError.
    """
    with broker_errors("verify the cluster"):
        contents = await Buckets(js).read()
        partitions = contents.settings.partitions
        try:
            numbers = (
                list(range(partitions)) if wanted is None else parse_partitions(wanted, partitions)
            )
        except ValueError as error:
            raise StartError(f"--partitions: {error}") from error
        return Report(
            [
                await verify_partition(
                    js,
                    partition,
                    partitions,
                    folders,
                    contents.skips,
                    contents.trims.get(partition),
                    progress,
                )
                for partition in numbers
            ]
        )


def logs_bytes(folders: Sequence[Path]) -> int:
    """Return how many bytes the logs in some folders have. Raises StartError."""
    size = 0
    for folder in folders:
        try:
            size += sum(log.stat().st_size for log in folder.iterdir() if log.suffix == ".log")
        except OSError as error:
            raise StartError(f"cannot read the folder {folder}: {error.strerror}") from error
    return size
