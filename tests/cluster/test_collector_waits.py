"""Collectors at a message that is no batch: its partition waits in all copies, others go on, and a
skip lets all copies pass alike.
"""

import json
import signal
from array import array
from pathlib import Path

from nats.js import JetStreamContext

from numbers_uring.cluster.partitions import log_name, range_of, stream_name
from numbers_uring.cluster.skip import skip_messages
from support.broker import Broker, broker_with_cluster
from support.collectors import position, publish, wait_until_collected
from support.logs import lines
from support.metrics_client import health, health_reason, scrape
from support.processes import CommandProcess, run_command
from support.reading import publish_all
from support.waiting import wait_until

PARTITIONS = 12
GOOD = PARTITIONS - 1
"""The partition without a bad message."""

FOREIGN = "holds something else than whole numbers of this partition"
STATUS = "has a header Status, which no node sends"


def batch(numbers: list[int]) -> bytes:
    return array("I", numbers).tobytes()


def first_of(partition: int) -> int:
    return range_of(partition, PARTITIONS).first


BAD: list[tuple[bytes, dict[str, str] | None, str]] = [
    (batch([first_of(0)]) + b"\0", None, FOREIGN),
    (b"1", None, FOREIGN),
    (batch([first_of(2), first_of(3)]), None, FOREIGN),
    (batch([first_of(2)]), None, FOREIGN),
    (b"\xff" * 8, None, FOREIGN),
    (b"", None, "is empty"),
    (b"", {"Status": "404", "Description": "No Messages"}, "is empty"),
    (batch([first_of(7)]), {"Status": "404"}, STATUS),
    (batch([first_of(8)]), {"Status": "409"}, STATUS),
    (batch([first_of(9)]), {"Status": "999"}, STATUS),
    (b"", {"Status": "100", "Description": "Idle Heartbeat"}, "is empty"),
]
"""What no node sends, by the partition to which it is sent, and what is said of it."""

assert len(BAD) == GOOD


def numbers_of(partition: int) -> list[int]:
    return [first_of(partition) + each for each in range(100)]


def collector(broker: Broker, folder: Path) -> CommandProcess:
    options = ("--partitions", f"0-{GOOD}", "--log-dir", str(folder), "--metrics", "127.0.0.1:0")
    process = CommandProcess("collect", "--nats", broker.url, *options)
    process.wait_for("collecting partitions")
    return process


def fill(broker: Broker) -> None:
    async def use(js: JetStreamContext) -> None:
        for partition, (data, headers, _) in enumerate(BAD):
            numbers = numbers_of(partition)
            await publish_all(js, partition, [batch(numbers[:50])])
            await publish_all(js, partition, [data], headers)
            await publish_all(js, partition, [batch(numbers[50:])])

    broker.run(use)


def skip(broker: Broker) -> None:
    async def use(js: JetStreamContext) -> None:
        for partition in range(GOOD):
            await skip_messages(js, partition, 2, 2, why="no batch", force=False)

    broker.run(use)


def test_what_is_no_batch_holds_up_its_partition_alone_until_all_copies_skip_it_alike(
    tmp_path: Path,
) -> None:
    """It takes as long as until a collector reads the bucket again."""
    folders = tmp_path / "a", tmp_path / "b"
    with (
        broker_with_cluster(tmp_path / "broker", partitions=PARTITIONS) as broker,
        collector(broker, folders[0]) as one,
        collector(broker, folders[1]) as other,
    ):
        fill(broker)
        for process in (one, other):
            for partition, (_, _, why) in enumerate(BAD):
                process.wait_for(
                    f"partition {partition} waits: message 2 of the stream "
                    f"{stream_name(partition)} {why}; "
                )
        # It is shown, and harms no other partition.
        publish(broker, GOOD, numbers_of(GOOD))
        for folder in folders:
            wait_until_collected(broker, GOOD, folder)
        for process in (one, other):
            found = scrape(process)
            name = "numbers_uring_collector_waiting_sequence"
            assert [found[f"{name} {each}"] for each in range(PARTITIONS)] == [2] * GOOD + [0]
            assert health(process) == (200, "ok")
            others = f" and {GOOD - 1} more" if GOOD > 1 else ""
            assert health_reason(process) == f"Partition 0 waits at message 2{others}"
        wait_until(lambda: waiting(broker) == set(range(GOOD)), "the reports of the waits")
        for folder in folders:
            for partition in range(GOOD):
                assert position(folder, partition) == 1
        # One copy is started again at the message, the other one passes it where it waits.
        assert other.stop(signal.SIGTERM) == 0
        skip(broker)
        with collector(broker, folders[1]) as again:
            for partition in range(PARTITIONS):
                for folder in folders:
                    wait_until_collected(broker, partition, folder)
            wait_until(lambda: waiting(broker) == set(), "the reports that none waits")
            assert again.stop(signal.SIGTERM) == 0
            assert "waits" not in "".join(again.stderr_lines)
        assert one.stop(signal.SIGTERM) == 0
    for partition in range(PARTITIONS):
        logs = [(folder / log_name(partition)).read_bytes() for folder in folders]
        assert logs == [lines(numbers_of(partition))] * 2


def waiting(broker: Broker) -> set[int]:
    """Return the partitions of which the status says that a copy waits."""
    done = run_command("cluster", "status", "--json", "--nats", broker.url)
    found = json.loads(done.stdout)
    return {
        each["partition"]
        for each in found["partitions"]
        if any(copy["waits"] for copy in each["copies"])
    }
