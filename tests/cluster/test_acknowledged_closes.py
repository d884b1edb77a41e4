"""What a client of a node sees at its end: a FIN only if all of its numbers are acknowledged."""

import asyncio
import signal
import socket
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from nats.js import JetStreamContext

from numbers_uring.cluster.partitions import stream_name
from support.broker import Broker, init
from support.clients import sees_fin
from support.logs import lines
from support.processes import ServerProcess
from support.waiting import DEADLINE_S, wait_until

PARTITIONS = 2
STOP_ACK_S = 0.3
"""How long these nodes wait for an acknowledgement while they stop."""

USER = 'authorization { users: [{ user: "tests", password: "x" }%s] }\n'
NODE_USER = ', { user: "node", password: "x" }'


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    """One that has a user for nodes, and streams with little space."""
    made = Broker(tmp_path / "broker", settings=USER % NODE_USER)
    made.url = f"nats://tests:x@127.0.0.1:{made.port}"
    with made:
        init(made.url, partitions=PARTITIONS, max_bytes=1 << 20)
        yield made


class Node(ServerProcess):
    """A node that has metrics, and little time at a stop."""

    def __init__(self, broker: Broker, backend: str, reactors: str, folder: Path) -> None:
        (folder / "sitecustomize.py").write_text(
            f"import numbers_uring.limits as limits\nlimits.FORWARD_STOP_ACK_S = {STOP_ACK_S}\n"
        )
        url = broker.url.replace("tests", "node")
        super().__init__(
            Path("no-log"),
            *("--forward", url, "--partitions", str(PARTITIONS), "--backend", backend),
            *("--metrics", "127.0.0.1:0", "--max-clients", "8", "--reactors", reactors),
            has_log=False,
            environment={"PYTHONPATH": str(folder)},
        )

    def metric(self, name: str) -> int:
        url = next(word for word in self.stderr.split() if word.endswith("/metrics"))
        with urllib.request.urlopen(url, timeout=DEADLINE_S) as answer:
            text = answer.read().decode()
        return sum(
            int(float(line.split()[1])) for line in text.splitlines() if line.startswith(name + " ")
        )

    def wait_in_flight(self, numbers: int) -> None:
        name = "numbers_uring_forward_in_flight"
        wait_until(lambda: self.metric(name) == numbers, f"{numbers} numbers in flight")


@pytest.fixture(params=[("epoll", "1"), ("uring", "3")], ids="-".join)
def node(request: pytest.FixtureRequest, broker: Broker, tmp_path: Path) -> Iterator[Node]:
    backend, reactors = request.param
    if backend == "uring":
        request.getfixturevalue("ring")
    with Node(broker, backend, reactors, tmp_path) as server:
        yield server


ACKNOWLEDGED = 3
UNACKNOWLEDGED = 13


@contextmanager
def clients(node: Node, away: Callable[[], None]) -> Iterator[list[socket.socket]]:
    """Clients of all kinds whose numbers are not acknowledged once the NATS server is away."""
    with ExitStack() as stack:

        def client(data: bytes, *, shut_down: bool = False) -> socket.socket:
            made = stack.enter_context(node.connect())
            made.sendall(data)
            if shut_down:
                made.shutdown(socket.SHUT_WR)
            return made

        first = client(lines([1, 2, 999_999_999]), shut_down=True)
        assert sees_fin(first)
        away()
        made = [
            client(lines(range(10, 15))),
            client(lines(range(20, 25)), shut_down=True),
            # Ended by what is no line.
            client(lines([30, 31]) + b"x\n"),
            # Ended by an incomplete line.
            client(lines([999_999_998]) + b"00", shut_down=True),
            # Repeats of numbers that are not acknowledged, either.
            client(lines([10, 20, 999_999_998]), shut_down=True),
        ]
        node.wait_in_flight(UNACKNOWLEDGED)
        yield made


def assert_lost(node: Node, some: list[socket.socket]) -> None:
    """It says how many numbers are not acknowledged, and no client sees a FIN."""
    assert [sees_fin(client) for client in some] == [False] * len(some)
    assert node.wait() == 4
    (error,) = [line for line in node.stderr_lines if "error: " in line]
    assert f"; {UNACKNOWLEDGED} numbers that were taken in are not acknowledged" in error
    assert node.reported()[2] == ACKNOWLEDGED


