"""Collectors of partitions: how tests start them, what they are sent, and what is in their logs."""

import random
import re
from array import array
from collections.abc import Iterable
from pathlib import Path

from nats.errors import Error as NatsError
from nats.js import JetStreamContext

from numbers_uring.cluster.index import read_index
from numbers_uring.cluster.partitions import (
    index_name,
    log_name,
    range_of,
    stream_name,
    subject_name,
)
from numbers_uring.errors import StartError
from support.broker import PARTITIONS, Broker
from support.processes import CommandProcess
from support.waiting import wait_until


def collect_arguments(url: str, partition: int, log_dir: Path) -> tuple[str, ...]:
    return ("collect", "--nats", url, "--partitions", str(partition), "--log-dir", str(log_dir))


def collector_process(
    url: str,
    partition: int,
    log_dir: Path,
    *options: str,
    prefix: Iterable[str] = (),
    environment: dict[str, str] | None = None,
) -> CommandProcess:
    process = CommandProcess(
        *collect_arguments(url, partition, log_dir),
        *options,
        prefix=prefix,
        environment=environment,
    )
    process.wait_for("collecting partitions")
    return process


def sample(partition: int, count: int, seed: int = 1) -> list[int]:
    collected = range_of(partition, PARTITIONS)
    return random.Random(seed).sample(range(collected.first, collected.end), count)


def publish(broker: Broker, partition: int, *messages: Iterable[int] | bytes) -> None:
    async def send(js: JetStreamContext) -> None:
        for message in messages:
            data = message if isinstance(message, bytes) else array("I", message).tobytes()
            await js.publish(subject_name(partition), data)

    broker.run(send)


def logged(log_dir: Path, partition: int) -> set[int]:
    """Return the log's numbers, after a check that it is whole lines, none twice."""
    data = (log_dir / log_name(partition)).read_bytes()
    assert re.fullmatch(rb"(?:[0-9]{9}\n)*", data), "the log has something else than lines"
    numbers = [int(line) for line in data.split()]
    assert len(set(numbers)) == len(numbers), "the log has a number twice"
    return set(numbers)


def position(log_dir: Path, partition: int) -> int:
    """Return the last message whose numbers are on disk, as the index there has it; 0 without."""
    try:
        records = read_index(log_dir / index_name(partition)).records
    except FileNotFoundError:
        return 0
    return records[-1].sequence if records else 0


def last_sequence(broker: Broker, partition: int) -> int:
    """Return the sequence of the stream's last message."""

    async def ask(js: JetStreamContext) -> int:
        return (await js.stream_info(stream_name(partition))).state.last_seq

    return broker.run(ask)


def wait_until_collected(broker: Broker, partition: int, log_dir: Path) -> None:
    """Wait until all that the stream has now is on disk there."""

    def is_collected() -> bool:
        try:
            return position(log_dir, partition) >= last_sequence(broker, partition)
        except (StartError, NatsError):
            return False  # There is no leader just now.

    wait_until(is_collected, f"all messages of partition {partition} to be in {log_dir}")
