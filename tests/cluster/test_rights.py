"""What the users of deploy/nats.conf may do, and what one who has taken their place cannot."""

import asyncio
import json
import re
import signal
from array import array
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import Error as NatsError
from nats.js import JetStreamContext
from nats.js.errors import NotFoundError

from numbers_uring.cluster import connection
from numbers_uring.cluster.bucket import CLUSTER_BUCKET, NODES_BUCKET, Buckets
from numbers_uring.cluster.collector.lookup import Lookup, read_state
from numbers_uring.cluster.collector.trim import Trimmer, TrimSource
from numbers_uring.cluster.connection import broker_errors, connected, jetstream
from numbers_uring.cluster.partitions import log_name, stream_name, subject_name
from numbers_uring.cluster.values import Copy, Settings
from numbers_uring.errors import StartError
from support.broker import Broker
from support.certificates import Certificates
from support.logs import lines
from support.processes import CommandProcess, ServerProcess, run_command
from support.shipped_broker import EXAMPLE, shipped_brokers, url_of
from support.waiting import DEADLINE_S, wait_until


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certificates") / "files")


@pytest.fixture(scope="module")
def access(certificates: Certificates) -> tuple[str, ...]:
    path = certificates.path
    return (f"--nats-ca={path('ca.pem')}", f"--nats-cert={path('both.pem')}")


@pytest.fixture(scope="module")
def example(
    certificates: Certificates, access: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Broker]:
    """A NATS server with deploy/nats.conf, and a cluster of two partitions that its admin made."""
    folder = tmp_path_factory.mktemp("example")
    # What it is told is in its log.
    with shipped_brokers(folder, certificates, 1, settings="trace: true\n") as (broker,):
        done = run_command("cluster", "init", "--nats", broker.url, "--partitions", "2", *access)
        assert done.returncode == 0, done.stderr
        yield broker


def serve_and_collect(example: Broker, access: tuple[str, ...], tmp_path: Path) -> None:
    log = tmp_path / log_name(0)
    collect = ("collect", "--partitions", "0", "--log-dir", str(tmp_path), *access)
    forward = ("--forward", url_of(example, "node"), "--partitions", "2", *access)
    with ServerProcess(Path("no-log"), *forward, has_log=False) as node:
        with CommandProcess(*collect, "--nats", url_of(example, "collector")) as collector:
            collector.wait_for("collecting partitions")
            node.send(lines([1, 2, 3]))
            wait_until(lambda: log.read_bytes() == lines([1, 2, 3]), "the numbers")
            # As after a change of certificates or users; it disconnects no one.
            example.reload()
            wait_until(lambda: "Reloaded server configuration" in example.log.read_text(), "that")
            node.send(lines([4]))
            wait_until(lambda: log.read_bytes() == lines([1, 2, 3, 4]), "the number after it")
            wait_until(lambda: example.run(nodes), "the node in the list of nodes")
            assert example.run(ids_of_messages_are_secret)
        with CommandProcess(*collect, "--nats", url_of(example, "collector")) as collector:
            collector.wait_for("collecting partitions")
            assert collector.stop(signal.SIGTERM) == 0
        log.unlink()
        with CommandProcess(*collect, "--nats", url_of(example, "collector")) as collector:
            collector.wait_for("collecting partitions")
            wait_until(lambda: log.read_bytes() == lines([1, 2, 3, 4]), "the log, made again")
            assert collector.stop(signal.SIGTERM) == 0
        assert node.terminate() == 0
        assert "lost the connection" not in node.stderr
    assert "iolation" not in example.log.read_text()


def report_a_copy_and_trim(example: Broker) -> None:
    said: list[str] = []

    async def session() -> None:
        url = url_of(example, "collector")
        async with (
            connected(example.url, "tests", access=example.access) as admin,
            connected(url, "collector", access=example.access, say=said.append) as client,
        ):
            settings = Settings(partitions=2, copies=1, keep_s=1e-6)
            await Buckets(jetstream(admin)).put_settings(settings, new=False)
            for _ in range(2):
                last = (await jetstream(admin).publish(subject_name(1), ZERO)).seq
            js = jetstream(client)
            state = await read_state(js, stream_name(1))
            (found,) = await Lookup(js, stream_name(1)).find(last, last)
            copy = Copy(
                partition=1,
                copy="copy",
                run="run",
                host="host",
                log="log",
                place="place",
                state="collecting",
                stream_created_ns=state.created_ns,
                sequence=last,
                message_time_ns=found.time_ns,
            )
            buckets = Buckets(js)
            await buckets.put_copy(copy)
            source = TrimSource(
                partition=1, stream_created_ns=state.created_ns, record_before=lambda _: None
            )
            trimmer = Trimmer(js, buckets, [source], differs=lambda _: False, say=said.append)
            for _ in range(2):
                await trimmer.round(await buckets.read([1]))
            assert (await js.stream_info(stream_name(1))).state.first_seq == last

    asyncio.run(session())
    assert not any("violation" in line for line in said)


