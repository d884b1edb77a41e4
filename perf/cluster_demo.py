"""A whole cluster on one machine: load, a kill, damaged files, and what is said of them.

    python perf/cluster_demo.py
    python perf/cluster_demo.py --numbers 20000000

A NATS server, two nodes and two collectors run, and each collector has a copy of every partition.
Both nodes get the same numbers, so each number reaches the NATS server twice, from nodes that do
not know each other. In the middle of it a collector is killed (kill -9) and started again. Then a
bit is flipped in one copy's log, and another one in a file of the NATS server, and both are put in
order with the files of the copy that is whole. At the end `numbers-uring cluster verify` finds all
copies equal, with each number once, and nothing missing but what the NATS server has lost, or this
fails.
"""

import json
import re
import shutil
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import click

from background import DEADLINE_S, PYTHON, Background, run, words
from broker_client import until_synced
from brokers import SYNCED, running_broker
from numbers_uring.cluster.partitions import index_name, log_name, stream_name

PARTITIONS = 4
ALL = f"0-{PARTITIONS - 1}"
STREAM_BYTES = 1_000_000_000
FINDINGS_CODES = (0, 1)
"""A command that shows what is wrong has done what it should."""
FLIPPED_LOG = 2
FLIPPED_STREAM = 1


class Demo:
    """The programs of the cluster, all of them with their files in one folder."""

    def __init__(self, running: ExitStack) -> None:
        self._running = running
        self.folder = Path(running.enter_context(tempfile.TemporaryDirectory(prefix="cluster-")))
        store_bytes = (PARTITIONS + 1) * STREAM_BYTES
        self.broker = running.enter_context(running_broker(SYNCED, self.folder, store_bytes))
        self.url = self.broker.url
        streams = ("--partitions", str(PARTITIONS), "--max-bytes", str(STREAM_BYTES))
        run("cluster", "init", "--nats", self.url, *streams)

    def start(self, name: str, *arguments: str) -> Background:
        said = self.folder / f"{name}-{time.monotonic_ns()}.txt"
        program = Background(words(PYTHON, *arguments), said)
        self._running.callback(program.kill)
        return program

    def node(self) -> tuple[Background, str]:
        """Start a node; return it with its port."""
        forward = ("--forward", self.url, "--partitions", str(PARTITIONS))
        node = self.start("node", "serve", "--port", "0", *forward)
        return node, node.wait_for(r"listening on \S+?:(\d+)[, ]")[1]

    def collect(self, copy: str, partitions: str = ALL) -> Background:
        """Start a collector with its logs in the folder `copy`."""
        logs = ("--log-dir", str(self.folder / copy))
        return self.start(copy, "collect", "--nats", self.url, "--partitions", partitions, *logs)

    def status(self, *options: str) -> str:
        return run("cluster", "status", "--nats", self.url, *options, codes=FINDINGS_CODES)

    def logs(self, copy: str) -> list[Path]:
        return [self.folder / copy / log_name(partition) for partition in range(PARTITIONS)]

    def take_over(self, partition: int, source: str, target: str) -> None:
        """Put one copy's files in the place of another's: the index first, then the log."""
        for name in (index_name(partition), log_name(partition)):
            shutil.copyfile(self.folder / source / name, self.folder / target / name)

    def verify(self, *copies: str) -> list[str]:
        """Verify these copies, show the result, and return what is found."""
        folders = [f"--log-dir={self.folder / copy}" for copy in copies]
        text = run("cluster", "verify", "--nats", self.url, *folders, codes=FINDINGS_CODES)
        self.show(f"numbers-uring cluster verify, of {' and '.join(copies)}", text)
        return re.findall(r"^partition \d+: (?!\d+ logs?\b).*", text, re.MULTILINE)

    def show(self, title: str, text: str) -> None:
        """Print what a command says, without the name of our folder."""
        click.echo(f"\n{title}:")
        for line in text.replace(f"{self.folder}/", "").splitlines():
            click.echo(f"    {line}")


@click.command()
@click.option("--numbers", type=click.IntRange(6_000_000, 50_000_000), default=8_000_000)
def main(numbers: int) -> None:
    """Run the cluster, and fail where its logs are not what was sent."""
    begin_s = time.monotonic()
    with ExitStack() as running:
        demo = Demo(running)
        copies = {copy: demo.collect(copy) for copy in ("a", "b")}
        for collector in copies.values():
            collector.wait_for("collecting partitions")
        _load(demo, copies, numbers)
        if demo.verify("a", "b"):
            raise click.ClickException("the copies are not what was sent")
        _flip_log(demo, copies)
        _flip_stream(demo)
        for collector in copies.values():
            collector.stop()
        click.echo(
            f"\neach of {numbers} numbers, sent to both nodes, is in the log of its partition, "
            f"once, in each copy ({time.monotonic() - begin_s:.0f} s)"
        )


