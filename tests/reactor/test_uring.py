"""The ring's own rules, one test each, on a ring with pools as small as it takes."""

import errno
import mmap
import os
import random
import re
import resource
import select
import socket
import struct
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from numbers_uring._native import ffi, lib
from numbers_uring.config import WhenFull
from numbers_uring.ingest.intake import Intake
from numbers_uring.ingest.kernel import Verdict
from numbers_uring.ingest.native import variants
from numbers_uring.limits import (
    BATCH_BYTES,
    BITMAP_BYTES,
    BULK_PASS_BYTES,
    HEADROOM_BYTES,
    RECEIVE_FAILURES_MAX,
    RING_LARGE_BYTES,
    RING_SMALL_BYTES,
    RING_TOUCHED_BYTES,
)
from numbers_uring.net.listeners import listen_tcp
from numbers_uring.reactor.contract import Kind
from numbers_uring.reactor.uring import UringReactor
from numbers_uring.reactor.uring_features import FEATURES, try_features
from support.clients import is_closed
from support.waiting import DEADLINE_S

pytestmark = pytest.mark.usefixtures("ring")

Row = tuple[int, int, bytes]


class Ring:
    """A bare ring: `turn` makes one pass and returns its rows, with bytes for what was received."""

    def __init__(
        self,
        *,
        small: tuple[int, int] = (64, 64),
        large: tuple[int, int] = (2, 1024),
        connections_max: int = 64,
        submissions_max: int = 64,
        queued_max: int = 4096,
        completions_max: int = 1024,
        headroom_bytes: int = HEADROOM_BYTES,
        ignored_features: int = 0,
        listener: socket.socket | None = None,
    ) -> None:
        self.results: Any = ffi.new("struct nu_ring_results *")
        self._completions: Any = ffi.new("struct nu_completion[]", completions_max)
        fds = ffi.new("int32_t[]", [listener.fileno()] if listener else [])
        config: Any = ffi.new(
            "struct nu_ring_config *",
            {
                "headroom_bytes": headroom_bytes,
                "small": small,
                "large": large,
                "connections_max": connections_max,
                "listener_fds": fds,
                "listeners": len(fds),
                "wakeup_fd": -1,
                "results": self.results,
                "completions": self._completions,
                "completions_max": completions_max,
                "submissions_max": submissions_max,
                "queued_max": queued_max,
                "ignored_features": ignored_features,
                "accepts_per_pass_max": 256,
                "bulk_pass_bytes": BULK_PASS_BYTES,
                "receive_failures_max": RECEIVE_FAILURES_MAX,
            },
        )
        self.arena = bytearray(lib.nu_ring_arena_bytes(config))
        self._arena = ffi.from_buffer("uint8_t[]", self.arena, require_writable=True)
        config.arena, config.arena_bytes = self._arena, len(self.arena)
        opened: Any = ffi.new("struct nu_ring **")
        assert lib.nu_ring_open(config, opened, ffi.new("char **")) == 0
        self.ring = opened[0]
        self.headroom_bytes = headroom_bytes
        self.clients: dict[int, socket.socket] = {}
        self.starts: set[int] = set()
        """Where in the arena anything was received."""

    def close(self) -> None:
        lib.nu_ring_close(self.ring)
        for client in self.clients.values():
            client.close()

    def client(self) -> int:
        near, far = socket.socketpair()
        connection: int = lib.nu_ring_adopt(self.ring, near.detach())
        assert connection >= 0
        self.clients[connection] = far
        return connection

    def turn(self, timeout_s: float = 0.0, *, pile_up_s: float = 0.0) -> list[Row]:
        count = lib.nu_ring_pass(self.ring, int(timeout_s * 1e9), int(pile_up_s * 1e9))
        assert count == self.results.count >= 0
        rows = []
        for i in range(count):
            kind, connection, start, size = (
                getattr(self._completions[i], field)
                for field in ("kind", "connection", "start", "size")
            )
            if kind == Kind.RECEIVED:
                rows.append((kind, connection, bytes(self.arena[start : start + size])))
                self.starts.add(start)
                # The headroom and the chunk are ours: writing there must not change other bytes.
                begin = start - self.headroom_bytes
                assert begin >= 0
                self.arena[begin : start + size] = b"#" * (start + size - begin)
            else:
                rows.append((kind, connection, b""))
        return rows

    def settle(self) -> None:
        """Have every receive armed."""
        for _ in range(20):
            assert self.turn() == []

    def collect(self, wanted: int) -> dict[int, bytes]:
        """Return the streams, once all of them together are `wanted` bytes long."""
        streams: dict[int, bytes] = {}
        end_s = time.monotonic() + DEADLINE_S
        while sum(map(len, streams.values())) < wanted:
            assert time.monotonic() < end_s
            for kind, connection, data in self.turn(DEADLINE_S):
                assert kind == Kind.RECEIVED
                streams[connection] = streams.get(connection, b"") + data
        return streams


