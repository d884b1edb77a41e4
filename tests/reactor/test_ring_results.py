"""Each result that a request of a ring can have, from a queue that the test plays."""

import errno
import os
import random
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cffi import FFI

from numbers_uring.limits import BULK_PASS_BYTES, RECEIVE_FAILURES_MAX
from numbers_uring.reactor.contract import End, Kind

NATIVE = Path(__file__).resolve().parents[2] / "native"
HEADERS = ["base.h", "ingest/ingest.h", "ingest/intake.h", "uring/abi.h", "uring/uring.h"]
SOURCES = ["pass.c", "connections.c", "accept.c", "pools.c", "open.c", "drain.c", "take.c"]
OTHER_SOURCES = ["ingest/intake.c", "log/append.c", "net/sockets.c"]
RECEIVE, LISTENER, WAKEUP = 1, 3, 4
"""Of native/uring/queue.h's nu_request."""
MORE, BUFFER = 2, 1
BUFFERS, SMALL_BYTES = 8, 64
PASSES_MAX = 40

SANITIZERS = ["-fsanitize=address,undefined"] if "TEST_NATIVE" in os.environ else []
"""As `make sanitize` has built the extension."""

SCRIPT = """
void scripted_reset(void);
uint32_t scripted_enters(void);
void scripted_fail(int error, uint32_t times);
void scripted_refuse(int refuses);
uint32_t scripted_requests(uint32_t kind);
int scripted_complete(uint32_t kind, int32_t result, uint32_t flags);
void scripted_stray(uint64_t user_data, int32_t result, uint32_t flags);
"""

NETWORK = ["ECONNRESET", "ETIMEDOUT", "EHOSTUNREACH", "ENETUNREACH", "EPIPE", "ENETDOWN"]
OURS = ["EINVAL", "ENOMEM", "EBADF", "EFAULT", "EIO", "EPERM", "EACCES", "ENOTSOCK", "EOPNOTSUPP"]
MAY_PASS = ["EAGAIN", "EINTR", "ECANCELED"]


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> tuple[FFI, Any]:
    """Build the ring with the scripted queue in the place of native/uring/queue.c."""
    compiler = shutil.which("gcc") or pytest.skip("gcc is not installed")
    path = tmp_path_factory.mktemp("scripted") / "ring.so"
    subprocess.run(
        [
            *(compiler, "-std=gnu11", "-g", "-O1", "-Wall", "-Wextra", "-Werror", "-fPIC"),
            *("-shared", f"-I{NATIVE}", "-o", str(path)),
            *(("-fsanitize=address,undefined",) if "TEST_NATIVE" in os.environ else ()),
            str(Path(__file__).resolve().parents[1] / "native" / "scripted_queue.c"),
            *(str(NATIVE / "uring" / source) for source in SOURCES),
            *(str(NATIVE / source) for source in OTHER_SOURCES),
        ],
        check=True,
    )
    ffi = FFI()
    for header in HEADERS:
        lines = (NATIVE / header).read_text().splitlines()
        ffi.cdef("\n".join(line for line in lines if not line.startswith("#")))
    ffi.cdef(SCRIPT)
    return ffi, ffi.dlopen(str(path))


