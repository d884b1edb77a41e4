"""A whole cluster on three NATS servers under load, whose parts are killed, round after round.

Each number that is sent tells to which life of which node: so what the NATS server has acknowledged
to a life can be compared with what became of it, whatever has happened since.
"""

import array
import asyncio
import json
import os
import random
import signal
import socket
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from functools import partial
from itertools import count, islice
from pathlib import Path
from typing import Any, TypeVar

import pytest
from nats.errors import Error as NatsError
from nats.js import JetStreamContext
from nats.js.api import AckPolicy, ConsumerConfig

from numbers_uring.cluster.bucket import CLUSTER_BUCKET, NODES_BUCKET
from numbers_uring.cluster.partitions import (
    log_name,
    range_of,
    stream_name,
)
from numbers_uring.errors import StartError
from support.broker import Broker, broker_group, leader
from support.collectors import position
from support.logs import GrowingLog, lines
from support.processes import CommandProcess, ServerProcess, run_command
from support.waiting import wait_until

T = TypeVar("T")

PARTITIONS = 3
COLLECTED = ("0-1", "2")
NODES = 2
STREAMS = [
    *map(stream_name, range(PARTITIONS)),
    *(f"KV_{bucket}" for bucket in (CLUSTER_BUCKET, NODES_BUCKET)),
]

LIVES_MAX = 999
"""The last three digits of a number are the life that is sent it; 0 stands for all of them."""

CHUNK_NUMBERS = 100
CHUNK_PAUSE_S = 0.02
"""Of each client: it goes on all the time, and leaves time to look at every number at the end."""

FAIL_OVER_S = 90.0
"""For a group of servers to lead everything again, on a busy machine."""

KINDS = {
    "a node": ("kill_node",),
    "a collector": ("kill_collector",),
    "a collector between append and acknowledgement": ("kill_collector_that_appends",),
    "a leader": ("kill_leader",),
    "a node and a collector": ("kill_node", "kill_collector_that_appends"),
    "a collector and a leader": ("kill_collector", "kill_leader"),
    "a node, in order": ("stop_node",),
}
"""What the rounds are about: steps of the cluster below."""

ROUNDS = int(os.environ.get("CLUSTER_ROUNDS", len(KINDS)))
SEED = int(os.environ.get("CLUSTER_SEED", random.randrange(2**32)))


def numbers_of(life: int, first: int, step: int) -> Iterator[int]:
    """Yield a life's numbers, every `step`th one, here and there in all partitions."""
    for i in count(first, step):
        yield i * 7919 % 1_000_000 * 1000 + life


class Client:
    """Sends to a server until it is told to leave, or the server is gone."""

    def __init__(self, server: ServerProcess, numbers: Iterator[int]) -> None:
        self.sent: set[int] = set()
        """All that may have come; all that has, once it has left a server that lives."""
        self._numbers = numbers
        self._leaving = threading.Event()
        self._socket = server.connect()
        self._thread = threading.Thread(target=self._send, daemon=True)
        self._thread.start()

    def _send(self) -> None:
        # A node without its NATS server holds it back.
        self._socket.settimeout(FAIL_OVER_S)
        with self._socket, suppress(OSError):
            while not self._leaving.wait(CHUNK_PAUSE_S):
                chunk = list(islice(self._numbers, CHUNK_NUMBERS))
                self.sent.update(chunk)
                self._socket.sendall(lines(chunk))
            self._socket.shutdown(socket.SHUT_WR)
            assert self._socket.recv(1) == b"", "the server spoke"

    def leave(self) -> None:
        self._leaving.set()
        self._thread.join(FAIL_OVER_S)
        assert not self._thread.is_alive(), "a client can't get rid of its numbers"


class Life:
    """A run of a node, from its start to its kill or its stop, and its clients."""

    def __init__(self, number: int, urls: str) -> None:
        assert 0 < number <= LIVES_MAX
        self.number = number
        self.stopped = False
        """In order, so that everything that was sent has to be there."""
        options = ("--forward", urls, "--partitions", str(PARTITIONS), "--report-interval", "0.05")
        self.server = ServerProcess(Path("no-log"), *options, has_log=False)
        self._clients = [
            Client(self.server, numbers)
            for numbers in (
                numbers_of(number, first=0, step=2),
                numbers_of(number, first=1, step=2),
                numbers_of(number, first=0, step=1),  # What both of them send, half as fast,
                numbers_of(0, first=0, step=1),  # and what the other node is sent, too.
            )
        ]

    @property
    def sent(self) -> set[int]:
        return set().union(*(client.sent for client in self._clients))

    @property
    def acknowledged(self) -> int:
        """What its last report said."""
        return self.server.reported()[2] if self.server.reports else 0

    def kill(self) -> None:
        self.server.kill()
        self._dismiss()

    def stop(self) -> None:
        self._dismiss()
        self.server.process.send_signal(signal.SIGTERM)
        assert self.server.process.wait(FAIL_OVER_S) == 0, self.server.stderr
        self.server.wait()
        self.stopped = True

    def _dismiss(self) -> None:
        for client in self._clients:
            client.leave()