class MakeRing:
    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack

    def __call__(self, **settings: Any) -> Ring:
        ring = Ring(**settings)
        self._stack.callback(ring.close)
        return ring


@pytest.fixture
def make_ring() -> Iterator[MakeRing]:
    with ExitStack() as stack:
        yield MakeRing(stack)


@pytest.fixture(params=[0, lib.NU_URING_FEAT_MIN_TIMEOUT], ids=["min_wait", "sleep"])
def make_piling_ring(make_ring: MakeRing, request: pytest.FixtureRequest) -> Callable[..., Ring]:
    """Make rings that let packets pile up as Linux 6.12 can, and as before."""
    return partial(make_ring, ignored_features=request.param)


def test_receives_that_found_no_buffer_are_armed_again(make_ring: MakeRing) -> None:
    ring = make_ring(small=(2, 64))
    connections = [ring.client() for _ in range(20)]
    ring.settle()
    for round_ in range(5):
        for connection in connections:
            ring.clients[connection].sendall(b"%02d-%d" % (connection, round_))
        streams = ring.collect(4 * len(connections))
        assert streams == {c: b"%02d-%d" % (c, round_) for c in connections}
    assert ring.results.starved > 0, "the pool was never empty: nothing was tested"


@pytest.mark.parametrize("filler", [b"x", b"x" * 200], ids=["small", "large"])
def test_more_connections_than_buffers_are_armed_before_a_wait(
    make_ring: MakeRing, filler: bytes
) -> None:
    """Those that are silent take no buffer, but must not keep one from those behind them."""
    ring = make_ring(small=(2, 64), large=(1, 1024))
    connections = [ring.client() for _ in range(20)]
    for connection in connections:
        ring.clients[connection].sendall(filler)
    ring.collect(20 * len(filler))
    for connection in connections * 2:
        ring.clients[connection].sendall(b"here")
        assert ring.collect(4) == {connection: b"here"}
    for connection in connections:
        ring.clients[connection].close()
    closed = 0
    while closed < 20:
        rows = ring.turn(DEADLINE_S)
        assert rows, "the turn ended without a completion"
        closed += len(rows)


@pytest.mark.parametrize("pile_up_s", [0.0, 0.001])
def test_one_pass_hands_out_what_all_clients_have_sent(
    make_piling_ring: Callable[..., Ring], pile_up_s: float
) -> None:
    """Though Linux runs the work for 20 of them in one call, unless it is told to do more."""
    ring = make_piling_ring(small=(256, 64), connections_max=200)
    connections = [ring.client() for _ in range(200)]
    ring.settle()
    for round_ in range(3):
        for connection in connections:
            ring.clients[connection].sendall(b"%d" % round_)
        rows = ring.turn(DEADLINE_S, pile_up_s=pile_up_s)
        assert sorted(rows) == [(Kind.RECEIVED, each, b"%d" % round_) for each in connections]


def test_packets_pile_up_for_as_long_as_was_asked_for(
    make_piling_ring: Callable[..., Ring],
) -> None:
    ring = make_piling_ring()
    connection = ring.client()
    ring.settle()
    ring.clients[connection].sendall(b"here")
    begin_s = time.monotonic()
    assert ring.turn(DEADLINE_S, pile_up_s=0.05) == [(Kind.RECEIVED, connection, b"here")]
    assert time.monotonic() - begin_s >= 0.05


def test_a_pass_that_piles_up_waits_for_the_first_packet_too(
    make_piling_ring: Callable[..., Ring],
) -> None:
    ring = make_piling_ring()
    connection = ring.client()
    ring.settle()
    with ThreadPoolExecutor(1) as pool:
        sent = pool.submit(_send_later, ring.clients[connection])
        assert ring.turn(DEADLINE_S, pile_up_s=0.001) == [(Kind.RECEIVED, connection, b"here")]
        sent.result()