class Ring:
    """A ring with one listener, a wake-up descriptor and clients, on the scripted queue."""

    def __init__(self, ffi: FFI, lib: Any, listener: socket.socket) -> None:
        lib.scripted_reset()
        self.ffi, self.lib = ffi, lib
        self.results: Any = ffi.new("struct nu_ring_results *")
        self._rows: Any = ffi.new("struct nu_completion[]", 64)
        self._fds = ffi.new("int32_t[]", [listener.fileno()])
        config: Any = ffi.new(
            "struct nu_ring_config *",
            {
                "headroom_bytes": 16,
                "small": (BUFFERS, SMALL_BYTES),
                "large": (BUFFERS, 256),
                "connections_max": 4,
                "listener_fds": self._fds,
                "listeners": 1,
                "wakeup_fd": 0,
                "results": self.results,
                "completions": self._rows,
                "completions_max": 64,
                "submissions_max": 64,
                "queued_max": 64,
                "accepts_per_pass_max": 16,
                "bulk_pass_bytes": BULK_PASS_BYTES,
                "receive_failures_max": RECEIVE_FAILURES_MAX,
            },
        )
        self._arena: Any = ffi.new("uint8_t[]", lib.nu_ring_arena_bytes(config))
        config.arena, config.arena_bytes = self._arena, len(self._arena)
        ring: Any = ffi.new("struct nu_ring **")
        assert lib.nu_ring_open(config, ring, ffi.new("char **")) == 0
        self.ring = ring[0]
        self.clients: list[socket.socket] = []
        self._buffer = 0

    def close(self) -> None:
        self.lib.nu_ring_close(self.ring)
        for client in self.clients:
            client.close()

    def client(self) -> int:
        near, far = socket.socketpair()
        self.clients.append(far)
        connection: int = self.lib.nu_ring_adopt(self.ring, near.detach())
        return connection

    def intake(self) -> Any:
        """Return an intake whose kernel takes everything in, and what must live as long."""

        def kernel(ingest: Any, _arena: Any, start: int, stop: int) -> int:
            ingest.consumed = stop - start
            return 0

        parts = (
            self.ffi.callback("int(struct nu_ingest *, const uint8_t *, size_t, size_t)", kernel),
            self.ffi.new("struct nu_ingest *", {"batch_bytes": 1 << 20}),
            self.ffi.new("struct nu_tail[]", 4),
        )
        values = dict(zip(("kernel", "ingest", "tails"), parts, strict=True))
        values |= {"arena": self._arena, "call_bytes_max": 1 << 20}
        return self.ffi.new("struct nu_intake *", values), parts

    def receive(self, piece: bytes, flags: int) -> int:
        """Complete a receive into the small buffer that was not used for longest."""
        buffer = self._buffer
        self._buffer = (buffer + 1) % BUFFERS
        start = buffer * 2 * SMALL_BYTES + SMALL_BYTES
        self._arena[start : start + len(piece)] = piece
        done: int = self.lib.scripted_complete(RECEIVE, len(piece), BUFFER | flags | buffer << 16)
        return done

    @property
    def received(self) -> bytes:
        """What the first row of the last pass has received."""
        row = self._rows[0]
        return bytes(self._arena[row.start : row.start + row.size])

    def turn(self) -> list[tuple[int, int, int]]:
        """Make a pass; return its rows: kind, connection and, of a CLOSED, the end."""
        enters = self.lib.scripted_enters()
        count = self.lib.nu_ring_pass(self.ring, 10**9, 0)
        assert count >= 0
        assert self.lib.scripted_enters() - enters < 10, "a pass spins"
        return [(row.kind, row.connection, row.start) for row in self._rows[0:count]]


@pytest.fixture
def ring(library: tuple[FFI, Any]) -> Iterator[Ring]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        made = Ring(*library, listener)
        yield made
        made.close()


def code(name: str) -> int:
    return int(getattr(errno, name))


@pytest.mark.parametrize("name", NETWORK + OURS)
def test_a_receive_that_fails_ends_its_connection_and_no_other(ring: Ring, name: str) -> None:
    failing, other = ring.client(), ring.client()
    ring.turn()
    assert ring.lib.scripted_requests(RECEIVE) == 2
    assert ring.lib.scripted_complete(RECEIVE, -code(name), 0)
    assert ring.turn() == [(Kind.CLOSED, failing, End.RESET)]
    assert ring.results.receive_errno == (code(name) if name in OURS else 0)
    ring.lib.nu_ring_finish_close(ring.ring, failing, False)
    assert ring.turn() == []
    assert ring.lib.scripted_requests(RECEIVE) == 1
    assert ring.lib.nu_ring_next_open(ring.ring, 0) == other


