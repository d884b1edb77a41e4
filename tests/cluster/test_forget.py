"""`cluster forget`: takes out a copy that is gone, and none that may still run."""

from dataclasses import replace

from nats.js import JetStreamContext

from numbers_uring.cluster.bucket import CLUSTER_BUCKET, Buckets
from numbers_uring.cluster.values import Copy
from support.broker import Broker
from support.processes import assert_one_line_error, run_command

COPY = Copy(
    partition=0,
    copy="0123456789ab",
    run="r",
    host="host-1",
    log="/logs/numbers.0.log",
    place="p",
    state="stopped",
)


def register(broker: Broker, *copies: Copy) -> None:
    async def put(js: JetStreamContext) -> None:
        buckets = Buckets(js)
        for there in (await buckets.read()).copies:
            await buckets.forget_copy(there.partition, there.copy)
        for copy in copies:
            await buckets.put_copy(copy)

    broker.run(put)


def registered(broker: Broker) -> list[tuple[int, str]]:
    async def read(js: JetStreamContext) -> list[tuple[int, str]]:
        return [(copy.partition, copy.copy) for copy in (await Buckets(js).read()).copies]

    return broker.run(read)


def test_a_copy_is_forgotten_in_all_of_its_partitions_and_others_are_not(broker: Broker) -> None:
    other = replace(COPY, copy="other", state="collecting")
    register(broker, COPY, replace(COPY, partition=5), other)
    done = run_command("cluster", "forget", "--nats", broker.url, COPY.copy)
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr == f"numbers-uring: forgot copy {COPY.copy} of partitions 0, 5\n"
    assert registered(broker) == [(0, "other")]


def test_an_unknown_copy_is_refused_with_those_that_are_known(broker: Broker) -> None:
    register(broker)
    done = run_command("cluster", "forget", "--nats", broker.url, "nonsense")
    assert_one_line_error(done, 3, "no copy nonsense is registered; registered copies: none")
    register(broker, COPY, replace(COPY, partition=1), replace(COPY, copy="other"))
    done = run_command("cluster", "forget", "--nats", broker.url, "nonsense")
    assert_one_line_error(done, 3, "registered copies: 0123456789ab, other")
    assert len(registered(broker)) == 3


def test_a_copy_that_may_be_alive_is_only_forgotten_by_force(broker: Broker) -> None:
    alive = replace(COPY, partition=1, state="collecting")
    register(broker, COPY, alive)
    done = run_command("cluster", "forget", "--nats", broker.url, COPY.copy)
    assert_one_line_error(
        done,
        3,
        f"copy {COPY.copy} (/logs/numbers.0.log on host-1) has reported ",
        " s ago",
        "--force",
    )
    assert len(registered(broker)) == 2
    done = run_command("cluster", "forget", "--nats", broker.url, COPY.copy, "--force")
    assert done.returncode == 0
    assert registered(broker) == []


def test_a_copy_whose_report_makes_no_sense_is_forgotten(broker: Broker) -> None:
    register(broker, COPY)

    async def spoil(js: JetStreamContext) -> None:
        await js.publish(f"$KV.{CLUSTER_BUCKET}.v1.copy.7.{COPY.copy}", b"{}")

    broker.run(spoil)
    done = run_command("cluster", "forget", "--nats", broker.url, COPY.copy)
    assert done.stderr == f"numbers-uring: forgot copy {COPY.copy} of partitions 0, 7\n"

    async def read(js: JetStreamContext) -> list[str]:
        return (await Buckets(js).read()).unreadable

    assert broker.run(read) == []
    assert registered(broker) == []
