"""Nodes on a real NATS server: what is acknowledged is in the streams, once, whatever fails."""

import select
import signal
import socket
import struct
import threading
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from numbers_uring.cluster.bucket import Buckets
from numbers_uring.cluster.node import outbox
from numbers_uring.cluster.node.forwarder import Forwarder, ForwardError
from numbers_uring.cluster.partitions import range_of, stream_name
from numbers_uring.cluster.values import Node
from numbers_uring.config import BrokerAccess
from numbers_uring.limits import FORWARD_BATCH_BYTES
from ports import reserve_port
from support.broker import Broker, broker_group, broker_with_cluster, init, leader
from support.clients import flood, is_closed, sees_fin
from support.logs import lines
from support.processes import ServerProcess, assert_one_line_error, run_command
from support.slow_link import slow_link
from support.waiting import DEADLINE_S, wait_until

PARTITIONS = 3
LAST = 999_999_999


def stored(broker: Broker, partitions: int = PARTITIONS) -> list[int]:
    """Return all numbers in all streams, after a check that each is in the stream of its range."""

    async def read(js: Any) -> list[int]:
        numbers: list[int] = []
        for partition in range(partitions):
            state = (await js.stream_info(stream_name(partition))).state
            for sequence in range(max(state.first_seq, 1), state.last_seq + 1):
                message = await js.get_msg(stream_name(partition), sequence)
                packed = [number for (number,) in struct.iter_unpack("<I", message.data)]
                first, end = range_of(partition, partitions)
                assert all(first <= number < end for number in packed)
                numbers += packed
        return numbers

    return broker.run(read)


def stored_once(broker: Broker, partitions: int = PARTITIONS) -> set[int]:
    """Return the same, after a check that none is there twice."""
    numbers = stored(broker, partitions)
    assert len(set(numbers)) == len(numbers), "a number is in the streams twice"
    return set(numbers)


def node(broker: Broker, *options: str, partitions: int = PARTITIONS) -> ServerProcess:
    return ServerProcess(
        Path("no-log"),
        *("--forward", broker.url, "--partitions", str(partitions), *options),
        has_log=False,
    )


def scrape(server: ServerProcess) -> dict[str, float]:
    """Return the metrics that have no labels."""
    url = next(word for word in server.stderr.split() if word.endswith("/metrics"))
    with urllib.request.urlopen(url, timeout=DEADLINE_S) as answer:
        text = answer.read().decode()
    found = [line.split() for line in text.splitlines() if line[0] != "#" and "{" not in line]
    return {name: float(value) for name, value in found}


async def nodes(js: Any) -> list[Node]:
    """Return what the nodes tell of themselves."""
    return (await Buckets(js).nodes())[0]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """A NATS server for all tests that leave it alone."""
    with broker_with_cluster(
        tmp_path_factory.mktemp("broker"), partitions=PARTITIONS, max_bytes=1 << 30
    ) as broker:
        yield broker


@pytest.fixture
def empty_broker(shared: Broker) -> Broker:
    """The same, its streams empty."""

    async def purge(js: Any) -> None:
        for partition in range(PARTITIONS):
            await js.purge_stream(stream_name(partition))

    shared.run(purge)
    return shared


@pytest.fixture
def own_broker(tmp_path: Path) -> Iterator[Broker]:
    """A NATS server that the test may do to as it likes."""
    with broker_with_cluster(
        tmp_path / "broker", partitions=PARTITIONS, max_bytes=1 << 30
    ) as broker:
        yield broker


