"""NATS servers that fall silent: suspended, cut off, or not answering; three of them, on hosts of
their own. What is connected to the silent one goes on with another within COST_S."""

import json
import os
import socket
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from itertools import count
from pathlib import Path

import pytest

from numbers_uring.cluster.partitions import range_of, stream_name
from support.broker import HTTP_PORT, Broker, broker_group, init, leader
from support.clients import sees_fin
from support.collectors import collector_process, logged
from support.logs import lines
from support.network import Network, lacking, network
from support.processes import ServerProcess, run_command
from support.waiting import DEADLINE_S, wait_until

LACKING = lacking()

pytestmark = [
    *(pytest.mark.alone, pytest.mark.waiting),
    pytest.mark.skipif(bool(LACKING), reason=LACKING),
]

PARTITIONS = 3
COST_S = 15.0
"""What a silent server may cost a node and a collector; both measured from the fault on."""

_unused = count()


class Group:
    """Three NATS servers, and three hosts for what is connected to them, on one network."""

    def __init__(self, net: Network, brokers: list[Broker]) -> None:
        self.net = net
        self.brokers = brokers
        self.clients = net.hosts[3:]
        self.url = ",".join(broker.url for broker in brokers)

    def meta_leader(self) -> Broker:
        """Return the server that answers what is asked about streams and buckets."""
        host = self.brokers[0].host
        assert host is not None
        url = f"http://{host.address}:{HTTP_PORT}/jsz"

        def ask() -> str:
            with urllib.request.urlopen(url, timeout=DEADLINE_S) as answer:
                return str(json.load(answer)["meta_cluster"]["leader"])

        name = host.inside(ask)
        return next(broker for broker in self.brokers if broker.name == name)

    def wait_healed(self) -> None:
        for broker in self.brokers:
            broker.wait_ready()
        for partition in range(PARTITIONS):
            wait_until(lambda partition=partition: self._is_whole(partition), "all replicas")  # type: ignore[misc]

    def _is_whole(self, partition: int) -> bool:
        async def ask(js):  # type: ignore[no-untyped-def]
            return (await js.stream_info(stream_name(partition))).cluster

        try:
            cluster = self.brokers[0].run(ask)
        except Exception:  # whatever is said for as long as there is no leader
            return False
        return cluster.leader and all(each.current for each in cluster.replicas)


@pytest.fixture(scope="module")
def group(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Group]:
    with (
        network(6) as net,
        broker_group(tmp_path_factory.mktemp("brokers"), hosts=net.hosts[:3]) as brokers,
    ):
        made = Group(net, brokers)
        init(made.url, "--replicas", "3", partitions=PARTITIONS, prefix=net.hosts[3].prefix)
        made.wait_healed()
        yield made


class Pair:
    """A node and a collector of one partition on a host, connected to this server at first."""

    def __init__(
        self, stack: ExitStack, group: Group, broker: Broker, partition: int, folder: Path
    ) -> None:
        self._host = group.clients[partition]
        self._partition = partition
        self._folder = folder
        others = [each.host for each in group.brokers if each is not broker and each.host]
        node = ("--forward", group.url, "--partitions", str(PARTITIONS))
        prefix = self._host.prefix
        with group.net.refused(self._host, *others):
            self.node = stack.enter_context(
                ServerProcess(Path("no-log"), *node, has_log=False, prefix=prefix)
            )
            self.collector = stack.enter_context(
                collector_process(group.url, partition, folder, prefix=prefix)
            )

    def sends(self, deadline_s: float) -> None:
        """Send a number of each partition; all are acknowledged, and its own is in the log."""
        number = next(_unused)
        numbers = [range_of(each, PARTITIONS).first + number for each in range(PARTITIONS)]
        with self._host.inside(self.node.connect) as client:
            client.sendall(lines(numbers))
            client.shutdown(socket.SHUT_WR)
            assert sees_fin(client), self.node.stderr
        acknowledged_s = time.monotonic()
        own = numbers[self._partition]
        wait_until(lambda: own in logged(self._folder, self._partition), "the number in the log")
        logged_s = time.monotonic()
        begin_s = deadline_s - COST_S
        times = [time_s - begin_s for time_s in (acknowledged_s, logged_s)]
        assert max(times) < COST_S, f"{times}; {self.node.stderr}; {self.collector.stderr}"


