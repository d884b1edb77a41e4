"""The contract of a reactor, over real sockets, for each backend."""

import contextlib
import os
import resource
import select
import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from numbers_uring.addresses import Peer
from numbers_uring.config import WhenFull
from numbers_uring.limits import DRAIN_BYTES_MAX, DRAIN_S, HEADROOM_BYTES
from numbers_uring.net.listeners import listen_tcp
from numbers_uring.reactor.contract import Completion, End, Kind, Reactor
from numbers_uring.reactor.epoll import EpollReactor
from numbers_uring.reactor.uring import UringReactor
from support.clients import is_closed
from support.waiting import DEADLINE_S

PASS_S = 0.02
PIECE_BYTES = 256 * 1024
REACTORS: dict[str, Callable[..., Reactor]] = {"epoll": EpollReactor, "uring": UringReactor}


class Bench:
    """A reactor, its clients, and a record of all that it handed out."""

    def __init__(
        self, backend: str, stack: ExitStack, connections_max: int, when_full: WhenFull
    ) -> None:
        self._stack = stack
        self.warnings: list[str] = []
        wakeup_read, self.wakeup_write = os.pipe2(os.O_NONBLOCK)
        stack.callback(os.close, wakeup_read)
        stack.callback(os.close, self.wakeup_write)
        listeners = listen_tcp("127.0.0.1", 0)
        self.address = listeners[0].getsockname()
        self.reactor: Reactor = REACTORS[backend](
            listeners,
            wakeup_read,
            connections_max=connections_max,
            when_full=when_full,
            warn=self.warnings.append,
        )
        stack.callback(self.reactor.close)
        self.open: set[int] = set()
        self.streams: dict[int, bytes] = {}
        self.ends: list[tuple[int, End]] = []
        self.finish_close = True
        self.order: list[int] = []

    def client(self) -> socket.socket:
        client = socket.create_connection(self.address, timeout=DEADLINE_S)
        return self._stack.enter_context(client)

    def take(self, completion: Completion) -> None:
        kind, connection, start, size = completion
        if kind == Kind.OPENED:
            assert connection not in self.open, "opened twice"
            self.open.add(connection)
            self.order.append(connection)
            self.streams[connection] = b""
        elif kind == Kind.RECEIVED:
            assert connection in self.open, "received from a connection that is not open"
            assert size > 0
            assert start >= HEADROOM_BYTES
            self.streams[connection] += bytes(self.reactor.arena[start : start + size])
            # The headroom and the chunk are ours: writing there must not change other bytes.
            self.reactor.arena[start - HEADROOM_BYTES : start + size] = b"#" * (
                HEADROOM_BYTES + size
            )
        else:
            assert connection in self.open, "closed twice, or never opened"
            self.open.remove(connection)
            self.ends.append((connection, End(start)))
            if self.finish_close:
                self.reactor.finish_close(connection, orderly=True)

    def turn(self, timeout_s: float = PASS_S) -> list[Completion]:
        completions = []
        for completion in self.reactor.wait(timeout_s):
            self.take(completion)
            completions.append(completion)
        return completions

    def turn_until(self, condition: Callable[[], object]) -> None:
        end_s = time.monotonic() + DEADLINE_S
        while not condition():
            assert time.monotonic() < end_s, "waited in vain"
            self.turn()

    def opened_client(self) -> tuple[socket.socket, int]:
        before = len(self.order)
        client = self.client()
        self.turn_until(lambda: len(self.order) > before)
        return client, self.order[-1]

    def drain(self) -> None:
        for completion in self.reactor.drain(time.monotonic() + DRAIN_S):
            self.take(completion)


class MakeBench:
    def __init__(self, backend: str, stack: ExitStack) -> None:
        self._backend = backend
        self._stack = stack

    def __call__(self, connections_max: int = 4, when_full: WhenFull = WhenFull.WAIT) -> Bench:
        return Bench(self._backend, self._stack, connections_max, when_full)