def _send_later(client: socket.socket) -> None:
    time.sleep(0.05)
    client.sendall(b"here")


def test_packets_of_few_clients_pile_up_in_their_sockets(
    make_piling_ring: Callable[..., Ring],
) -> None:
    """Received one by one, each packet would take a buffer, and as long as one that is alone."""
    ring = make_piling_ring(small=(4, 64))
    connection = ring.client()
    ring.clients[connection].sendall(b"x")
    assert ring.collect(1) == {connection: b"x"}
    ring.settle()
    with ThreadPoolExecutor(1) as pool:
        sent = pool.submit(lambda: [ring.clients[connection].send(b"x") for _ in range(50)])
        rows = ring.turn(DEADLINE_S, pile_up_s=0.5)
        sent.result()
    assert rows == [(Kind.RECEIVED, connection, b"x" * 50)]
    assert ring.results.starved == 0


def test_an_end_that_is_there_waits_for_no_packets_to_pile_up(
    make_piling_ring: Callable[..., Ring],
) -> None:
    ring = make_piling_ring()
    connection = ring.client()
    ring.settle()
    ring.clients[connection].sendall(b"x" * 64)
    ring.clients[connection].shutdown(socket.SHUT_WR)
    assert ring.turn(DEADLINE_S) == [(Kind.RECEIVED, connection, b"x" * 64)]
    begin_s = time.monotonic()
    assert ring.turn(DEADLINE_S, pile_up_s=DEADLINE_S / 2) == [(Kind.CLOSED, connection, b"")]
    assert time.monotonic() - begin_s < DEADLINE_S / 2


def test_a_pass_whose_time_is_up_before_packets_have_piled_up_ends(
    make_piling_ring: Callable[..., Ring],
) -> None:
    ring = make_piling_ring()
    connection = ring.client()
    ring.settle()
    assert ring.turn(0.01, pile_up_s=DEADLINE_S) == []
    ring.clients[connection].sendall(b"here")
    assert ring.turn(0.0, pile_up_s=DEADLINE_S) == [(Kind.RECEIVED, connection, b"here")]


def test_a_drain_receives_though_linux_had_every_buffer(make_ring: MakeRing) -> None:
    ring = make_ring(large=(2, 1024))
    connections = [ring.client() for _ in range(5)]
    ring.settle()
    lib.nu_ring_begin_drain(ring.ring)
    for connection in connections:
        ring.clients[connection].sendall(b"here")
    assert ring.collect(20) == dict.fromkeys(connections, b"here")


def test_with_an_empty_pool_all_are_served_in_turn(make_ring: MakeRing) -> None:
    """A client that sends without end may take one of two buffers each pass, but not both."""
    ring = make_ring(small=(2, 64), large=(1, 1024))
    flood, quiet = ring.client(), ring.client()
    ring.settle()
    ring.clients[flood].setblocking(False)
    for i in range(20):
        while select.select([], [ring.clients[flood]], [], 0)[1]:
            ring.clients[flood].send(b"f" * 4096)
        ring.clients[quiet].sendall(b"q%d" % i)
        received: list[Row] = []
        for _ in range(6):
            received += ring.turn()
            if (Kind.RECEIVED, quiet, b"q%d" % i) in received:
                break
        else:
            pytest.fail("the quiet client waited for more than 6 passes")
        assert flood in [connection for _, connection, _ in received]


def test_a_pass_hands_out_one_piece_of_a_flood(make_ring: MakeRing) -> None:
    ring = make_ring()
    flood = ring.client()
    ring.clients[flood].sendall(b"".join(b"%04d" % i for i in range(2000)))
    stream = b""
    while len(stream) < 8000:
        rows = ring.turn(1)
        assert [(kind, connection) for kind, connection, _ in rows] == [(Kind.RECEIVED, flood)]
        stream += rows[0][2]
    assert stream == b"".join(b"%04d" % i for i in range(2000))


def test_a_client_that_fills_small_buffers_gets_large_ones_until_it_sends_little(
    make_ring: MakeRing,
) -> None:
    ring = make_ring()
    connection = ring.client()
    for _ in range(3):
        ring.clients[connection].sendall(b"x" * 20_000)
        sizes: list[int] = []
        while sum(sizes) < 20_000:
            sizes += [len(data) for _, _, data in ring.turn(1)]
        assert sizes[0] == 64
        assert max(sizes) == 1024
        ring.clients[connection].sendall(b"short")
        assert ring.collect(5) == {connection: b"short"}
        ring.clients[connection].sendall(b"y" * 65)
        assert ring.collect(65) == {connection: b"y" * 65}
        ring.clients[connection].sendall(b"short")
        assert ring.collect(5) == {connection: b"short"}


