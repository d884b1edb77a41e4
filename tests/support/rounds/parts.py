"""The parts of the cluster: three NATS servers, two nodes and two copies of each partition.

Each of them is on a host of its own, where there can be network namespaces, and has a disk of its
own, where one can be mounted; if not, the faults that need them are left out.
"""

import asyncio
import random
import shutil
import signal
import socket
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, TypeVar

from nats.errors import Error as NatsError
from nats.js import JetStreamContext

from numbers_uring.cluster.bucket import CLUSTER_BUCKET, NODES_BUCKET
from numbers_uring.cluster.partitions import index_name, log_name, stream_name
from numbers_uring.errors import StartError
from support import disks, network
from support.broker import Broker, broker_group, init
from support.disks import Disk, small_disk
from support.network import Host
from support.processes import CommandProcess, ServerProcess, run_command
from support.rounds.clients import Client, Session, Source
from support.waiting import wait_until

T = TypeVar("T")

PARTITIONS = 3
STREAMS = [
    *map(stream_name, range(PARTITIONS)),
    *(f"KV_{bucket}" for bucket in (CLUSTER_BUCKET, NODES_BUCKET)),
]
COPIES = 2
CLIENTS_A_NODE = 2

HEALED_S = 90.0
"""For everything to go on after a fault, on a busy machine."""

STORE_DISK_BYTES = 2_000_000_000
LOG_DISK_BYTES = 1_000_000_000
"""In memory, so they take only what is on them."""

KEEP_S = 60
"""Where streams are trimmed: longer than a fault lasts, since logs are put back that are older."""

GROWTH_BYTES = 10_000
"""Of a log: it goes on."""


class Part:
    """A node, or a collector: a process on a host, which can be started again."""

    def __init__(self, name: str, host: Host | None, tally: Counter[str]) -> None:
        self.name = name
        self.host = host
        self.runs = 0
        self.process: CommandProcess | None = None
        self.said: list[str] = []
        """What its earlier processes said on standard error."""
        self._tally = tally

    def _launch(self) -> CommandProcess:
        raise NotImplementedError

    def start(self) -> None:
        """Start it as a service manager does: again, for as long as there is no leader."""
        end_s = time.monotonic() + HEALED_S
        while True:
            try:
                self.process = self._launch()
            except AssertionError as error:
                if "error: cannot" not in str(error) or time.monotonic() > end_s:
                    raise AssertionError(f"{self.name} does not start: {error}") from error
                self._tally["starts refused for want of a leader"] += 1
            else:
                self.runs += 1
                return

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self._ended()

    def stop(self) -> None:
        """Stop it in order."""
        assert self.process is not None
        assert self.process.process.poll() is None, f"{self.name} has ended: {self.process.stderr}"
        self.process.process.send_signal(signal.SIGTERM)
        try:
            code: int | None = self.process.process.wait(HEALED_S)
        except subprocess.TimeoutExpired:
            code = None
        self.process.kill()  # Closes its pipes.
        assert code == 0, f"{self.name} ended with {code}: {self.process.stderr}"
        self._ended()

    def _ended(self) -> None:
        assert self.process is not None
        self.said += self.process.stderr_lines
        self.process = None

    def suspend(self) -> None:
        assert self.process is not None
        self.process.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        assert self.process is not None
        self.process.process.send_signal(signal.SIGCONT)

    @property
    def _prefix(self) -> list[str]:
        return [] if self.host is None else self.host.prefix


class Node(Part):
    """A node at one place, and what its clients connect to."""

    def __init__(self, name: str, host: Host | None, tally: Counter[str], urls: str) -> None:
        super().__init__(name, host, tally)
        self._options = ("--forward", urls, "--partitions", str(PARTITIONS))
        self.server: ServerProcess | None = None
        self.closed = 0
        """Connections that clients have seen end with a FIN."""

    def note_closed(self) -> None:
        self.closed += 1

    def _launch(self) -> ServerProcess:
        self.server = ServerProcess(
            Path("no-log"), *self._options, has_log=False, prefix=self._prefix
        )
        return self.server

    def connect(self) -> tuple[str, socket.socket]:
        """Connect a client, on the node's host. Raises OSError where there is no node."""
        server, name = self.server, f"{self.name} run {self.runs}"
        if server is None:
            raise ConnectionRefusedError
        return name, server.connect() if self.host is None else self.host.inside(server.connect)


