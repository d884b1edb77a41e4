"""How long the line of a quiet client takes: from its send to the log, and to the server's close.

A probe is a connection that was opened some time before. At a random moment, whatever became of the
probes before it, it sends one line and shuts down its side. The size of the log is read again and
again meanwhile; where in the log the line is, is looked up afterwards, so the first size beyond
that says when it was on file. The server's close, a FIN, says the same to the client itself.

The prober runs in front of all other processes where it may (nice), so that it measures the server
and not its own wait for a processor. From look to look at the log it sleeps for a sixteenth of the
time for which the oldest pending probe has waited, at least for 10 us and for as long as it was
awake. So it takes the less of a processor, the longer probes wait. Otherwise it makes them wait: it
would take the server's processor from it, the more of it the more probes are pending. Beside it
runs the load, which is `numbers-uring load`, a C program in all that matters here; the table says
what each costs.
"""

import math
import os
import random
import select
import signal
import socket
import statistics
import subprocess
import sys
import time
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import click

from numbers_uring.limits import LINE_BYTES, NUMBERS
from numbers_uring.load.lines import make_lines
from numbers_uring.load.model import LoadParameters

ROW_S = 1.6
"""How long one contender is measured beside one load, in each round."""

WARM_UP_S = 0.4
"""From the first line of the load on, until that begins."""

START_S_MAX = 20.0
"""How long a load may take until its first line is on file, and a probe until it is closed."""

PROBE_INTERVAL_S = 0.002
"""The mean time from probe to probe."""

PROBES_AHEAD = 64
"""Connections that are open before they are needed: the server has accepted the oldest ones."""

PROBE_LINES = 1_000_000
"""The end of the sequence of unique numbers, which no load gets to."""

LOOK_S = 10e-6
LOOK_SHARE = 1 / 16

SAMPLES_ABOVE_MIN = 3
"""A percentile is shown if so many samples lie above it."""

PERCENTILES = (0.5, 0.99, 0.999)
_READ_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Load:
    """What runs beside the quiet client; nothing where there are no options."""

    name: str
    options: tuple[str, ...] = ()


LOADS = (
    Load("at rest"),
    Load("4 floods, 256 KiB", ("--clients", "4", "--send-bytes", "262144")),
    Load("1,000 x 10 B", ("--clients", "1000", "--send-bytes", "10")),
    Load("1,000 x 10 B, 60,000/s", ("--clients", "1000", "--send-bytes", "10", "--rate", "60000")),
)


@dataclass(frozen=True, slots=True)
class Measurement:
    """One contender beside one load in one round: times in ms, shares of one processor."""

    on_file_ms: list[float]
    closed_ms: list[float]
    numbers_per_s: float
    server_share: float
    load_share: float
    probe_share: float


@dataclass(frozen=True, slots=True)
class LatencyRow:
    """One contender beside one load: a Measurement a round, in the order of the rounds."""

    load: str
    contender: str
    rounds: list[Measurement]


@dataclass(slots=True)
class _Probe:
    """A line that was sent, and what is known of it. Times in ns, sizes of the log in bytes."""

    line: bytes
    sent_ns: int
    least_bytes: int
    closed_ns: int = 0
    most_bytes: int = 0


@dataclass(slots=True)
class _Sizes:
    """The sizes that the log had, and when each was seen first."""

    log: int
    sizes: list[int] = field(default_factory=list)
    seen_ns: list[int] = field(default_factory=list)

    def look(self) -> int:
        size = os.fstat(self.log).st_size
        if not self.sizes or size != self.sizes[-1]:
            self.sizes.append(size)
            self.seen_ns.append(time.monotonic_ns())
        return size

    def on_file_ns(self, probe: _Probe) -> int | None:
        """Return when the probe's line was seen on file; None if it was there before."""
        start = probe.least_bytes // LINE_BYTES * LINE_BYTES
        while start < probe.most_bytes:
            # One line more, for what the next piece begins in the middle of.
            piece = os.pread(self.log, _READ_BYTES + LINE_BYTES, start)
            if (place := piece.find(probe.line)) >= 0:
                return self.seen_ns[bisect_right(self.sizes, start + place + LINE_BYTES - 1)]
            start += _READ_BYTES // LINE_BYTES * LINE_BYTES
        return None