def _load(demo: Demo, copies: dict[str, Background], numbers: int) -> None:
    """Send the numbers to two nodes, with a kill in the middle of it."""
    nodes = [demo.node() for _ in range(2)]
    click.echo(
        f"{demo.url}: {PARTITIONS} partitions, 2 nodes, 2 copies; sending {numbers} numbers to "
        "each node"
    )
    loads = [
        demo.start("load", "load", "--port", port, "--numbers", str(numbers)) for _, port in nodes
    ]
    log = demo.logs("b")[-1]
    end_s = time.monotonic() + DEADLINE_S
    while log.stat().st_size < numbers * 10 // PARTITIONS // 3:
        if time.monotonic() > end_s:
            raise click.ClickException("nothing reaches the logs")
        time.sleep(0.01)
    copies["b"].kill()
    click.echo("killed the collector of copy b (kill -9), starting it again")
    copies["b"] = demo.collect("b")
    copies["b"].wait_for("collecting partitions")
    for load in loads:
        if load.process.wait(DEADLINE_S) != 0:
            raise click.ClickException(load.said.read_text())
    for node, _ in nodes:
        node.stop()
    for copy in copies:
        until_synced(demo.url, demo.logs(copy))
    # What a collector reports may be some seconds old.
    while json.loads(demo.status("--json"))["totals"]["lag_messages"]:
        if time.monotonic() > end_s:
            raise click.ClickException("the status does not show that all is synced")
        time.sleep(0.1)
    demo.show("numbers-uring cluster status", demo.status())


def _flip_log(demo: Demo, copies: dict[str, Background]) -> None:
    """Flip a bit in a log, and take the other copy's files in its place."""
    copies["b"].stop()
    log = demo.logs("b")[FLIPPED_LOG]
    line = log.stat().st_size // 20 * 10
    _flip(log, line + 8)
    click.echo(f"\nflipped a bit of byte {line + 8} in b/{log.name}")
    if not demo.verify("a", "b"):
        raise click.ClickException("the flipped bit was not found")
    refused = demo.collect("b")
    if refused.process.wait(DEADLINE_S) == 0:
        raise click.ClickException("the collector of copy b has stopped by itself")
    demo.show("its collector, started again", _last_line(refused))
    demo.take_over(FLIPPED_LOG, "a", "b")
    copies["b"] = demo.collect("b")
    until_synced(demo.url, demo.logs("b"))
    click.echo("\ncopied a's index and log of that partition to b, while a's collector runs")


def _flip_stream(demo: Demo) -> None:
    """Flip a bit in the NATS server's oldest file of a stream, which no new copy gets past."""
    stream = stream_name(FLIPPED_STREAM)
    blocks = sorted(
        demo.folder.glob(f"store-0/jetstream/*/streams/{stream}/msgs/*.blk"),
        key=lambda block: int(block.stem),
    )
    _flip(blocks[0], blocks[0].stat().st_size // 2)
    # What it has in its memory is not damaged.
    demo.broker.restart()
    click.echo(
        f"\nflipped a bit in the NATS server's file {blocks[0].name} of {stream}, killed the NATS "
        "server and started it again"
    )
    collector = demo.collect("c", str(FLIPPED_STREAM))
    said = collector.wait_for(rf"partition {FLIPPED_STREAM} waits: .*\n")[0]
    demo.show("the collector of a new copy, c", said)
    collector.stop()
    demo.take_over(FLIPPED_STREAM, "a", "c")
    collector = demo.collect("c", str(FLIPPED_STREAM))
    collector.wait_for("collecting partitions")
    collector.stop()
    click.echo("\ncopied a's index and log of that partition to c")
    findings = demo.verify("a", "b", "c")
    if len(findings) != 1 or f"missing in the stream {stream}" not in findings[0]:
        raise click.ClickException("only what the NATS server has lost should have been found")


def _flip(path: Path, at: int) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        (byte,) = file.read(1)
        file.seek(at)
        file.write(bytes([byte ^ 1]))


def _last_line(program: Background) -> str:
    return program.said.read_text().splitlines()[-1]


if __name__ == "__main__":
    main()