@pytest.mark.parametrize("name", MAY_PASS)
def test_a_receive_that_fails_now_and_then_is_armed_again(ring: Ring, name: str) -> None:
    connection = ring.client()
    for buffer in range(BUFFERS):
        for _ in range(10):
            assert ring.turn() == []
            assert ring.lib.scripted_complete(RECEIVE, -code(name), 0)
        assert ring.turn() == []
        assert ring.lib.scripted_complete(RECEIVE, 10, BUFFER | MORE | buffer << 16)
        assert [row[:2] for row in ring.turn()] == [(Kind.RECEIVED, connection)]


@pytest.mark.parametrize("name", MAY_PASS)
def test_a_receive_that_always_fails_ends_its_connection_at_last(ring: Ring, name: str) -> None:
    connection = ring.client()
    rows: list[tuple[int, int, int]] = []
    for _ in range(PASSES_MAX):
        rows += ring.turn()
        if not ring.lib.scripted_complete(RECEIVE, -code(name), 0):
            break
    assert rows == [(Kind.CLOSED, connection, End.RESET)]


def test_packets_that_came_behind_each_other_are_handed_out_as_one_piece(ring: Ring) -> None:
    """Or in a rush more would come than one a pass, each pass would be a small one, and late."""
    connection = ring.client()
    for _ in range(3):
        assert ring.turn() == []
        stream = b""
        for size in (7, 40, 10, 7):
            piece = bytes(random.choices(b"0123456789", k=size))
            assert ring.receive(piece, MORE)
            stream += piece
        assert [row[:2] for row in ring.turn()] == [(Kind.RECEIVED, connection)]
        assert ring.received == stream
    for size in (SMALL_BYTES - 1, 1, SMALL_BYTES - 4, 5):
        assert ring.receive(b"x" * size, MORE)
    for size in (SMALL_BYTES, SMALL_BYTES - 4, 5):
        assert [row[:2] for row in ring.turn()] == [(Kind.RECEIVED, connection)]
        assert ring.received == b"x" * size


def test_receives_that_find_no_buffer_are_armed_again_without_end(ring: Ring) -> None:
    ring.client()
    for _ in range(100):
        assert ring.turn() == []
        assert ring.lib.scripted_complete(RECEIVE, -errno.ENOBUFS, 0)
    assert ring.results.starved > 90


@pytest.mark.parametrize("name", NETWORK + OURS + ["EAGAIN", "EINTR"])
def test_a_listener_that_cannot_be_polled_is_left_alone_until_told(ring: Ring, name: str) -> None:
    ring.lib.nu_ring_listen(ring.ring)
    ring.turn()
    assert ring.lib.scripted_complete(LISTENER, -code(name), 0)
    assert ring.turn() == []
    assert ring.results.accept_errno == code(name)
    for _ in range(5):
        ring.turn()
        assert ring.results.accept_errno == 0
    assert ring.lib.scripted_requests(LISTENER) == 0
    ring.lib.nu_ring_listen(ring.ring)
    ring.turn()
    assert ring.lib.scripted_requests(LISTENER) == 1


def test_a_listener_that_fails_while_more_is_received_is_told_of(ring: Ring) -> None:
    intake, _parts = ring.intake()
    ring.lib.nu_ring_listen(ring.ring)
    ring.client()
    ring.turn()
    assert ring.lib.scripted_complete(RECEIVE, SMALL_BYTES, BUFFER)
    assert [row[0] for row in ring.turn()] == [Kind.RECEIVED]
    ring.turn()
    assert ring.lib.scripted_complete(RECEIVE, 256, BUFFER)
    assert [row[0] for row in ring.turn()] == [Kind.RECEIVED]
    assert ring.lib.scripted_complete(LISTENER, -errno.EINVAL, 0)
    taken = ring.lib.nu_ring_take(ring.ring, intake, ring.ffi.NULL)
    assert taken == ring.lib.NU_ROWS_OVER
    assert intake.taken_bytes == 256
    assert ring.lib.scripted_requests(RECEIVE) == 1, "nothing more was received"
    assert ring.results.accept_errno == errno.EINVAL


