"""Measures the server beside what bounds it, in one run: alternating, several rounds, logs checked.

    python perf/bench.py                    all tables
    python perf/bench.py mixes sends        some of them
    python perf/bench.py --rounds 3 --numbers 5000000 --json figures.json

perf/bench_plot.py draws what --json has written, perf/readme_figures.py tells it in the README.

Contenders, each a process of its own that gets the same load over loopback:

- discard: a C program that receives and throws away; the ceiling of the sockets;
- ingest: the same with the kernel, nothing written;
- c: the same with the log: what the server would be without Python;
- yardstick: c as it was before kernels were measured against it, with its sizes; it stays;
- epoll, uring: this server on each backend with the best compiled kernel;
- epoll-VARIANT: with another kernel; python, the specification, gets fewer numbers;
- N reactors: with --reactors N;
- threads, asyncio, uvloop: what people write instead, see perf/peers.py; they get fewer numbers;
- epoll before, uring before: what another interpreter has installed, see --before.

Rates are of numbers taken in: the load half-closes each connection and waits for the server's
close; a light one waits in the sockets before, and leaves the processors to the server, see
perf/light_load.py. Processor time is the server's own. A log that is not exactly the set of the
numbers sent fails the run. Machines drift, so only ratios of one round are compared; the tables
give the median of the rounds with minimum and maximum. The table latency is described in
perf/latency.py.
"""

import json
import os
import platform
import re
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import chain, product
from pathlib import Path
from typing import Any

import click

import latency
from latency import LOADS, LatencyRow
from light_load import LIGHT_CLIENT_BYTES, LightLoad
from numbers_uring.ingest.native import variants
from numbers_uring.limits import BATCH_BYTES, BITMAP_BYTES, LINE_BYTES, RECEIVE_BYTES
from numbers_uring.load.lines import make_lines
from numbers_uring.load.model import LoadParameters, Mix
from numbers_uring.load.run import run_load

ROOT = Path(__file__).resolve().parent.parent
PEER = ROOT / "build" / "perf" / "peer"
PEER_BEFORE = PEER.with_name("peer-before")
RING_LOG = PEER.with_name("ring_log")
CHUNK_LINES = 100_000
SENDS_MAX = 400_000
PYTHON_KERNEL_NUMBERS_MAX = 1_000_000
PEER_NUMBERS_MAX = 1_000_000
SERVE = ["-m", "numbers_uring", "serve", "--port", "0", "--max-clients", "6000"]

COUNTERS = ("cycles", "instructions")
BASES = ("discard", "c", "yardstick", "1 reactor", "epoll before", "uring before")
"""Contenders that the others of their scenario are compared with."""

Command = Callable[[Path], list[str]]


@dataclass(frozen=True, slots=True)
class Contender:
    """One way to take numbers in; `logs` is true where it leaves a log to be checked.

    A slow one gets `numbers_max` at most.
    """

    name: str
    command: Command
    logs: bool = True
    numbers_max: int | None = None


@dataclass(frozen=True, slots=True)
class Measurement:
    """What one run gave."""

    numbers_per_s: float
    cpu_ns_per_number: float
    resident_mib: float
    counters_per_number: dict[str, float]
    """What perf counted of COUNTERS; empty where this machine has no such counters."""


@dataclass(frozen=True, slots=True)
class Row:
    """One contender in one scenario: a Measurement a round, in the order of the rounds."""

    table: str
    scenario: str
    contender: str
    rounds: list[Measurement]
    mix: str
    clients: int
    send_bytes: int


def server(*options: str, python: str = sys.executable) -> Command:
    return lambda log: [python, "-P", *SERVE, "--log-file", str(log), *options]


def peer(mode: str) -> Command:
    return lambda log: [str(PEER), mode, "0", str(log)]


def written_instead(name: str) -> Contender:
    """Return a server of perf/peers.py."""

    def command(log: Path) -> list[str]:
        return [sys.executable, str(ROOT / "perf" / "peers.py"), name, "0", str(log)]

    return Contender(name, command, numbers_max=PEER_NUMBERS_MAX)


