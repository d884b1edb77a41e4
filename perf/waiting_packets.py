"""Measures what a small packet costs that waits when the server comes to its socket.

    python perf/waiting_packets.py --rounds 5
    python perf/waiting_packets.py --before OLDER/.venv/bin/python

The server is stopped by SIGSTOP, each client sends one packet, the server goes on and takes in what
waits; that again and again. So each pass finds all clients ready, and the sender's work is not in
the way. The figures are processor time of the server for each packet, in turn in one run, as
medians of the rounds with minimum and maximum; contenders are those of perf/bench.py.
"""

import random
import resource
import signal
import socket
import statistics
import sys
import tempfile
from contextlib import ExitStack
from functools import partial
from os import kill
from pathlib import Path

import click

from bench import PEER, SERVE, C, Contender, build, cpu_ns, running, spread
from light_load import settled_ns


def packets(clients: int, send_bytes: int, passes: int) -> list[list[bytes]]:
    """Return what each client sends in each pass: whole lines, mostly new numbers."""
    chance = random.Random(1)
    lines = send_bytes // 10
    return [
        [
            b"".join(b"%09d\n" % chance.randrange(10**9) for _ in range(lines))
            for _ in range(clients)
        ]
        for _ in range(passes)
    ]


def measure(contender: Contender, log: Path, sent: list[list[bytes]]) -> float:
    """Return the processor time in us for each packet."""
    with ExitStack() as stack:
        pid, port = stack.enter_context(running(contender, log))
        clients = [
            stack.enter_context(socket.create_connection(("127.0.0.1", port), 10)) for _ in sent[0]
        ]
        for client in clients:
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        begin_ns = 0
        for number, each in enumerate(sent):
            if number == 1:
                # What the first pass has paid for is not a packet's.
                begin_ns = settled_ns(partial(cpu_ns, pid))
            kill(pid, signal.SIGSTOP)
            for client, packet in zip(clients, each, strict=True):
                client.sendall(packet)
            kill(pid, signal.SIGCONT)
            end_ns = settled_ns(partial(cpu_ns, pid))
    return (end_ns - begin_ns) / 1000 / (len(sent) - 1) / len(clients)


def contenders(before: str | None) -> list[Contender]:
    """Return plain C and the server on both backends; beside an older one, if that is given."""

    def command(python: str, backend: str, reactors: int) -> Contender:
        options = ["--backend", backend, "--reactors", str(reactors)]
        name = f"{backend}, {reactors} reactors" if reactors > 1 else backend
        if python != sys.executable:
            name += ", before"
        return Contender(
            name, lambda log: [python, "-P", *SERVE[1:], "--log-file", str(log), *options]
        )

    pythons = [sys.executable, *([before] if before else [])]
    return [
        C,
        *(
            command(python, backend, reactors)
            for backend in ("epoll", "uring")
            for reactors in (1, 2)
            for python in pythons
        ),
    ]


@click.command(context_settings={"show_default": True}, help=__doc__)
@click.option("--rounds", type=click.IntRange(1, 100), default=5)
@click.option("--clients", type=click.IntRange(1, 5000), default=1000)
@click.option("--passes", type=click.IntRange(2, 1000), default=20)
@click.option("--bytes", "send_bytes", type=click.IntRange(10, 1000), multiple=True)
@click.option("--before", help="The Python of an older build to compare with.")
def main(
    rounds: int, clients: int, passes: int, send_bytes: tuple[int, ...], before: str | None
) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    build(PEER)
    tried = contenders(before)
    for size in send_bytes or (10, 100):
        sent = packets(clients, size, passes)
        found: dict[str, list[float]] = {each.name: [] for each in tried}
        with tempfile.TemporaryDirectory() as folder:
            for round_ in range(rounds):
                turn = round_ % len(tried)
                for each in tried[turn:] + tried[:turn]:
                    found[each.name].append(measure(each, Path(folder) / "log", sent))
        click.echo(f"\n#### {clients} clients, packets of {size} bytes\n")
        click.echo("| contender | us a packet | of c |\n|---|---|---|")
        for name, times in found.items():
            share = statistics.median(a / b for a, b in zip(times, found[C.name], strict=True))
            click.echo(f"| {name} | {spread(times, 2)} | {100 * share:.0f} % |")


if __name__ == "__main__":
    main()