def rights(user: str) -> list[str]:
    """Return the subjects that deploy/nats.conf lets a user publish to."""
    text = EXAMPLE.read_text().partition(f'user: "{user}"')[2]
    return re.findall(r'"(.+)"', text.partition("publish: [")[2].partition("]")[0])


def published(broker: Broker, user: str) -> set[str]:
    """Return the subjects that all connections of a user have published to."""
    said = rf"/user:{user}\" - <<- \[H?PUB (\S+)"
    return set(re.findall(said, broker.log.read_text()))


def test_the_example_configuration_gives_the_rights_that_are_needed_and_no_others(
    example: Broker, access: tuple[str, ...], tmp_path: Path
) -> None:
    serve_and_collect(example, access, tmp_path)
    report_a_copy_and_trim(example)
    for user in ("node", "collector"):
        subjects = {
            subject.replace("$JS.API.", "NUMBERS.") if user == "node" else subject
            for subject in published(example, user)
        }
        for right in rights(user):
            pattern = re.escape(right).replace(r"\*", "[^.]+").replace(">", ".+")
            assert any(re.fullmatch(pattern, subject) for subject in subjects), (user, right)


async def ids_of_messages_are_secret(js: JetStreamContext) -> bool:
    """Return whether no one can take an id beforehand, whose batch would seem to be a repeat."""
    nodes, _ = await Buckets(js).nodes()
    message = await js.get_msg(stream_name(0), 1)
    assert message.headers is not None
    return all(node.run not in message.headers["Nats-Msg-Id"] for node in nodes)


async def nodes(js: JetStreamContext) -> bool:
    return bool((await Buckets(js).nodes())[0])


def test_what_is_forbidden_is_said_with_the_right_that_is_missing(
    example: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "BROKER_REQUEST_S", 0.5)
    said: list[str] = []

    async def do(what: Callable[[JetStreamContext], Coroutine[Any, Any, object]]) -> None:
        url = url_of(example, "node")
        async with connected(url, "tests", access=example.access, say=said.append) as client:
            with broker_errors("do that"):
                await what(jetstream(client))

    for what, right in (
        (lambda js: js.purge_stream("numbers-0"), "stream.purge.numbers-0"),
        (lambda js: js.publish("numbers-else", b"", timeout=0.5), "numbers-else"),
        (lambda js: js.consumer_info("numbers-0", "one"), "consumer.info.numbers-0.one"),
    ):
        with pytest.raises(StartError, match=f"permissions violation for publish .*{right}"):
            asyncio.run(do(what))
    assert len(said) == 3
    assert all(" forbids something: permissions violation" in line for line in said)


ZERO, ONE = array("I", [0]).tobytes(), array("I", [1]).tobytes()

FORBIDDEN_TO_ALL = {
    "$JS.API.STREAM.DELETE.numbers-1": {},
    "$JS.API.STREAM.UPDATE.numbers-1": {"name": "numbers-1", "subjects": ["numbers.1"]},
    "$JS.API.STREAM.CREATE.evil": {"name": "evil", "subjects": ["evil"]},
    "$JS.API.STREAM.MSG.DELETE.numbers-0": {"seq": 1},
    "$JS.API.STREAM.SNAPSHOT.numbers-0": {"deliver_subject": "_INBOX.snapshot"},
    "$JS.API.STREAM.LEADER.STEPDOWN.numbers-0": {},
    "$JS.API.STREAM.NAMES": {},
    "$JS.API.CONSUMER.NAMES.numbers-0": {},
    "$JS.API.ACCOUNT.PURGE.NUMBERS": {},
    "$JS.API.META.LEADER.STEPDOWN": {},
    "$KV.numbers-cluster.v1.settings": {"partitions": 1},
    "$KV.numbers-cluster.v1.skip.0.1": {"by": "me", "why": "why", "time": 0},
    "$SYS.REQ.SERVER.PING.VARZ": {},
    "$SYS.REQ.ACCOUNT.NUMBERS.CONNZ": {},
}
FORBIDDEN_TO_NODES = FORBIDDEN_TO_ALL | {
    "$JS.API.STREAM.PURGE.numbers-0": {},
    "$JS.API.STREAM.MSG.GET.numbers-0": {"seq": 1},
    "$JS.API.DIRECT.GET.numbers-0": {"seq": 1},
    "$JS.API.CONSUMER.CREATE.numbers-0": {
        "stream_name": "numbers-0",
        "config": {"deliver_subject": "_INBOX.node.messages", "ack_policy": "none"},
    },
}


async def refused(client: Client, subject: str, data: bytes, **options: Any) -> bool:
    """Return whether the request was not answered, or with an error."""
    try:
        answer = await client.request(subject, data, timeout=1, **options)
    except NatsError:
        return True
    return b'"error"' in answer.data


async def all_refused(client: Client, requests: dict[str, Any]) -> bool:
    tried = [refused(client, s, json.dumps(data).encode()) for s, data in requests.items()]
    answered = {s for s, no in zip(requests, await asyncio.gather(*tried), strict=True) if not no}
    assert not answered
    return True