def silent(broker: Broker) -> None:
    broker.suspend()


def killed(broker: Broker) -> None:
    broker.kill()


def full(broker: Broker) -> None:
    async def fill(js: JetStreamContext) -> None:
        for partition in range(PARTITIONS):
            config = (await js.stream_info(stream_name(partition))).config
            config.max_bytes = 1
            await js.update_stream(config)

    broker.run(fill)


def without_streams(broker: Broker) -> None:
    async def delete(js: JetStreamContext) -> None:
        for partition in range(PARTITIONS):
            await js.delete_stream(stream_name(partition))
        # Another stream takes the numbers, which is not where they belong.
        await js.add_stream(name="others", subjects=["numbers.*"])

    broker.run(delete)


@pytest.mark.parametrize(
    ("away", "way"),
    [
        (silent, "SIGTERM"),
        (killed, "terminate"),
        (full, "terminate"),
        (without_streams, "SIGTERM"),
    ],
)
def test_a_stop_without_acknowledgements_resets_all_clients(
    broker: Broker, node: Node, away: Callable[[Broker], None], way: str
) -> None:
    with clients(node, lambda: away(broker)) as some:
        if way == "terminate":
            some.append(node.connect())
            some[-1].sendall(b"terminate\n")
        else:
            node.process.send_signal(signal.SIGTERM)
        assert_lost(node, some)


@pytest.mark.parametrize("stopping", [False, True])
def test_a_connection_that_is_refused_for_good_resets_all_clients_at_once(
    broker: Broker, tmp_path: Path, stopping: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"{__name__}.STOP_ACK_S", 1000)
    with Node(broker, "epoll", "1", tmp_path) as node, clients(node, broker.kill) as some:
        if stopping:
            node.process.send_signal(signal.SIGTERM)
        broker.configure(USER % "")
        broker.start()
        assert_lost(node, some)
        assert "is no longer usable: Authorization Violation" in node.stderr


@pytest.mark.parametrize("way", ["SIGKILL", "second signal"])
def test_a_node_that_dies_resets_all_clients(broker: Broker, node: Node, way: str) -> None:
    with clients(node, broker.suspend) as some:
        if way == "SIGKILL":
            node.process.kill()
        else:
            wait_until(lambda: _ends(node), "the end")
        assert [sees_fin(client) for client in some] == [False] * len(some)
        assert node.wait() in {-signal.SIGKILL, 128 + signal.SIGTERM, 4}


def _ends(node: Node) -> bool:
    node.process.send_signal(signal.SIGTERM)
    return node.process.poll() is not None


def test_clients_that_waited_see_a_fin_once_their_numbers_are_acknowledged(
    broker: Broker, node: Node
) -> None:
    with clients(node, broker.kill) as (open_, *ended):
        wait_until(lambda: "lost the connection" in node.stderr, "the lost connection")
        for client in ended:
            client.setblocking(False)
            with pytest.raises(BlockingIOError):
                client.recv(1)
        broker.start()
        assert [sees_fin(client) for client in ended] == [True] * len(ended)
        node.wait_in_flight(0)
        assert node.stop() == 0
        assert sees_fin(open_)
        assert node.reported()[2] == ACKNOWLEDGED + UNACKNOWLEDGED


def test_what_is_no_acknowledgement_is_sent_again(broker: Broker, tmp_path: Path) -> None:
    """Another one on the NATS server answers batches as well, and faster."""

    strange = iter([b"", b"[]", b"{}", b'{"stream":1}'])

    async def session(js: JetStreamContext) -> None:
        client: Any = js._nc

        async def answer(message: Any) -> None:
            await message.respond(next(strange, b'{"error":{"code":500,"description":"no"}}'))

        await js.delete_stream(stream_name(0))
        await client.subscribe("numbers.0", cb=answer)
        await client.flush()
        with server.connect() as peer:
            peer.sendall(lines([5]))
            peer.shutdown(socket.SHUT_WR)
            await asyncio.to_thread(server.wait_for, "refuses numbers.0: no; resending")
            assert server.metric("numbers_uring_forward_in_flight") == 1

    with Node(broker, "epoll", "1", tmp_path) as server:
        broker.run(session)
