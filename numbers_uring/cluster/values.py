"""The values in the buckets of a cluster, and their names there: what is written, and read again.

Anyone with the rights may have written what is read: what makes no sense raises ValueError.
"""

import json
import math
import re
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field, fields
from typing import NamedTuple

from numbers_uring.cluster.checkpoints import Point
from numbers_uring.limits import BUCKET_TEXT_CHARACTERS_MAX, PARTITIONS_MAX

SETTINGS = "settings"
"""The name of the settings; those of the others are made by `copy_name` and so on."""

_COPY = re.compile(r"copy\.([0-9]{1,4})\.([0-9A-Za-z_-]+)")
_SKIP = re.compile(r"skip\.([0-9]{1,4})\.([0-9]{1,20})")
_TRIM = re.compile(r"trim\.([0-9]{1,4})")


def copy_name(partition: int, copy: str) -> str:
    return f"copy.{partition}.{copy}"


def skip_name(partition: int, sequence: int) -> str:
    return f"skip.{partition}.{sequence}"


def trim_name(partition: int) -> str:
    return f"trim.{partition}"


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


COPY_FIELDS = [
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


class Value(NamedTuple):
    """What is stored at a name."""

    data: bytes
    revision: int
    time_s: float
    deleted: bool


def is_of(name: str, partitions: Collection[int] | None) -> bool:
    """Return whether the name is about one of these partitions, or about all."""
    if partitions is None or name == SETTINGS:
        return True
    parts = name.split(".")
    return len(parts) > 1 and parts[1].isdecimal() and int(parts[1]) in partitions


def printable(text: str) -> str:
    """Return it without what would end a line, or command a terminal."""
    shown = "".join(each if each.isprintable() else "?" for each in text)
    return shown[:BUCKET_TEXT_CHARACTERS_MAX]


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
        return printable(value)

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


def parse_settings(value: Value) -> Settings:
    """Return the settings of the cluster. Raises ValueError."""
    found = _Object(value.data)
    settings = Settings(
        partitions=found.count("partitions"),
        copies=found.count("copies"),
        keep_s=found.seconds("keep_s"),
    )
    if not 1 <= settings.partitions <= PARTITIONS_MAX:
        raise ValueError(f"{settings.partitions} is not a number of partitions")
    return settings


def add_value(contents: Contents, name: str, value: Value, now_s: float) -> None:
    """Add what is stored at a name to the contents. Raises ValueError."""
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


def _copy(partition: int, copy: str, value: Value, now_s: float) -> Copy:
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


def parse_node(run: str, value: Value, now_s: float) -> Node:
    """Return what the node of that run reports. Raises ValueError."""
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