@pytest.fixture
def make_bench(backend: str) -> Iterator[MakeBench]:
    with ExitStack() as stack:
        yield MakeBench(backend, stack)


def fill(client: socket.socket) -> int:
    """Send as much as the buffers on the way take; return how many bytes that is."""
    client.setblocking(False)
    sent = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            sent += client.send(b"x" * 65536)
    return sent


def reset(client: socket.socket) -> None:
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()


def test_a_stream_is_handed_out_whole_and_in_order(make_bench: MakeBench) -> None:
    bench = make_bench()
    client, connection = bench.opened_client()
    sent = b""
    for i in range(50):
        piece = bytes([i]) * (i * 37 + 1)
        client.sendall(piece)
        sent += piece
        bench.turn(0)
    client.close()
    bench.turn_until(lambda: bench.ends)
    assert bench.streams[connection] == sent
    assert bench.ends == [(connection, End.EOF)]


def test_what_came_before_the_end_is_handed_out_before_it(make_bench: MakeBench) -> None:
    bench = make_bench()
    for leave in (socket.socket.close, reset):
        client, connection = bench.opened_client()
        client.sendall(b"last words")
        leave(client)
        bench.turn_until(lambda: not bench.open)
        assert bench.streams[connection] == b"last words"
    assert [end for _, end in bench.ends] == [End.EOF, End.RESET]


def test_a_client_sees_the_close_when_it_is_finished(make_bench: MakeBench) -> None:
    bench = make_bench(connections_max=1)
    bench.finish_close = False
    for _ in range(20):
        client, connection = bench.opened_client()
        client.sendall(b"all that I have")
        client.shutdown(socket.SHUT_WR)
        while bench.streams[connection] == b"":
            bench.turn()
        assert select.select([client], [], [], 0)[0] == [], "closed in the same pass"
        bench.turn_until(lambda: not bench.open)
        following = bench.client()
        assert bench.turn() == bench.turn() == [], "something happens on what has ended"
        assert select.select([client], [], [], 0)[0] == [], "closed before it was let go"
        bench.reactor.finish_close(connection, orderly=True)
        assert is_closed(client)
        following.close()
        bench.turn_until(lambda: bench.open)
        bench.turn_until(lambda: not bench.open)
        bench.reactor.finish_close(bench.order[-1], orderly=True)


def end_by_client(bench: Bench, client: socket.socket, _: int) -> None:
    client.shutdown(socket.SHUT_WR)
    bench.turn_until(lambda: bench.ends)


def end_by_disconnect(bench: Bench, _: socket.socket, connection: int) -> None:
    bench.reactor.disconnect(connection)
    bench.turn_until(lambda: bench.ends)


def end_by_drain(bench: Bench, _client: socket.socket, _: int) -> None:
    bench.drain()


@pytest.mark.parametrize("orderly", [True, False], ids=["orderly", "not orderly"])
@pytest.mark.parametrize("end", [end_by_client, end_by_disconnect, end_by_drain])
def test_only_an_orderly_close_of_what_was_received_is_no_reset(
    make_bench: MakeBench, end: Callable[[Bench, socket.socket, int], None], orderly: bool
) -> None:
    bench = make_bench()
    bench.finish_close = False
    client, connection = bench.opened_client()
    client.sendall(b"numbers")
    bench.turn_until(lambda: bench.streams[connection] == b"numbers")
    end(bench, client, connection)
    assert select.select([client], [], [], 0.05)[0] == [], "closed before it was asked for"
    bench.reactor.finish_close(connection, orderly=orderly)
    assert is_reset(client) is not orderly


def test_an_orderly_close_with_bytes_that_were_not_received_is_a_reset(
    make_bench: MakeBench,
) -> None:
    bench = make_bench()
    bench.finish_close = False
    client, connection = bench.opened_client()
    bench.reactor.disconnect(connection)
    bench.turn_until(lambda: bench.ends)
    client.sendall(b"numbers")
    bench.reactor.finish_close(connection, orderly=True)
    assert is_reset(client)


