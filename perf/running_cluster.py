"""A cluster on this machine for one measurement: NATS server, node and collectors, in a folder."""

import re
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import click

from background import DEADLINE_S, LOOK_S, PYTHON, Background, run, words
from bench import LogCheck, cpu_ns
from broker_client import stored, until_synced
from brokers import Broker, Setup, running_broker
from numbers_uring.cluster.partitions import NUMBER_BYTES, log_name
from numbers_uring.limits import LINE_BYTES
from numbers_uring.load.model import LoadParameters
from numbers_uring.load.run import run_load

STREAM_MARGIN_BYTES = 64 * 2**20
"""For the headers and the ends of a stream's messages."""


class Cpu:
    """Processor time of the parts of a cluster from now on."""

    def __init__(self, **pids: tuple[int, ...]) -> None:
        self._pids = {part.replace("_", "-"): each for part, each in pids.items()}
        self._before = self._ns()

    def per_number(self, numbers: int) -> dict[str, float]:
        """Return what each part has taken up since, in nanoseconds a number."""
        return {part: (now - self._before[part]) / numbers for part, now in self._ns().items()}

    def _ns(self) -> dict[str, int]:
        return {part: sum(map(cpu_ns, pids)) for part, pids in self._pids.items()}


@dataclass(frozen=True, slots=True)
class Node:
    """A node that is listening."""

    process: Background
    port: int

    @property
    def pids(self) -> tuple[int, ...]:
        return (self.process.process.pid,)

    def send(self, parameters: LoadParameters) -> float:
        """Send a load, of which everything has to be taken in; return when the first send was.

        Raises RuntimeError.
        """
        result = run_load(replace(parameters, port=self.port, timeout_s=DEADLINE_S))
        if not result.complete:
            raise RuntimeError(f"the node did not take all numbers: {result.errors}")
        # Its lines are made before that.
        return time.monotonic() - result.seconds

    def wait_for_acknowledged(self, numbers: int) -> None:
        """Return once it says that so many numbers are acknowledged. Raises RuntimeError."""
        end_s = time.monotonic() + DEADLINE_S
        while True:
            reports = re.findall(r"Unique total: (\d+)\n", self.process.said.read_text())
            if reports and int(reports[-1]) >= numbers:
                return
            if time.monotonic() > end_s or self.process.process.poll() is not None:
                raise RuntimeError(f"the node has said: {self.process.said.read_text()}")
            self.process.process.send_signal(signal.SIGUSR1)
            time.sleep(LOOK_S)


class RunningCluster:
    """A NATS server with streams for `partitions`, to which nodes and collectors are added.

    `python` is the interpreter that has those installed.
    """

    def __init__(
        self, broker: Broker, partitions: int, folder: Path, running: ExitStack, python: str
    ) -> None:
        self.broker = broker
        self.partitions = partitions
        self.collectors: list[Background] = []
        self._folder = folder
        self._running = running
        self._python = python

    def _start(self, name: str, *arguments: str) -> Background:
        program = Background(words(self._python, *arguments), self._folder / f"{name}.txt")
        self._running.callback(program.kill)
        return program

    def add_node(self, *options: str) -> Node:
        """Start a node, and return once it listens."""
        forward = ("--forward", self.broker.url, "--partitions", str(self.partitions))
        program = self._start("node", "serve", "--port", "0", *forward, *options)
        return Node(program, int(program.wait_for(r"listening on \S+?:(\d+)[, ]")[1]))

    def add_collectors(self, count: int) -> None:
        """Start collectors that share the partitions evenly, and return once they take in."""
        share = self.partitions // count
        for number in range(count):
            names = ",".join(map(str, range(number * share, (number + 1) * share)))
            logs = ("--log-dir", str(self._folder / "logs"))
            collected = ("--nats", self.broker.url, "--partitions", names, *logs)
            self.collectors.append(self._start(f"collector-{number}", "collect", *collected))
        for collector in self.collectors:
            collector.wait_for("collecting partitions")

    @property
    def collector_pids(self) -> tuple[int, ...]:
        return tuple(collector.process.pid for collector in self.collectors)

    @property
    def logs(self) -> list[Path]:
        return [self._folder / "logs" / log_name(each) for each in range(self.partitions)]

    @property
    def logged(self) -> int:
        """How many numbers the logs have."""
        return sum(log.stat().st_size for log in self.logs) // LINE_BYTES

    def wait_for_logs(self, numbers: int) -> None:
        """Return once so many numbers are in the logs, synced. Raises RuntimeError."""
        end_s = time.monotonic() + DEADLINE_S
        while self.logged < numbers:
            if time.monotonic() > end_s or any(each.process.poll() for each in self.collectors):
                said = "".join(collector.said.read_text() for collector in self.collectors)
                raise RuntimeError(f"the logs have {self.logged} of {numbers} numbers: {said}")
            time.sleep(LOOK_S)
        until_synced(self.broker.url, self.logs)

    def check_streams(self, check: LogCheck, parameters: LoadParameters) -> None:
        """Raise RuntimeError unless the streams hold each number of the load, once."""
        found, repeats = stored(self.broker.url, self.partitions)
        if repeats or found != check.expected(parameters):
            raise RuntimeError("the streams are not the set of the numbers sent")


@contextmanager
def running_cluster(
    setup: Setup, partitions: int, numbers: int, folder: Path, python: str = PYTHON
) -> Iterator[RunningCluster]:
    """Run a NATS server with empty streams, large enough for so many numbers twice.

    All of it is gone with the context. Raises ClickException where the disk has no room for it.
    """
    stream_bytes = 2 * numbers * NUMBER_BYTES // partitions + STREAM_MARGIN_BYTES
    store_bytes = (partitions + 1) * stream_bytes
    if shutil.disk_usage(folder).free < setup.replicas * store_bytes + numbers * LINE_BYTES:
        raise click.ClickException(f"there is no room in {folder} for the streams and the logs")
    with (
        tempfile.TemporaryDirectory(dir=folder) as own_folder,
        running_broker(setup, Path(own_folder), store_bytes) as broker,
        ExitStack() as running,
    ):
        size = ("--partitions", str(partitions), "--max-bytes", str(stream_bytes))
        replicas = ("--replicas", str(setup.replicas))
        run("cluster", "init", "--nats", broker.url, *size, *replicas)
        yield RunningCluster(broker, partitions, Path(own_folder), running, python)