async def states(js: JetStreamContext) -> dict[str, object]:
    """Return the settings of all streams, and what they have except for new messages."""
    found: dict[str, object] = {}
    for stream in await js.streams_info():
        name, last = stream.config.name, stream.state.last_seq
        assert name is not None
        if name in {stream_name(0), f"KV_{NODES_BUCKET}"}:
            last = 0  # A node may publish there.
        found[name] = stream.config, stream.state.first_seq, last
    return found


def test_a_taken_over_node_cannot_read_numbers_or_remove_or_change_anything(
    example: Broker,
) -> None:
    heard: list[Msg] = []

    async def hear(message: Msg) -> None:
        heard.append(message)

    async def session() -> None:
        url = url_of(example, "node")
        async with (
            connected(example.url, "tests", access=example.access) as admin,
            connected(url, "node", access=example.access) as node,
        ):
            js = admin.jetstream()
            await js.publish(subject_name(0), ZERO)
            before = await states(js)
            for subject in (">", "numbers.*", "_INBOX.>", "_INBOX.collector.>", "$JS.>", "$SYS.>"):
                await node.subscribe(subject, cb=hear)
            await node.flush()
            await js.publish(subject_name(0), ZERO)
            assert await all_refused(node, FORBIDDEN_TO_NODES)
            # Nor by letting the NATS server send its answer there.
            info = f"$JS.API.STREAM.INFO.{stream_name(0)}"
            for reply in (*FORBIDDEN_TO_NODES, subject_name(1), "_INBOX.collector.any"):
                await node.publish(subject_name(0), ONE, reply=reply)
                await node.publish(info, b"", reply=reply)
            # Nor by headers.
            for header in (
                {"Nats-Rollup": "sub"},
                {"Nats-Rollup": "all"},
                {"Nats-TTL": "1"},
                {"Nats-Trace-Dest": "$KV.numbers-cluster.v1.settings"},
                {"Nats-Schedule": "@at 2020-01-01T00:00:00Z", "Nats-Schedule-Target": "numbers.1"},
            ):
                await refused(node, subject_name(0), ONE, headers=header)
            await node.flush()
            assert await states(js) == before

    asyncio.run(session())
    assert not heard


def test_a_taken_over_node_can_forge_numbers_reports_and_acknowledgements(
    example: Broker,
) -> None:
    heard: list[bytes] = []

    async def hear(message: Msg) -> None:
        heard.append(message.data)

    async def session() -> None:
        url = url_of(example, "node")
        async with (
            connected(url, "node", access=example.access) as other,
            connected(url, "node", access=example.access) as node,
        ):
            await node.subscribe("_INBOX.node.>", cb=hear)
            await node.flush()
            assert not await refused(other, subject_name(0), ZERO)
            assert not await refused(node, subject_name(0), b"no batch")
            get = f"$JS.API.STREAM.MSG.GET.KV_{CLUSTER_BUCKET}"
            assert not await refused(node, get, b'{"last_by_subj":"$KV.numbers-cluster.v1.>"}')
            await node.flush()
            assert [json.loads(data).get("stream") for data in heard] == ["numbers-0"] * 2 + [None]
            waits = await other.subscribe(inbox := other.new_inbox())
            await other.flush()
            await node.publish(subject_name(1), ONE, reply=inbox)
            assert json.loads((await waits.next_msg(5)).data)["stream"] == "numbers-1"
            report = f"$KV.{NODES_BUCKET}.v1.other"
            while not await refused(node, f"{report}{len(heard)}", bytes(1 << 20)):
                assert len(heard) < 30, "the bucket has no limit"

    asyncio.run(session())


def test_a_taken_over_collector_can_do_everything_by_detours(example: Broker) -> None:
    # Last, as it deletes a stream.
    async def session() -> None:
        url = url_of(example, "collector")
        async with (
            connected(example.url, "tests", access=example.access) as admin,
            connected(url, "collector", access=example.access) as collector,
        ):
            js = admin.jetstream()
            assert await all_refused(collector, FORBIDDEN_TO_ALL | {subject_name(1): {}})

            async def send(data: bytes, to: str) -> None:
                """Write to a key that it may write to, and have that sent to another subject."""
                written = await collector.request("$KV.numbers-cluster.v1.copy.0.any", data)
                get = json.dumps({"seq": json.loads(written.data)["seq"]}).encode()
                await collector.publish(f"$JS.API.DIRECT.GET.KV_{CLUSTER_BUCKET}", get, reply=to)
                await collector.flush()

            async def messages() -> int:
                """Return how many the second stream has; -1 without that."""
                try:
                    return (await js.stream_info(stream_name(1))).state.messages
                except NotFoundError:
                    return -1

            before = await messages()
            async with asyncio.timeout(DEADLINE_S):
                await send(ONE, subject_name(1))
                while await messages() == before:
                    pass
                assert (await js.get_last_msg(stream_name(1), subject_name(1))).data == ONE
                await send(b"", f"$JS.API.STREAM.DELETE.{stream_name(1)}")
                while await messages() >= 0:
                    pass

    asyncio.run(session())
