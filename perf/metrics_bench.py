"""Measures what --metrics costs the reactor: servers side by side, given short loads in turn.

    python perf/metrics_bench.py
    python perf/metrics_bench.py --before ../older/.venv/bin/python --rounds 300

All servers run at once, idle but for the one whose turn it is, so each round compares them within
a fraction of a second; a noisy machine needs many rounds. One is scraped each second all the time,
one without a pause while it is its turn. The last is as the first: what differs between these two
is chance, such as where in memory their bitmaps lie. `--before` is the interpreter of an
installation to compare with, such as that of an older commit. Processor time is that of all the
server's threads.
"""

import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import click

from numbers_uring.load.model import LoadParameters, Mix
from numbers_uring.load.run import run_load

LOADS = {
    "5 clients, 256 KiB sends": LoadParameters(
        clients=5, numbers=2_000_000, mix=Mix.DUPLICATE, send_bytes=262_144
    ),
    "500 clients, 100 B sends": LoadParameters(
        clients=500, numbers=200_000, mix=Mix.DUPLICATE, send_bytes=100
    ),
}


@dataclass(slots=True)
class Contender:
    """A running server, and what each of its turns gave."""

    name: str
    process: subprocess.Popen[str]
    port: int
    metrics_url: str | None
    rates: list[float] = field(default_factory=list)
    cpu_ns: list[float] = field(default_factory=list)

    def take_turn(self, load: LoadParameters) -> None:
        before_ns = self._cpu_ns()
        result = run_load(replace(load, port=self.port))
        if result.numbers_taken != load.numbers:
            raise click.ClickException(f"{self.name} did not take all numbers: {result.errors}")
        self.rates.append(result.numbers_per_s)
        self.cpu_ns.append((self._cpu_ns() - before_ns) / load.numbers)

    def _cpu_ns(self) -> int:
        tasks = Path(f"/proc/{self.process.pid}/task").iterdir()
        return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks)


@contextmanager
def running(name: str, python: str, folder: Path, *options: str) -> Iterator[Contender]:
    """Run a server; end it with the context."""
    log = folder / f"{name}.log"
    command = [python, "-P", "-m", "numbers_uring", "serve", "--port", "0", "--max-clients", "600"]
    process = subprocess.Popen(
        [*command, "--log-file", str(log), *options],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    try:
        said = process.stderr.readline()
        start = re.search(r"listening on \S+:(\d+)", said)
        if start is None or ", huge pages," not in said:
            raise click.ClickException(f"{name} did not start, or without huge pages: {said}")
        metrics = re.search(r"metrics on (\S+)", said)
        yield Contender(name, process, int(start[1]), metrics[1] if metrics else None)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)
        process.stderr.close()


@contextmanager
def scraping(contender: Contender, interval_s: float) -> Iterator[None]:
    """Ask for the metrics, in a thread, until the context is left."""
    done = threading.Event()

    def scrape() -> None:
        while not done.is_set():
            with urllib.request.urlopen(str(contender.metrics_url), timeout=60) as answer:
                answer.read()
            done.wait(interval_s)

    thread = threading.Thread(target=scrape, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def quartiles(values: list[float]) -> str:
    low, middle, high = statistics.quantiles(values, n=4)
    return f"{middle:.1f} ({low:.1f}-{high:.1f})"


def paired(values: list[float], base: list[float]) -> str:
    """Return the median of the rounds' own ratios, with the standard error of a median."""
    ratios = [100 * a / b for a, b in zip(values, base, strict=True)]
    error = 1.25 * statistics.stdev(ratios) / len(ratios) ** 0.5
    return f"{statistics.median(ratios):.1f} ± {error:.1f} %"


def measure(backend: str, load_name: str, rounds: int, before: str | None) -> None:
    options = ("--backend", backend)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))

        def start(name: str, *more: str, python: str = sys.executable) -> Contender:
            return stack.enter_context(running(name, python, folder, *options, *more))

        metrics = ("--metrics", "127.0.0.1:0")
        contenders = [start("without metrics")]
        if before is not None:
            contenders.append(start("before", python=before))
        contenders.append(start("metrics", *metrics))
        each_second = start("scraped each second", *metrics)
        no_pause = start("scraped without a pause", *metrics)
        contenders += [each_second, no_pause, start("without metrics, again")]
        stack.enter_context(scraping(each_second, 1))
        for round_ in range(rounds + 1):
            turn = round_ % len(contenders)
            for contender in contenders[turn:] + contenders[:turn]:
                with ExitStack() as turn_only:
                    if contender is no_pause:
                        turn_only.enter_context(scraping(contender, 0))
                    contender.take_turn(LOADS[load_name])
        click.echo(f"\n### {backend}, duplicates, {load_name}\n")
        click.echo("| server | M numbers/s | paired | CPU ns/number | paired |")
        click.echo("|---|---|---|---|---|")
        for contender in contenders:
            # The first round warms up: it fills the bitmap and the log.
            rates, cpu_ns = [rate / 1e6 for rate in contender.rates[1:]], contender.cpu_ns[1:]
            base = contenders[0]
            base_rates = [rate / 1e6 for rate in base.rates[1:]]
            click.echo(
                f"| {contender.name} | {quartiles(rates)} | {paired(rates, base_rates)} "
                f"| {quartiles(cpu_ns)} | {paired(cpu_ns, base.cpu_ns[1:])} |"
            )


@click.command(context_settings={"show_default": True}, help=__doc__)
@click.option("--rounds", type=click.IntRange(2, 10_000), default=150)
@click.option("--before", type=click.Path(exists=True, dir_okay=False))
def main(rounds: int, before: str | None) -> None:
    click.echo(f"Linux {os.uname().release}, {rounds} rounds, {time.strftime('%Y-%m-%d')}")
    for backend in ("epoll", "uring"):
        for load_name in LOADS:
            measure(backend, load_name, rounds, before)


if __name__ == "__main__":
    main()