def test_a_flood_fills_one_small_buffer_and_then_large_ones(make_ring: MakeRing) -> None:
    """Linux would receive into 32 of them at once, and a large one holds as much as all those."""
    ring = make_ring()
    connection = ring.client()
    ring.clients[connection].sendall(b"x" * 20_000)
    sizes: list[int] = []
    while sum(sizes) < 20_000:
        sizes += [len(data) for _, _, data in ring.turn(1)]
    assert sizes[:2] == [64, 1024]


@pytest.mark.parametrize(("size", "buffers_max"), [(1, 40), (1000, 2)], ids=["small", "large"])
def test_few_buffers_go_round_where_few_clients_send(
    make_ring: MakeRing, size: int, buffers_max: int
) -> None:
    """Linux takes the one that it has had for longest: if it had all, all would be touched."""
    ring = make_ring(small=(256, 64), large=(16, 1024))
    connection = ring.client()
    ring.clients[connection].sendall(b"x" * size)
    ring.collect(size)
    ring.starts.clear()
    for _ in range(300):
        ring.clients[connection].sendall(b"x" * size)
        ring.collect(size)
    assert len(ring.starts) <= buffers_max


def test_an_overflow_of_the_completion_queue_loses_nothing(make_ring: MakeRing) -> None:
    ring = make_ring(submissions_max=2, queued_max=4, large=(64, 1024))
    connections = [ring.client() for _ in range(64)]
    ring.settle()
    for round_ in range(10):
        data = b"%d" % round_ * (10 if round_ % 2 else 300)
        for connection in connections:
            ring.clients[connection].sendall(data)
        assert ring.collect(64 * len(data)) == dict.fromkeys(connections, data)
    assert ring.results.overflows > 0, "the queue never overflowed: nothing was tested"


def test_the_end_comes_one_pass_behind_the_data(make_ring: MakeRing) -> None:
    ring = make_ring()
    connection = ring.client()
    ring.settle()
    ring.clients[connection].sendall(b"last")
    ring.clients[connection].close()
    assert ring.turn(1) == [(Kind.RECEIVED, connection, b"last")]
    assert ring.turn(1) == [(Kind.CLOSED, connection, b"")]


def test_the_end_waits_for_all_the_data_that_came_before_it(make_ring: MakeRing) -> None:
    ring = make_ring()
    connection = ring.client()
    ring.settle()
    ring.clients[connection].sendall(b"x" * 1000)
    ring.clients[connection].close()
    rows: list[Row] = []
    while not rows or rows[-1][0] != Kind.CLOSED:
        rows += ring.turn(1)
    assert b"".join(data for _, _, data in rows) == b"x" * 1000


def test_a_disconnected_descriptor_is_closed_after_the_end_of_its_receive(
    make_ring: MakeRing,
) -> None:
    """Closing it alone would not do: the receive under way keeps the socket open."""
    ring = make_ring()
    connection = ring.client()
    ring.settle()
    lib.nu_ring_disconnect(ring.ring, connection)
    lib.nu_ring_disconnect(ring.ring, connection)
    assert ring.turn(1) == [(Kind.CLOSED, connection, b"")]
    lib.nu_ring_finish_close(ring.ring, connection, True)
    assert is_closed(ring.clients[connection])
    assert ring.turn() == []


def test_no_byte_of_an_earlier_connection_is_received_in_its_slot(make_ring: MakeRing) -> None:
    ring = make_ring(small=(8, 64), connections_max=3)
    generator = random.Random(3)
    for _ in range(500):
        connections = [ring.client() for _ in range(3)]
        for connection in connections:
            ring.clients[connection].sendall(b"%d" % connection * generator.randrange(1, 300))
        for _ in range(generator.randrange(3)):
            for kind, connection, data in ring.turn():
                assert kind == Kind.RECEIVED
                assert set(data) == set(b"%d" % connection)
        for connection in connections:
            ring.clients[connection].send(b"%d" % connection * 30)
            lib.nu_ring_disconnect(ring.ring, connection)
        closed: list[int] = []
        while len(closed) < 3:
            for kind, connection, _ in ring.turn(1):
                assert kind == Kind.CLOSED
                lib.nu_ring_finish_close(ring.ring, connection, True)
                closed.append(connection)
        for connection in connections:
            ring.clients.pop(connection).close()
        assert lib.nu_ring_next_open(ring.ring, 0) == -1
    assert ring.results.stale == 0


