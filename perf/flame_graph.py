"""Records the server under a load and draws where its time goes, a flame graph for each backend.

    python perf/flame_graph.py
    python perf/flame_graph.py --backend uring --clients 1000 --send-bytes 100 --numbers 5000000
    python perf/flame_graph.py --backend epoll --numbers 1000000000 --rate 80000000

It needs no root: what the system allows is shown, and what is missing is said. perf shows our C and
Linux, and Python's functions by name where this Python can name them for perf (3.12 and newer
with frame pointers, 3.13 and newer also without). Where perf is not allowed, py-spy shows Python
and our C. docs/profiling.md says more.
"""

import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from numbers_uring.load.model import Mix
from numbers_uring.profiling.python_names import Names, names_offered

PICTURES = Path(__file__).resolve().parent.parent / "build" / "perf"
LOAD_TIMEOUT_S = 300
STOP_TIMEOUT_S = 120
"""Longer than the server takes to read its recording."""


def python() -> list[str]:
    """Return this interpreter, told to name its functions for perf where it can."""
    offered = names_offered()
    named = [] if offered is Names.NONE else ["-X", offered.value]
    return [sys.executable, *named, "-m", "numbers_uring"]


@contextmanager
def profiled(backend: str, picture: Path, log: Path, clients: int) -> Iterator[int]:
    """Run a server that profiles itself, give its port, and stop it. Raises ClickException."""
    command = [*python(), "serve", "--port", "0", "--backend", backend, "--log-file", str(log)]
    process = subprocess.Popen(
        [*command, "--max-clients", str(clients), "--profile", str(picture)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    try:
        for line in process.stderr:
            click.echo(line, nl=False, err=True)
            if start := re.search(r"listening on \S+:(\d+)", line):
                break
        else:
            raise click.ClickException(f"the server on {backend} did not start")
        yield int(start[1])
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=STOP_TIMEOUT_S)
        click.echo(said, nl=False, err=True)
        if process.returncode:
            raise click.ClickException(f"the server on {backend} failed")
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        process.stderr.close()


@click.command(context_settings={"show_default": True}, help=__doc__)
@click.option("--backend", type=click.Choice(["both", "epoll", "uring"]), default="both")
@click.option("--clients", type=click.IntRange(1, 6000), default=5)
@click.option("--numbers", type=click.IntRange(1, 10**9), default=100_000_000)
@click.option(
    "--rate",
    type=click.IntRange(min=0),
    default=0,
    help="Numbers a second over all clients; 0: as fast as the server reads them.",
)
@click.option("--send-bytes", type=click.IntRange(1, 4 * 2**20), default=64 * 1024)
@click.option("--mix", type=click.Choice([mix.value for mix in Mix]), default=Mix.UNIQUE.value)
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default=PICTURES,
    help="The folder that gets flame-graph-BACKEND.svg.",
)
def main(
    backend: str, clients: int, numbers: int, rate: int, send_bytes: int, mix: str, out: Path
) -> None:
    out.mkdir(parents=True, exist_ok=True)
    load = [
        *(sys.executable, "-m", "numbers_uring", "load", "--timeout", str(LOAD_TIMEOUT_S)),
        *("--clients", str(clients), "--numbers", str(numbers), "--rate", str(rate)),
        *("--send-bytes", str(send_bytes), "--mix", mix),
    ]
    for name in ("epoll", "uring") if backend == "both" else (backend,):
        picture = out / f"flame-graph-{name}.svg"
        picture.unlink(missing_ok=True)
        with (
            tempfile.TemporaryDirectory() as folder,
            profiled(name, picture, Path(folder) / "numbers.log", clients) as port,
        ):
            if subprocess.run([*load, "--port", str(port)], check=False).returncode:
                raise click.ClickException("the load failed")
        if not picture.exists():
            raise click.ClickException(f"there is no profile of {name}")


if __name__ == "__main__":
    main()