DISCARD = Contender("discard", peer("discard"), logs=False)
INGEST = Contender("ingest", peer("ingest"), logs=False)
C = Contender("c", peer("serve"))
YARDSTICK = Contender("yardstick", lambda log: [str(PEER_BEFORE), "serve", "0", str(log)])

SIZES = {"NU_RECEIVE_BYTES": RECEIVE_BYTES, "NU_BATCH_BYTES": BATCH_BYTES}
SIZES_BEFORE = {"NU_RECEIVE_BYTES": 2**18, "NU_BATCH_BYTES": 2**22, "NU_WINDOW_LINES": 64}
"""What perf/peer.c had until 2026-11-27: not to be changed."""


def build(program: Path, output: Path | None = None, **values: int) -> None:
    """Compile the C program of that name in perf/, with the kernel that the server would choose.

    The program is given the server's sizes, or else `values`.
    """
    program.parent.mkdir(parents=True, exist_ok=True)
    sources = sorted((ROOT / "native" / "ingest").glob("*.c"))
    kernel = f"-DKERNEL=nu_ingest_{variants()[0].variant}"
    sizes = [f"-D{name}={value}" for name, value in (values or SIZES).items()]
    files = [output or program, ROOT / "perf" / f"{program.name}.c", *sources]
    include = f"-I{ROOT / 'native'}"
    command = ["gcc", "-std=gnu11", "-O3", kernel, *sizes, include, "-o", *map(str, files)]
    subprocess.run(command, check=True)


def backends(before: str | None = None) -> list[Contender]:
    """Return this server on each backend that starts here, and the one from `before` on it."""
    found = []
    pythons = {"": sys.executable} | ({" before": before} if before else {})
    for backend, version in product(("epoll", "uring"), pythons):
        name = f"{backend}{version}"
        contender = Contender(name, server("--backend", backend, python=pythons[version]))
        try:
            with tempfile.TemporaryDirectory() as folder, running(contender, Path(folder) / "log"):
                found.append(contender)
        except RuntimeError as error:
            click.echo(f"without {name}: {error}", err=True)
    return found


