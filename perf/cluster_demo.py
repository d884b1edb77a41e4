"""A whole cluster on one machine: engine, two nodes, two collectors, load, a kill, a check.

    python perf/cluster_demo.py
    python perf/cluster_demo.py --numbers 20000000

Both nodes get the same numbers, so each number reaches the NATS server twice, from nodes that do
not know each other. In the middle one collector is killed (kill -9) and started again. At the end
the logs have each number exactly once, or this fails.
"""

import json
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import click

from background import DEADLINE_S, PYTHON, Background, run, words
from engines import SYNCED, running_engine

PARTITIONS = 4
COLLECTED = ("0-1", "2-3")
STREAM_BYTES = 1_000_000_000
STATUS_CODES = (0, 1)
"""A status with a problem in it is a status."""


@click.command()
@click.option("--numbers", type=click.IntRange(1000, 50_000_000), default=4_000_000)
def main(numbers: int) -> None:
    """Run the cluster, and fail where its logs are not what was sent."""
    with ExitStack() as running:
        folder = Path(running.enter_context(tempfile.TemporaryDirectory(prefix="cluster-")))

        def start(name: str, *arguments: str) -> Background:
            program = Background(words(PYTHON, *arguments), folder / f"{name}.txt")
            running.callback(program.kill)
            return program

        store_bytes = (PARTITIONS + 1) * STREAM_BYTES
        url = running.enter_context(running_engine(SYNCED, folder, store_bytes)).url
        streams = ("--partitions", str(PARTITIONS), "--max-bytes", str(STREAM_BYTES))
        run("cluster", "init", "--nats", url, *streams)

        def collect(number: int) -> Background:
            logs = ("--log-dir", str(folder / f"collector-{number}"))
            command = ("collect", "--nats", url, "--partitions", COLLECTED[number], *logs)
            collector = start(f"collector-{number}-{time.monotonic_ns()}", *command)
            collector.wait_for("collecting partitions")
            return collector

        collectors = [collect(number) for number in range(len(COLLECTED))]
        forward = ("--forward", url, "--partitions", str(PARTITIONS))
        nodes = [start(f"node-{number}", "serve", "--port", "0", *forward) for number in range(2)]
        ports = [node.wait_for(r"listening on \S+?:(\d+)[, ]")[1] for node in nodes]
        click.echo(
            f"{url}: {PARTITIONS} partitions, 2 nodes, 2 collectors; sending {numbers} numbers"
        )
        begin_s = time.monotonic()
        loads = [
            start(f"load-{port}", "load", "--port", port, "--numbers", str(numbers))
            for port in ports
        ]
        log = folder / "collector-1" / f"numbers.{PARTITIONS - 1}.log"
        while log.stat().st_size < numbers * 10 // PARTITIONS // 3:
            if time.monotonic() - begin_s > DEADLINE_S:
                raise click.ClickException("nothing reaches the logs")
            time.sleep(0.01)
        collectors[1].kill()
        click.echo(f"killed the collector of {COLLECTED[1]} (kill -9), starting it again")
        collectors[1] = collect(1)
        for load in loads:
            if load.process.wait(DEADLINE_S) != 0:
                raise click.ClickException(load.said.read_text())
        for node in nodes:
            node.stop()
        while (status := _totals(url))["lag_messages"]:
            if time.monotonic() - begin_s > DEADLINE_S:
                raise click.ClickException(f"the collectors do not come to an end: {status}")
            time.sleep(0.1)
        took_s = time.monotonic() - begin_s
        click.echo(run("cluster", "status", "--nats", url, codes=STATUS_CODES), nl=False)
        for collector in collectors:
            collector.stop()
        _check(folder, numbers)
        click.echo(
            f"each of {numbers} numbers, sent to both nodes, is in exactly one log, once "
            f"({took_s:.1f} s, starts and redelivery included)"
        )


def _totals(url: str) -> dict[str, int]:
    text = run("cluster", "status", "--json", "--nats", url, codes=STATUS_CODES)
    totals: dict[str, int] = json.loads(text)["totals"]
    return totals


def _check(folder: Path, numbers: int) -> None:
    logs = sorted(map(str, folder.glob("collector-*/numbers.*.log")))
    found = json.loads(run("check", "--json", *logs))
    if (found["numbers"], found["distinct"]) != (numbers, numbers):
        raise click.ClickException(f"{numbers} numbers were sent, and the logs have {found}")


if __name__ == "__main__":
    main()
