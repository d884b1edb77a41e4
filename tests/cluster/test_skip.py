"""`cluster skip`: records the loss of a message for all copies, and of no message that is there."""

from array import array
from dataclasses import replace
from itertools import combinations

import pytest
from nats.js import JetStreamContext

from numbers_uring.cluster.bucket import Buckets
from numbers_uring.cluster.collector.skips import Skips
from numbers_uring.cluster.partitions import range_of, stream_name
from numbers_uring.cluster.values import Copy, Skip
from support.broker import PARTITIONS, Broker
from support.processes import assert_one_line_error, run_command
from support.reading import publish_all, state_of

COPY = Copy(
    partition=0,
    copy="0123456789ab",
    run="r",
    host="host-1",
    log="/logs/numbers.log",
    place="p",
    state="stopped",
)


def skip(broker: Broker, partition: int, which: str, *options: str) -> tuple[int, str]:
    done = run_command("cluster", "skip", "--nats", broker.url, str(partition), which, *options)
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1, done.stderr
    return done.returncode, done.stderr.removeprefix("numbers-uring: ")


def fill(broker: Broker, partition: int, missing: range, count: int = 9) -> int:
    """Publish batches, delete some, and return when the stream was created."""
    first = range_of(partition, PARTITIONS).first

    async def use(js: JetStreamContext) -> int:
        datas = [array("I", [first + number]).tobytes() for number in range(count)]
        await publish_all(js, partition, datas)
        for sequence in missing:
            await js.delete_msg(stream_name(partition), sequence)
        return (await state_of(js, partition)).created_ns

    return broker.run(use)


def skips_of(broker: Broker, partition: int) -> list[Skip]:
    async def read(js: JetStreamContext) -> list[Skip]:
        return (await Buckets(js).read([partition], fresh=True)).skips

    return broker.run(read)


def test_a_missing_message_is_skipped_with_the_reason(broker: Broker, partition: int) -> None:
    created_ns = fill(broker, partition, range(4, 7))
    said = f"all copies of partition {partition} skip message 4 of the stream numbers-{partition}\n"
    assert skip(broker, partition, "4", "--why", "its disk burned") == (0, said)
    (found,) = skips_of(broker, partition)
    assert (found.sequence, found.last_sequence, found.stream_created_ns) == (4, 4, created_ns)
    assert found.why == "its disk burned"
    assert "@" in found.by
    # More of them; and what is skipped stays so.
    assert skip(broker, partition, "4-6")[0] == 0
    assert skip(broker, partition, "4")[0] == 0
    assert [(each.sequence, each.last_sequence) for each in skips_of(broker, partition)] == [(4, 6)]


def test_a_message_that_is_there_is_skipped_by_force_alone(broker: Broker, partition: int) -> None:
    fill(broker, partition, range(4, 7))
    for which, there in (("3", 3), ("3-6", 3), ("4-7", 7), ("1-9", 1)):
        code, said = skip(broker, partition, which)
        assert code == 3
        assert f"message {there} of the stream numbers-{partition} is there" in said
    assert skips_of(broker, partition) == []
    assert skip(broker, partition, "3", "--force")[0] == 0
    assert len(skips_of(broker, partition)) == 1


BAD: dict[str, tuple[bytes, dict[str, str] | None]] = {
    "empty": (b"", None),
    "no whole number": (b"12345", None),
    "of another partition": (bytes(4), None),
    "of a neighbour too": (b"", {"neighbour": "yes"}),
    "with a status": (b"", {"Status": "404"}),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_message_that_is_no_batch_is_skipped(broker: Broker, partition: int, kind: str) -> None:
    data, headers = BAD[kind]
    owned = range_of(partition, PARTITIONS)
    if kind == "of a neighbour too":
        data = array("I", [owned.first, owned.end]).tobytes()
    elif kind == "with a status":
        data = array("I", [owned.first]).tobytes()
    broker.run(lambda js: publish_all(js, partition, [data], headers))
    assert skip(broker, partition, "1")[0] == 0
    assert len(skips_of(broker, partition)) == 1


def test_what_the_stream_never_had_is_not_skipped(broker: Broker, partition: int) -> None:
    fill(broker, partition, range(4, 5))
    for options in ((), ("--force",)):
        code, said = skip(broker, partition, "10", *options)
        assert code == 3
        assert "message 10 is not yet in the stream" in said
        assert "ends at message 9" in said
    code, said = skip(broker, PARTITIONS, "1")
    assert (code, said) == (3, f"error: the cluster has partitions 0 to {PARTITIONS - 1}, not 32\n")
    assert skips_of(broker, partition) == []


@pytest.mark.parametrize("which", ["0", "x", "5-4", "-3", "3-", "1e3", str(2**63)])
def test_what_is_no_sequence_is_refused(which: str) -> None:
    done = run_command("cluster", "skip", "--", "1", which)
    assert_one_line_error(done, 2, "not a sequence such as 17")


def test_a_message_that_a_copy_has_passed_is_skipped_by_force_alone(
    broker: Broker, partition: int
) -> None:
    created_ns = fill(broker, partition, range(4, 5))
    passed = replace(COPY, partition=partition, stream_created_ns=created_ns, sequence=4)
    others = [
        replace(passed, copy="behind", sequence=3),
        replace(passed, copy="elsewhere", partition=partition - 1),
        replace(passed, copy="of-an-earlier-stream", stream_created_ns=created_ns - 1),
    ]

    def register(*copies: Copy) -> None:
        async def put(js: JetStreamContext) -> None:
            for copy in copies:
                await Buckets(js).put_copy(copy)

        broker.run(put)

    register(*others, passed)
    code, said = skip(broker, partition, "4")
    assert code == 3
    assert said.startswith(
        "error: copy 0123456789ab (/logs/numbers.log on host-1) has passed message 4"
    )
    assert skips_of(broker, partition) == []
    assert skip(broker, partition, "4", "--force")[0] == 0
    broker.run(lambda js: Buckets(js).forget_copy(partition, passed.copy))
    assert skip(broker, partition, "4")[0] == 0


def test_skips_are_those_of_their_stream_and_may_overlap() -> None:
    base = Skip(
        partition=3, sequence=10, last_sequence=20, stream_created_ns=7, by="me", why="lost"
    )
    skips = Skips(3, 7)
    assert 10 not in skips
    skips.update(
        [
            base,
            replace(base, sequence=12, last_sequence=13),
            replace(base, sequence=20, last_sequence=22),
            replace(base, sequence=30, last_sequence=30),
            replace(base, partition=4, sequence=40, last_sequence=40),
            replace(base, stream_created_ns=8, sequence=50, last_sequence=50),
        ]
    )
    assert [each for each in range(60) if each in skips] == [*range(10, 23), 30]
    for first, last in combinations(range(60), 2):
        assert skips.count(first, last) == sum(each in skips for each in range(first, last + 1))
    skips.update([])
    assert [each for each in range(60) if each in skips] == []