def test_a_full_answer_leaves_the_rest_to_the_next_pass(make_ring: MakeRing) -> None:
    ring = make_ring(completions_max=5)
    connections = [ring.client() for _ in range(20)]
    for connection in connections:
        ring.clients[connection].sendall(b"x")
        ring.clients[connection].close()
    rows: list[Row] = []
    while len(rows) < 40:
        turned = ring.turn(1)
        assert 0 < len(turned) <= 5
        rows += turned
    assert sorted(c for kind, c, _ in rows if kind == Kind.RECEIVED) == connections
    assert sorted(c for kind, c, _ in rows if kind == Kind.CLOSED) == connections


def test_an_end_is_handed_out_though_what_others_send_fills_every_pass(make_ring: MakeRing) -> None:
    ring = make_ring(completions_max=5)
    leaving, *others = (ring.client() for _ in range(20))
    ring.settle()
    ring.clients[leaving].close()
    rows: list[Row] = []
    for _ in range(20):
        for connection in others:
            ring.clients[connection].sendall(b"x")
        rows = ring.turn(1)
        assert len(rows) >= 4, "there was space: nothing was tested"
        if (Kind.CLOSED, leaving, b"") in rows:
            return
    pytest.fail("the end waits")


def test_what_is_held_is_told_whether_in_the_socket_or_in_buffers(make_ring: MakeRing) -> None:
    ring = make_ring()
    connection = ring.client()
    ring.settle()
    ring.clients[connection].sendall(b"x" * 640)
    assert lib.nu_ring_held_bytes(ring.ring, connection) == 640
    ((_, _, data),) = ring.turn(1)
    assert lib.nu_ring_held_bytes(ring.ring, connection) == 640 - len(data)


def test_an_arena_that_is_too_small_is_refused() -> None:
    config: Any = ffi.new("struct nu_ring_config *", {"small": (8, 64), "large": (2, 1024)})
    config.arena_bytes = lib.nu_ring_arena_bytes(config) - 1
    ring: Any = ffi.new("struct nu_ring **")
    step: Any = ffi.new("char **")
    assert lib.nu_ring_open(config, ring, step) < 0
    assert ffi.string(step[0]) == b"arena"


# The reactor on top.


class Reactor:
    """A UringReactor with its listener and wake-up pipe."""

    def __init__(self, stack: ExitStack, connections_max: int, port: int = 0) -> None:
        self.wakeup_read, self.wakeup_write = os.pipe2(os.O_NONBLOCK)
        stack.callback(os.close, self.wakeup_read)
        stack.callback(os.close, self.wakeup_write)
        self.listeners = listen_tcp("127.0.0.1", port)
        self.address = self.listeners[0].getsockname()
        self.reactor = UringReactor(
            self.listeners,
            self.wakeup_read,
            connections_max=connections_max,
            when_full=WhenFull.WAIT,
            warn=pytest.fail,
        )
        stack.callback(self.reactor.close)


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def waiting_connections(listener: socket.socket) -> int:
    info = listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 28)
    return int(struct.unpack("=24xI", info)[0])


def mapping(arena: mmap.mmap) -> str:
    """Return what proc_pid_smaps(5) says of the arena."""
    first = int(ffi.cast("uintptr_t", ffi.from_buffer(arena)))
    smaps = Path("/proc/self/smaps").read_text()
    (found,) = (
        lines
        for lines in re.split(r"\n(?=[0-9a-f]+-)", smaps)
        if int(lines.partition("-")[0], 16) <= first < int(re.split("[- ]", lines)[1], 16)
    )
    return found


def resident_bytes(arena: mmap.mmap) -> int:
    return int(mapping(arena).split("Rss:")[1].split()[0]) * 1024


