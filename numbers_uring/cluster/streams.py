"""The streams and buckets of a cluster: made, and checked for what keeps its promise.

What it stands on, of nats-server 2.15:

- `discard new` turns a full stream into a refusal of the next message; the default throws away the
  oldest one.
- A limit by messages beside one by bytes has lost messages without a word (nats-server issue
  4771), so there is one limit alone.
- A group of replicas acknowledges a message when most of them have written it; whether they have
  synced it is set at the server (`sync_interval`), and can't be seen from here
  (nats-server issue 7564).
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar

from numbers_uring.cluster.bucket import (
    CLUSTER_BUCKET,
    NODES_BUCKET,
    Buckets,
    ChangedError,
    Settings,
)
from numbers_uring.cluster.connection import broker_errors
from numbers_uring.cluster.partitions import (
    LEASES_BUCKET,
    NUMBER_BYTES,
    stream_name,
    subject_name,
)
from numbers_uring.errors import StartError
from numbers_uring.limits import (
    DUPLICATE_WINDOW_S,
    LEASE_S,
    MESSAGE_BYTES_MAX,
    NODES_KEEP_S,
    NUMBERS,
    STREAM_NUMBERS_TIMES,
    STREAM_REQUESTS_MAX,
)

if TYPE_CHECKING:
    from nats.js import JetStreamContext
    from nats.js.api import StreamConfig

T = TypeVar("T")

_BUCKETS = {CLUSTER_BUCKET: None, LEASES_BUCKET: LEASE_S, NODES_BUCKET: NODES_KEEP_S}
"""How long each one keeps a value, in seconds; None: without limit."""


def _default_max_bytes(partitions: int) -> int:
    return -(-STREAM_NUMBERS_TIMES * NUMBERS * NUMBER_BYTES // partitions)


async def init_cluster(
    js: "JetStreamContext", partitions: int, *, replicas: int, max_bytes: int | None
) -> int:
    """Create missing streams and buckets; return the number of streams created.

    What is there already stays as it is, and is checked. `max_bytes` is of each stream; None
    stands for room for each number of its partition STREAM_NUMBERS_TIMES. Raises StartError.
    """
    with broker_errors("make the cluster's buckets"):
        for bucket, ttl_s in _BUCKETS.items():
            await _make_bucket(js, bucket, ttl_s, replicas)
        buckets = Buckets(js)
        await buckets.check_version()
        with suppress(ChangedError):
            await buckets.put_settings(Settings(partitions=partitions), new=True)
    await _check_number(js, partitions)
    made = 0
    with broker_errors("make the cluster's streams"):
        for partition in range(partitions):
            made += await _make_stream(js, partition, partitions, replicas, max_bytes)
    await check_streams(js, partitions)
    return made


async def _make_bucket(
    js: "JetStreamContext", bucket: str, ttl_s: float | None, replicas: int
) -> None:
    from nats.js.api import KeyValueConfig, StorageType  # noqa: PLC0415
    from nats.js.errors import NotFoundError  # noqa: PLC0415

    try:
        await js.key_value(bucket)
    except NotFoundError:
        await js.create_key_value(
            KeyValueConfig(
                bucket,
                ttl=ttl_s,
                storage=StorageType.FILE,
                replicas=replicas,
                direct=bucket != LEASES_BUCKET,
            )
        )


async def _make_stream(
    js: "JetStreamContext", partition: int, partitions: int, replicas: int, max_bytes: int | None
) -> bool:
    from nats.js.api import (  # noqa: PLC0415
        DiscardPolicy,
        RetentionPolicy,
        StorageType,
        StreamConfig,
    )
    from nats.js.errors import NotFoundError  # noqa: PLC0415

    try:
        there = (await js.stream_info(stream_name(partition))).config
        for setting, value, wanted in (
            ("replicas", there.num_replicas, replicas),
            ("max_bytes", there.max_bytes, max_bytes),
        ):
            if wanted not in {None, value}:
                raise StartError(
                    f"the stream {stream_name(partition)} exists with {setting} {value}, not "
                    f"{wanted}: 'nats stream edit {stream_name(partition)}' changes it"
                )
    except NotFoundError:
        await js.add_stream(
            StreamConfig(
                name=stream_name(partition),
                description="Batches of new numbers: unsigned 32 bits each, little-endian",
                subjects=[subject_name(partition)],
                retention=RetentionPolicy.LIMITS,
                storage=StorageType.FILE,
                discard=DiscardPolicy.NEW,
                num_replicas=replicas,
                max_bytes=max_bytes or _default_max_bytes(partitions),
                max_msgs=-1,
                max_msg_size=MESSAGE_BYTES_MAX,
                max_age=0,
                duplicate_window=DUPLICATE_WINDOW_S,
            )
        )
        return True
    return False


async def recorded_partitions(js: "JetStreamContext") -> int:
    """Return how many partitions the cluster was made with. Raises StartError."""
    with broker_errors("read the cluster's settings"):
        return (await Buckets(js).settings()).partitions


async def _check_number(js: "JetStreamContext", partitions: int) -> None:
    recorded = await recorded_partitions(js)
    if recorded != partitions:
        raise StartError(
            f"the cluster has {recorded} partitions, not {partitions}: their ranges differ, so "
            "another number needs other streams, on a NATS server of their own"
        )


async def check_streams(js: "JetStreamContext", partitions: int) -> None:
    """Raise StartError, naming the setting, where a stream would not keep the cluster's promise.

    So it does where the cluster was made with another number of partitions, or not at all.
    """
    await _check_number(js, partitions)
    await each_partition(partitions, lambda partition: _check_stream(js, partition))


async def each_partition(partitions: int, ask: Callable[[int], Awaitable[T]]) -> list[T]:
    """Await it of each partition, some at once, and return the answers in order.

    Raises the first one's error.
    """
    answers: list[T] = []
    for first in range(0, partitions, STREAM_REQUESTS_MAX):
        some = range(first, min(first + STREAM_REQUESTS_MAX, partitions))
        answers.extend(await asyncio.gather(*map(ask, some)))
    return answers


async def _check_stream(js: "JetStreamContext", partition: int) -> None:
    from nats.js.errors import NotFoundError  # noqa: PLC0415

    name = stream_name(partition)
    with broker_errors(f"ask for the stream {name}"):
        try:
            info = await js.stream_info(name)
        except NotFoundError as error:
            raise StartError(
                f"the NATS server has no stream {name}: run 'numbers-uring cluster init'"
            ) from error
    for setting, value, wanted, right in _settings(info.config, partition):
        if not right:
            raise StartError(
                f"the stream {name} has {setting} {value} but needs {wanted}: "
                f"change it with 'nats stream edit {name}', or delete it and create it again"
            )


def _settings(config: "StreamConfig", partition: int) -> Iterator[tuple[str, Any, str, bool]]:
    """Yield each setting that matters: its name, its value, what it has to be, whether it is."""
    from nats.js.api import DiscardPolicy, PersistMode, RetentionPolicy, StorageType  # noqa: PLC0415

    def equal(name: str, value: Any, wanted: Any) -> tuple[str, Any, str, bool]:
        return name, _text(value), _text(wanted), value == wanted

    yield equal("subjects", config.subjects, [subject_name(partition)])
    yield equal("storage", config.storage, StorageType.FILE)
    yield equal("retention", config.retention, RetentionPolicy.LIMITS)
    yield equal("discard", config.discard, DiscardPolicy.NEW)
    yield equal("no_ack", bool(config.no_ack), False)
    yield equal("max_age", config.max_age or 0, 0)
    for name in ("max_msgs", "max_msgs_per_subject"):
        value = getattr(config, name)
        yield name, value, "-1, no limit", value in {None, -1, 0}
    window_s = config.duplicate_window
    yield (
        "duplicate_window",
        f"{window_s:g} s",
        f"{DUPLICATE_WINDOW_S:g} s or more",
        window_s >= DUPLICATE_WINDOW_S,
    )
    mode = config.persist_mode
    yield "persist_mode", _text(mode), "default", mode in {None, PersistMode.DEFAULT, ""}


def _text(value: Any) -> str:
    if isinstance(value, list):
        return ",".join(map(str, value))
    return str(getattr(value, "value", value))
