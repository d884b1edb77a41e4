"""Measures a cluster and its parts on this machine: NATS server, node, collectors, all at once.

    python perf/cluster_bench.py                        all tables
    python perf/cluster_bench.py node collector --rounds 3
    python perf/cluster_bench.py all --partitions 1 --numbers 5000000 --json figures.json
    python perf/cluster_bench.py node collector --before OLDER/.venv/bin/python

Tables, each with a NATS server (nats-server) of its own for each run, on loopback and on this disk:

- nats-server: no code of ours but its packed batches: they are stored, delivered and both at once,
  by the same client library, in messages as large and with as many in flight as nodes and
  collectors have;
- node: a node that gets unique numbers in random order until all are acknowledged, then the same
  ones again, which it drops by itself;
- collector: collectors that drain streams which were filled before, until all is synced;
- all: load, node, NATS server and collectors at once, until all is synced.

In the last three there is one NATS server, which syncs always. Processor time is that of all
threads of all processes of a part. Streams or logs that are not exactly the set of the numbers
sent fail the run. Stores and logs are removed after each run. Machines drift, so only ratios of
one round are compared; the tables give the median of the rounds with minimum and maximum, and the
median ratio to the first contender, or to the installation that `--before` names.
"""

import json
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import asdict
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import click

from background import PYTHON
from bench import LogCheck, machine
from broker_client import consume, publish
from brokers import SETUPS, SYNCED, Setup
from measured import Contender, Measurement, Row, take_turns
from numbers_uring.cluster.connection import require_nats_library
from numbers_uring.errors import StartError
from numbers_uring.load.model import LoadParameters
from running_cluster import Cpu, RunningCluster, running_cluster

SEND_BYTES = 256 * 1024
REACTORS = (1, 2)
COLLECTORS = (1, 2)

Measurements = dict[str, Measurement]
Runs = Mapping[str, Callable[[str], Measurements]]


class ClusterBench:
    """Runs scenarios and collects rows."""

    def __init__(self, rounds: int, numbers: int, folder: Path, before: str | None) -> None:
        self.rows: list[Row] = []
        self._rounds = rounds
        self._load = LoadParameters(numbers=numbers, send_bytes=SEND_BYTES)
        self._folder = folder
        self._installations = {"": PYTHON} if before is None else {", before": before, "": PYTHON}
        self._check = LogCheck()
        self._clients: ProcessPoolExecutor

    def broker(self, partitions: int, setups: Sequence[Setup] = SETUPS) -> None:
        contenders = [
            Contender(setup.name, partial(self._broker, setup, partitions), setups[0].name)
            for setup in setups
        ]
        # A process for each of them, as nodes and collectors are.
        with ProcessPoolExecutor(2, get_context("spawn")) as self._clients:
            self._take_turns("nats-server", partitions, contenders)

    def node(self, partitions: int, reactors: Sequence[int] = REACTORS) -> None:
        runs = {f"reactors {count}": partial(self._node, partitions, count) for count in reactors}
        self._take_turns("node", partitions, self._of_ours(runs))

    def collector(self, partitions: int, collectors: Sequence[int] = COLLECTORS) -> None:
        shared = [count for count in collectors if partitions % count == 0]
        runs = {
            f"collectors {count}": partial(self._collector, partitions, count) for count in shared
        }
        self._take_turns("collector", partitions, self._of_ours(runs))

    def all(self, partitions: int, collectors: Sequence[int] = COLLECTORS) -> None:
        shared = [count for count in collectors if partitions % count == 0]
        runs = {f"collectors {count}": partial(self._all, partitions, count) for count in shared}
        self._take_turns("all", partitions, self._of_ours(runs))

    def _of_ours(self, runs: Runs) -> list[Contender]:
        """Return a contender for each run and each installation."""
        contenders = []
        for name, run in runs.items():
            for of, python in self._installations.items():
                base = next(iter(runs)) if len(self._installations) == 1 else f"{name}, before"
                contenders.append(Contender(name + of, partial(run, python), base))
        return contenders

    def _take_turns(self, table: str, partitions: int, contenders: Sequence[Contender]) -> None:
        scenario = f"partitions {partitions}"
        self.rows.extend(take_turns(table, scenario, contenders, self._rounds))

    # One run each.

    def _broker(self, setup: Setup, partitions: int) -> Measurements:
        return {
            **self._broker_in_turn(setup, partitions),
            **self._broker_at_once(setup, partitions),
        }

    def _broker_in_turn(self, setup: Setup, partitions: int) -> Measurements:
        found = {}
        numbers = self._load.numbers
        with self._cluster(setup, partitions) as cluster:
            for what, work in (
                ("stored", partial(publish, cluster.broker.url, self._load, partitions)),
                ("delivered", partial(consume, cluster.broker.url, numbers, partitions)),
            ):
                cpu = Cpu(nats_server=cluster.broker.pids)
                span = self._clients.submit(work).result()
                spent = cpu.per_number(numbers) | {"client": 1e9 * span.cpu_s / numbers}
                found[what] = Measurement(numbers / (span.end_s - span.begin_s), spent)
            cluster.check_streams(self._check, self._load)
        return found

    def _broker_at_once(self, setup: Setup, partitions: int) -> Measurements:
        numbers = self._load.numbers
        with self._cluster(setup, partitions) as cluster:
            url = cluster.broker.url
            cpu = Cpu(nats_server=cluster.broker.pids)
            consumer = self._clients.submit(consume, url, numbers, partitions)
            stored = self._clients.submit(publish, url, self._load, partitions).result()
            delivered = consumer.result()
            spent = cpu.per_number(numbers)
            cluster.check_streams(self._check, self._load)
        return {
            what: Measurement(
                numbers / (span.end_s - stored.begin_s),
                spent | {"client": 1e9 * span.cpu_s / numbers},
            )
            for what, span in (("stored, at once", stored), ("delivered, at once", delivered))
        }

    def _node(self, partitions: int, reactors: int, python: str) -> Measurements:
        found = {}
        numbers = self._load.numbers
        with self._cluster(SYNCED, partitions, python) as cluster:
            node = cluster.add_node("--reactors", str(reactors))
            for what in ("unique", "repeats"):
                cpu = Cpu(node=node.pids, nats_server=cluster.broker.pids)
                begin_s = node.send(self._load)
                node.wait_for_acknowledged(numbers)
                rate = numbers / (time.monotonic() - begin_s)
                found[what] = Measurement(rate, cpu.per_number(numbers))
            node.process.stop()
            cluster.check_streams(self._check, self._load)
        return found

    def _collector(self, partitions: int, collectors: int, python: str) -> Measurements:
        with self._cluster(SYNCED, partitions, python) as cluster:
            publish(cluster.broker.url, self._load, partitions)
            cluster.add_collectors(collectors)
            begin_s, begun = time.monotonic(), cluster.logged
            cpu = Cpu(collectors=cluster.collector_pids, nats_server=cluster.broker.pids)
            cluster.wait_for_logs(self._load.numbers)
            # A few numbers may be through before that.
            numbers = max(self._load.numbers - begun, 1)
            rate = numbers / (time.monotonic() - begin_s)
            found = {"logged": Measurement(rate, cpu.per_number(numbers))}
            self._end(cluster)
        return found

    def _all(self, partitions: int, collectors: int, python: str) -> Measurements:
        numbers = self._load.numbers
        with self._cluster(SYNCED, partitions, python) as cluster:
            cluster.add_collectors(collectors)
            node = cluster.add_node()
            pids = {
                "node": node.pids,
                "nats_server": cluster.broker.pids,
                "collectors": cluster.collector_pids,
            }
            cpu = Cpu(**pids)
            begin_s = node.send(self._load)
            cluster.wait_for_logs(numbers)
            rate = numbers / (time.monotonic() - begin_s)
            found = {"logged": Measurement(rate, cpu.per_number(numbers))}
            node.process.stop()
            self._end(cluster)
        return found

    def _cluster(
        self, setup: Setup, partitions: int, python: str = PYTHON
    ) -> AbstractContextManager[RunningCluster]:
        return running_cluster(setup, partitions, self._load.numbers, self._folder, python)

    def _end(self, cluster: RunningCluster) -> None:
        for collector in cluster.collectors:
            collector.stop()
        self._check.check(self._load, *cluster.logs)


