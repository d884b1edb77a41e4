"""Fixtures of the cluster's tests: a NATS server, a partition for each test, collectors."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from nats.js import JetStreamContext

from numbers_uring.cluster.init import init_cluster
from support.broker import PARTITIONS, Broker, broker_with_cluster, delete_streams
from support.collectors import collector_process
from support.processes import CommandProcess

FEW_PARTITIONS = 3
"""Of the fixture `cluster`."""


@pytest.fixture(scope="module")
def bare_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    with Broker(tmp_path_factory.mktemp("broker")) as bare_broker:
        yield bare_broker


@pytest.fixture
def cluster(bare_broker: Broker) -> Broker:
    """A NATS server with a cluster of FEW_PARTITIONS that nothing has happened to."""

    async def renew(js: JetStreamContext) -> None:
        await delete_streams(js)
        await init_cluster(js, FEW_PARTITIONS, replicas=1, max_bytes=2_000_000)

    bare_broker.run(renew)
    return bare_broker


@pytest.fixture(scope="session")
def _unused_partitions(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Iterator[tuple[Broker, int]]]:
    """Partitions that no test has touched; the next NATS server's once all of one are used.

    The first and the last are left out: a test's partition has neighbours, the last no collector.
    """
    with ExitStack() as running:

        def unused() -> Iterator[tuple[Broker, int]]:
            while True:
                folder = tmp_path_factory.mktemp("broker")
                broker = running.enter_context(broker_with_cluster(folder))
                for partition in range(1, PARTITIONS - 1):
                    yield broker, partition

        yield unused()


@pytest.fixture
def _place(_unused_partitions: Iterator[tuple[Broker, int]]) -> tuple[Broker, int]:
    return next(_unused_partitions)


@pytest.fixture
def broker(_place: tuple[Broker, int]) -> Broker:
    """A NATS server with a cluster of PARTITIONS, which other tests use as well."""
    return _place[0]


@pytest.fixture
def partition(_place: tuple[Broker, int]) -> int:
    """A partition that no other test has touched."""
    return _place[1]


@pytest.fixture
def collect(
    broker: Broker, partition: int, tmp_path: Path
) -> Iterator[Callable[..., CommandProcess]]:
    """Start collectors of the test's partition, with logs in `tmp_path`, that end with the test."""
    with ExitStack() as running:

        def start(*options: str, log_dir: Path = tmp_path, **settings: Any) -> CommandProcess:
            collector = collector_process(broker.url, partition, log_dir, *options, **settings)
            return running.enter_context(collector)

        yield start