def test_what_is_open_when_the_reactor_is_closed_is_reset(make_bench: MakeBench) -> None:
    bench = make_bench()
    bench.finish_close = False
    clients = [bench.opened_client()[0] for _ in range(3)]
    clients[1].shutdown(socket.SHUT_WR)
    bench.turn_until(lambda: bench.ends)
    bench.reactor.disconnect(bench.order[2])
    clients.append(bench.client())
    bench.reactor.close()
    assert all(map(is_reset, clients))


def is_reset(client: socket.socket) -> bool:
    """Wait for the server to close the connection; return whether that is a reset, not a FIN."""
    try:
        assert client.recv(1) == b""
    except ConnectionResetError:
        return True
    return False


def test_a_disconnect_after_the_client_has_ended_frees_the_slot(make_bench: MakeBench) -> None:
    bench = make_bench(connections_max=3)
    for _ in range(20):
        clients = [bench.opened_client()[0] for _ in range(3)]
        for client in clients:
            client.close()
        # All have ended; the last ones are disconnected before they are handed out.
        for completion in bench.reactor.wait(DEADLINE_S):
            bench.take(completion)
            for connection in list(bench.open):
                bench.reactor.disconnect(connection)
            break
        bench.turn_until(lambda: not bench.open)
    assert len(bench.ends) == 60


def test_a_pass_receives_once_from_each_ready_connection(make_bench: MakeBench) -> None:
    bench = make_bench()
    flood, flood_connection = bench.opened_client()
    quiet, quiet_connection = bench.opened_client()
    flood.setblocking(False)
    for _ in range(5):
        with contextlib.suppress(BlockingIOError):
            while True:
                flood.send(b"f" * PIECE_BYTES)
        quiet.sendall(b"q")
        received = [c[1] for c in bench.turn() if c[0] == Kind.RECEIVED]
        assert sorted(received) == sorted({flood_connection, quiet_connection})


def test_an_idle_wait_lasts_as_long_as_asked_for(make_bench: MakeBench) -> None:
    bench = make_bench()
    bench.opened_client()
    begin_s = time.monotonic()
    assert bench.turn(0.1) == []
    assert time.monotonic() - begin_s >= 0.1


def test_a_wait_ends_early_when_the_wakeup_descriptor_is_readable(make_bench: MakeBench) -> None:
    bench = make_bench()
    os.write(bench.wakeup_write, b"x")
    assert bench.turn(2 * DEADLINE_S) == []
    bench.reactor.sleep(2 * DEADLINE_S)


def test_sleeping_hands_out_nothing_and_loses_nothing(make_bench: MakeBench) -> None:
    bench = make_bench()
    client, connection = bench.opened_client()
    client.sendall(b"later")
    bench.client()
    bench.reactor.sleep(PASS_S)
    assert bench.streams[connection] == b""
    bench.turn_until(lambda: bench.streams[connection] == b"later" and len(bench.open) == 2)


def test_an_iterator_left_early_loses_nothing(make_bench: MakeBench) -> None:
    bench = make_bench()
    clients = [bench.opened_client()[0] for _ in range(3)]
    for round_ in range(20):
        for client in clients:
            client.sendall(b"%02d" % round_)
        for completion in bench.reactor.wait(PASS_S):
            bench.take(completion)
            break
    for client in clients:
        client.close()
    end_s = time.monotonic() + DEADLINE_S
    while bench.open:
        assert time.monotonic() < end_s
        for completion in bench.reactor.wait(PASS_S):
            bench.take(completion)
            break
    whole = b"".join(b"%02d" % round_ for round_ in range(20))
    assert [bench.streams[connection] for connection in range(3)] == [whole] * 3
    assert len(bench.ends) == 3