def test_each_number_is_stored_once_in_the_stream_of_its_range(empty_broker: Broker) -> None:
    numbers = [*range(0, LAST, 9_973), LAST]
    with node(empty_broker, "--reactors", "2", "--metrics", "127.0.0.1:0") as server:
        assert f"NATS server at {empty_broker.url}," in server.stderr
        clients = [
            threading.Thread(target=server.send, args=(lines(part),))
            for part in (numbers, numbers[::-1], numbers[: len(numbers) // 2] * 2)
        ]
        for client in clients:
            client.start()
        for client in clients:
            client.join(DEADLINE_S)
        name = "numbers_uring_forward_acknowledged_total"
        wait_until(lambda: scrape(server)[name] == len(numbers), "all acknowledgements")
        metrics = scrape(server)
        assert metrics["numbers_uring_forward_in_flight"] == 0
        assert metrics["numbers_uring_forward_resent_total"] == 0
        assert metrics["numbers_uring_forward_published_bytes_total"] == 4 * len(numbers)
        assert metrics["numbers_uring_log_written_bytes_total"] == 0

        def told() -> bool:
            return any(
                state.acknowledged == state.unique == len(numbers)
                for state in empty_broker.run(nodes)
            )

        wait_until(told, "the node in the list of nodes")
        assert server.terminate() == 0
        assert f"{len(numbers)} numbers acknowledged by the NATS server at" in server.stderr
        assert empty_broker.run(nodes) == []
        duplicates = len(numbers) + 2 * (len(numbers) // 2)
        assert server.reported() == (len(numbers), duplicates, len(numbers))
    assert stored_once(empty_broker) == set(numbers)


def test_a_number_alone_is_stored_soon_and_a_signal_drains(empty_broker: Broker) -> None:
    with node(empty_broker) as server, server.connect() as client:
        client.sendall(lines([7]))
        wait_until(lambda: stored(empty_broker) == [7], "the number")
        client.sendall(lines([8, 7, LAST]))
        assert server.stop(signal.SIGINT) == 0
        assert server.reported()[0] == 3
    assert stored_once(empty_broker) == {7, 8, LAST}


def test_a_killed_node_leaves_what_was_acknowledged_and_no_number_twice(
    empty_broker: Broker,
) -> None:
    numbers = list(range(0, LAST, 997))
    with node(empty_broker, "--report-interval", "0.05") as server:
        with server.connect() as client:
            sender = threading.Thread(target=_send_until_closed, args=(client, lines(numbers)))
            sender.start()
            wait_until(lambda: server.reports and server.reported()[0] > 0, "the first numbers")
            server.kill()
            sender.join(DEADLINE_S)
        acknowledged = server.reported()[0]
    found = stored_once(empty_broker)
    assert found <= set(numbers)
    assert len(found) >= acknowledged > 0


def _send_until_closed(client: socket.socket, data: bytes) -> None:
    with suppress(OSError):
        client.sendall(data)


def test_a_nats_server_that_is_killed_and_started_again_loses_and_doubles_nothing(
    own_broker: Broker,
) -> None:
    numbers = list(range(0, LAST, 499))
    with node(own_broker, "--report-interval", "0.05") as server:
        with server.connect() as client:
            sender = threading.Thread(target=client.sendall, args=(lines(numbers),))
            sender.start()
            wait_until(lambda: server.reports and server.reported()[0] > 0, "the first numbers")
            own_broker.kill()
            wait_until(lambda: "lost the connection" in server.stderr, "the lost connection")
            own_broker.start()
            sender.join(DEADLINE_S)
        wait_until(lambda: server.reported()[2] == len(numbers), "all acknowledgements")
        wait_until(lambda: "reconnected to" in server.stderr, "the new connection")
        # And once more, with a stop that has to wait for the NATS server.
        own_broker.kill()
        server.send(lines([1, 2, 3]))
        server.process.send_signal(signal.SIGTERM)
        own_broker.start()
        assert server.wait() == 0
        assert server.reported()[2] == len(numbers) + 3
    assert stored_once(own_broker) == {*numbers, 1, 2, 3}


def test_a_nats_server_that_stands_still_gets_each_number_once(
    own_broker: Broker,
) -> None:
    few, many = list(range(0, LAST, 99_991)), list(range(1, 1_200_000, 2))
    with node(own_broker) as server:
        own_broker.suspend()
        server.send(lines(few))
        wait_until(lambda: "does not answer; resending" in server.stderr, "the word")
        with sending(server, many):
            held = "does not answer: holding the clients back"
            wait_until(lambda: held in server.stderr, "the hold-back")
            own_broker.resume()
        for words in (
            "has acknowledged everything that was resent",
            "accepts batches again: continuing",
        ):
            wait_until(lambda words=words: words in server.stderr, words)  # type: ignore[misc]
        assert server.terminate() == 0
        assert server.reported()[0] == len({*few, *many})
    assert stored_once(own_broker) == {*few, *many}


def test_batches_that_take_long_over_a_slow_line_are_not_sent_over_and_over(
    empty_broker: Broker,
) -> None:
    # Acknowledgements come later, because of the batches before, than one is usually waited for.
    numbers = list(range(0, LAST, 400))
    with (
        slow_link(empty_broker.port, bytes_per_s=2e6) as port,
        ServerProcess(
            Path("no-log"),
            *("--forward", f"nats://127.0.0.1:{port}", "--partitions", str(PARTITIONS)),
            *("--metrics", "127.0.0.1:0"),
            has_log=False,
        ) as server,
    ):
        server.send(lines(numbers))
        name = "numbers_uring_forward_acknowledged_total"
        wait_until(lambda: scrape(server)[name] == len(numbers), "all acknowledgements")
        batches = len(numbers) * 4 / FORWARD_BATCH_BYTES
        assert scrape(server)["numbers_uring_forward_resent_total"] < batches / 4
        assert server.terminate() == 0
    assert stored_once(empty_broker) == set(numbers)


@pytest.mark.parametrize("reactors", ["1", "2"])
def test_the_close_that_a_client_waits_for_says_that_the_nats_server_has_its_numbers(
    own_broker: Broker, reactors: str
) -> None:
    with node(own_broker, "--reactors", reactors) as server:
        for number in range(5):
            with server.connect() as first, server.connect() as second:
                own_broker.suspend()
                first.sendall(lines([number]))
                # A repeat is settled no sooner than its number.
                second.sendall(lines([number]))
                for client in (first, second):
                    client.shutdown(socket.SHUT_WR)
                assert select.select([first, second], [], [], 0.05)[0] == []
                own_broker.resume()
                assert is_closed(first)
                assert is_closed(second)
            assert sorted(stored(own_broker)) == list(range(number + 1))
        assert server.terminate() == 0


@pytest.mark.parametrize("reactors", ["1", "3"])
def test_a_stop_closes_a_client_once_its_numbers_are_acknowledged(
    own_broker: Broker, reactors: str
) -> None:
    with node(own_broker, "--reactors", reactors) as server, ExitStack() as stack:
        clients = [stack.enter_context(server.connect()) for _ in range(4)]
        own_broker.suspend()
        for number, client in enumerate(clients):
            # The last one has the numbers of all.
            client.sendall(lines(range(number + 1) if client is clients[-1] else [number]))
        clients[0].shutdown(socket.SHUT_WR)
        server.process.send_signal(signal.SIGTERM)
        assert select.select(clients, [], [], 0.2)[0] == []
        own_broker.resume()
        assert all(sees_fin(client) for client in clients)
        assert server.wait() == 0
    assert sorted(stored(own_broker)) == [0, 1, 2, 3]


def test_a_stop_of_a_node_with_several_reactors_takes_in_floods_beside_quiet_clients(
    own_broker: Broker,
) -> None:
    with node(own_broker, "--reactors", "3") as server, ExitStack() as stack:
        first, quiet, *others = [stack.enter_context(server.connect()) for _ in range(5)]
        quiet.sendall(lines([999_999_999]))
        senders = [
            threading.Thread(target=flood, args=(client, 100_000_000 * number, 1_000_000))
            for number, client in enumerate([first, *others])
        ]
        for sender in senders:
            sender.start()
        wait_until(lambda: len(stored(own_broker)) > 1000, "the floods")
        server.process.send_signal(signal.SIGTERM)
        assert sees_fin(quiet)
        assert server.wait() == 0, server.stderr
        for sender in senders:
            sender.join()
        assert len(stored_once(own_broker)) == server.reported()[2]


@contextmanager
def sending(server: ServerProcess, numbers: list[int]) -> Iterator[None]:
    """Send from a thread, which has sent everything at the end."""
    sender = threading.Thread(target=server.send, args=(lines(numbers),))
    sender.start()
    yield
    sender.join(DEADLINE_S)
    assert not sender.is_alive()


def test_the_loss_of_the_leader_of_a_replicated_stream_loses_and_doubles_nothing(
    tmp_path: Path,
) -> None:
    numbers = list(range(0, LAST, 499))
    with broker_group(tmp_path) as brokers:
        urls = ",".join(broker.url for broker in brokers)
        init(urls, "--replicas", "3", partitions=1, max_bytes=1 << 30)
        options = ("--forward", urls, "--partitions", "1", "--report-interval", "0.05")
        with ServerProcess(Path("no-log"), *options, has_log=False) as server:
            with sending(server, numbers):
                wait_until(lambda: server.reports and server.reported()[0], "the first numbers")
                lost = leader(brokers, stream_name(0))
                lost.kill()
            wait_until(lambda: server.reported()[2] == len(numbers), "all acknowledgements")
            assert server.terminate() == 0
        left = next(broker for broker in brokers if broker is not lost)
        assert stored_once(left, 1) == set(numbers)


def test_a_full_stream_holds_clients_back_and_leaves_room_for_others(tmp_path: Path) -> None:
    with broker_with_cluster(tmp_path / "broker", partitions=2, max_bytes=1 << 20) as broker:
        first, more = list(range(500_000)), list(range(500_000, 700_000))
        others = list(range(600_000_000, 600_000_100))
        with node(broker, "--report-interval", "0.05", partitions=2) as server:
            server.send(lines(first))
            refused = "refuses numbers.0: maximum bytes exceeded"
            wait_until(lambda: f"{refused}; resending" in server.stderr, "the word")
            server.send(lines(others))
            with sending(server, more):
                held = f"{refused}: holding the clients back"
                wait_until(lambda: held in server.stderr, "the hold-back")

                def has_others() -> bool:
                    return set(others) <= set(stored(broker, 2))

                wait_until(has_others, "the numbers of the stream that has room")

                async def make_room(js: Any) -> None:
                    config = (await js.stream_info(stream_name(0))).config
                    config.max_bytes = 1 << 30
                    await js.update_stream(config)

                broker.run(make_room)
            assert server.terminate() == 0
            assert "accepts batches again: continuing" in server.stderr
            assert server.reported()[0] == len(first) + len(more) + len(others)
        assert stored_once(broker, 2) == {*first, *more, *others}


def test_a_stop_without_a_nats_server_says_how_many_numbers_are_not_acknowledged(
    own_broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox, "FORWARD_STOP_ACK_S", 0.2)
    forwarder = Forwarder(
        own_broker.url,
        PARTITIONS,
        access=BrokerAccess(),
        say=lambda _: None,
        inform=lambda _: None,
        wake=lambda: None,
    )
    with closing(forwarder):
        assert forwarder.append(memoryview(lines([5]))) == 10
        wait_until(lambda: forwarder.written_lines == 1, "the acknowledgement")
        own_broker.kill()
        assert forwarder.append(memoryview(lines([1, 2, LAST]))) == 30
        forwarder.begin_stop()
        with pytest.raises(ForwardError, match=r"the NATS server at .* does not answer"):
            forwarder.finish()
        assert forwarder.written_lines == 1
        assert forwarder.loss(3) == "3 numbers that were taken in are not acknowledged"


def test_a_second_signal_ends_a_stop_that_waits_for_the_nats_server(own_broker: Broker) -> None:
    with node(own_broker) as server:
        own_broker.kill()
        server.send(lines([1]))
        server.process.send_signal(signal.SIGTERM)
        wait_until(lambda: "lost the connection" in server.stderr, "the lost connection")
        wait_until(lambda: _ends(server, signal.SIGTERM), "the end")
        assert server.wait() == 128 + signal.SIGTERM


def _ends(server: ServerProcess, number: signal.Signals) -> bool:
    server.process.send_signal(number)
    return server.process.poll() is not None


@pytest.fixture
def fails(tmp_path: Path) -> Callable[..., None]:
    """Run a node that can't start, and check the line that it leaves."""

    def run(code: int, words: str, *options: str) -> None:
        done = run_command("serve", "--port", "0", *options, cwd=tmp_path)
        assert_one_line_error(done, code, words)
        assert list(tmp_path.iterdir()) == []

    return run


def test_a_node_does_not_start_without_its_nats_server_or_its_streams(
    shared: Broker, fails: Callable[..., None]
) -> None:
    absent = f"nats://user:secret@127.0.0.1:{reserve_port()}"
    fails(
        3,
        "cannot reach the NATS server at nats://127.0.0.1:",
        "--forward",
        absent,
        "--partitions=3",
    )
    fails(3, "3 partitions, not 5", "--forward", shared.url, "--partitions=5")


def test_a_node_needs_a_cluster_that_was_made(tmp_path: Path) -> None:
    with Broker(tmp_path / "broker") as broker:
        done = run_command("serve", "--port=0", "--forward", broker.url, "--partitions=3")
        assert_one_line_error(done, 3, "numbers-uring cluster init")


@pytest.mark.parametrize(
    ("words", "options"),
    [
        ("--partitions", ["--forward", "nats://127.0.0.1:4222"]),
        ("--forward", ["--partitions", "3"]),
        ("nats://HOST:PORT", ["--forward", "127.0.0.1:4222", "--partitions", "3"]),
        ("nats://HOST:PORT", ["--forward", "nats://h:99999", "--partitions", "3"]),
        *(
            (option[0], [*option, "--forward", "nats://127.0.0.1:4222", "--partitions", "3"])
            for option in (
                ["--log-file", "x"],
                ["--resume"],
                ["--seen", "numbers.log.1"],
                ["--fsync", "always"],
                ["--write-behind", "off"],
            )
        ),
    ],
    ids=str,
)
def test_options_that_do_not_go_together_are_wrong_usage(
    words: str, options: list[str], fails: Callable[..., None]
) -> None:
    fails(2, words, *options)


@pytest.mark.parametrize(
    "arguments",
    [
        ["serve", "--port", "0", "--forward", "nats://127.0.0.1:4222", "--partitions", "1"],
        ["collect", "--partitions", "0", "--log-dir", "logs"],
        ["cluster", "init", "--partitions", "1"],
        ["cluster", "status"],
    ],
    ids=lambda arguments: " ".join(arguments[:2]),
)
def test_a_missing_library_is_said_with_what_to_do(tmp_path: Path, arguments: list[str]) -> None:
    (tmp_path / "nats.py").write_text("raise ModuleNotFoundError('there is none')\n")
    environment = {"PYTHONPATH": str(tmp_path)}
    done = run_command(*arguments, environment=environment, cwd=tmp_path)
    assert_one_line_error(done, 3, "there is none", "pip install 'numbers-uring[cluster]'")
    assert not (tmp_path / "logs").exists()


def test_the_doctor_tries_the_nats_server_in_the_place_of_the_log(
    shared: Broker, tmp_path: Path
) -> None:
    options = ("doctor", "--port", "0", "--forward", shared.url, "--partitions")
    done = run_command(*options, str(PARTITIONS), cwd=tmp_path)
    assert done.returncode == 0, done.stdout
    assert f"{shared.url} answers, and the settings of its {PARTITIONS} streams" in done.stdout
    done = run_command(*options, "5", cwd=tmp_path)
    assert done.returncode == 1
    assert "3 partitions, not 5" in done.stdout
    assert list(tmp_path.iterdir()) == []
