"""The buckets of a cluster on a real NATS server: typed values, versions, and keys that vanish."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from nats.js import JetStreamContext

from numbers_uring.cluster import bucket
from numbers_uring.cluster.bucket import (
    CLUSTER_BUCKET,
    NODES_BUCKET,
    Buckets,
    ChangedError,
    VersionError,
)
from numbers_uring.cluster.checkpoints import Point
from numbers_uring.cluster.values import Contents, Copy, Node, Settings, Skip, Trim
from numbers_uring.errors import StartError
from support.broker import Broker, init
from support.processes import assert_one_line_error, run_command

PARTITIONS = 3

COPY = Copy(
    partition=1,
    copy="a1",
    run="r1",
    host="host-1",
    log="/logs/numbers.1.log",
    place="boot.1.2",
    state="reading",
    waits="the message 7 is missing",
    per_s=1.5,
    stream_created_ns=2**61,
    sequence=6,
    message_time_ns=2**62,
    log_bytes=30,
    count=3,
    sum=2**60,
    points=(Point(2, 1, 5), Point(4, 2, 9)),
)


def use(broker: Broker, session: Callable[[JetStreamContext, Buckets], Awaitable[object]]) -> None:
    async def run(js: JetStreamContext) -> None:
        await session(js, Buckets(js))

    broker.run(run)


async def put(js: JetStreamContext, of: str, key: str, value: bytes) -> None:
    """Write what is no value of ours."""
    await js.publish(f"$KV.{of}.{key}", value)


def without_age(contents: Contents) -> Contents:
    copies = [replace(copy, age_s=0.0, revision=0) for copy in contents.copies]
    return replace(contents, copies=copies)


@pytest.mark.parametrize("fresh", [False, True])
def test_what_is_written_is_read_again(cluster: Broker, fresh: bool) -> None:
    skip = Skip(
        partition=2,
        sequence=2**63,
        last_sequence=2**63 + 5,
        stream_created_ns=2**62,
        by="me",
        why="it is lost",
    )
    settings = Settings(partitions=PARTITIONS, copies=2, keep_s=0.5)

    async def session(_: JetStreamContext, buckets: Buckets) -> None:
        await buckets.put_settings(settings, new=False)
        revision = await buckets.put_copy(COPY)
        await buckets.put_copy(replace(COPY, partition=0, waits=None))
        await buckets.put_skip(skip)
        trim = Trim(4, 2**61)
        trim = trim._replace(revision=await buckets.put_trim(1, trim))
        assert await buckets.settings() == settings
        contents = await buckets.read(fresh=fresh)
        assert contents.copies[1].revision == revision
        assert 0 <= contents.copies[1].age_s < 60
        assert without_age(contents) == Contents(
            settings=settings,
            copies=[replace(COPY, partition=0, waits=None), COPY],
            skips=[skip],
            trims={1: trim},
        )
        some = await buckets.read([1], fresh=fresh)
        assert without_age(some) == Contents(settings=settings, copies=[COPY], trims={1: trim})
        await buckets.forget_copy(1, "a1")
        assert (await buckets.read([1], fresh=fresh)).copies == []

    use(cluster, session)


def test_nodes_come_and_go(cluster: Broker) -> None:
    node = Node(
        run="r1", host="h", unique=3, duplicate=2, acknowledged=1, in_flight=2, clients=5, time=7.5
    )

    async def session(_: JetStreamContext, buckets: Buckets) -> None:
        assert await buckets.nodes() == ([], [])
        await buckets.put_node(node)
        await buckets.put_node(replace(node, run="r0"))
        (first, second), unreadable = await buckets.nodes()
        assert (first.run, replace(second, age_s=0.0), unreadable) == ("r0", node, [])
        await buckets.delete_node("r0")
        assert [each.run for each in (await buckets.nodes())[0]] == ["r1"]

    use(cluster, session)


def test_a_copy_is_only_replaced_by_who_knows_what_is_there(cluster: Broker) -> None:
    async def session(_: JetStreamContext, buckets: Buckets) -> None:
        first = await buckets.put_copy(COPY, revision=0)
        second = await buckets.put_copy(COPY, revision=first)
        for stale in (0, first):
            with pytest.raises(ChangedError):
                await buckets.put_copy(COPY, revision=stale)
        assert (await buckets.read()).copies[0].revision == second
        await buckets.forget_copy(1, "a1")
        with pytest.raises(ChangedError):
            await buckets.put_copy(COPY, revision=second)
        await buckets.put_copy(COPY, revision=0)
        with pytest.raises(ChangedError):
            await buckets.put_copy(COPY, revision=0)

    use(cluster, session)


def test_a_trim_is_only_announced_by_who_knows_what_was_announced(cluster: Broker) -> None:
    async def session(_: JetStreamContext, buckets: Buckets) -> None:
        revision = await buckets.put_trim(1, Trim(4, 7))
        with pytest.raises(ChangedError):
            await buckets.put_trim(1, Trim(5, 7))
        revision = await buckets.put_trim(1, Trim(5, 7, revision))
        assert (await buckets.read()).trims == {1: Trim(5, 7, revision)}

    use(cluster, session)


def test_settings_are_made_once_and_again_after_they_were_deleted(cluster: Broker) -> None:
    async def session(js: JetStreamContext, buckets: Buckets) -> None:
        with pytest.raises(ChangedError):
            await buckets.put_settings(Settings(partitions=9), new=True)
        await js.publish(f"$KV.{CLUSTER_BUCKET}.v1.settings", headers={"KV-Operation": "DEL"})
        with pytest.raises(StartError, match="no cluster yet"):
            await buckets.settings()
        with pytest.raises(StartError, match="no cluster yet"):
            await buckets.read()
        await buckets.put_settings(Settings(partitions=9), new=True)
        assert await buckets.settings() == Settings(partitions=9)

    use(cluster, session)


GOOD: dict[str, Any] = {
    "run": "r",
    "host": "h",
    "log": "l",
    "place": "p",
    "stream_created_ns": 1,
    "state": "s",
    "waits": None,
    "per_s": 0,
    "time": 1,
    "sequence": 1,
    "message_time_ns": 1,
    "log_bytes": 1,
    "count": 1,
    "sum": 1,
    "points": [[1, 2, 3]],
}

BAD_VALUES = [
    b"",
    b"\xff\xfe",
    b"{",
    b"[" * 100_000,
    b"[]",
    b"null",
    b"9" * 10_000,
    *(
        json.dumps({**GOOD, name: wrong}).encode()
        for name, wrongs in {
            "run": (None, 1, []),
            "sequence": (-1, 1.5, True, "1", 2**64),
            "time": (-1, "1", float("nan"), float("inf"), True),
            "waits": (1,),
            "points": (None, [1], [[1, 2]], [[1, 2, -3]], [[1, 2, "3"]]),
        }.items()
        for wrong in wrongs
    ),
    *(
        json.dumps({key: value for key, value in GOOD.items() if key != name}).encode()
        for name in GOOD
        if name != "waits"
    ),
]


def test_a_value_that_makes_no_sense_is_named_and_left_out(cluster: Broker) -> None:
    async def session(js: JetStreamContext, buckets: Buckets) -> None:
        await put(js, CLUSTER_BUCKET, "v1.copy.0.good", json.dumps(GOOD).encode())
        names = [f"copy.0.bad{number}" for number in range(len(BAD_VALUES))]
        for name, value in zip(names, BAD_VALUES, strict=True):
            await put(js, CLUSTER_BUCKET, f"v1.{name}", value)
        others = ["copy.99.a", "copy.x.a", "skip.0.x", "skip.0.1", "trim.0", "trim", "else"]
        for name in others:
            await put(js, CLUSTER_BUCKET, f"v1.{name}", b"{}")
        contents = await buckets.read()
        assert [copy.copy for copy in contents.copies] == ["good"]
        assert (contents.skips, contents.trims) == ([], {})
        for name, line in zip(sorted(names + others), contents.unreadable, strict=True):
            assert line.startswith(f"the value of v1.{name} in the bucket {CLUSTER_BUCKET} makes")
            assert len(line) < 200
        await put(js, NODES_BUCKET, "v1.r", b"{}")
        nodes, (line,) = await buckets.nodes()
        assert nodes == []
        assert line == f"the value of v1.r in the bucket {NODES_BUCKET} makes no sense: {ANY_FIELD}"

    use(cluster, session)


ANY_FIELD = "host is no text"


def test_a_text_of_another_process_commands_no_terminal(cluster: Broker) -> None:
    async def session(js: JetStreamContext, buckets: Buckets) -> None:
        value = json.dumps({**GOOD, "host": "a\n\x1b[2J\ud800ä" + "x" * 5000}).encode()
        await put(js, CLUSTER_BUCKET, "v1.copy.0.c", value)
        (copy,) = (await buckets.read()).copies
        assert copy.host.startswith("a??[2J?äx")
        assert len(copy.host) == 1000

    use(cluster, session)


@pytest.mark.parametrize(
    "value",
    [b"", b"{}", b'{"partitions": 0, "copies": 0, "keep_s": 0}', b'{"partitions": 2, "copies": 0}'],
)
def test_settings_that_make_no_sense_are_one_line(cluster: Broker, value: bytes) -> None:
    async def session(js: JetStreamContext, buckets: Buckets) -> None:
        await put(js, CLUSTER_BUCKET, "v1.settings", value)
        for ask in (buckets.settings, buckets.read):
            with pytest.raises(StartError, match=r"^the value of v1\.settings in .* no sense: "):
                await ask()

    use(cluster, session)
    assert_one_line_error(run_command("cluster", "status", "--nats", cluster.url), 3, "no sense")


@pytest.mark.parametrize(
    ("of", "key", "version"),
    [
        (CLUSTER_BUCKET, "v2.settings", "version 2"),
        (CLUSTER_BUCKET, "partitions", "no version"),
        (NODES_BUCKET, "v17.node", "version 17"),
    ],
)
def test_a_bucket_of_another_version_is_refused(
    cluster: Broker, of: str, key: str, version: str, tmp_path: Path
) -> None:
    async def session(js: JetStreamContext, buckets: Buckets) -> None:
        await put(js, of, key, b"{}")
        with pytest.raises(VersionError):
            await buckets.check_version()

    async def mend(js: JetStreamContext, buckets: Buckets) -> None:
        await js.publish(f"$KV.{of}.{key}", headers={"KV-Operation": "DEL"})
        await buckets.check_version()

    use(cluster, session)
    words = (f"the bucket {of} has names of {version}, such as {key}: ", "uses version 1")
    at = ("--nats", cluster.url)
    commands: list[tuple[str, ...]] = [
        ("cluster", "init", "--partitions", str(PARTITIONS), *at),
        ("cluster", "status", *at),
    ]
    if key == "v2.settings":
        folder = ("--log-dir", str(tmp_path))
        commands += [
            ("serve", "--port", "0", "--forward", cluster.url, "--partitions", str(PARTITIONS)),
            ("collect", "--partitions", "0", *folder, *at),
            ("cluster", "verify", *folder, *at),
            ("cluster", "skip", "0", "1", *at),
            ("cluster", "forget", "c", *at),
        ]
    for command in commands:
        assert_one_line_error(run_command(*command), 3, *words)
    use(cluster, mend)
    init(cluster.url, partitions=PARTITIONS, max_bytes=2_000_000)


def test_no_bucket_at_all_is_no_cluster(cluster: Broker) -> None:
    async def session(js: JetStreamContext, buckets: Buckets) -> None:
        await js.delete_key_value(CLUSTER_BUCKET)
        await buckets.check_version()
        for ask in (buckets.settings, buckets.read):
            with pytest.raises(StartError, match="no cluster yet: run 'numbers-uring cluster init"):
                await ask()

    use(cluster, session)


def test_a_key_that_vanishes_between_two_calls_is_not_there(
    cluster: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = Buckets._names

    async def names_and_more(self: Buckets, of: str) -> tuple[list[str], float]:
        found, now_s = await names(self, of)
        return [*found, "copy.0.vanished"], now_s

    async def session(_: JetStreamContext, buckets: Buckets) -> None:
        await buckets.put_copy(COPY)
        monkeypatch.setattr(Buckets, "_names", names_and_more)
        for fresh in (False, True):
            contents = await buckets.read(fresh=fresh)
            assert ([each.copy for each in contents.copies], contents.unreadable) == (["a1"], [])
        assert await buckets.nodes() == ([], [])

    use(cluster, session)


def test_many_keys_are_read_in_few_requests(
    cluster: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    many = [replace(COPY, partition=0, copy=f"c{number}") for number in range(2500)]
    requests = 0
    last = Buckets._last

    async def counted(*arguments: Any, **options: Any) -> Any:
        nonlocal requests
        requests += 1
        return await last(*arguments, **options)

    monkeypatch.setattr(bucket.Buckets, "_last", counted)

    async def session(_: JetStreamContext, buckets: Buckets) -> None:
        await asyncio.gather(*map(buckets.put_copy, many))
        contents = await buckets.read()
        assert len(contents.copies) == len(many)
        assert requests == 0

    use(cluster, session)