def test_a_disconnected_connection_is_closed_once_and_received_from_no_more(
    make_bench: MakeBench,
) -> None:
    bench = make_bench()
    client, connection = bench.opened_client()
    client.sendall(b"first")
    bench.turn_until(lambda: bench.streams[connection])
    client.sendall(b"second")
    bench.reactor.disconnect(connection)
    bench.turn_until(lambda: bench.ends)
    assert bench.streams[connection] == b"first"
    assert bench.ends == [(connection, End.DISCONNECTED)]
    assert is_closed(client)


def test_a_disconnect_within_a_pass_hurts_no_other_connection(make_bench: MakeBench) -> None:
    """Descriptor numbers are used again at once: no event may reach the wrong connection."""
    bench = make_bench(connections_max=8)
    clients = [bench.opened_client()[0] for _ in range(8)]
    waiting = [bench.client() for _ in range(8)]
    for i, client in enumerate(clients):
        client.sendall(b"old %d" % i)
    for i, client in enumerate(waiting):
        client.sendall(b"new %d" % i)
    old = {}
    while len(bench.ends) < 8:
        for completion in bench.reactor.wait(PASS_S):
            bench.take(completion)
            kind, connection, _, _ = completion
            if kind == Kind.RECEIVED and bench.streams[connection].startswith(b"old"):
                old[connection] = bench.streams[connection]
                bench.reactor.disconnect(connection)
    assert sorted(old.values()) == [b"old %d" % i for i in range(8)]
    bench.turn_until(lambda: sum(s.startswith(b"new") for s in bench.streams.values()) == 8)
    assert sorted(bench.streams.values()) == [b"new %d" % i for i in range(8)]


def test_a_client_beyond_the_limit_waits_without_a_wakeup(make_bench: MakeBench) -> None:
    bench = make_bench(connections_max=1)
    first, _ = bench.opened_client()
    second = bench.client()
    second.sendall(b"second")
    begin_s = time.monotonic()
    assert bench.turn(0.1) == []
    assert time.monotonic() - begin_s >= 0.1
    first.close()
    bench.turn_until(lambda: bench.streams.get(0) == b"second")


def test_a_client_beyond_the_limit_is_refused_where_asked_for(make_bench: MakeBench) -> None:
    bench = make_bench(connections_max=1, when_full=WhenFull.REFUSE)
    first, _ = bench.opened_client()
    for count in range(1, 4):
        second = bench.client()
        bench.turn_until(lambda: bench.reactor.refused == count)  # noqa: B023 - called at once
        assert is_closed(second)
    first.close()
    bench.turn_until(lambda: not bench.open)
    bench.opened_client()
    assert bench.reactor.refused == 3


@pytest.mark.parametrize("leave", [socket.socket.close, reset], ids=["close", "reset"])
@pytest.mark.parametrize("sent_bytes", [0, 100, 30_000])
def test_a_client_that_comes_after_another_has_left_is_not_refused(
    make_bench: MakeBench, leave: Callable[[socket.socket], None], sent_bytes: int
) -> None:
    bench = make_bench(connections_max=1, when_full=WhenFull.REFUSE)
    client, _ = bench.opened_client()
    for opened in range(2, 12):
        # All of that is there when the reactor polls.
        client.sendall(b"x" * sent_bytes)
        leave(client)
        client = bench.client()
        bench.turn_until(lambda opened=opened: len(bench.order) == opened)  # type: ignore[misc]
    assert bench.reactor.refused == 0


def test_a_client_that_comes_while_what_another_has_left_is_read_is_not_refused(
    make_bench: MakeBench,
) -> None:
    bench = make_bench(connections_max=1, when_full=WhenFull.REFUSE)
    for opened in range(1, 6):
        client = bench.client()
        bench.turn_until(lambda opened=opened: len(bench.order) == opened)  # type: ignore[misc]
        # It has all arrived, with the end behind it, and takes several passes.
        client.sendall(b"x" * 40_000)
        client.close()
        following = bench.client()
        bench.turn_until(lambda opened=opened: len(bench.order) == opened + 1)  # type: ignore[misc]
        following.close()
        bench.turn_until(lambda: not bench.open)
        bench.order.pop()
    assert bench.reactor.refused == 0