@contextmanager
def pairs(group: Group, broker: Broker, folder: Path, number: int = 1) -> Iterator[list[Pair]]:
    """Run pairs on hosts of their own, which work."""
    with ExitStack() as stack:
        made = [Pair(stack, group, broker, each, folder / str(each)) for each in range(number)]
        for pair in made:
            pair.sends(time.monotonic() + COST_S)
        yield made
        for pair in made:
            assert pair.node.stop() == 0
            assert pair.collector.stop() == 0


def all_send(some: list[Pair]) -> None:
    deadline_s = time.monotonic() + COST_S
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda pair: pair.sends(deadline_s), some))


def suspended(group: Group, broker: Broker) -> Callable[[], None]:
    broker.suspend()
    return broker.resume


def unplugged(group: Group, broker: Broker) -> Callable[[], None]:
    assert broker.host is not None
    group.net.unplug(broker.host)
    return lambda: group.net.plug(broker.host)  # type: ignore[arg-type]


def cut_off_from_the_others(group: Group, broker: Broker) -> Callable[[], None]:
    """It answers its clients' pings, and can do nothing for them."""
    assert broker.host is not None
    others = [each.host for each in group.brokers if each is not broker]
    group.net.cut(broker.host, *others)  # type: ignore[arg-type]
    return group.net.mend


@contextmanager
def beside_commands(group: Group, folder: Path) -> Iterator[None]:
    """Commands and starts that must not need the silent server, run beside the rest."""
    prefix = group.clients[1].prefix
    node = ("--forward", group.url, "--partitions", str(PARTITIONS))
    arguments = [
        ("cluster", "status", "--nats", group.url),
        ("cluster", "init", "--nats", group.url, "--partitions", str(PARTITIONS), "--replicas=3"),
        ("doctor", "--port=0", *node),
    ]

    def serve() -> int:
        with ServerProcess(Path("no-log"), *node, has_log=False, prefix=prefix) as server:
            return server.stop()

    def collect() -> int:
        with collector_process(group.url, 1, folder, prefix=prefix) as collector:
            return collector.stop()

    with ThreadPoolExecutor() as pool:
        commands = [pool.submit(run_command, *each, prefix=prefix) for each in arguments]
        starts = [pool.submit(serve), pool.submit(collect)]
        yield
        for command in commands:
            done = command.result()
            # What they find may be wrong, but they find it.
            assert done.returncode in {0, 1}, done
            assert "Traceback" not in done.stderr
        assert [start.result() for start in starts] == [0, 0]


FAULTS = [suspended]
if "CLUSTER_ROUNDS" in os.environ:
    # A quarter of a minute each, so only in `make soak`.
    FAULTS += [unplugged, cut_off_from_the_others]


@pytest.mark.parametrize("fault", FAULTS)
def test_a_silent_server_is_left_for_another_one(
    group: Group, tmp_path: Path, fault: Callable[[Group, Broker], Callable[[], None]]
) -> None:
    group.wait_healed()
    broker = group.meta_leader()
    with pairs(group, broker, tmp_path) as (pair,):
        heal = fault(group, broker)
        try:
            with beside_commands(group, tmp_path / "beside"):
                all_send([pair])
        finally:
            heal()
        for process in (pair.node, pair.collector):
            assert (
                f"lost the connection to the NATS server at {broker.url}, which " in process.stderr
            )
            assert "reconnected to the NATS server at nats://" in process.stderr
        # What stops has a word for the others.
        group.wait_healed()


def test_a_link_that_loses_packets_one_way_or_both_is_a_silent_server(
    group: Group, tmp_path: Path
) -> None:
    group.wait_healed()
    broker = group.brokers[0]
    assert broker.host is not None
    with pairs(group, broker, tmp_path, number=3) as some:
        both, sends, hears = group.clients
        group.net.cut(both, broker.host)
        group.net.cut(sends, broker.host, hears=False)
        group.net.cut(hears, broker.host, sends=False)
        try:
            all_send(some)
        finally:
            group.net.mend()


def test_a_leader_that_is_suspended_costs_the_clients_of_others_little(
    group: Group, tmp_path: Path
) -> None:
    group.wait_healed()
    led = leader(group.brokers, stream_name(0))
    other = next(broker for broker in group.brokers if broker is not led)
    with pairs(group, other, tmp_path) as (pair,):
        led.suspend()
        try:
            all_send([pair])
        finally:
            led.resume()
        group.wait_healed()