class Cluster:
    """Nodes and collectors on three NATS servers. A step ends a part, and returns its restart."""

    def __init__(
        self, folder: Path, brokers: list[Broker], chance: random.Random, running: ExitStack
    ) -> None:
        self.lives: list[Life] = []
        self.tally: Counter[str] = Counter()
        self._brokers = brokers
        self._chance = chance
        self._running = running
        self._folder = folder
        self.logs = [GrowingLog(folder / log_name(partition)) for partition in range(PARTITIONS)]
        self._urls = ",".join(broker.url for broker in brokers)
        options = ("--partitions", str(PARTITIONS), "--replicas", "3", "--max-bytes", "1000000000")
        done = run_command("cluster", "init", "--nats", self._urls, *options)
        assert done.returncode == 0, done.stderr
        self._collectors = [
            self._start(partial(self._collect, collected)) for collected in COLLECTED
        ]
        self._nodes = [self._start(self._serve) for _ in range(NODES)]

    def _collect(self, collected: str) -> CommandProcess | str:
        arguments = ("--partitions", collected, "--log-dir", str(self._folder))
        collector = CommandProcess("collect", "--nats", self._urls, *arguments)
        self._running.callback(collector.kill)
        try:
            collector.wait_for("collecting partitions")
        except AssertionError as error:
            return str(error)
        return collector

    def _serve(self) -> Life | str:
        try:
            life = Life(len(self.lives) + 1, self._urls)
        except AssertionError as error:
            return str(error)
        self._running.callback(life.server.kill)
        self.lives.append(life)
        return life

    def _start(self, start: Callable[[], T | str]) -> T:
        """Start it as a service manager does: again, for as long as there is no leader."""
        end_s = time.monotonic() + FAIL_OVER_S
        while isinstance(started := start(), str):
            assert "error: cannot" in started, started
            assert time.monotonic() < end_s, started
            self.tally["starts refused for want of a leader"] += 1
        return started

    # Steps.

    def kill_node(self) -> Callable[[], None]:
        place = self._chance.randrange(NODES)
        self._nodes[place].kill()
        return lambda: self._nodes.__setitem__(place, self._start(self._serve))

    def stop_node(self) -> Callable[[], None]:
        place = self._chance.randrange(NODES)
        self._nodes[place].stop()
        return lambda: self._nodes.__setitem__(place, self._start(self._serve))

    def kill_collector(self) -> Callable[[], None]:
        return self._kill_collector(self._chance.randrange(len(COLLECTED)))

    def kill_collector_that_appends(self) -> Callable[[], None]:
        """Kill one when its log has just grown, so most often before it has acknowledged that."""
        place = self._chance.randrange(len(COLLECTED))
        log = self.logs[-1 if place else self._chance.randrange(PARTITIONS - 1)]
        size, end_s = log.size, time.monotonic() + FAIL_OVER_S
        while log.size == size:  # No pause: what is aimed at is over in a millisecond.
            assert time.monotonic() < end_s, "the log does not grow"
        restart = self._kill_collector(place)
        self.tally["kills of a collector that appends"] += 1
        self.tally["of which hit it before the acknowledgement"] += self._appended_too_much(log)
        return restart

    def _kill_collector(self, place: int) -> Callable[[], None]:
        self._collectors[place].kill()

        def restart() -> None:
            self._collectors[place] = self._start(lambda: self._collect(COLLECTED[place]))

        return restart

    def kill_leader(self) -> Callable[[], None]:
        stream = self._chance.choice(STREAMS)
        self.wait_for_brokers()  # Two of three have to be whole.
        lost = leader(self._brokers, stream)
        lost.kill()

        def restart() -> None:
            lost.start()
            lost.wait_ready()

        return restart

    # What is seen.

    def _appended_too_much(self, log: GrowingLog) -> bool:
        """Whether a message is on file that is not acknowledged."""
        partition = self.logs.index(log)

        async def find(js: JetStreamContext) -> bool:
            floor = position(self._folder, partition)
            data = (await js.get_msg(stream_name(partition), floor + 1)).data or b""
            return unpacked(data) <= log.numbers

        log.look()
        return bool(self.ask(find))

    def ask(self, use: Callable[[JetStreamContext], Any], timeout_s: float = 2.0) -> Any:
        """Return what the NATS server answers, as soon as it has a leader that does."""
        answers: list[Any] = []

        async def ask(js: JetStreamContext) -> Any:
            async with asyncio.timeout(timeout_s):
                return await use(js)

        def answered() -> bool:
            alive = next(broker for broker in self._brokers if broker.process is not None)
            with suppress(StartError, NatsError, TimeoutError):
                answers.append(alive.run(ask))
            return bool(answers)

        wait_until(answered, "an answer of the NATS server", FAIL_OVER_S)
        return answers[0]

    def wait_for_brokers(self) -> None:
        """Wait until all three have all streams."""

        async def whole(js: JetStreamContext) -> bool:
            for stream in STREAMS:
                cluster = (await js.stream_info(stream)).cluster
                assert cluster is not None
                replicas = cluster.replicas or []
                if len(replicas) != 2 or not all(one.current for one in replicas):
                    return False
            return True

        wait_until(lambda: self.ask(whole), "all replicas", FAIL_OVER_S)

    def wait_for_growth(self) -> None:
        """Wait until new numbers have come to each of the logs."""
        sizes = [log.size for log in self.logs]
        for log, size in zip(self.logs, sizes, strict=True):
            wait_until(
                lambda log=log, size=size: log.size > size + 10 * CHUNK_NUMBERS,  # type: ignore[misc]
                f"{log.path} to grow",
                FAIL_OVER_S,
            )

    def look(self) -> None:
        """Check all that can be said of the logs at any moment."""
        for partition, log in enumerate(self.logs):
            log.look()
            collected = range_of(partition, PARTITIONS)
            if log.numbers:
                assert collected.first <= min(log.numbers)
                assert max(log.numbers) < collected.end

    def play(self, kind: str) -> None:
        threading.Event().wait(self._chance.uniform(0, 0.3))  # Any moment will do.
        restarts = [getattr(self, step)() for step in KINDS[kind]]
        if KINDS[kind] == ("kill_leader",) and self._chance.random() < 0.5:
            self.wait_for_growth()  # Two servers are enough.
        self._chance.shuffle(restarts)
        for restart in restarts:
            restart()
        self.wait_for_growth()
        self.look()

    def stop(self) -> None:
        """Stop everything in order, once everything that was sent is on file."""
        for life in self._nodes:
            life.stop()

        def status() -> dict[str, Any]:
            done = run_command("cluster", "status", "--json", "--nats", self._urls)
            return json.loads(done.stdout)["totals"] if done.returncode == 0 else {}

        wait_until(lambda: status().get("lag_messages") == 0, "the collectors", FAIL_OVER_S)
        for collector in self._collectors:
            assert collector.stop(signal.SIGTERM) == 0, collector.stderr
        self.look()
        assert status()["numbers"] == sum(len(log.numbers) for log in self.logs)

    def published(self) -> list[set[int]]:
        """Return what the streams have of each life, by the id of its process in its messages."""

        async def read(js: JetStreamContext) -> dict[str, set[int]]:
            by_boot_id: dict[str, set[int]] = defaultdict(set)
            for stream in STREAMS[:PARTITIONS]:
                left = (await js.stream_info(stream)).state.messages
                look = await js.pull_subscribe(
                    "", stream=stream, config=ConsumerConfig(ack_policy=AckPolicy.NONE)
                )
                while left > 0:
                    for message in await look.fetch(min(left, 200), timeout=5):
                        left -= 1
                        message_id = (message.headers or {})["Nats-Msg-Id"]
                        by_boot_id[message_id.partition("-")[0]] |= unpacked(message.data)
            return by_boot_id

        by_life: list[set[int]] = [set() for _ in range(len(self.lives) + 1)]
        for numbers in self.ask(read, FAIL_OVER_S).values():
            lives = {number % 1000 for number in numbers}
            assert len(lives - {0}) <= 1, "a node has numbers of another one"
            by_life[max(lives)] |= numbers
        return by_life