@pytest.mark.parametrize("name", OURS + MAY_PASS)
def test_a_wakeup_descriptor_that_cannot_be_polled_is_told_of(ring: Ring, name: str) -> None:
    """The caller pauses, and gives up if that goes on."""
    ring.turn()
    assert ring.lib.scripted_complete(WAKEUP, -code(name), 0)
    assert ring.turn() == []
    assert ring.results.ring_errno == code(name)
    assert ring.turn() == []
    assert ring.results.ring_errno == 0
    assert ring.lib.scripted_requests(WAKEUP) == 1


@pytest.mark.parametrize("name", ["EAGAIN", "EBUSY", "EINTR"])
def test_an_enter_that_fails_for_now_ends_the_pass_and_is_told_of(ring: Ring, name: str) -> None:
    ring.client()
    ring.lib.scripted_fail(-code(name), 2)
    assert ring.turn() == []
    assert ring.results.ring_errno == code(name)
    ring.lib.scripted_fail(0, 0)
    assert ring.turn() == []
    assert ring.results.ring_errno == 0


def test_a_signal_ends_a_pass_and_is_no_failure(ring: Ring) -> None:
    ring.lib.scripted_fail(-errno.EINTR, 1)
    assert ring.turn() == []
    assert ring.results.ring_errno == 0


@pytest.mark.parametrize("name", OURS)
def test_an_enter_that_fails_otherwise_fails_the_pass(ring: Ring, name: str) -> None:
    ring.lib.scripted_fail(-code(name), 1)
    assert ring.lib.nu_ring_pass(ring.ring, 0, 0) == -code(name)


def test_completions_of_no_request_hurt_no_one(ring: Ring) -> None:
    connection = ring.client()
    ring.turn()
    for kind in (0, RECEIVE, 2, 5, 255):
        # Of a generation that is no more, and of slots that no one uses.
        for index in (connection, 3):
            ring.lib.scripted_stray(kind << 56 | 0xABCDEF << 32 | index, -errno.EINVAL, MORE)
    assert ring.turn() == []
    assert ring.results.stale == 2
    assert ring.lib.nu_ring_next_open(ring.ring, 0) == connection


@pytest.mark.parametrize("ends", [True, False], ids=["requests end", "requests never end"])
def test_a_drain_takes_what_is_there_whether_requests_end_or_not(ring: Ring, ends: bool) -> None:
    """A ring that Linux serves no more is not needed for it."""
    first, second = ring.client(), ring.client()
    ring.turn()
    ring.clients[0].sendall(b"delivered")
    ring.clients[1].close()
    ring.lib.scripted_refuse(not ends)
    ring.lib.nu_ring_begin_drain(ring.ring)
    rows: list[tuple[int, int, int]] = []
    for _ in range(3):
        rows += [(kind, connection, 0) for kind, connection, _ in ring.turn()]
    assert sorted(rows) == [(Kind.RECEIVED, first, 0), (Kind.CLOSED, second, 0)]
    ring.lib.nu_ring_disconnect(ring.ring, first)
    assert ring.turn() == [(Kind.CLOSED, first, End.DISCONNECTED)]
    for connection in (first, second):
        ring.lib.nu_ring_finish_close(ring.ring, connection, True)
    assert ring.lib.nu_ring_next_open(ring.ring, 0) == -1


def test_a_disconnect_ends_once_though_no_cancel_can_be_asked_for(ring: Ring) -> None:
    connection = ring.client()
    ring.turn()
    ring.lib.scripted_refuse(1)
    ring.lib.nu_ring_disconnect(ring.ring, connection)
    assert ring.turn() == []
    # The socket was shut down, so the receive ends.
    assert ring.lib.scripted_complete(RECEIVE, 0, 0)
    assert ring.turn() == [(Kind.CLOSED, connection, End.DISCONNECTED)]
    assert ring.turn() == []
