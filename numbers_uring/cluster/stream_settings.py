"""The settings that the streams and buckets of a cluster need, and what is wrong with others.

Facts of nats-server 2.15 that it relies on:

- `discard new` turns a full stream into a refusal of the next message; the default throws away the
  oldest one.
- A limit by messages beside one by bytes has lost messages without a word (nats-server issue
  4771), so there is one limit alone.
- A message may bring a time to live, or remove all others of its subject, where a stream allows it.
- A group of replicas acknowledges a message when most of them have written it; whether they have
  synced it is set at the server (`sync_interval`), and can't be seen from here
  (nats-server issue 7564).
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

from numbers_uring.cluster.bucket import CLUSTER_BUCKET, NODES_BUCKET, bucket_stream
from numbers_uring.cluster.partitions import NUMBER_BYTES, stream_name, subject_name
from numbers_uring.limits import (
    DUPLICATE_WINDOW_S,
    FORWARD_BATCH_BYTES,
    FORWARD_HEADER_BYTES_MAX,
    MESSAGE_BYTES_MAX,
    NANOSECONDS_PER_S,
    NODES_BYTES_MAX,
    NODES_KEEP_S,
    NUMBERS,
    STREAM_NUMBERS_TIMES,
)

Json = dict[str, Any]

BUCKETS = {CLUSTER_BUCKET: 0.0, NODES_BUCKET: NODES_KEEP_S}
"""How long each bucket keeps a value, in seconds; 0: without limit."""

_BUCKET_BYTES_MAX = {NODES_BUCKET: NODES_BYTES_MAX}
"""The limit of a bucket that one who may write to it could use to fill the disks."""

_BATCH_BYTES = FORWARD_BATCH_BYTES + FORWARD_HEADER_BYTES_MAX


# What is made.


def default_max_bytes(partitions: int) -> int:
    return -(-STREAM_NUMBERS_TIMES * NUMBERS * NUMBER_BYTES // partitions)


def stream_config(partition: int, *, replicas: int, max_bytes: int) -> Json:
    """Return the configuration of a partition's stream, as the NATS server takes it."""
    return {
        "name": stream_name(partition),
        "description": "Batches of new numbers: unsigned 32 bits each, little-endian",
        "subjects": [subject_name(partition)],
        "retention": "limits",
        "storage": "file",
        "discard": "new",
        "num_replicas": replicas,
        "max_bytes": max_bytes,
        "max_msgs": -1,
        "max_msgs_per_subject": -1,
        "max_msg_size": MESSAGE_BYTES_MAX,
        "max_consumers": -1,
        "max_age": 0,
        "duplicate_window": round(DUPLICATE_WINDOW_S * NANOSECONDS_PER_S),
        "allow_direct": True,
    }


def bucket_config(bucket: str, *, replicas: int) -> Json:
    """Return the configuration of a bucket's stream: what nats-py and the tool nats would make."""
    keep_s = BUCKETS[bucket]
    window_s = min(keep_s, DUPLICATE_WINDOW_S) if keep_s else DUPLICATE_WINDOW_S
    return {
        "name": bucket_stream(bucket),
        "subjects": [f"$KV.{bucket}.>"],
        "retention": "limits",
        "storage": "file",
        "discard": "new",
        "num_replicas": replicas,
        "max_bytes": _BUCKET_BYTES_MAX.get(bucket, -1),
        "max_msgs": -1,
        "max_msgs_per_subject": 1,
        "max_msg_size": -1,
        "max_consumers": -1,
        "max_age": round(keep_s * NANOSECONDS_PER_S),
        "duplicate_window": round(window_s * NANOSECONDS_PER_S),
        "allow_direct": True,
        "allow_rollup_hdrs": True,
        "deny_delete": True,
    }


# What is wrong.


class _Need(NamedTuple):
    """What a setting has to be."""

    name: str
    wanted: object
    change: str | None
    """What `nats stream edit` needs to change it; None if only a new stream has another value."""
    at_least: bool = False


