"""Measures what small packets cost that wait when the server comes to their sockets.

    python perf/waiting_packets.py --rounds 5
    python perf/waiting_packets.py --reactors 1 --reactors 2 --later --bytes 100 --waiting 10
    python perf/waiting_packets.py --before OLDER/.venv/bin/python

The server is stopped by SIGSTOP, each client sends one packet, or several, the server goes on and
takes in what waits; that again and again. So each pass finds all clients ready, and the sender,
which needs a processor of its own otherwise, is not in the way of several reactors. Each of their
threads is kept on one processor after the first pass: Linux wakes all of them on the same one, and
takes longer than a pass until it moves one. The figures are of the server for each packet:
processor time, without what a stop takes for which nothing waits, and the time from SIGCONT until
the last line is on file. They are taken in turn in one run, as medians of the rounds with minimum
and maximum; contenders are those of perf/bench.py.

Linux acknowledges the first 16 packets of a connection when they arrive, in the sender's time, and
later ones within the server's receive, which takes more than twice as long. A round is either of
those first packets alone, or with --later of later ones alone.
"""

import os
import random
import resource
import signal
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import click

from bench import PEER, SERVE, C, Contender, build, cpu_ns, running, spread
from light_load import settled_ns
from numbers_uring.limits import LINE_BYTES, NUMBERS

QUICK_ACKS = 16
"""Packets of a connection that are acknowledged at once: TCP_MAX_QUICKACKS of Linux."""

_LOOK_S = 20e-6
_ASLEEP_SHARE = 0.7
"""Of the time that the last pass took: how long the log is not looked at, which costs time."""
_PASS_S_MAX = 20.0


@dataclass(frozen=True, slots=True)
class Cost:
    """What a packet costs the server, in us."""

    cpu_us: float
    wall_us: float


def packets(clients: int, send_bytes: int, waiting: int, passes: int) -> list[list[list[bytes]]]:
    """Return what each client sends in each pass: packets of whole lines, all of them new."""
    lines = send_bytes // LINE_BYTES
    numbers = iter(random.Random(1).sample(range(NUMBERS), passes * clients * waiting * lines))
    return [
        [
            [b"".join(b"%09d\n" % next(numbers) for _ in range(lines)) for _ in range(waiting)]
            for _ in range(clients)
        ]
        for _ in range(passes)
    ]


class Watch:
    """Measures how long a log takes to get to a size.

    It is not looked at for most of the time that the measurement before came to. Where the first
    look then finds all there, it came too late: that time is no measurement, or one slow pass would
    make the following ones look slow as well.
    """

    def __init__(self, log: Path) -> None:
        self._log = log
        self._asleep_s = 0.0

    def wait(self, size: int, begin_s: float) -> float | None:
        """Return the time since `begin_s` once the log has this size; None if that is unknown."""
        end_s = time.monotonic() + _PASS_S_MAX
        time.sleep(self._asleep_s)
        late = self._asleep_s > 0 and self._log.stat().st_size >= size
        while self._log.stat().st_size < size:
            if time.monotonic() > end_s:
                raise RuntimeError(f"{self._log} does not get to {size} bytes")
            time.sleep(_LOOK_S)
        took_s = time.monotonic() - begin_s
        self._asleep_s = 0.0 if late else _ASLEEP_SHARE * took_s
        return None if late else took_s


def keep_apart(pid: int) -> None:
    """Keep the busiest threads of a process, as many as there are processors, on one each."""
    tasks = Path(f"/proc/{pid}/task")
    used_ns = {
        int(each.name): int((each / "schedstat").read_text().split()[0]) for each in tasks.iterdir()
    }
    busiest = sorted(used_ns, key=lambda thread: -used_ns[thread])
    for thread, processor in zip(busiest, sorted(os.sched_getaffinity(0)), strict=False):
        os.sched_setaffinity(thread, {processor})