def test_the_arena_is_asked_to_lie_on_huge_pages(stack: ExitStack) -> None:
    """A fault for each small page takes a third of the time of a short and fast stream."""
    try:
        with mmap.mmap(-1, mmap.PAGESIZE, flags=mmap.MAP_PRIVATE) as memory:
            memory.madvise(mmap.MADV_HUGEPAGE)
    except OSError:
        pytest.skip("this kernel has no transparent huge pages")
    arena = Reactor(stack, 1).reactor.arena
    assert len(arena) % lib.NU_HUGE_PAGE_BYTES == 0
    assert "hg" in mapping(arena).split("VmFlags:")[1].split()


@pytest.fixture(scope="module")
def bitmap() -> bytearray:
    return bytearray(BITMAP_BYTES)


class Taken:
    """A reactor that takes in, and clients whose sockets are full of lines."""

    def __init__(self, stack: ExitStack, bitmap: bytearray, floods: int) -> None:
        self.bench = Reactor(stack, floods + 1)
        self.reactor = self.bench.reactor
        self._intake = Intake(
            variants()[0],
            self.reactor.arena,
            bitmap,
            connections_max=floods + 1,
            batch_bytes=BATCH_BYTES,
        )
        self.reactor.take_in(self._intake)
        self.clients = [
            stack.enter_context(socket.create_connection(self.bench.address, timeout=DEADLINE_S))
            for _ in range(floods + 1)
        ]
        opened = 0
        while opened < floods + 1:
            opened += sum(kind == Kind.OPENED for kind, _, _, _ in self.reactor.wait(1))
        self.quiet = self.clients.pop()
        for client in self.clients:
            client.setblocking(False)
        for _ in range(2):
            self.fill()
            self.turn()

    def fill(self) -> None:
        """Send until nothing more fits into the sockets, and the server has had time to receive."""
        for client in self.clients:
            while select.select([], [client], [], 0)[1]:
                client.send(b"000000007\n" * 6554)

    def turn(self) -> int:
        """Make a pass; return how much it took in."""
        taken = 0
        for kind, connection, start, size in self.reactor.wait(1):
            assert kind == Kind.TAKEN
            assert start == Verdict.MORE
            assert 0 <= connection <= len(self.clients)
            self._intake.discard(len(self._intake.batch))
            taken += size
        return taken


def test_a_pass_receives_in_bulk_from_all_through_memory_that_was_touched_before(
    stack: ExitStack, bitmap: bytearray
) -> None:
    """One piece behind the other, each where the one before was, as long as nothing else comes."""
    taken = Taken(stack, bitmap, floods=20)
    resident = resident_bytes(taken.reactor.arena)
    assert RING_TOUCHED_BYTES <= resident <= RING_TOUCHED_BYTES + lib.NU_HUGE_PAGE_BYTES
    for _ in range(10):
        taken.fill()
        held = [
            taken.reactor.held_bytes(connection) for connection in range(len(taken.clients) + 1)
        ]
        assert taken.turn() >= sum(min(each, RING_LARGE_BYTES) for each in held)
    assert resident_bytes(taken.reactor.arena) == resident


def test_a_line_of_a_quiet_client_ends_a_pass_in_bulk(stack: ExitStack, bitmap: bytearray) -> None:
    """What was taken in is on file only after the pass."""
    taken = Taken(stack, bitmap, floods=20)
    for _ in range(10):
        taken.fill()
        taken.quiet.sendall(b"000000009\n")
        assert taken.turn() <= 2 * RING_LARGE_BYTES


def test_no_client_beyond_the_limit_is_accepted(stack: ExitStack) -> None:
    """Neither served nor dropped: it stays in the backlog."""
    bench = Reactor(stack, 3)
    for _ in range(8):
        stack.enter_context(socket.create_connection(bench.address, timeout=DEADLINE_S))
    opened: list[int] = []
    while len(opened) < 3:
        opened += [row[1] for row in bench.reactor.wait(1) if row[0] == Kind.OPENED]
    assert list(bench.reactor.wait(0.02)) == []
    assert sorted(opened) == [0, 1, 2]
    assert waiting_connections(bench.listeners[0]) == 5


def test_the_wakeup_descriptor_is_told_of_as_long_as_it_is_readable(stack: ExitStack) -> None:
    bench = Reactor(stack, 1)
    for _ in range(3):
        os.write(bench.wakeup_write, b"x")
        begin_s = time.monotonic()
        for _ in range(5):
            assert list(bench.reactor.wait(2 * DEADLINE_S)) == []
        assert time.monotonic() - begin_s < DEADLINE_S
        os.read(bench.wakeup_read, 10)
        # What was told before the read may be told once more.
        list(bench.reactor.wait(0.1))
        begin_s = time.monotonic()
        assert list(bench.reactor.wait(0.1)) == []
        assert time.monotonic() - begin_s >= 0.1