def test_a_client_is_refused_while_another_one_sends(make_bench: MakeBench) -> None:
    bench = make_bench(connections_max=1, when_full=WhenFull.REFUSE)
    client, _ = bench.opened_client()
    fill(client)
    late = bench.client()
    bench.turn_until(lambda: bench.reactor.refused == 1)
    assert is_closed(late)


def assert_opened_once_closed(bench: Bench, connection: int) -> None:
    """Check that a client waits for this connection's slot, which costs no processor time."""
    begin_s = time.monotonic()
    assert bench.turn(0.1) == []
    assert time.monotonic() - begin_s >= 0.1, "it spins"
    bench.reactor.finish_close(connection, orderly=True)
    bench.turn_until(lambda: len(bench.order) == 2)
    assert bench.reactor.refused == 0


def test_a_close_that_is_not_finished_holds_refusals_back(make_bench: MakeBench) -> None:
    bench = make_bench(connections_max=1, when_full=WhenFull.REFUSE)
    bench.finish_close = False
    client, connection = bench.opened_client()
    client.close()
    bench.turn_until(lambda: bench.ends)
    bench.client()
    assert bench.turn(0.1) == []
    assert_opened_once_closed(bench, connection)


def test_a_client_of_another_reactor_that_leaves_in_time_makes_room(make_bench: MakeBench) -> None:
    bench = make_bench(connections_max=1, when_full=WhenFull.REFUSE)
    bench.reactor.set_connections_elsewhere(1)
    bench.client()
    bench.turn(0)
    bench.reactor.set_connections_elsewhere(0)
    bench.turn_until(lambda: bench.order)
    assert bench.reactor.refused == 0


def test_a_client_that_has_left_holds_refusals_back_also_beside_other_reactors(
    make_bench: MakeBench,
) -> None:
    bench = make_bench(connections_max=2, when_full=WhenFull.REFUSE)
    client, connection = bench.opened_client()
    bench.reactor.set_connections_elsewhere(1)
    bench.finish_close = False
    bench.client()
    bench.turn(0)
    client.close()
    bench.turn_until(lambda: bench.ends)
    bench.turn(0.1)
    assert_opened_once_closed(bench, connection)


def test_slots_are_used_again_without_end(make_bench: MakeBench) -> None:
    bench = make_bench(connections_max=2)
    for i in range(300):
        client, connection = bench.opened_client()
        if i % 3:
            client.sendall(b"%d" % i)
        (reset if i % 2 else socket.socket.close)(client)
        bench.turn_until(lambda: not bench.open)
        if i % 3:
            assert bench.streams[connection] == b"%d" % i
    assert len(bench.ends) == 300


def test_connections_that_left_before_they_were_accepted_do_no_harm(
    make_bench: MakeBench,
) -> None:
    bench = make_bench(connections_max=2)
    for _ in range(50):
        reset(bench.client())
    bench.client().sendall(b"here")
    bench.turn_until(lambda: b"here" in bench.streams.values())


def test_accepted_connections_are_kept_alive_and_take_urgent_bytes_in_line(
    make_bench: MakeBench,
) -> None:
    bench = make_bench()
    client, connection = bench.opened_client()
    client.send(b"12345")
    client.send(b"6", socket.MSG_OOB)
    client.send(b"789")
    bench.turn_until(lambda: bench.streams[connection] == b"123456789")
    assert keepalive_timer_runs(bench.address[1], client.getsockname()[1])


def keepalive_timer_runs(local_port: int, remote_port: int) -> bool:
    """Ask /proc/net/tcp: in its sixth column, 02 is the keepalive timer."""
    with open("/proc/net/tcp") as table:  # noqa: PTH123
        for row in table:
            fields = row.split()
            if fields[1].endswith(f":{local_port:04X}") and fields[2].endswith(
                f":{remote_port:04X}"
            ):
                return fields[5].startswith("02:")
    return False