def measure(
    contender: Contender, log: Path, sent: list[list[list[bytes]]], unmeasured: int = 1
) -> Cost:
    """Return the medians of the passes but the first ones; the very first pays for new memory."""
    with ExitStack() as stack:
        pid, port = stack.enter_context(running(contender, log))
        clients = [
            stack.enter_context(socket.create_connection(("127.0.0.1", port), 10)) for _ in sent[0]
        ]
        for client in clients:
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        processor_time = partial(cpu_ns, pid)
        watch = Watch(log)
        size = 0
        cpu: list[int] = []
        stop_cpu: list[int] = []
        wall_s: list[float | None] = []
        for each in sent:
            used_ns = settled_ns(processor_time)
            with stopped(pid):
                pass
            begin_ns = settled_ns(processor_time)
            stop_cpu.append(begin_ns - used_ns)
            with stopped(pid):
                for client, own in zip(clients, each, strict=True):
                    for packet in own:
                        client.sendall(packet)
                        size += len(packet)
                begin_s = time.monotonic()
            wall_s.append(watch.wait(size, begin_s))
            cpu.append(settled_ns(processor_time) - begin_ns)
            if len(cpu) == 1:
                keep_apart(pid)
    count = sum(map(len, sent[0]))
    pass_ns = statistics.median(cpu[unmeasured:]) - statistics.median(stop_cpu[unmeasured:])
    known_s = [each for each in wall_s[unmeasured:] if each is not None]
    return Cost(pass_ns / 1e3 / count, statistics.median(known_s) * 1e6 / count)


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    """Stop a process of this one."""
    os.kill(pid, signal.SIGSTOP)
    # It goes on until it comes back from Linux: what is sent before may be taken in.
    os.waitid(os.P_PID, pid, os.WSTOPPED)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def contenders(reactors: Sequence[int], before: str | None) -> list[Contender]:
    """Return plain C and the server on both backends; beside an older one, if that is given."""

    def command(python: str, backend: str, count: int) -> Contender:
        options = ["--backend", backend, "--reactors", str(count)]
        name = f"{backend}, {count} reactors" if count > 1 else backend
        if python != sys.executable:
            name += ", before"
        return Contender(
            name, lambda log: [python, "-P", *SERVE[1:], "--log-file", str(log), *options]
        )

    pythons = [sys.executable, *([before] if before else [])]
    return [
        C,
        *(
            command(python, backend, count)
            for backend in ("epoll", "uring")
            for count in reactors
            for python in pythons
        ),
    ]


@click.command(context_settings={"show_default": True}, help=__doc__)
@click.option("--rounds", type=click.IntRange(1, 100), default=5)
@click.option("--clients", type=click.IntRange(1, 5000), default=1000)
@click.option("--passes", type=click.IntRange(4, 1000), default=15, help="That are measured.")
@click.option("--later", is_flag=True, help="Measure packets after the first 16 of a connection.")
@click.option("--bytes", "send_bytes", type=click.IntRange(10, 1000), multiple=True)
@click.option("--waiting", type=click.IntRange(1, 100), default=1, help="Packets of each client.")
@click.option("--reactors", type=click.IntRange(1, 64), multiple=True, default=(1, 2))
@click.option("--before", help="The Python of an older build to compare with.")
def main(
    rounds: int,
    clients: int,
    passes: int,
    later: bool,
    send_bytes: tuple[int, ...],
    waiting: int,
    reactors: tuple[int, ...],
    before: str | None,
) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    build(PEER)
    tried = contenders(reactors, before)
    unmeasured = -(-QUICK_ACKS // waiting) if later else 1
    if not later and (unmeasured + passes) * waiting > QUICK_ACKS:
        raise click.UsageError(
            f"--passes {passes} and one before them are more than the first {QUICK_ACKS} packets"
        )
    for size in send_bytes or (10, 100):
        sent = packets(clients, size, waiting, unmeasured + passes)
        found: dict[str, list[Cost]] = {each.name: [] for each in tried}
        with tempfile.TemporaryDirectory() as folder:
            for round_ in range(rounds):
                turn = round_ % len(tried)
                for each in tried[turn:] + tried[:turn]:
                    found[each.name].append(measure(each, Path(folder) / "log", sent, unmeasured))
        which = "later" if later else "first"
        click.echo(f"\n#### {clients} clients, {waiting} x {size} bytes waiting of each, {which}\n")
        print_costs(found)


def print_costs(found: dict[str, list[Cost]]) -> None:
    click.echo("| contender | CPU us a packet | of c | on file, us a packet | rate, of c |")
    click.echo("|---|---|---|---|---|")
    for name, costs in found.items():
        cpu = statistics.median(
            a.cpu_us / b.cpu_us for a, b in zip(costs, found[C.name], strict=True)
        )
        rate = statistics.median(
            b.wall_us / a.wall_us for a, b in zip(costs, found[C.name], strict=True)
        )
        cpu_text = spread([each.cpu_us for each in costs], 2)
        wall_text = spread([each.wall_us for each in costs], 2)
        click.echo(
            f"| {name} | {cpu_text} | {100 * cpu:.0f} % | {wall_text} | {100 * rate:.0f} % |"
        )


if __name__ == "__main__":
    main()