def _stream_needs(partition: int) -> list[_Need]:
    window_ns = round(DUPLICATE_WINDOW_S * NANOSECONDS_PER_S)
    return [
        _Need("subjects", [subject_name(partition)], f"--subjects {subject_name(partition)}"),
        _Need("storage", "file", None),
        _Need("retention", "limits", None),
        _Need("discard", "new", "--discard new"),
        _Need("no_ack", False, "--ack"),
        _Need("max_age", 0, "--max-age 0s"),
        _Need("max_msgs", -1, "--max-msgs=-1"),
        _Need("max_msgs_per_subject", -1, "--max-msgs-per-subject=-1"),
        _Need("max_consumers", -1, None),
        _Need("max_msg_size", _BATCH_BYTES, f"--max-msg-size {MESSAGE_BYTES_MAX}", at_least=True),
        _Need("duplicate_window", window_ns, "--dupe-window 2m", at_least=True),
        _Need("persist_mode", "default", None),
        _Need("sealed", False, None),
        _Need("mirror", None, None),
        _Need("sources", None, None),
        _Need("subject_transform", None, None),
        _Need("deny_purge", False, None),
        _Need("allow_rollup_hdrs", False, "--no-allow-rollup"),
        _Need("allow_msg_ttl", False, None),
        _Need("allow_direct", True, "--allow-direct"),
    ]


def _bucket_needs(bucket: str) -> list[_Need]:
    keep_s, max_bytes = BUCKETS[bucket], _BUCKET_BYTES_MAX.get(bucket, -1)
    return [
        _Need("subjects", [f"$KV.{bucket}.>"], f"--subjects '$KV.{bucket}.>'"),
        _Need("storage", "file", None),
        _Need("retention", "limits", None),
        _Need("no_ack", False, "--ack"),
        _Need("max_age", round(keep_s * NANOSECONDS_PER_S), f"--max-age {keep_s:.0f}s"),
        _Need("max_msgs", -1, "--max-msgs=-1"),
        _Need("max_bytes", max_bytes, f"--max-bytes={max_bytes}"),
        _Need("max_msgs_per_subject", 1, "--max-msgs-per-subject=1"),
        _Need("sealed", False, None),
        _Need("allow_direct", True, "--allow-direct"),
    ]


_ABSENT = {"persist_mode": "default", "max_msgs_per_subject": -1, "max_age": 0}
"""What a setting is if the NATS server does not name it; others are false or 0 then."""


def wrong_stream_settings(partition: int, config: Json) -> Iterator[str]:
    """Yield a line for each setting that breaks the promise, with what changes it."""
    name = stream_name(partition)
    for need, value in _wrong(_stream_needs(partition), config):
        yield (
            f"the stream {name} has {need.name} {_text(need.name, value)} but needs "
            f"{_text(need.name, need.wanted)}{' or more' if need.at_least else ''}: "
        ) + (
            f"'nats stream rm {name}' and 'numbers-uring cluster init' make it again, without its "
            "messages"
            if need.change is None
            else f"'nats stream edit {name} {need.change}' changes it"
        )


def wrong_bucket_settings(bucket: str, config: Json) -> Iterator[str]:
    """Yield a line for each setting that breaks the promise, with what changes it."""
    for need, value in _wrong(_bucket_needs(bucket), config):
        yield (
            f"the bucket {bucket} has {need.name} {_text(need.name, value)} but needs "
            f"{_text(need.name, need.wanted)}: "
        ) + (
            f"'nats kv rm {bucket}' and 'numbers-uring cluster init' make it again, without its "
            "values"
            if need.change is None
            else f"'nats stream edit {bucket_stream(bucket)} {need.change}' changes it"
        )


def _wrong(needs: list[_Need], config: Json) -> Iterator[tuple[_Need, Any]]:
    for need in needs:
        wanted: Any = need.wanted
        value: Any = config.get(need.name) or _ABSENT.get(need.name, type(wanted)())
        # No limit may be written as 0, too.
        if wanted == -1 and value == 0:
            continue
        if need.at_least and value == -1:
            continue
        if not (value >= wanted if need.at_least else value == wanted):
            yield need, value


def _text(name: str, value: Any) -> str:
    if name in {"max_age", "duplicate_window"}:
        return f"{value / NANOSECONDS_PER_S:g} s"
    if isinstance(value, list):
        return ",".join(map(str, value))
    if isinstance(value, bool):
        return "on" if value else "off"
    if value is None:
        return "none"
    return "-1, no limit" if value == -1 else str(value)