def test_out_of_descriptors_the_listener_backs_off_with_one_warning(
    make_bench: MakeBench,
) -> None:
    bench = make_bench()
    client, connection = bench.opened_client()
    waiting = bench.client()
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(int(name) for name in os.listdir("/proc/self/fd"))  # noqa: PTH208
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest - 1, limits[1]))
    try:
        fillers = []
        with contextlib.suppress(OSError):
            while True:
                fillers.append(os.dup(0))
        turns = 0
        end_s = time.monotonic() + 0.3
        while time.monotonic() < end_s:
            bench.turn(0.05)
            turns += 1
        assert turns <= 8, "the reactor spins"
        assert len(bench.warnings) == 1
        client.sendall(b"still served")
        bench.turn_until(lambda: bench.streams[connection] == b"still served")
    finally:
        for filler in fillers:
            os.close(filler)
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    waiting.sendall(b"served later")
    bench.turn_until(lambda: b"served later" in bench.streams.values())
    assert len(bench.warnings) == 1


def test_a_drain_hands_out_what_the_sockets_hold_and_closes_all(make_bench: MakeBench) -> None:
    bench = make_bench()
    talker, talker_connection = bench.opened_client()
    gone, gone_connection = bench.opened_client()
    silent, _ = bench.opened_client()
    talker.sendall(b"t" * 3 * PIECE_BYTES)
    gone.sendall(b"g" * 100)
    gone.close()
    bench.drain()
    assert bench.streams[talker_connection] == b"t" * 3 * PIECE_BYTES
    assert bench.streams[gone_connection] == b"g" * 100
    assert not bench.open
    assert is_closed(talker)
    assert is_closed(silent)


def test_a_drain_takes_all_that_a_client_wrote_before_it_left(make_bench: MakeBench) -> None:
    """Part of it is still in the client's send buffer, because the window is closed."""
    bench = make_bench()
    client, connection = bench.opened_client()
    sent = fill(client)
    client.close()
    bench.drain()
    assert len(bench.streams[connection]) == sent
    assert bench.ends == [(connection, End.EOF)]


def test_a_drain_takes_in_those_who_wait_in_the_backlog(make_bench: MakeBench) -> None:
    bench = make_bench(connections_max=1)
    bench.opened_client()
    waiting = [bench.client() for _ in range(5)]
    for i, client in enumerate(waiting):
        client.sendall(b"%d" % i)
    received = []
    for completion in bench.reactor.drain(time.monotonic() + DRAIN_S):
        bench.take(completion)
        assert len(bench.open) <= 1
        if completion[0] == Kind.RECEIVED:
            received.append(bench.streams[completion[1]])
    assert received == [b"%d" % i for i in range(5)]
    assert len(bench.ends) == 6


def test_a_drain_goes_on_with_the_backlog_when_closes_have_freed_slots(
    make_bench: MakeBench,
) -> None:
    bench = make_bench(connections_max=2)
    bench.finish_close = False
    for i in range(7):
        bench.client().sendall(b"%d" % i)
    ended = rounds = 0
    while True:
        bench.drain()
        if len(bench.ends) == ended:
            break
        for connection, _ in bench.ends[ended:]:
            bench.reactor.finish_close(connection, orderly=True)
        ended, rounds = len(bench.ends), rounds + 1
    assert (ended, rounds) == (7, 4)
    assert len(bench.order) == 7


def test_a_drain_without_connections_takes_in_the_backlog(make_bench: MakeBench) -> None:
    bench = make_bench()
    client = bench.client()
    client.sendall(b"early")
    bench.drain()
    assert bench.streams[bench.order[0]] == b"early"
    assert not bench.open


def test_a_drain_can_disconnect(make_bench: MakeBench) -> None:
    bench = make_bench()
    client, connection = bench.opened_client()
    fill(client)
    pieces = 0
    for completion in bench.reactor.drain(time.monotonic() + DRAIN_S):
        bench.take(completion)
        if completion[0] == Kind.RECEIVED:
            pieces += 1
            bench.reactor.disconnect(connection)
    assert pieces == 1
    assert bench.ends == [(connection, End.DISCONNECTED)]