class _Prober:
    """Sends probes until a time, and waits for their ends."""

    def __init__(self, port: int, log: int) -> None:
        self._port = port
        self._sizes = _Sizes(log)
        self._opened: list[socket.socket] = [self._connect() for _ in range(PROBES_AHEAD)]
        self._pending: dict[int, tuple[socket.socket, _Probe]] = {}
        """By descriptor, the oldest first."""
        self._ends = select.epoll()
        self._done: list[_Probe] = []
        lines = make_lines(LoadParameters(numbers=NUMBERS), NUMBERS - PROBE_LINES, PROBE_LINES)
        self._lines = (
            bytes(lines[start:stop])
            for start, stop in pairwise(range(0, len(lines) + 1, LINE_BYTES))
        )

    def _connect(self) -> socket.socket:
        # Where the server's backlog is full, a blocking connect would stop all probes.
        client = socket.create_connection(("127.0.0.1", self._port), 60)
        client.setblocking(False)
        return client

    def run(self, seconds: float) -> None:
        begin_s = due_s = time.monotonic()
        while (now_s := time.monotonic()) < begin_s + seconds or self._pending:
            if now_s > begin_s + seconds + START_S_MAX:
                raise RuntimeError("the server does not close a connection")
            if due_s <= now_s < begin_s + seconds:
                self._send()
                due_s += random.expovariate(1 / PROBE_INTERVAL_S)
            else:
                self._open_more()
            self._sizes.look()
            end_s = time.monotonic()
            pause_s = self._pause_s(end_s, end_s - now_s, due_s - end_s)
            # Not epoll's own wait, which has a resolution of milliseconds.
            select.select([self._ends], [], [], pause_s)
            for fd, _ in self._ends.poll(0):
                self._close(fd)

    def _pause_s(self, now_s: float, awake_s: float, left_s: float) -> float:
        if not self._pending:
            return max(left_s, 0)
        _, oldest = next(iter(self._pending.values()))
        waited_s = now_s - oldest.sent_ns / 1e9
        return max(min(max(LOOK_S, LOOK_SHARE * waited_s, awake_s), left_s), 0)

    def _send(self) -> None:
        client = self._opened.pop(0) if self._opened else self._connect()
        probe = _Probe(next(self._lines), time.monotonic_ns(), self._sizes.look())
        if client.send(probe.line) != LINE_BYTES:
            raise RuntimeError("a line could not be sent at once")
        client.shutdown(socket.SHUT_WR)
        self._pending[client.fileno()] = client, probe
        self._ends.register(client, select.EPOLLIN)

    def _open_more(self) -> None:
        """Make up for the probes that were sent; while one is pending, only if few are left.

        A connect takes about as long as a line until it is on file, on the processor on which the
        server is woken, and the prober does not look at the log meanwhile.
        """
        if len(self._opened) < (PROBES_AHEAD // 2 if self._pending else PROBES_AHEAD):
            self._opened.append(self._connect())

    def _close(self, fd: int) -> None:
        client, probe = self._pending.pop(fd)
        if client.recv(1):
            raise RuntimeError("the server has said something")
        probe.closed_ns = time.monotonic_ns()
        # The line is on file by then, whether or not a look has seen it.
        probe.most_bytes = self._sizes.look()
        self._done.append(probe)
        client.close()

    def results(self) -> tuple[list[float], list[float]]:
        """Return how long each line took until it was on file, and until the close, in ms."""
        on_file_ms, closed_ms = [], []
        for probe in self._done:
            on_file_ns = self._sizes.on_file_ns(probe)
            if on_file_ns is None:
                raise RuntimeError("a line is not in the log though its connection was closed")
            on_file_ms.append((min(on_file_ns, probe.closed_ns) - probe.sent_ns) / 1e6)
            closed_ms.append((probe.closed_ns - probe.sent_ns) / 1e6)
        return on_file_ms, closed_ms

    def close(self) -> None:
        for client in (*self._opened, *(client for client, _ in self._pending.values())):
            client.close()
        self._ends.close()


def measure(
    pid: int, port: int, log: Path, load: Load, cpu_ns: Callable[[int], int]
) -> Measurement:
    """Probe the server beside a load for ROW_S seconds; `cpu_ns` tells a process's time.

    Raises RuntimeError where a line was lost, or a connection was not closed in order.
    """
    with _running(load, port, log) as load_pid, log.open("rb") as file:
        prober = _Prober(port, file.fileno())
        pids = (pid, load_pid or pid, os.getpid())
        try:
            before_ns = [cpu_ns(each) for each in pids]
            begin_bytes, begin_s = os.fstat(file.fileno()).st_size, time.monotonic()
            with _in_front():
                prober.run(ROW_S)
            seconds = time.monotonic() - begin_s
            numbers = (os.fstat(file.fileno()).st_size - begin_bytes) / LINE_BYTES
            shares = [
                (cpu_ns(each) - before) / 1e9 / seconds
                for each, before in zip(pids, before_ns, strict=True)
            ]
            on_file_ms, closed_ms = prober.results()
        finally:
            prober.close()
    server, sender, probes = shares
    return Measurement(
        on_file_ms,
        closed_ms,
        (numbers - len(on_file_ms)) / seconds if load_pid else 0.0,
        server,
        sender if load_pid else 0.0,
        probes,
    )


@contextmanager
def _running(load: Load, port: int, log: Path) -> Iterator[int | None]:
    """Run the load until the context is left; give its process id once it is under way."""
    if not load.options:
        yield None
        return
    # Lines that are made as they are sent: there is no end of them, and no start to wait for.
    numbers = ("--numbers", str(NUMBERS - PROBE_LINES), "--prepare-bytes", "0")
    command = [sys.executable, "-P", "-m", "numbers_uring", "load", "--port", str(port)]
    process = subprocess.Popen(
        [*command, *numbers, *load.options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        end_s = time.monotonic() + START_S_MAX
        while not log.stat().st_size:
            if process.poll() is not None or time.monotonic() > end_s:
                raise RuntimeError(f"the load does not run: {' '.join(command)}")
            time.sleep(0.01)
        time.sleep(WARM_UP_S)
        yield process.pid
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


@contextmanager
def _in_front() -> Iterator[None]:
    """Run this process before all others, and let it sleep for as short as it asks, if it may."""
    slack = Path("/proc/self/timerslack_ns")
    before_ns = slack.read_text()
    nice = os.getpriority(os.PRIO_PROCESS, 0)
    with suppress(OSError):
        slack.write_text("1000")
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, -20)
    try:
        yield
    finally:
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, 0, nice)
        with suppress(OSError):
            slack.write_text(before_ns)


def percentile(times_ms: Sequence[float], share: float) -> float | None:
    """Return the percentile by nearest rank; None where too few samples lie above it."""
    rank = max(math.ceil(share * len(times_ms)), 1)
    if len(times_ms) - rank < SAMPLES_ABOVE_MIN:
        return None
    return sorted(times_ms)[rank - 1]


def print_rows(rows: Sequence[LatencyRow]) -> None:
    """Print a table: the medians of the rounds' percentiles, with minimum and maximum.

    The last percentile is of all rounds together. A machine that stands still for 30 ms shows in
    it, and in the others of one round, but not in their medians.
    """
    click.echo("\n### latency: one line of a quiet client, in ms\n")
    percentiles = [f"p{100 * share:g}" for share in PERCENTILES]
    columns = [
        *("beside", "contender", "lines"),
        *(f"on file {percentile}" for percentile in percentiles),
        *(f"closed {percentile}" for percentile in percentiles),
        *("M numbers/s", "server CPU", "load CPU", "probe CPU"),
    ]
    click.echo(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for row in rows:
        rounds = row.rounds
        lines = sum(len(one.on_file_ms) for one in rounds)
        cells = [row.load, row.contender, str(lines)]
        cells += _times([one.on_file_ms for one in rounds])
        cells += _times([one.closed_ms for one in rounds])
        cells.append(f"{statistics.median(one.numbers_per_s for one in rounds) / 1e6:.3g}")
        for shares in (
            [one.server_share for one in rounds],
            [one.load_share for one in rounds],
            [one.probe_share for one in rounds],
        ):
            cells.append(f"{100 * statistics.median(shares):.0f} %")
        click.echo(f"| {' | '.join(cells)} |")


def _times(rounds_ms: Sequence[Sequence[float]]) -> list[str]:
    together = [each for times_ms in rounds_ms for each in times_ms]
    return [
        _cell([percentile(each, share) for each in rounds_ms]) for share in PERCENTILES[:-1]
    ] + [_cell([percentile(together, PERCENTILES[-1])])]


def _cell(found_ms: Sequence[float | None]) -> str:
    known_ms = [each for each in found_ms if each is not None]
    if not known_ms:
        return "-"
    if len(known_ms) == 1:
        return f"{known_ms[0]:.3g}"
    return f"{statistics.median(known_ms):.3g} ({min(known_ms):.3g}-{max(known_ms):.3g})"
