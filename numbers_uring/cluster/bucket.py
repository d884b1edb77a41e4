"""The buckets of a cluster: the only place that knows their keys, and the form of their values.

`numbers-cluster` keeps settings, copies, skips and trims for good, `numbers-nodes` keeps what nodes
report for NODES_KEEP_S. Every key begins with the version of all this, VERSION.

Facts of nats-server 2.15 that it relies on:

- A bucket is a stream, a key is a subject of it, and its value is the subject's last message. A
  deleted key has a last message, too, with a header that says so.
- STREAM.INFO with a filter returns all subjects at once, from the stream's leader, and its clock.
- DIRECT.GET with `multi_last` returns the last messages of up to 1,024 subjects at once. Any
  replica may answer, so a value may be a moment old.

Not nats-py's KeyValue: that asks twice for each key, and has no way to ask for many at once.
"""

import asyncio
import json
import math
import re
import time
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields
from datetime import datetime
from typing import TYPE_CHECKING, Any, NamedTuple

from numbers_uring.cluster.checkpoints import Point
from numbers_uring.cluster.connection import request_api
from numbers_uring.errors import StartError
from numbers_uring.limits import (
    BROKER_ASK_AGAIN_S,
    BROKER_REQUEST_TRIES,
    BUCKET_KEYS_MAX,
    BUCKET_TEXT_CHARACTERS_MAX,
    BUCKET_VALUES_AT_ONCE,
    PARTITIONS_MAX,
)

if TYPE_CHECKING:
    from nats.js import JetStreamContext

CLUSTER_BUCKET = "numbers-cluster"
NODES_BUCKET = "numbers-nodes"

VERSION = 1
_PREFIX = f"v{VERSION}."
_SETTINGS = "settings"
_COPY = re.compile(r"copy\.([0-9]{1,4})\.([0-9A-Za-z_-]+)")
_SKIP = re.compile(r"skip\.([0-9]{1,4})\.([0-9]{1,20})")
_TRIM = re.compile(r"trim\.([0-9]{1,4})")

_WRONG_LAST_SEQUENCE = {10071, 10164}
"""What the NATS server answers where a key has changed meanwhile."""


class VersionError(StartError):
    """The bucket was written by another version; its text is the one line for the user."""


class NoClusterError(StartError):
    """There is no bucket, or nothing in it; its text is the one line for the user."""


class ChangedError(Exception):
    """The key has changed since the revision that was named."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What the cluster was made with."""

    partitions: int
    copies: int = 0
    """How many copies of each partition there are to be; streams are trimmed only with them."""
    keep_s: float = 0.0
    """How old a message is before it may be trimmed; 0: nothing is trimmed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Copy:
    """What a collector reports of one partition; all below `state` is of the last synced record."""

    partition: int
    copy: str
    """The id of its folder."""
    run: str
    """The id of its process."""
    host: str
    log: str
    place: str
    """Tells its folder from a copy of that; see collector/identity.py."""
    state: str
    """What it does, in a word or two."""
    waits: str | None = None
    """Why it does not go on; None if it does."""
    per_s: float = 0.0
    """How many numbers it took in recently, new and repeated."""
    time: float = field(default_factory=time.time)
    """When this was written, by the clock of its host."""
    stream_created_ns: int = 0
    """Tells the stream from others of the same name."""
    sequence: int = 0
    message_time_ns: int = 0
    log_bytes: int = 0
    count: int = 0
    sum: int = 0
    points: tuple[Point, ...] = ()
    """Of earlier messages, which other copies may have, too."""
    revision: int = 0
    """Of the key: not written, but read."""
    age_s: float = 0.0
    """How long ago the NATS server stored it, by its own clock: not written, but read."""


_COPY_FIELDS = [
    each.name
    for each in fields(Copy)
    if each.name not in {"partition", "copy", "revision", "age_s"}
]
"""What is in the value of a copy. Not asdict(), which takes ten times as long for its points."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Skip:
    """An operator's decision that all copies pass over some messages of a stream."""

    partition: int
    sequence: int
    """The first one."""
    last_sequence: int
    stream_created_ns: int
    """Of the stream that it is about: another one of the same name has other messages."""
    by: str
    why: str
    time: float = field(default_factory=time.time)