def unpacked(data: bytes) -> set[int]:
    numbers = array.array("I", data)
    if sys.byteorder == "big":
        numbers.byteswap()
    return set(numbers)


@pytest.mark.timeout(7200)
def test_whatever_is_killed_each_number_is_in_one_log_once(tmp_path: Path) -> None:
    print(f"CLUSTER_SEED={SEED} CLUSTER_ROUNDS={ROUNDS}")
    chance = random.Random(SEED)
    kinds: list[str] = []
    while len(kinds) < ROUNDS:
        kinds += chance.sample(list(KINDS), len(KINDS))
    with ExitStack() as running:
        brokers = running.enter_context(broker_group(tmp_path))
        cluster = Cluster(tmp_path / "logs", brokers, chance, running)
        cluster.wait_for_growth()
        for number, kind in enumerate(kinds[:ROUNDS]):
            begin_s = time.monotonic()
            cluster.play(kind)
            print(f"round {number}, {kind}: {time.monotonic() - begin_s:.1f} s")
        cluster.stop()
        published = cluster.published()
    found: set[int] = set().union(*(log.numbers for log in cluster.logs))
    assert found == set().union(*published)
    for life in cluster.lives:
        numbers = published[life.number]
        assert numbers <= life.sent
        assert life.acknowledged <= len(numbers)
        if life.stopped:
            assert life.acknowledged == len(life.sent)
            assert numbers == life.sent
        print(f"life {life.number}: {life.acknowledged} acknowledged of {len(life.sent)} sent")
    print(f"{len(found)} numbers in the logs; {dict(cluster.tally)}")