class Copy(Part):
    """A collector of all partitions, and its folder."""

    def __init__(
        self, name: str, host: Host | None, tally: Counter[str], urls: str, folder: Path
    ) -> None:
        super().__init__(name, host, tally)
        self.folder = folder
        self.disk: Disk | None = None
        self._urls = urls
        self._backup = folder.parent / f"{folder.name}-backup"

    def _launch(self) -> CommandProcess:
        arguments = ("--partitions", f"0-{PARTITIONS - 1}", "--log-dir", str(self.folder))
        process = CommandProcess("collect", "--nats", self._urls, *arguments, prefix=self._prefix)
        process.wait_for("collecting partitions")
        return process

    def log(self, partition: int) -> Path:
        return self.folder / log_name(partition)

    def index(self, partition: int) -> Path:
        return self.folder / index_name(partition)

    def sizes(self) -> list[int]:
        sizes = []
        for partition in range(PARTITIONS):
            with suppress(FileNotFoundError):
                sizes.append(self.log(partition).stat().st_size)
                continue
            sizes.append(0)
        return sizes

    def back_up(self) -> None:
        """Copy its files while it runs: the index first, so that the log covers it."""
        self._backup.mkdir(exist_ok=True)
        for partition in range(PARTITIONS):
            for path in (self.index(partition), self.log(partition)):
                shutil.copyfile(path, self._backup / path.name)

    def restore(self, *paths: Path) -> None:
        for path in paths:
            shutil.copyfile(self._backup / path.name, path)