class Trim(NamedTuple):
    """An announcement: the messages before `sequence` are going to be purged."""

    sequence: int
    stream_created_ns: int
    revision: int = 0
    """Of the key: not written, but read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """What a node reports of itself."""

    run: str
    host: str
    unique: int
    duplicate: int
    acknowledged: int
    in_flight: int
    clients: int
    time: float = field(default_factory=time.time)
    """When this was written, by the clock of its host."""
    age_s: float = 0.0
    """How long ago the NATS server stored it, by its own clock: not written, but read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Contents:
    """What is in the bucket `numbers-cluster`."""

    settings: Settings
    copies: list[Copy] = field(default_factory=list)
    skips: list[Skip] = field(default_factory=list)
    trims: dict[int, Trim] = field(default_factory=dict)
    """By partition."""
    unreadable: list[str] = field(default_factory=list)
    """A line for each value that makes no sense, and was left out."""


class Buckets:
    """The buckets at the NATS server of `js`.

    All calls raise what the client raises: nats.errors.Error, TimeoutError, OSError. A key that
    vanishes between two of them is a key that is not there.
    """

    def __init__(self, js: "JetStreamContext") -> None:
        self._js = js
        self._client = js._nc  # it has no public name

    # The bucket `numbers-cluster`.

    async def check_version(self) -> None:
        """Raise VersionError where a bucket that exists has keys of another version."""
        for bucket in (CLUSTER_BUCKET, NODES_BUCKET):
            try:
                await self._names(bucket)
            except NoClusterError:
                continue

    async def settings(self) -> Settings:
        """Return what the cluster was made with.

        Raises StartError where there is no cluster, or one of another version.
        """
        await self._names(CLUSTER_BUCKET)
        found = await self._last(CLUSTER_BUCKET, _SETTINGS)
        if found is None or found.deleted:
            raise _no_cluster()
        return _settings(found)

    async def put_settings(self, settings: Settings, *, new: bool) -> None:
        """Write them, the first ones if they are `new`. Raises ChangedError if they are not."""
        await self._put(CLUSTER_BUCKET, _SETTINGS, asdict(settings), 0 if new else None)

    async def read(
        self, partitions: Collection[int] | None = None, *, fresh: bool = False
    ) -> Contents:
        """Return all that is there, or all of these partitions: in two requests, if few are found.

        `fresh`: ask for each value by itself, at the leader, because what any replica has may be a
        moment old. No key is ever missed. Raises StartError as `settings` does.
        """
        names, now_s = await self._names(CLUSTER_BUCKET)
        wanted = [name for name in names if _is_of(name, partitions)]
        found = await self._values(CLUSTER_BUCKET, wanted, fresh=fresh)
        settings = found.pop(_SETTINGS, None)
        if settings is None:
            raise _no_cluster()
        contents = Contents(settings=_settings(settings))
        for done, (name, value) in enumerate(sorted(found.items())):
            if done % BUCKET_VALUES_AT_ONCE == 0:
                await asyncio.sleep(0)
            try:
                _add(contents, name, value, now_s)
            except ValueError as error:
                contents.unreadable.append(
                    f"the value of {_PREFIX}{name} in the bucket {CLUSTER_BUCKET} makes no sense: "
                    f"{error}"
                )
        contents.copies.sort(key=lambda copy: (copy.partition, copy.copy))
        return contents

    async def put_copy(self, copy: Copy, *, revision: int | None = None) -> int:
        """Write it; return its revision.

        Raises ChangedError if it has not `revision` by now; 0: if there is one.
        """
        value = {name: getattr(copy, name) for name in _COPY_FIELDS}
        key = f"copy.{copy.partition}.{copy.copy}"
        return await self._put(CLUSTER_BUCKET, key, value, revision)

    async def forget_copy(self, partition: int, copy: str) -> None:
        await self._delete(CLUSTER_BUCKET, f"copy.{partition}.{copy}")

    async def put_skip(self, skip: Skip) -> None:
        value = asdict(skip)
        for name in ("partition", "sequence"):
            del value[name]
        await self._put(CLUSTER_BUCKET, f"skip.{skip.partition}.{skip.sequence}", value)

    async def put_trim(self, partition: int, trim: Trim) -> int:
        """Announce it; return its revision.

        Raises ChangedError if the key has not the revision of `trim` by now; 0: if there is one.
        """
        value = {"sequence": trim.sequence, "stream_created_ns": trim.stream_created_ns}
        return await self._put(CLUSTER_BUCKET, f"trim.{partition}", value, trim.revision)

    # The bucket `numbers-nodes`.

    async def put_node(self, node: Node) -> None:
        value = asdict(node)
        for name in ("run", "age_s"):
            del value[name]
        await self._put(NODES_BUCKET, node.run, value)

    async def delete_node(self, run: str) -> None:
        await self._delete(NODES_BUCKET, run)

    async def nodes(self) -> tuple[list[Node], list[str]]:
        """Return what nodes report, and a line for each value that makes no sense."""
        names, now_s = await self._names(NODES_BUCKET)
        nodes, unreadable = [], []
        for run, value in sorted((await self._values(NODES_BUCKET, names)).items()):
            try:
                nodes.append(_node(run, value, now_s))
            except ValueError as error:
                unreadable.append(
                    f"the value of {_PREFIX}{run} in the bucket {NODES_BUCKET} makes no sense: "
                    f"{error}"
                )
        return nodes, unreadable

    # Keys and values, without the version in their names.

    async def _names(self, bucket: str) -> tuple[list[str], float]:
        """Return the names of all keys, deleted ones too, and the NATS server's time.

        Raises StartError where there is no bucket, or one of another version.
        """
        from nats.js.errors import NotFoundError  # noqa: PLC0415

        names: list[str] = []
        while True:
            request = {"subjects_filter": ">", "offset": len(names)}
            try:
                info = await request_api(self._js, f"STREAM.INFO.{_stream(bucket)}", request)
            except NotFoundError:
                raise _no_cluster() from None
            some = info["state"].get("subjects") or {}
            names.extend(each.removeprefix(f"$KV.{bucket}.") for each in some)
            if not some or len(names) >= info.get("total", 0):
                break
        foreign = [name for name in names if not name.startswith(_PREFIX)]
        for name in foreign:
            there = await self._last(bucket, name, prefix="")
            if there is not None and not there.deleted:
                raise _other_version(bucket, name)
        own = [name.removeprefix(_PREFIX) for name in names if name.startswith(_PREFIX)]
        return own, _seconds(info["ts"])

    async def _values(
        self, bucket: str, names: list[str], *, fresh: bool = False
    ) -> "dict[str, _Value]":
        """Return the values of these keys that are there and not deleted."""
        found: dict[str, _Value] = {}
        if not fresh:
            some = [
                names[first : first + BUCKET_KEYS_MAX]
                for first in range(0, len(names), BUCKET_KEYS_MAX)
            ]
            for each in await asyncio.gather(*(self._batch(bucket, few) for few in some)):
                found.update(each)
        # A replica that is behind does not have the newest keys yet.
        missing = [name for name in names if name not in found]
        for first in range(0, len(missing), BUCKET_KEYS_MAX):
            few = missing[first : first + BUCKET_KEYS_MAX]
            answers = await asyncio.gather(*(self._last(bucket, name) for name in few))
            found.update(
                (name, value) for name, value in zip(few, answers, strict=True) if value is not None
            )
        return {name: value for name, value in found.items() if not value.deleted}

    async def _batch(self, bucket: str, names: list[str]) -> "dict[str, _Value]":
        """Ask any replica for the values of up to BUCKET_KEYS_MAX keys.

        One that is silent is chosen again and again until the others notice: so this ends with
        nothing after BROKER_REQUEST_TRIES.
        """
        for _ in range(BROKER_REQUEST_TRIES):
            with suppress(TimeoutError):
                return await self._batch_of_one(bucket, names)
        return {}

    async def _batch_of_one(self, bucket: str, names: list[str]) -> "dict[str, _Value]":
        subjects = {f"$KV.{bucket}.{_PREFIX}{name}": name for name in names}
        found: dict[str, _Value] = {}
        inbox = self._client.new_inbox()
        answers = await self._client.subscribe(inbox)
        try:
            request: dict[str, object] = {"multi_last": list(subjects)}
            while True:
                await self._client.publish(
                    f"$JS.API.DIRECT.GET.{_stream(bucket)}", json.dumps(request).encode(), inbox
                )
                # A control message names no subject, whatever headers a value brings.
                while "Nats-Subject" in (
                    headers := (answer := await answers.next_msg(BROKER_ASK_AGAIN_S)).headers or {}
                ):
                    name = subjects.get(headers["Nats-Subject"])
                    if name is not None:
                        found[name] = _Value(
                            answer.data,
                            int(headers["Nats-Sequence"]),
                            _seconds(headers["Nats-Time-Stamp"]),
                            _is_marker(headers),
                        )
                if headers.get("Status") != "204" or headers.get("Nats-Num-Pending") == "0":
                    return found
                # There is a limit to the bytes of one answer.
                request["seq"] = int(headers["Nats-Last-Sequence"]) + 1
                request["up_to_seq"] = int(headers["Nats-UpTo-Sequence"])
        finally:
            await answers.unsubscribe()

    async def _last(self, bucket: str, name: str, prefix: str = _PREFIX) -> "_Value | None":
        """Ask the leader for the key's value, or for what stands for its deletion."""
        from nats.js.errors import NotFoundError  # noqa: PLC0415

        try:
            message = await self._js.get_last_msg(_stream(bucket), f"$KV.{bucket}.{prefix}{name}")
        except NotFoundError:
            return None
        at_s = 0.0 if message.time is None else message.time.timestamp()
        return _Value(message.data or b"", message.seq or 0, at_s, _is_marker(message.headers))

    async def _put(
        self, bucket: str, name: str, value: dict[str, Any], revision: int | None = None
    ) -> int:
        from nats.js.errors import APIError  # noqa: PLC0415

        """Write it; 0 as the revision stands for a key that is not there, or deleted."""
        headers = None
        if revision is not None:
            headers = {"Nats-Expected-Last-Subject-Sequence": str(revision)}
        try:
            stored = await self._js.publish(
                f"$KV.{bucket}.{_PREFIX}{name}", json.dumps(value).encode(), headers=headers
            )
        except APIError as error:
            if error.err_code not in _WRONG_LAST_SEQUENCE:
                raise
            there = None if revision else await self._last(bucket, name)
            if there is None or not there.deleted:
                raise ChangedError from error
            return await self._put(bucket, name, value, there.revision)
        return stored.seq

    async def _delete(self, bucket: str, name: str) -> None:
        await self._js.publish(f"$KV.{bucket}.{_PREFIX}{name}", headers={"KV-Operation": "DEL"})