@contextmanager
def running(contender: Contender, log: Path) -> Iterator[tuple[int, int]]:
    """Run the contender; give its process id and port. Raises RuntimeError."""
    process = subprocess.Popen(
        contender.command(log), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    said = ""
    try:
        for line in process.stderr:
            said += line
            if start := re.search(r"listening on \S+:(\d+)", line):
                break
        else:
            raise RuntimeError(f"{contender.name} did not start: {said.strip()}")
        yield process.pid, int(start[1])
        process.send_signal(signal.SIGTERM)
        if process.wait(60) != 0:
            raise RuntimeError(f"{contender.name} failed: {process.stderr.read()}")
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        process.stderr.close()


def cpu_ns(pid: int) -> int:
    """Return the processor time of a process, with the threads that have ended."""
    # As clock_getcpuclockid(3) makes the clock's number, with CPUCLOCK_SCHED.
    return time.clock_gettime_ns(~pid << 3 | 2)


def has_counters() -> bool:
    """Return whether perf counts COUNTERS here; virtual machines often have none."""
    try:
        with counting(os.getpid(), COUNTERS) as counts:
            time.sleep(0.01)
    except FileNotFoundError:
        return False
    return set(counts) == set(COUNTERS)


@contextmanager
def counting(pid: int, names: tuple[str, ...]) -> Iterator[dict[str, int]]:
    """Count events of a running process; the counts are there when the context is left."""
    counts: dict[str, int] = {}
    if not names:
        yield counts
        return
    command = ["perf", "stat", "-x", ",", "-e", ",".join(names), "-p", str(pid)]
    perf = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        yield counts
    finally:
        # Not SIGINT, which a shell has its jobs in the background ignore, and a perf of theirs too.
        perf.send_signal(signal.SIGALRM)
        _, said = perf.communicate(timeout=60)
    for line in said.splitlines():
        fields = line.split(",")
        if fields[0].isdigit():
            counts[fields[2].split(":")[0]] = int(fields[0])


def resident_mib(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


class LogCheck:
    """Compares logs with the set of numbers that a load sent."""

    def __init__(self) -> None:
        self._kernel = variants()[0]
        self._batch = memoryview(bytearray(CHUNK_LINES * LINE_BYTES))
        self._expected_of: LoadParameters | None = None
        self._expected = bytearray()

    def check(self, parameters: LoadParameters, *logs: Path) -> None:
        """Raise RuntimeError unless the logs together hold each number that was sent, once."""
        with ExitStack() as opened:
            files = [opened.enter_context(log.open("rb")) for log in logs]
            pieces = (iter(partial(file.read, CHUNK_LINES * LINE_BYTES), b"") for file in files)
            found, repeats = self._bitmap(chain.from_iterable(pieces))
        if repeats or found != self.expected(parameters):
            names = ", ".join(map(str, logs))
            raise RuntimeError(f"{names}: this is not the set of the numbers sent")

    def expected(self, parameters: LoadParameters) -> bytearray:
        """Return the bitmap of the numbers that a load sends."""
        plain = replace(parameters, port=1, clients=1, send_bytes=LINE_BYTES)
        if self._expected_of != plain:
            sent = (
                make_lines(plain, first, min(CHUNK_LINES, plain.numbers - first))
                for first in range(0, plain.numbers, CHUNK_LINES)
            )
            self._expected, _ = self._bitmap(sent)
            self._expected_of = plain
        return self._expected

    def _bitmap(self, pieces: Iterator[bytes | bytearray]) -> tuple[bytearray, int]:
        bitmap, repeats = bytearray(BITMAP_BYTES), 0
        for piece in pieces:
            result = self._kernel(memoryview(piece), bitmap, self._batch)
            if result.consumed != len(piece):
                raise RuntimeError("a piece of the log is not whole lines")
            repeats += result.duplicate
        return bitmap, repeats


class Bench:
    """Runs scenarios and collects rows."""

    def __init__(self, rounds: int, numbers: int, folder: Path, before: str | None) -> None:
        self.rows: list[Row] = []
        self.latency_rows: list[LatencyRow] = []
        self.rounds = rounds
        self.before = before
        self._numbers = numbers
        self.log = folder / "numbers.log"
        self._check = LogCheck()
        self._counters = COUNTERS if has_counters() else ()
        self._light_load: LightLoad | None = None

    def scenario(
        self,
        table: str,
        contenders: list[Contender],
        mix: Mix,
        clients: int,
        send_bytes: int,
        *,
        light: bool = False,
    ) -> None:
        """Run each contender once a round, in an order that turns, and keep the figures.

        `light` stands for LightLoad in the place of the load generator.
        """
        sends = "light" if light else f"{size_text(send_bytes)} sends"
        name = f"{mix}, {clients} clients, {sends}"
        numbers = min(self._numbers, SENDS_MAX * max(send_bytes // LINE_BYTES, 1))
        if light:
            numbers = min(numbers, clients * LIGHT_CLIENT_BYTES // LINE_BYTES)
        found: dict[str, list[Measurement]] = {contender.name: [] for contender in contenders}
        for round_ in range(self.rounds):
            turn = round_ % len(contenders)
            for contender in contenders[turn:] + contenders[:turn]:
                count = min(numbers, contender.numbers_max or numbers)
                parameters = LoadParameters(
                    clients=clients, numbers=count, mix=mix, send_bytes=send_bytes
                )
                found[contender.name].append(self._measure(contender, parameters, light=light))
        for contender in contenders:
            rounds = found[contender.name]
            self.rows.append(Row(table, name, contender.name, rounds, mix, clients, send_bytes))
        print_scenario(self.rows[-len(contenders) :])

    def latency(self, contenders: list[Contender]) -> None:
        """Probe each contender beside each load once a round, in an order that turns."""
        rows = [
            LatencyRow(load.name, contender.name, [])
            for load, contender in product(LOADS, contenders)
        ]
        for round_, (place, load) in product(range(self.rounds), enumerate(LOADS)):
            for i in range(len(contenders)):
                turn = (i + round_) % len(contenders)
                with running(contenders[turn], self.log) as (pid, port):
                    measurement = latency.measure(pid, port, self.log, load, cpu_ns)
                rows[place * len(contenders) + turn].rounds.append(measurement)
        latency.print_rows(rows)
        self.latency_rows += rows

    def count_calls(self, contender: Contender, parameters: LoadParameters) -> str:
        """Return how many system calls 1,000 numbers take, with the three most frequent."""
        with running(contender, self.log) as (pid, port):
            command = ["strace", "-c", "-f", "-p", str(pid)]
            tracer = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
            assert tracer.stderr is not None
            while "attached" not in tracer.stderr.readline():
                pass
            run_load(replace(parameters, port=port))
            tracer.send_signal(signal.SIGINT)
            _, said = tracer.communicate(timeout=60)
        found = re.findall(r"^ *[\d.]+ +[\d.]+ +\d+ +(\d+) +(?:\d+ +)?(\w+)$", said, re.MULTILINE)
        calls = {name: 1000 * int(count) / parameters.numbers for count, name in found}
        total = calls.pop("total", sum(calls.values()))
        most = sorted(calls, key=calls.__getitem__, reverse=True)[:3]
        return f"{total:.3g} ({', '.join(f'{name} {calls[name]:.3g}' for name in most)})"

    def _measure(
        self, contender: Contender, parameters: LoadParameters, *, light: bool
    ) -> Measurement:
        send = self._send_light if light else self._send
        with running(contender, self.log) as (pid, port):
            before_ns = cpu_ns(pid)
            with counting(pid, self._counters) as counts:
                numbers_per_s = send(contender, replace(parameters, port=port), pid)
            measurement = Measurement(
                numbers_per_s=numbers_per_s,
                cpu_ns_per_number=(cpu_ns(pid) - before_ns) / parameters.numbers,
                resident_mib=resident_mib(pid),
                counters_per_number={
                    name: count / parameters.numbers for name, count in counts.items()
                },
            )
        if contender.logs:
            self._check.check(parameters, self.log)
        return measurement

    def _send(self, contender: Contender, parameters: LoadParameters, _: int) -> float:
        result = run_load(parameters)
        if result.numbers_taken != parameters.numbers:
            raise RuntimeError(f"{contender.name} did not take all numbers: {result.errors}")
        return result.numbers_per_s

    def _send_light(self, _: Contender, parameters: LoadParameters, pid: int) -> float:
        anywhere = replace(parameters, port=1)
        if self._light_load is None or self._light_load.parameters != anywhere:
            self._light_load = LightLoad(anywhere)
        return self._light_load.run(pid, parameters.port, partial(cpu_ns, pid))


def size_text(size: int) -> str:
    for unit, name in ((2**20, "MiB"), (2**10, "KiB")):
        if size >= unit:
            return f"{size / unit:g} {name}"
    return f"{size} B"


def spread(values: list[float], digits: int = 1) -> str:
    low, high = min(values), max(values)
    return f"{statistics.median(values):.{digits}f} ({low:.{digits}f}-{high:.{digits}f})"


def ratio(row: Row, base: Row) -> str:
    """Return the median of the rounds' own ratios, in percent."""
    pairs = zip(row.rounds, base.rounds, strict=True)
    return f"{100 * statistics.median(a.numbers_per_s / b.numbers_per_s for a, b in pairs):.0f} %"


def print_scenario(rows: list[Row]) -> None:
    bases = [row for row in rows if row.contender in BASES]
    columns = [
        *("contender", "M numbers/s", "CPU ns/number"),
        *(f"of {base.contender}" for base in bases),
        "resident MiB",
    ]
    click.echo(f"\n### {rows[0].table}: {rows[0].scenario}\n")
    click.echo(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for row in rows:
        millions = [m.numbers_per_s / 1e6 for m in row.rounds]
        rates = spread(millions, digits=1 if max(millions) >= 10 else 3)
        cpu = spread([m.cpu_ns_per_number for m in row.rounds])
        resident = f"{max(m.resident_mib for m in row.rounds):.0f}"
        cells = [row.contender, rates, cpu, *(ratio(row, base) for base in bases), resident]
        click.echo(f"| {' | '.join(cells)} |")
    for name in rows[0].rounds[0].counters_per_number:
        counted = [
            f"{row.contender} {spread([m.counters_per_number[name] for m in row.rounds])}"
            for row in rows
        ]
        click.echo(f"\n{name} a number: {', '.join(counted)}")


def print_split(rows: list[Row]) -> None:
    """Print what each part costs, as the difference between a contender with and one without it."""
    medians = {
        row.contender: statistics.median(m.cpu_ns_per_number for m in row.rounds) for row in rows
    }
    steps = [("receive", "", "discard"), ("kernel", "discard", "ingest"), ("write", "ingest", "c")]
    steps += [(f"Python ({name})", "c", name) for name in ("epoll", "uring") if name in medians]
    click.echo("\n| part | CPU ns/number |\n|---|---|")
    for part, without, with_ in steps:
        click.echo(f"| {part} | {medians[with_] - medians.get(without, 0):.2f} |")


def run_mixes(bench: Bench) -> None:
    build(PEER, PEER_BEFORE, **SIZES_BEFORE)
    for mix in (Mix.UNIQUE, Mix.DUPLICATE, Mix.SEQUENTIAL, Mix.HOT):
        contenders = [DISCARD, INGEST, C, YARDSTICK, *backends(bench.before)]
        bench.scenario("mixes", contenders, mix, 5, 64 * 1024)
        print_split(bench.rows[-len(contenders) :])


def run_sends(bench: Bench) -> None:
    for send_bytes in (10, 100, 1000, 4096, 65536, 1_048_576):
        bench.scenario("sends", [DISCARD, C, *backends(bench.before)], Mix.UNIQUE, 5, send_bytes)


def run_clients(bench: Bench) -> None:
    for send_bytes in (100, 65536):
        for clients in (5, 50, 500, 5000):
            bench.scenario(
                "clients", [DISCARD, C, *backends(bench.before)], Mix.UNIQUE, clients, send_bytes
            )


def run_log(bench: Bench) -> None:
    contenders = [
        Contender(f"fsync {fsync}", server("--fsync", fsync))
        for fsync in ("never", "interval", "always")
    ]
    for mix in (Mix.UNIQUE, Mix.SEQUENTIAL):
        bench.scenario("log", contenders, mix, 5, 64 * 1024)


def run_kernels(bench: Bench) -> None:
    most = {kernel.variant: None for kernel in variants()} | {"python": PYTHON_KERNEL_NUMBERS_MAX}
    contenders = [
        Contender(
            f"epoll-{name}",
            server("--backend", "epoll", "--kernel", name),
            numbers_max=numbers_max,
        )
        for name, numbers_max in most.items()
    ]
    bench.scenario("kernels", [C, *contenders], Mix.UNIQUE, 5, 64 * 1024)


def run_kernels_alone(_: Bench) -> None:
    """Time the kernels without sockets, see perf/kernel_bench.py."""
    click.echo("\n### kernels alone: `python perf/kernel_bench.py --pieces 40`\n\n```text")
    command = [sys.executable, str(ROOT / "perf" / "kernel_bench.py"), "--pieces", "40"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    click.echo(f"{done.stdout.rstrip()}\n```")


def run_reactors(bench: Bench) -> None:
    for backend in backends():
        contenders = [
            Contender(
                f"{count} reactor{'s' * (count > 1)}",
                server("--backend", backend.name, "--reactors", str(count)),
            )
            for count in (1, 2)
        ]
        table = f"reactors, {backend.name}"
        for mix in (Mix.UNIQUE, Mix.DUPLICATE):
            bench.scenario(table, [DISCARD, C, *contenders], mix, 100, 2**20, light=True)
        bench.scenario(table, [C, *contenders], Mix.UNIQUE, 1000, 100)


def run_peers(bench: Bench) -> None:
    slow = [written_instead(name) for name in ("threads", "asyncio", "uvloop")]
    two = Contender("2 reactors", server("--backend", "epoll", "--reactors", "2"))
    for mix in (Mix.UNIQUE, Mix.DUPLICATE, Mix.HOT):
        bench.scenario("peers", [*slow, DISCARD, C, *backends(), two], mix, 5, 64 * 1024)


def run_latency(bench: Bench) -> None:
    # The C program with receives of 256 KiB, beside floods the quicker one of the two.
    build(PEER, PEER_BEFORE, **SIZES_BEFORE)
    bench.latency([YARDSTICK, *backends(bench.before)])


def run_calls(bench: Bench) -> None:
    """Count system calls, with strace attached: the rates of such a run mean nothing."""
    click.echo("\n### calls: system calls for 1,000 numbers, by strace -c\n")
    click.echo(
        "| contender | 5 clients, 256 KiB sends | 1,000 clients, 100 B sends |\n|---|---|---|"
    )
    for contender in (C, *backends()):
        loads = (
            LoadParameters(clients=5, numbers=5_000_000, send_bytes=262_144),
            LoadParameters(clients=1000, numbers=500_000, send_bytes=100),
        )
        cells = " | ".join(bench.count_calls(contender, load) for load in loads)
        click.echo(f"| {contender.name} | {cells} |")


def run_ring_log(bench: Bench) -> None:
    """Compare appends by write(2) with appends through a ring, without sockets."""
    build(RING_LOG)
    click.echo("\n### ring log: perf/ring_log.c, as it prints it, in turn\n")
    for mode in ("write", "ring", "write-sync", "ring-sync"):
        batches = "60" if mode.endswith("sync") else "300"
        for _ in range(bench.rounds):
            command = [str(RING_LOG), mode, str(bench.log), batches]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            click.echo(f"    {done.stdout.strip()}")


TABLES = {
    "peers": run_peers,
    "mixes": run_mixes,
    "sends": run_sends,
    "clients": run_clients,
    "kernels": run_kernels,
    "kernels-alone": run_kernels_alone,
    "reactors": run_reactors,
    "log": run_log,
    "latency": run_latency,
    "calls": run_calls,
    "ring-log": run_ring_log,
}


def machine() -> str:
    model = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    return (
        f"{os.cpu_count()} x {model[1] if model else platform.machine()}, "
        f"Linux {platform.release()}, Python {platform.python_version()}, "
        f"kernel variant {variants()[0].variant}"
    )


@click.command(context_settings={"show_default": True}, help=__doc__)
@click.argument("tables", nargs=-1, type=click.Choice(list(TABLES)))
@click.option("--rounds", type=click.IntRange(1, 100), default=5)
@click.option("--numbers", type=click.IntRange(1, 10**9), default=20_000_000)
@click.option(
    "--json",
    "json_file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write all figures here, unrounded.",
)
@click.option(
    "--before",
    metavar="PYTHON",
    help="Measure the server that this interpreter has installed, too, in these tables: "
    "mixes, sends, clients, latency.",
)
@click.option("--folder", type=click.Path(path_type=Path), help="Where the logs go.")
def main(
    tables: tuple[str, ...],
    rounds: int,
    numbers: int,
    json_file: Path | None,
    before: str | None,
    folder: Path | None,
) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    build(PEER)
    date = time.strftime("%Y-%m-%d")
    click.echo(f"{machine()};\n{rounds} rounds, {numbers} numbers, {date}")
    with tempfile.TemporaryDirectory(dir=folder) as logs:
        bench = Bench(rounds, numbers, Path(logs), before)
        for table in tables or TABLES:
            TABLES[table](bench)
    if json_file is not None:
        figures = {"machine": machine(), "date": date, "rows": list(map(asdict, bench.rows))}
        figures["latency"] = list(map(asdict, bench.latency_rows))
        json_file.write_text(as_json(figures))


def as_json(figures: dict[str, Any]) -> str:
    """Return the figures as JSON with a line for each row."""
    lines = []
    for name, value in figures.items():
        if isinstance(value, list):
            rows = ",\n".join(map(json.dumps, value))
            lines.append(f"{json.dumps(name)}: [\n{rows}\n]")
        else:
            lines.append(f"{json.dumps(name)}: {json.dumps(value)}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


if __name__ == "__main__":
    main()