class Cluster:
    """All parts, at work."""

    def __init__(self, folder: Path, chance: random.Random, running: ExitStack) -> None:
        self.chance = chance
        self.tally: Counter[str] = Counter()
        lacks = network.lacking()
        self.net = None if lacks else running.enter_context(network.network(7))
        at = [] if self.net is None else self.net.hosts
        hosts: list[Host | None] = [*at] or [None] * 7
        self.has_disks = not disks.lacking()
        self.lacks = [why for why in (lacks, disks.lacking()) if why]
        self.store_disks: dict[str, Disk] = {}
        for member in range(3 if self.has_disks else 0):
            store = folder / f"broker-{member}" / "store"
            self.store_disks[f"broker-{member}"] = running.enter_context(
                small_disk(store, STORE_DISK_BYTES)
            )
        self.brokers = running.enter_context(broker_group(folder, hosts=at[:3]))
        urls = ",".join(broker.url for broker in self.brokers)
        self._at = [] if hosts[3] is None else hosts[3].prefix
        self.trims = chance.random() < 0.5
        init(
            urls,
            *("--replicas", "3", "--copies", str(COPIES)),
            *("--keep", str(KEEP_S if self.trims else 0)),
            partitions=PARTITIONS,
            max_bytes=STORE_DISK_BYTES // PARTITIONS // 2,
            prefix=self._at,
        )
        self.nodes = [
            Node(f"node {place}", host, self.tally, urls) for place, host in enumerate(hosts[3:5])
        ]
        self.copies = [
            Copy(f"copy {place}", host, self.tally, urls, folder / f"copy-{place}")
            for place, host in enumerate(hosts[5 : 5 + COPIES])
        ]
        for copy in self.copies:
            copy.folder.mkdir()
            if self.has_disks:
                copy.disk = running.enter_context(small_disk(copy.folder, LOG_DISK_BYTES))
        for part in self.parts:
            running.callback(part.kill)
            part.start()
        source = Source()
        self._clients = [
            Client(node.connect, node.note_closed, source, chance.randrange(2**32))
            for node in self.nodes
            for _ in range(CLIENTS_A_NODE)
        ]
        for client in self._clients:
            running.callback(client.leave)

    @property
    def parts(self) -> list[Part]:
        return [*self.copies, *self.nodes]

    @property
    def sessions(self) -> list[Session]:
        return [session for client in self._clients for session in client.sessions]

    def run(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        """Run a command of numbers-uring that connects to the NATS servers."""
        urls = ",".join(broker.url for broker in self.brokers)
        return run_command("cluster", arguments[0], "--nats", urls, *arguments[1:], prefix=self._at)

    def check_running(self) -> None:
        """Fail where a part has ended by itself, or said something unheard-of."""
        for part in self.parts:
            process = part.process
            if process is not None and (code := process.process.poll()) is not None:
                raise AssertionError(f"{part.name} ended with {code}: {process.stderr}")
            said = "" if process is None else process.stderr
            assert "Traceback" not in said, f"{part.name}: {said}"

    # What NATS servers are asked.

    def ask(self, use: Callable[[JetStreamContext], Coroutine[Any, Any, T]], answer_s: float) -> T:
        """Return what a NATS server answers, as soon as one does."""
        answers: list[T] = []

        async def ask(js: JetStreamContext) -> T:
            async with asyncio.timeout(answer_s):
                return await use(js)

        def answered() -> bool:
            for broker in self.brokers:
                if broker.process is not None:
                    with suppress(StartError, NatsError, TimeoutError):
                        answers.append(broker.run(ask))
                        return True
            return False

        wait_until(answered, "an answer of the NATS servers", HEALED_S)
        return answers[0]

    def wait_for_brokers(self) -> None:
        """Wait until all three have all streams: only then one of them may be lost."""

        async def whole(js: JetStreamContext) -> bool:
            for stream in STREAMS:
                cluster = (await js.stream_info(stream)).cluster
                replicas = (cluster.replicas if cluster else None) or []
                if len(replicas) != 2 or not all(one.current for one in replicas):
                    return False
            return True

        wait_until(lambda: self.ask(whole, 2.0), "all replicas", HEALED_S)

    def leader(self, stream: str) -> Broker:
        async def ask(js: JetStreamContext) -> str | None:
            cluster = (await js.stream_info(stream)).cluster
            return None if cluster is None else cluster.leader

        def name() -> str:
            return self.ask(ask, 2.0) or ""

        wait_until(name, "a leader", HEALED_S)
        found = name()
        return next(broker for broker in self.brokers if broker.name == found)

    # What is waited for.

    def wait_for_growth(self) -> None:
        """Wait until new numbers have come to each log of each copy."""
        before = [copy.sizes() for copy in self.copies]
        for place, copy in enumerate(self.copies):
            self._wait(
                lambda place=place: self._has_grown(place, before),  # type: ignore[misc]
                f"new numbers in all logs of {copy.name}",
            )

    def wait_for_any_growth(self) -> None:
        """Wait until new numbers have come to each log of one copy."""
        before = [copy.sizes() for copy in self.copies]
        self._wait(
            lambda: any(self._has_grown(place, before) for place in range(len(self.copies))),
            "new numbers in all logs of a copy",
        )

    def _has_grown(self, place: int, before: list[list[int]]) -> bool:
        pairs = zip(self.copies[place].sizes(), before[place], strict=True)
        return all(size >= size_before + GROWTH_BYTES for size, size_before in pairs)

    def _wait(self, condition: Callable[[], bool], what: str) -> None:
        def holds() -> bool:
            self.check_running()
            return condition()

        try:
            wait_until(holds, what, HEALED_S)
        except AssertionError as error:
            said = [
                f"{part.name}: {part.process.stderr if part.process else 'not running'}"
                for part in self.parts
            ]
            raise AssertionError("\n".join([str(error), *said])) from error

    def stop_clients(self) -> None:
        for client in self._clients:
            client.leave()
        for client in self._clients:
            client.wait()