class _Value(NamedTuple):
    data: bytes
    revision: int
    time_s: float
    deleted: bool


def _stream(bucket: str) -> str:
    return f"KV_{bucket}"


def _is_marker(headers: dict[str, str] | None) -> bool:
    """Return whether a message with these headers stands for a key that was deleted."""
    return headers is not None and (
        headers.get("KV-Operation") in {"DEL", "PURGE"} or "Nats-Marker-Reason" in headers
    )


def _seconds(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def _is_of(name: str, partitions: Collection[int] | None) -> bool:
    if partitions is None or name == _SETTINGS:
        return True
    parts = name.split(".")
    return len(parts) > 1 and parts[1].isdecimal() and int(parts[1]) in partitions


def _no_cluster() -> NoClusterError:
    return NoClusterError("the NATS server has no cluster yet: run 'numbers-uring cluster init'")


def _other_version(bucket: str, name: str) -> VersionError:
    match = re.match(r"v([0-9]+)\.", name)
    of = "no version" if match is None else f"version {match[1]}"
    return VersionError(
        f"the bucket {bucket} has names of {of}, such as {_printable(name)}: this numbers-uring "
        f"uses version {VERSION}"
    )


def _printable(text: str) -> str:
    """Return it without what would end a line, or command a terminal."""
    shown = "".join(each if each.isprintable() else "?" for each in text)
    return shown[:BUCKET_TEXT_CHARACTERS_MAX]


# What values mean. Anyone with the rights may have written them. All raise ValueError.


class _Object:
    """A JSON object whose fields are read with their types."""

    def __init__(self, data: bytes) -> None:
        try:
            self._fields = json.loads(data)
        except (ValueError, RecursionError):
            raise ValueError("it is no JSON") from None
        if not isinstance(self._fields, dict):
            raise ValueError("it is no JSON object")

    def count(self, name: str) -> int:
        return _count(self._fields.get(name), name)

    def seconds(self, name: str) -> float:
        value = self._fields.get(name)
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not 0 <= value < math.inf:
            raise ValueError(f"{name} is no number")
        return float(value)

    def text(self, name: str) -> str:
        value = self._fields.get(name)
        if not isinstance(value, str):
            raise ValueError(f"{name} is no text")
        return _printable(value)

    def text_or_none(self, name: str) -> str | None:
        return None if self._fields.get(name) is None else self.text(name)

    def points(self, name: str) -> Iterator[Point]:
        values = self._fields.get(name)
        if not isinstance(values, list):
            raise ValueError(f"{name} is no list")
        for value in values:
            if not isinstance(value, list) or len(value) != len(Point._fields):
                raise ValueError(f"{name} has what is no point")
            yield Point(*(_count(each, name) for each in value))


def _count(value: object, name: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**64:
        raise ValueError(f"{name} is no count")
    return value


def _settings(value: _Value) -> Settings:
    """Raises StartError."""
    try:
        fields = _Object(value.data)
        settings = Settings(
            partitions=fields.count("partitions"),
            copies=fields.count("copies"),
            keep_s=fields.seconds("keep_s"),
        )
        if not 1 <= settings.partitions <= PARTITIONS_MAX:
            raise ValueError(f"{settings.partitions} is not a number of partitions")
    except ValueError as error:
        raise StartError(
            f"the value of {_PREFIX}{_SETTINGS} in the bucket {CLUSTER_BUCKET} makes no sense: "
            f"{error}"
        ) from error
    return settings


def _add(contents: Contents, name: str, value: _Value, now_s: float) -> None:
    if (match := _COPY.fullmatch(name)) is not None:
        partition = _partition(match[1], contents.settings)
        contents.copies.append(_copy(partition, match[2], value, now_s))
    elif (match := _SKIP.fullmatch(name)) is not None:
        partition = _partition(match[1], contents.settings)
        fields = _Object(value.data)
        contents.skips.append(
            Skip(
                partition=partition,
                sequence=_count(int(match[2]), "its sequence"),
                last_sequence=fields.count("last_sequence"),
                stream_created_ns=fields.count("stream_created_ns"),
                by=fields.text("by"),
                why=fields.text("why"),
                time=fields.seconds("time"),
            )
        )
    elif (match := _TRIM.fullmatch(name)) is not None:
        partition = _partition(match[1], contents.settings)
        fields = _Object(value.data)
        contents.trims[partition] = Trim(
            fields.count("sequence"), fields.count("stream_created_ns"), value.revision
        )
    else:
        raise ValueError("it has no meaning in this version")


def _partition(text: str, settings: Settings) -> int:
    if int(text) >= settings.partitions:
        raise ValueError(f"the cluster has {settings.partitions} partitions")
    return int(text)


def _copy(partition: int, copy: str, value: _Value, now_s: float) -> Copy:
    fields = _Object(value.data)
    return Copy(
        partition=partition,
        copy=copy,
        run=fields.text("run"),
        host=fields.text("host"),
        log=fields.text("log"),
        place=fields.text("place"),
        stream_created_ns=fields.count("stream_created_ns"),
        state=fields.text("state"),
        waits=fields.text_or_none("waits"),
        per_s=fields.seconds("per_s"),
        time=fields.seconds("time"),
        sequence=fields.count("sequence"),
        message_time_ns=fields.count("message_time_ns"),
        log_bytes=fields.count("log_bytes"),
        count=fields.count("count"),
        sum=fields.count("sum"),
        points=tuple(fields.points("points")),
        revision=value.revision,
        age_s=max(0.0, now_s - value.time_s),
    )


def _node(run: str, value: _Value, now_s: float) -> Node:
    fields = _Object(value.data)
    return Node(
        run=run,
        host=fields.text("host"),
        unique=fields.count("unique"),
        duplicate=fields.count("duplicate"),
        acknowledged=fields.count("acknowledged"),
        in_flight=fields.count("in_flight"),
        clients=fields.count("clients"),
        time=fields.seconds("time"),
        age_s=max(0.0, now_s - value.time_s),
    )