@click.command(context_settings={"show_default": True}, help=__doc__)
@click.argument("tables", nargs=-1, type=click.Choice(["nats-server", "node", "collector", "all"]))
@click.option("--rounds", type=click.IntRange(1, 100), default=5)
@click.option("--numbers", type=click.IntRange(1000, 100_000_000), default=20_000_000)
@click.option(
    "--partitions",
    type=click.IntRange(1, 64),
    multiple=True,
    default=(1, 4),
    help="Of the streams; may be repeated, each gives tables of its own.",
)
@click.option(
    "--before",
    type=click.Path(exists=True, dir_okay=False),
    help="The interpreter of an installation that nodes and collectors are compared with.",
)
@click.option(
    "--json", "json_file", type=click.Path(path_type=Path), help="Write all figures here."
)
@click.option(
    "--folder",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Where streams and logs go.",
)
def main(
    tables: tuple[str, ...],
    rounds: int,
    numbers: int,
    partitions: tuple[int, ...],
    before: str | None,
    json_file: Path | None,
    folder: Path | None,
) -> None:
    try:
        require_nats_library()
    except StartError as error:
        raise click.ClickException(str(error)) from error
    import nats  # noqa: PLC0415

    click.echo(f"{machine()}; {rounds} rounds, {numbers} numbers, {time.strftime('%Y-%m-%d')}")
    with tempfile.TemporaryDirectory(prefix="cluster-", dir=folder) as stores:
        bench = ClusterBench(rounds, numbers, Path(stores), before)
        run: dict[str, Callable[[int], None]] = {
            "nats-server": bench.broker,
            "node": bench.node,
            "collector": bench.collector,
            "all": bench.all,
        }
        try:
            for table in tables or run:
                for count in partitions:
                    run[table](count)
        except (RuntimeError, StartError, TimeoutError, nats.errors.Error) as error:
            raise click.ClickException(str(error) or "no answer in time") from error
    if json_file is not None:
        figures = {"machine": machine(), "rows": [asdict(row) for row in bench.rows]}
        json_file.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
