"""Measures what small packets cost that wait when the server comes to their sockets.

    python perf/waiting_packets.py --rounds 5
    python perf/waiting_packets.py --reactors 1 --reactors 2 --bytes 100 --waiting 10
    python perf/waiting_packets.py --before OLDER/.venv/bin/python

The server is stopped by SIGSTOP, each client sends one packet, or several, the server goes on and
takes in what waits; that again and again. So each pass finds all clients ready, and the sender,
which needs a processor of its own otherwise, is not in the way of several reactors. Each of their
threads is kept on one processor after the first pass: Linux wakes all of them on the same one, and
takes longer than a pass until it moves one. The figures are of the server for each packet:
processor time, without what a stop takes for which nothing waits, and the time from SIGCONT until
the last line is on file. They are taken in turn in one run, as medians of the rounds with minimum
and maximum; contenders are those of perf/bench.py.
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

_LOOK_S = 20e-6
_ASLEEP_SHARE = 0.7
"""Of the time that the quickest pass took: how long the log is not looked at, which costs time."""
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


def wait_for_size(log: Path, size: int, asleep_s: float) -> None:
    """Return when the log has this size, which it does not have for some time yet."""
    end_s = time.monotonic() + _PASS_S_MAX
    time.sleep(asleep_s)
    while log.stat().st_size < size:
        if time.monotonic() > end_s:
            raise RuntimeError(f"{log} does not get to {size} bytes")
        time.sleep(_LOOK_S)


def keep_apart(pid: int) -> None:
    """Keep the busiest threads of a process, as many as there are processors, on one each."""
    tasks = Path(f"/proc/{pid}/task")
    used_ns = {
        int(each.name): int((each / "schedstat").read_text().split()[0]) for each in tasks.iterdir()
    }
    busiest = sorted(used_ns, key=lambda thread: -used_ns[thread])
    for thread, processor in zip(busiest, sorted(os.sched_getaffinity(0)), strict=False):
        os.sched_setaffinity(thread, {processor})


def measure(contender: Contender, log: Path, sent: list[list[list[bytes]]]) -> Cost:
    """Return the medians of the passes after the first one, which pays for more than packets."""
    with ExitStack() as stack:
        pid, port = stack.enter_context(running(contender, log))
        clients = [
            stack.enter_context(socket.create_connection(("127.0.0.1", port), 10)) for _ in sent[0]
        ]
        for client in clients:
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        processor_time = partial(cpu_ns, pid)
        size = 0
        cpu: list[int] = []
        stop_cpu: list[int] = []
        wall_s: list[float] = []
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
            wait_for_size(log, size, _ASLEEP_SHARE * min(wall_s, default=0))
            wall_s.append(time.monotonic() - begin_s)
            cpu.append(settled_ns(processor_time) - begin_ns)
            if len(cpu) == 1:
                keep_apart(pid)
    count = sum(map(len, sent[0]))
    pass_ns = statistics.median(cpu[1:]) - statistics.median(stop_cpu[1:])
    return Cost(pass_ns / 1e3 / count, statistics.median(wall_s[1:]) * 1e6 / count)


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
@click.option("--passes", type=click.IntRange(2, 1000), default=20)
@click.option("--bytes", "send_bytes", type=click.IntRange(10, 1000), multiple=True)
@click.option("--waiting", type=click.IntRange(1, 100), default=1, help="Packets of each client.")
@click.option("--reactors", type=click.IntRange(1, 64), multiple=True, default=(1, 2))
@click.option("--before", help="The Python of an older build to compare with.")
def main(
    rounds: int,
    clients: int,
    passes: int,
    send_bytes: tuple[int, ...],
    waiting: int,
    reactors: tuple[int, ...],
    before: str | None,
) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    build(PEER)
    tried = contenders(reactors, before)
    for size in send_bytes or (10, 100):
        sent = packets(clients, size, waiting, passes)
        found: dict[str, list[Cost]] = {each.name: [] for each in tried}
        with tempfile.TemporaryDirectory() as folder:
            for round_ in range(rounds):
                turn = round_ % len(tried)
                for each in tried[turn:] + tried[:turn]:
                    found[each.name].append(measure(each, Path(folder) / "log", sent))
        click.echo(f"\n#### {clients} clients, {waiting} x {size} bytes waiting of each\n")
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