def test_the_port_is_free_as_soon_as_the_reactor_is_closed() -> None:
    """Requests that outlive a ring would keep the listener, and so the port."""
    port = 0
    for _ in range(20):
        with ExitStack() as stack:
            bench = Reactor(stack, 2, port)
            client = stack.enter_context(socket.create_connection(bench.address))
            while not any(row[0] == Kind.OPENED for row in bench.reactor.wait(1)):
                pass
            list(bench.reactor.wait(0))
            port = bench.address[1]
            bench.reactor.close()
            assert is_closed(client)


def test_five_thousand_clients_are_served_at_once(stack: ExitStack) -> None:
    count = 5000
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = 2 * count + 200
    if hard != resource.RLIM_INFINITY and hard < needed:
        pytest.skip(f"needs {needed} file descriptors, the hard limit is {hard}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, needed), hard))
    stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
    bench = Reactor(stack, count)
    clients: list[socket.socket] = []
    streams: dict[int, bytes] = {}
    closed = 0
    end_s = time.monotonic() + DEADLINE_S

    def turn(timeout_s: float = 0.1) -> None:
        nonlocal closed
        assert time.monotonic() < end_s
        for kind, connection, start, size in bench.reactor.wait(timeout_s):
            if kind == Kind.OPENED:
                streams[connection] = b""
            elif kind == Kind.RECEIVED:
                streams[connection] += bytes(bench.reactor.arena[start : start + size])
            else:
                closed += 1

    while len(streams) < count:
        for _ in range(min(100, count - len(clients))):
            client = socket.create_connection(bench.address, timeout=DEADLINE_S)
            clients.append(stack.enter_context(client))
        turn()
    for round_ in range(2):
        for i, client in enumerate(clients):
            client.sendall(b"%04d-%d" % (i, round_))
        while sum(map(len, streams.values())) < 6 * count * (round_ + 1):
            turn()
    for client in clients:
        client.close()
    while closed < count:
        turn()
    assert sorted(streams.values()) == [b"%04d-0%04d-1" % (i, i) for i in range(count)]


def test_floods_do_not_hold_up_a_quiet_client(stack: ExitStack) -> None:
    bench = Reactor(stack, 6)
    clients = [
        stack.enter_context(socket.create_connection(bench.address, timeout=DEADLINE_S))
        for _ in range(6)
    ]
    opened = 0
    while opened < 6:
        opened += len(list(bench.reactor.wait(1)))
    quiet = clients.pop()
    for client in clients:
        client.setblocking(False)
    largest = 0
    for i in range(100):
        for client in clients:
            while select.select([], [client], [], 0)[1]:
                client.send(b"f" * 65536)
        quiet.sendall(b"%02d" % i)
        for _ in range(3):
            rows = list(bench.reactor.wait(1))
            pieces = [bytes(bench.reactor.arena[row[2] : row[2] + row[3]]) for row in rows]
            largest = max(largest, *map(len, pieces))
            assert len({row[1] for row in rows}) == len(rows), "two pieces of one client"
            if b"%02d" % i in pieces:
                break
        else:
            pytest.fail("the quiet client waited for more than 3 passes")
    assert RING_SMALL_BYTES < largest <= RING_LARGE_BYTES


def test_every_feature_works_by_itself_and_leaves_no_descriptor() -> None:
    before = os.listdir("/proc/self/fd")  # noqa: PTH208 - the numbers are what is compared
    assert try_features() == dict.fromkeys(FEATURES)
    assert os.listdir("/proc/self/fd") == before  # noqa: PTH208


def test_a_feature_that_cannot_be_had_is_named_with_its_error() -> None:
    near, far = socket.socketpair()
    outcomes: Any = ffi.new("int32_t[]", lib.NU_FEATURES)
    with near, far:
        far.shutdown(socket.SHUT_WR)
        lib.nu_probe_features(near.fileno(), far.fileno(), outcomes)
    # Nothing can be sent, so the poll fails, and what comes after it is not tried.
    assert list(outcomes) == [0, 0, 0, -errno.EPIPE, -errno.ECANCELED, -errno.ECANCELED]
