"""The buckets of a cluster: the only place that asks for their keys and writes them.

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
import re
import time
from collections.abc import Collection
from contextlib import suppress
from dataclasses import asdict
from datetime import datetime
from typing import TYPE_CHECKING, Any

from numbers_uring.cluster.connection import request_api
from numbers_uring.cluster.values import (
    COPY_FIELDS,
    SETTINGS,
    Contents,
    Copy,
    Node,
    Settings,
    Skip,
    Trim,
    Value,
    add_value,
    copy_name,
    is_of,
    parse_node,
    parse_settings,
    printable,
    skip_name,
    trim_name,
)
from numbers_uring.errors import StartError
from numbers_uring.limits import (
    BROKER_ASK_AGAIN_S,
    BROKER_REQUEST_S,
    BROKER_REQUEST_TRIES,
    BUCKET_KEYS_MAX,
    BUCKET_VALUES_AT_ONCE,
)

if TYPE_CHECKING:
    from nats.js import JetStreamContext

CLUSTER_BUCKET = "numbers-cluster"
NODES_BUCKET = "numbers-nodes"

VERSION = 1
_PREFIX = f"v{VERSION}."

_WRONG_LAST_SEQUENCE = {10071, 10164}
"""What the NATS server answers where a key has changed meanwhile."""


class VersionError(StartError):
    """The bucket was written by another version; its text is the one line for the user."""


class NoClusterError(StartError):
    """There is no bucket, or nothing in it; its text is the one line for the user."""


class ChangedError(Exception):
    """The key has changed since the revision that was named."""


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
        found = await self._last(CLUSTER_BUCKET, SETTINGS)
        if found is None or found.deleted:
            raise _no_cluster()
        return _settings(found)

    async def put_settings(self, settings: Settings, *, new: bool) -> None:
        """Write them, the first ones if they are `new`. Raises ChangedError if they are not."""
        await self._put(CLUSTER_BUCKET, SETTINGS, asdict(settings), 0 if new else None)

    async def read(
        self, partitions: Collection[int] | None = None, *, fresh: bool = False
    ) -> Contents:
        """Return all that is there, or all of these partitions: in two requests, if few are found.

        `fresh`: ask for each value by itself, at the leader, because what any replica has may be a
        moment old. No key is ever missed. Raises StartError as `settings` does.
        """
        names, now_s = await self._names(CLUSTER_BUCKET)
        wanted = [name for name in names if is_of(name, partitions)]
        found = await self._values(CLUSTER_BUCKET, wanted, fresh=fresh)
        settings = found.pop(SETTINGS, None)
        if settings is None:
            raise _no_cluster()
        contents = Contents(settings=_settings(settings))
        for done, (name, value) in enumerate(sorted(found.items())):
            if done % BUCKET_VALUES_AT_ONCE == 0:
                await asyncio.sleep(0)
            try:
                add_value(contents, name, value, now_s)
            except ValueError as error:
                contents.unreadable.append(_no_sense(CLUSTER_BUCKET, name, error))
        contents.copies.sort(key=lambda copy: (copy.partition, copy.copy))
        return contents

    async def put_copy(self, copy: Copy, *, revision: int | None = None) -> int:
        """Write it; return its revision.

        Raises ChangedError if it has not `revision` by now; 0: if there is one.
        """
        value = {name: getattr(copy, name) for name in COPY_FIELDS}
        name = copy_name(copy.partition, copy.copy)
        return await self._put(CLUSTER_BUCKET, name, value, revision)

    async def forget_copy(self, partition: int, copy: str) -> None:
        await self._delete(CLUSTER_BUCKET, copy_name(partition, copy))

    async def put_skip(self, skip: Skip) -> None:
        value = asdict(skip)
        for name in ("partition", "sequence"):
            del value[name]
        await self._put(CLUSTER_BUCKET, skip_name(skip.partition, skip.sequence), value)

    async def put_trim(self, partition: int, trim: Trim) -> int:
        """Announce it; return its revision.

        Raises ChangedError if the key has not the revision of `trim` by now; 0: if there is one.
        """
        value = {"sequence": trim.sequence, "stream_created_ns": trim.stream_created_ns}
        return await self._put(CLUSTER_BUCKET, trim_name(partition), value, trim.revision)

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
                nodes.append(parse_node(run, value, now_s))
            except ValueError as error:
                unreadable.append(_no_sense(NODES_BUCKET, run, error))
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
                info = await request_api(self._js, f"STREAM.INFO.{bucket_stream(bucket)}", request)
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
    ) -> "dict[str, Value]":
        """Return the values of these keys that are there and not deleted."""
        found: dict[str, Value] = {}
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

    async def _batch(self, bucket: str, names: list[str]) -> "dict[str, Value]":
        """Ask any replica for the values of up to BUCKET_KEYS_MAX keys.

        One that is silent is chosen again and again until the others notice: so this ends with
        nothing after BROKER_REQUEST_TRIES.
        """
        for _ in range(BROKER_REQUEST_TRIES):
            with suppress(TimeoutError):
                return await self._batch_of_one(bucket, names)
        return {}

    async def _batch_of_one(self, bucket: str, names: list[str]) -> "dict[str, Value]":
        subjects = {f"$KV.{bucket}.{_PREFIX}{name}": name for name in names}
        found: dict[str, Value] = {}
        inbox = self._client.new_inbox()
        answers = await self._client.subscribe(inbox)
        try:
            request: dict[str, object] = {"multi_last": list(subjects)}
            while True:
                await self._client.publish(
                    f"$JS.API.DIRECT.GET.{bucket_stream(bucket)}",
                    json.dumps(request).encode(),
                    inbox,
                )
                # A control message names no subject, whatever headers a value brings.
                while "Nats-Subject" in (
                    headers := (answer := await answers.next_msg(BROKER_ASK_AGAIN_S)).headers or {}
                ):
                    name = subjects.get(headers["Nats-Subject"])
                    if name is not None:
                        found[name] = Value(
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

    async def _last(self, bucket: str, name: str, prefix: str = _PREFIX) -> "Value | None":
        """Ask the leader for the key's value, or for what stands for its deletion."""
        from nats.js.errors import NotFoundError  # noqa: PLC0415

        try:
            message = await self._js.get_last_msg(
                bucket_stream(bucket), f"$KV.{bucket}.{prefix}{name}"
            )
        except NotFoundError:
            return None
        at_s = 0.0 if message.time is None else message.time.timestamp()
        return Value(message.data or b"", message.seq or 0, at_s, _is_marker(message.headers))

    async def _put(
        self, bucket: str, name: str, value: dict[str, Any], revision: int | None = None
    ) -> int:
        """Write it; 0 as the revision stands for a key that is not there, or deleted."""
        from nats.js.errors import APIError  # noqa: PLC0415

        subject, data = f"$KV.{bucket}.{_PREFIX}{name}", json.dumps(value).encode()
        if revision is None:
            return (await self._js.publish(subject, data)).seq
        expected, lost = revision, False
        end_s = time.monotonic() + BROKER_REQUEST_S
        while time.monotonic() < end_s:
            headers = {"Nats-Expected-Last-Subject-Sequence": str(expected)}
            try:
                stored = await self._js.publish(subject, data, BROKER_ASK_AGAIN_S, headers=headers)
            except TimeoutError:
                lost = True
            except APIError as error:
                if error.err_code not in _WRONG_LAST_SEQUENCE:
                    raise
            else:
                return stored.seq
            there = await self._last(bucket, name)
            if lost and there is not None and there.data == data:
                # It was written although no answer came.
                return there.revision
            if there is not None and there.deleted and not revision:
                expected = there.revision
            elif expected != (0 if there is None else there.revision):
                raise ChangedError
        raise TimeoutError

    async def _delete(self, bucket: str, name: str) -> None:
        await self._js.publish(f"$KV.{bucket}.{_PREFIX}{name}", headers={"KV-Operation": "DEL"})


def bucket_stream(bucket: str) -> str:
    """Return the name of the stream that a bucket is."""
    return f"KV_{bucket}"


def _is_marker(headers: dict[str, str] | None) -> bool:
    """Return whether a message with these headers stands for a key that was deleted."""
    return headers is not None and (
        headers.get("KV-Operation") in {"DEL", "PURGE"} or "Nats-Marker-Reason" in headers
    )


def _seconds(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def _no_cluster() -> NoClusterError:
    return NoClusterError("the NATS server has no cluster yet: run 'numbers-uring cluster init'")


def _other_version(bucket: str, name: str) -> VersionError:
    match = re.match(r"v([0-9]+)\.", name)
    of = "no version" if match is None else f"version {match[1]}"
    return VersionError(
        f"the bucket {bucket} has names of {of}, such as {printable(name)}: this numbers-uring "
        f"uses version {VERSION}"
    )


def _no_sense(bucket: str, name: str, error: ValueError) -> str:
    return f"the value of {_PREFIX}{name} in the bucket {bucket} makes no sense: {error}"


def _settings(value: Value) -> Settings:
    try:
        return parse_settings(value)
    except ValueError as error:
        raise StartError(_no_sense(CLUSTER_BUCKET, SETTINGS, error)) from error
