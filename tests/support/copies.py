"""Copies of partitions: collectors that report at once, and what the bucket has of them."""

from pathlib import Path

from nats.js import JetStreamContext

from numbers_uring.cluster.bucket import Buckets
from numbers_uring.cluster.partitions import index_name, log_name, stream_name
from numbers_uring.cluster.values import Copy, Settings
from support.broker import Broker

LIMITS = {
    "COPY_TELL_S": 0.1,
    "COPIES_READ_S": 0.2,
    "COPY_POLL_S": 0.1,
    "INDEX_SYNC_INTERVAL_S": 0.05,
}
"""What processes of `environment` have in place of seconds that are for a cluster in earnest."""


def environment(folder: Path) -> dict[str, str]:
    """Return the environment of processes that report, compare and trim several times a second."""
    folder.mkdir(exist_ok=True)
    lines = ["from numbers_uring import limits", *(f"limits.{k} = {v}" for k, v in LIMITS.items())]
    (folder / "sitecustomize.py").write_text("\n".join(lines))
    return {"PYTHONPATH": str(folder)}


def registered(broker: Broker, partition: int) -> dict[str, Copy]:
    """Return the copies of a partition, by the file of their log."""

    async def read(js: JetStreamContext) -> dict[str, Copy]:
        contents = await Buckets(js).read([partition], fresh=True)
        return {copy.log: copy for copy in contents.copies}

    return broker.run(read)


def copy_in(broker: Broker, partition: int, folder: Path) -> Copy | None:
    """Return what is registered of the copy of a partition in this folder."""
    return registered(broker, partition).get(str(folder / log_name(partition)))


def stream_ends(broker: Broker, partition: int) -> tuple[int, int]:
    """Return the first and the last message of a partition's stream."""

    async def ask(js: JetStreamContext) -> tuple[int, int]:
        state = (await js.stream_info(stream_name(partition))).state
        return state.first_seq, state.last_seq

    return broker.run(ask)


def want_copies(broker: Broker, partitions: int, copies: int, keep_s: float) -> None:
    """Record how many copies there are to be, and how long messages are kept."""

    async def put(js: JetStreamContext) -> None:
        settings = Settings(partitions=partitions, copies=copies, keep_s=keep_s)
        await Buckets(js).put_settings(settings, new=False)

    broker.run(put)


def files_of(folder: Path, partition: int) -> tuple[Path, Path]:
    """Return the index and the log of a partition: in the order in which they are copied."""
    return folder / index_name(partition), folder / log_name(partition)