def test_a_drain_is_bounded_whatever_a_client_sends(make_bench: MakeBench) -> None:
    bench = make_bench()
    client, _connection = bench.opened_client()
    client.setblocking(False)
    client.send(b"x" * PIECE_BYTES)
    received = 0
    for completion in bench.reactor.drain(time.monotonic() + DRAIN_S):
        bench.take(completion)
        received += completion[3]
        if completion[0] == Kind.RECEIVED:
            # The flood: whatever was taken is sent again at once.
            while select.select([], [client], [], 0)[1]:
                client.send(b"x" * PIECE_BYTES)
    assert received > PIECE_BYTES, "the flood did not go on"
    assert received <= 2 * DRAIN_BYTES_MAX
    assert is_closed(client)


def test_a_signal_before_the_drain_does_not_cut_it_short(make_bench: MakeBench) -> None:
    bench = make_bench()
    client, connection = bench.opened_client()
    os.write(bench.wakeup_write, b"x")
    client.sendall(b"in time")
    bench.drain()
    assert bench.streams[connection] == b"in time"


# Several reactors.


def test_a_client_is_handed_from_one_reactor_to_another(make_bench: MakeBench) -> None:
    first, second = make_bench(), make_bench()
    client = first.client()
    client.sendall(b"sent before")
    released: list[tuple[int, Peer]] = []

    def release() -> bool:
        for kind, connection, _, _ in first.reactor.wait(PASS_S):
            assert kind == Kind.OPENED
            peer = first.reactor.peer(connection)
            released.append((first.reactor.release(connection), peer))
        return bool(released)

    first.turn_until(release)
    ((fd, peer),) = released
    assert peer == client.getsockname()
    second.reactor.adopt(fd, peer)
    second.turn_until(lambda: second.open)
    (connection,) = second.open
    assert second.reactor.peer(connection) == peer
    client.sendall(b" and behind")
    second.turn_until(lambda: second.streams[connection] == b"sent before and behind")
    client.close()
    second.turn_until(lambda: second.ends)
    assert second.ends == [(connection, End.EOF)]
    # The slot that it came from is free: the first one serves as many as ever.
    for _ in range(4):
        first.opened_client()
    assert not first.ends


def test_a_handed_over_client_is_drained(make_bench: MakeBench) -> None:
    first, second = make_bench(), make_bench()
    client = first.client()
    handed_over: list[int] = []

    def hand_over() -> bool:
        for _, connection, _, _ in first.reactor.wait(PASS_S):
            peer = first.reactor.peer(connection)
            second.reactor.adopt(first.reactor.release(connection), peer)
            handed_over.append(connection)
        return bool(handed_over)

    first.turn_until(hand_over)
    client.sendall(b"x" * 100_000)
    # Before the second one has waited even once.
    second.drain()
    ((connection, _),) = second.ends
    assert second.streams[connection] == b"x" * 100_000
    assert second.ends == [(connection, End.DISCONNECTED)]
    assert is_closed(client)


@pytest.mark.parametrize("when_full", list(WhenFull))
def test_clients_of_other_reactors_count_against_the_limit(
    make_bench: MakeBench, when_full: WhenFull
) -> None:
    bench = make_bench(3, when_full)
    bench.reactor.set_connections_elsewhere(2)
    bench.opened_client()
    late = bench.client()
    for _ in range(5):
        bench.turn()
    assert len(bench.open) == 1
    if when_full is WhenFull.REFUSE:
        assert is_closed(late)
        assert bench.reactor.refused == 1
        return
    bench.reactor.set_connections_elsewhere(1)
    bench.turn_until(lambda: len(bench.open) == 2)
    bench.reactor.set_connections_elsewhere(2)
    bench.client()
    for _ in range(5):
        bench.turn()
    assert len(bench.open) == 2
