"""A compiled pass does what the plain loop does, whatever receives and appends come to.

Both play the same script: what each receive gives, call by call, and where the log has no space.
"""

import errno
import os
import random
import select
import shutil
import socket
import subprocess
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from cffi import FFI

from numbers_uring._native import ffi as real_ffi
from numbers_uring._native import lib as real_lib
from numbers_uring.addresses import Peer
from numbers_uring.config import Terminate, WhenFull
from numbers_uring.ingest import native
from numbers_uring.ingest.intake import Intake
from numbers_uring.ingest.native import variants
from numbers_uring.limits import BITMAP_BYTES, BULK_BYTES, CHUNK_BYTES_MAX, RECEIVE_BYTES
from numbers_uring.log import appends
from numbers_uring.log.appends import CompiledAppends
from numbers_uring.log.calls import FileCalls
from numbers_uring.log.writer import NumbersLog
from numbers_uring.reactor import epoll_pass
from numbers_uring.reactor.contract import Completion, Reactor
from numbers_uring.reactor.epoll import EpollReactor
from numbers_uring.reactor.uring import UringReactor
from numbers_uring.server.backpressure import Backpressure
from numbers_uring.server.closes import BatchState
from numbers_uring.server.disconnect_log import DisconnectLog
from numbers_uring.server.loop import Loop, Shared
from support.logs import lines, logged_once

ROOT = Path(__file__).resolve().parents[2]
CLIENTS = 6
BITMAP = bytearray(BITMAP_BYTES)
"""One for all: each play leaves it empty."""
HOOKS = """
void scripted_hooks(int (*wait)(int32_t *, int), int (*receive)(int, uint8_t *, int),
                    int (*write)(int, const uint8_t *, int));
"""
SANITIZERS = ["-fsanitize=address,undefined"] if "TEST_NATIVE" in os.environ else []
END = b""
STOP = "stop"
"""A result of a receive: the stop of the server comes with the bytes behind it."""

Result = bytes | int | tuple[str, bytes]
"""Bytes that are received, b"" for the end of the stream, an errno, or STOP with bytes."""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> tuple[FFI, Any]:
    """Build the pass with the script in the place of three system calls."""
    compiler = shutil.which("gcc") or pytest.skip("gcc is not installed")
    path = tmp_path_factory.mktemp("scripted") / "pass.so"
    sources = [
        *("native/epoll/pass.c", "native/ingest/intake.c", "native/log/append.c"),
        "tests/native/scripted_calls.c",
    ]
    subprocess.run(
        [
            *(compiler, "-std=gnu11", "-g", "-O1", "-Wall", "-Wextra", "-Werror", "-fPIC"),
            *("-shared", f"-I{ROOT / 'native'}", "-o", str(path), *SANITIZERS),
            *("-Depoll_wait=scripted_wait", "-Drecv=scripted_receive"),
            "-Dwrite=scripted_write",
            *(str(ROOT / source) for source in sources),
        ],
        check=True,
    )
    ffi = FFI()
    for header in ("base.h", "ingest/ingest.h", "ingest/intake.h", "log/append.h", "epoll/epoll.h"):
        text = (ROOT / "native" / header).read_text().splitlines()
        ffi.cdef("\n".join(line for line in text if not line.startswith(("#", "NU_INLINE"))))
    ffi.cdef(HOOKS)
    return ffi, ffi.dlopen(str(path))


class Outcome(NamedTuple):
    """What came of a script."""

    numbers: set[int]
    unique: int
    duplicate: int
    received_bytes: int
    accepted: int
    ended: Counter[str]
    closes: dict[int, bool]
    """By client: whether the close was orderly."""
    said: list[str]
    """Of what was left out or rejected; the order within a pass is left open."""
    warned: bool
    """Whether it was said that a receive failed for another reason than the network."""
    terminated: bool
    touched: Counter[int]
    """By client: how often its idle time began anew."""


@dataclass
class Script:
    """What the receives of each client give, and after how many bytes the log lacks space."""

    results: list[list[Result]]
    space_bytes: list[int] = field(default_factory=list)
    """Of each write that fails for lack of space, in turn, how much the log takes before that."""
    terminate: Terminate = Terminate.ANY


class Play:
    """A loop with an epoll reactor over scripted calls."""

    def __init__(self, script: Script, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._script = script
        self._path = path
        self._results = [list(each) for each in script.results]
        self._space = list(script.space_bytes)
        self._clients: dict[int, int] = {}
        self._kept: list[Any] = []
        self._now_s = 1000.0
        self._closes: dict[int, bool] = {}
        self._watched: set[int] = set()
        self.touched: Counter[int] = Counter()
        self.stop_soon = False
        self.draining = False
        self.batch = BatchState()
        self.waits = 0
        self.receives = 0
        self.order: list[int] = []
        """Of each receive that gave something: its client."""
        self.with_appends = False
        self.untold_takes = 0
        """Of which other loops' closes do not know, so that they do not wait for them."""
        self.appended_lines = 0
        """By passes."""
        self.begun_at: list[int] = []
        """Of each turn of the loop: the receives before it."""
        self.written_at: list[int] = []
        """Of each write: the receives before it."""
        monkeypatch.setattr(select, "epoll", self._make_epoll)
        monkeypatch.setattr(os, "readv", self._readv)

    # The system calls, for both.

    def ready(self) -> list[int]:
        """Return the descriptors with something to receive: level-triggered, as epoll does it."""
        self.waits += 1
        assert self.waits < 10_000, "it spins"
        clients = self._clients.items()
        found = [fd for fd, client in clients if fd in self._watched and self._results[client]]
        self.stop_soon = self.stop_soon or not found
        return found

    def receive(self, fd: int) -> bytes | int:
        """Return the next bytes, or -errno."""
        self.receives += 1
        queue = self._results[self._clients[fd]]
        if not queue:
            return -errno.EAGAIN
        result = queue[0] if queue[0] == END else queue.pop(0)
        if not isinstance(result, int):
            self.order.append(self._clients[fd])
            self.say_more(len(self.order))
        if isinstance(result, tuple):
            self.stop_soon = True
            return result[1]
        return -result if isinstance(result, int) else result

    def say_more(self, receives: int) -> None:
        """Called when there were so many receives: here nothing comes on top."""

    def _make_epoll(self) -> "Play":
        self._watched.clear()
        return self

    def register(self, fd: int | socket.socket, _: int) -> None:
        self._watched.add(fd if isinstance(fd, int) else fd.fileno())

    def unregister(self, fd: int | socket.socket) -> None:
        self._watched.remove(fd if isinstance(fd, int) else fd.fileno())

    def poll(self, _: float, maximum: int) -> list[tuple[int, int]]:
        return [(fd, select.EPOLLIN) for fd in self.ready()[:maximum]]

    def fileno(self) -> int:
        return -1

    def close(self) -> None:
        """Nothing is open."""

    def _readv(self, fd: int, buffers: list[Any]) -> int:
        result = self.receive(fd)
        while result == -errno.EINTR:
            # As Python does it: see PEP 475.
            result = self.receive(fd)
        if isinstance(result, int):
            raise OSError(-result, os.strerror(-result))
        (buffer,) = buffers
        buffer[: len(result)] = result
        return len(result)

    def use(self, library: tuple[FFI, Any], monkeypatch: pytest.MonkeyPatch) -> None:
        """Make the compiled pass play the script, too."""
        ffi, lib = library

        @ffi.callback("int(int32_t *, int)")
        def wait(fds: Any, maximum: int) -> int:
            found = self.ready()[:maximum]
            for i, fd in enumerate(found):
                fds[i] = fd
            return len(found)

        @ffi.callback("int(int, uint8_t *, int)")
        def receive(fd: int, place: Any, size: int) -> int:
            result = self.receive(fd)
            if isinstance(result, int):
                return result
            assert len(result) <= size
            ffi.memmove(place, result, len(result))
            return len(result)

        @ffi.callback("int(int, const uint8_t *, int)")
        def write(fd: int, data: Any, size: int) -> int:
            try:
                return self._write(fd, memoryview(ffi.buffer(data, size)))
            except OSError as error:
                return -(error.errno or 0)

        self._kept = [wait, receive, write]
        lib.scripted_hooks(wait, receive, write)

        def bridged(name: str) -> Callable[..., Any]:
            """Return the scripted function with the pointers of the extension."""
            function = getattr(lib, name)
            signature = ffi.typeof(function)

            def call(*values: Any) -> Any:
                given = [
                    ffi.cast(kind, int(real_ffi.cast("uintptr_t", value)))
                    if kind.kind == "pointer"
                    else value
                    for kind, value in zip(signature.args, values, strict=True)
                ]
                result = function(*given)
                if signature.result.kind != "pointer":
                    return result
                address = int(ffi.cast("uintptr_t", result))
                return real_ffi.cast(signature.result.cname, address)

            return call

        class Lib:
            def __getattr__(self, name: str) -> Any:
                scripted = name.startswith(("nu_epoll_", "nu_log_"))
                return bridged(name) if scripted else getattr(real_lib, name)

        monkeypatch.setattr(epoll_pass, "lib", Lib())
        monkeypatch.setattr(appends, "lib", Lib())

    def _look_at_takes(self, intake: Intake) -> None:
        """Make sure that it is known of each take before anything is taken in."""
        assert intake.compiled is not None
        pointer = intake.compiled.pointer
        kernel = pointer.kernel

        @real_ffi.callback("int(struct nu_ingest *, const uint8_t *, size_t, size_t)")
        def take(ingest: Any, arena: Any, start: int, stop: int) -> int:
            self.untold_takes += not (self.batch.unwritten or self.draining)
            verdict: int = kernel(ingest, arena, start, stop)
            return verdict

        pointer.kernel = take
        self._kept.append(take)

    # The log, and time.

    def _write(self, fd: int, data: memoryview) -> int:
        self.written_at.append(len(self.order))
        if self._space:
            space = self._space[0]
            if len(data) > space:
                self._space.pop(0)
                if space:
                    return os.write(fd, data[:space])
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self._space[0] -= len(data)
        return os.write(fd, data)

    def _sleep(self, timeout_s: float) -> None:
        self._now_s += max(timeout_s, 0.001)

    # What differs with a ring.

    def make_reactor(self, wakeup_fd: int, warn: Callable[[str], None]) -> Reactor:
        """Return the reactor that plays."""
        return EpollReactor(
            [], wakeup_fd, connections_max=CLIENTS, when_full=WhenFull.WAIT, warn=warn
        )

    def keep(self, far: socket.socket) -> None:
        """Take the clients' ends of the connections, in turn."""

    def begin_drain(self) -> None:
        """Make all that is left of the script come."""

    def compared(self, outcome: Outcome) -> Outcome:
        """Return what has to be equal."""
        return outcome

    # A runner.

    @property
    def stopping(self) -> bool:
        """Whether the loop is to end."""
        return self.stop_soon

    def due_s(self) -> float:
        """Asked once a pass."""
        self.begun_at.append(len(self.order))
        return self._now_s + 1

    def take_over(self, _: int) -> bool:
        return False

    def connection_closed(self) -> None:
        """Nothing to do."""

    def run(self, *, compiled: bool, with_appends: bool = False) -> Outcome:
        """Play to the end."""
        self.with_appends = with_appends
        said: list[str] = []
        warned: list[str] = []
        with ExitStack() as stack:
            wakeup_fd = stack.enter_context(open(os.devnull)).fileno()  # noqa: PTH123
            reactor = self.make_reactor(wakeup_fd, warned.append)
            stack.callback(reactor.close)
            reactor.sleep = self._sleep  # type: ignore[method-assign]
            finish_close = reactor.finish_close

            def note_close(connection: int, *, orderly: bool) -> None:
                self._closes[reactor.peer(connection).port] = orderly
                finish_close(connection, orderly=orderly)

            reactor.finish_close = note_close  # type: ignore[method-assign]
            log = NumbersLog(
                self._path,
                say=lambda _: None,
                calls=replace(FileCalls(), write=self._write),
            )
            stack.callback(log.close)
            if with_appends:
                log._compiled = CompiledAppends()
            log.truncate()
            intake = Intake(
                variants()[0],
                reactor.arena,
                BITMAP,
                connections_max=CLIENTS,
                # So small that there is often no room for the next piece.
                batch_bytes=CHUNK_BYTES_MAX + 45,
            )
            if compiled:
                self._look_at_takes(intake)
            else:
                intake.compiled = None
            shared = Shared(
                sink=log,
                backpressure=Backpressure(log, lambda _: None, lambda: self._now_s),
                connections_max=CLIENTS,
                idle_timeout_s=1e9,
                terminate=self._script.terminate,
                disconnects=DisconnectLog(lambda text, **_: said.append(text)),
            )
            loop = Loop(reactor, intake, shared, self, clock=lambda: self._now_s, sleep=self._sleep)
            shared.batches.states.append(loop.batch)
            self.batch = loop.batch
            assert loop._idle is not None
            touch = loop._idle.touch

            def note_touch(connection: int) -> None:
                self.touched[reactor.peer(connection).port] += 1
                touch(connection)

            loop._idle.touch = note_touch  # type: ignore[method-assign]
            for client in range(CLIENTS):
                near, far = socket.socketpair()
                stack.callback(far.close)
                self.keep(far)
                fd = near.detach()
                self._clients[fd] = client
                reactor.adopt(fd, Peer(f"10.0.0.{client}", client))
            while not (self.stopping or loop.terminated):
                loop.turn()
            self.begin_drain()
            self.draining = True
            loop.drain(0.0)
            log.finish()
            assert not self.untold_takes
            if log.compiled is not None:
                self.appended_lines = log.compiled.lines
            numbers = logged_once(self._path)
            for number in numbers:
                BITMAP[number >> 3] = 0
            return self.compared(
                Outcome(
                    numbers=numbers,
                    unique=intake.unique,
                    duplicate=intake.duplicate,
                    received_bytes=loop.statistics.received_bytes,
                    accepted=loop.statistics.accepted,
                    ended=loop.statistics.ended,
                    closes=dict(sorted(self._closes.items())),
                    said=sorted(said),
                    warned=bool(warned),
                    terminated=loop.terminated,
                    touched=self.touched,
                )
            )


class RingPlay(Play):
    """A loop with a ring: each wait finds the next result of each client in its socket.

    Errors of receives are left out: they are completions that Python deals with in both. What comes
    while clients are held back is received in other pieces, so those are not compared.
    """

    def __init__(self, script: Script, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        results: list[list[Result]] = [
            [each for each in of if not isinstance(each, int)] for of in script.results
        ]
        super().__init__(replace(script, results=results), path, monkeypatch)
        monkeypatch.undo()
        self._far: list[socket.socket] = []
        self._asked = 0

    def make_reactor(self, wakeup_fd: int, warn: Callable[[str], None]) -> Reactor:
        reactor = UringReactor(
            [], wakeup_fd, connections_max=CLIENTS, when_full=WhenFull.WAIT, warn=warn
        )
        wait = reactor.wait

        def send_and_wait(timeout_s: float) -> Iterator[Completion]:
            self.waits += 1
            assert self.waits < 1000, "it spins"
            if sum(map(self._send_next, range(CLIENTS))) == 0:
                self.stop_soon = True
            return wait(min(timeout_s, 0.01))

        reactor.wait = send_and_wait  # type: ignore[method-assign]
        return reactor

    def keep(self, far: socket.socket) -> None:
        self._far.append(far)

    def _send_next(self, client: int) -> bool:
        if not self._results[client]:
            return False
        result = self._results[client].pop(0)
        if isinstance(result, tuple):
            self.stop_soon, result = True, result[1]
        assert not isinstance(result, int)
        with suppress(BrokenPipeError):
            if result == END:
                self._far[client].shutdown(socket.SHUT_WR)
            else:
                self._far[client].sendall(result)
        return True

    @property
    def stopping(self) -> bool:
        """In the middle of a pass, once it is to be."""
        return self.stop_soon

    def begin_drain(self) -> None:
        for client in range(CLIENTS):
            while self._send_next(client):
                pass

    def compared(self, outcome: Outcome) -> Outcome:
        every = [result for results in self._script.results for result in results]
        if not self._script.space_bytes and all(isinstance(result, bytes) for result in every):
            return outcome
        return outcome._replace(received_bytes=0, said=[], touched=Counter())


PlayBoth = Callable[[Script], Outcome]


def played_to_all(play_one: Callable[..., Outcome]) -> PlayBoth:
    """Return what plays a script with and without the compiled pass, and compares what comes.

    Of the compiled passes, one appends by itself.
    """

    def play(script: Script) -> Outcome:
        plain = play_one(script, compiled=False)
        assert play_one(script, compiled=True) == plain
        assert play_one(script, compiled=True, with_appends=True) == plain
        return plain

    return play


@pytest.fixture
def play_both(library: tuple[FFI, Any], tmp_path: Path) -> PlayBoth:
    """Play a script to the plain loop and to the compiled pass, which must come to the same.

    Returns that.
    """

    def play_one(script: Script, **how: bool) -> Outcome:
        with pytest.MonkeyPatch.context() as monkeypatch:
            one = Play(script, tmp_path / "numbers.log", monkeypatch)
            one.use(library, monkeypatch)
            return one.run(**how)

    return played_to_all(play_one)


@pytest.fixture
def play_rings(ring: None, tmp_path: Path) -> PlayBoth:
    """Play a script to a ring of the plain loop, and to one of the compiled pass."""

    def play_one(script: Script, **how: bool) -> Outcome:
        with pytest.MonkeyPatch.context() as monkeypatch:
            one = RingPlay(script, tmp_path / "numbers.log", monkeypatch)
            return one.run(**how)

    return played_to_all(play_one)


@pytest.fixture(params=["play_both", "play_rings"])
def play_any(request: pytest.FixtureRequest) -> PlayBoth:
    """Both."""
    play: PlayBoth = request.getfixturevalue(request.param)
    return play


def silent(results: dict[int, list[Result]], **settings: Any) -> Script:
    """Return a script in which the other clients leave without a word."""
    return Script([results.get(client, [END]) for client in range(CLIENTS)], **settings)


def test_passes_append_by_themselves(library: tuple[FFI, Any], tmp_path: Path) -> None:
    pieces = {client: [lines([client + 10 * i]) for i in range(9)] for client in range(CLIENTS)}
    script = silent({client: [*each, END] for client, each in pieces.items()})
    with pytest.MonkeyPatch.context() as monkeypatch:
        one = Play(script, tmp_path / "numbers.log", monkeypatch)
        one.use(library, monkeypatch)
        one.run(compiled=True, with_appends=True)
    # The first append is the loop's.
    assert one.appended_lines >= 9 * CLIENTS - CLIENTS


ERRORS = [
    *("ECONNRESET", "ETIMEDOUT", "EHOSTUNREACH", "EPIPE"),
    *("ENOMEM", "EIO", "EBADF", "EINVAL", "ENOTSOCK", "EPERM"),
]


@pytest.mark.parametrize("others", [b"123", b"0123456789"])
def test_where_others_append_in_the_moment_of_a_short_write_no_whole_line_is_cut_off(
    library: tuple[FFI, Any], tmp_path: Path, others: bytes
) -> None:
    ffi, lib = library

    @ffi.callback("int(int, const uint8_t *, int)")
    def write(fd: int, data: Any, size: int) -> int:
        with path.open("ab") as other:
            other.write(others)
        return os.write(fd, ffi.buffer(data, min(size, 25)))

    path = tmp_path / "numbers.log"
    path.write_bytes(lines(range(5)))
    batch = ffi.new("uint8_t[]", lines(range(5, 10)))
    ingest = ffi.new("struct nu_ingest *", {"batch": batch, "batch_bytes": 50, "batch_used": 50})
    end: Any = ffi.new("struct nu_log_end *")
    log = ffi.gc(lib.nu_log_new(), lib.nu_log_free)
    lib.scripted_hooks(ffi.NULL, ffi.NULL, write)
    with path.open("ab") as file:
        known = {"fd": file.fileno(), "end_bytes": 50, "slow_ns": 10**12}
        lib.nu_log_allow(log, ffi.new("struct nu_log_file *", known))
        assert not lib.nu_log_append(log, ingest)
        assert lib.nu_log_stop(log, end)
    assert path.read_bytes() == lines(range(5)) + others + lines([5, 6]) + b"00000"
    assert (end.lines, end.end_bytes, end.torn_bytes, end.as_expected) == (2, 75, 5, False)
    assert ffi.buffer(end.last_line)[:] == lines([6])


@pytest.mark.parametrize("name", ERRORS)
@pytest.mark.parametrize("before", [b"", lines([1, 2]), lines([1]) + b"0000"])
def test_a_receive_that_fails_resets_its_client_and_no_other(
    play_both: PlayBoth, name: str, before: bytes
) -> None:
    failing: list[Result] = [*([before] if before else []), getattr(errno, name), lines([9]), END]
    outcome = play_both(silent({1: failing, 2: [lines([3]), lines([4]), END]}))
    assert outcome.closes == {client: client != 1 for client in range(CLIENTS)}
    assert outcome.numbers == {
        3,
        4,
        *([1, 2] if before == lines([1, 2]) else [1] if before else []),
    }
    assert outcome.ended["eof"] == CLIENTS - 1
    assert outcome.warned == (name in ERRORS[4:])


@pytest.mark.parametrize("name", ["EAGAIN", "EINTR"])
def test_a_receive_that_gives_nothing_is_made_again(play_both: PlayBoth, name: str) -> None:
    nothing = getattr(errno, name)
    several: list[Result] = [
        nothing,
        lines([1]),
        nothing,
        nothing,
        b"00000",
        nothing,
        b"0002\n",
        END,
    ]
    outcome = play_both(silent({0: several, 1: [nothing, END]}))
    assert outcome.numbers == {1, 2}
    assert outcome.ended == {"eof": CLIENTS}


def test_an_end_within_a_line_is_told_from_one_behind_it(play_any: PlayBoth) -> None:
    outcome = play_any(
        silent({0: [lines([1]), END], 1: [lines([2]) + b"00", END], 2: [b"term", END]})
    )
    assert outcome.ended == {"eof": CLIENTS - 2, "incomplete": 2}
    assert all(outcome.closes.values())


@pytest.mark.parametrize("cut", range(1, 10))
def test_a_terminate_in_the_middle_of_a_pass_stops_the_loop(play_any: PlayBoth, cut: int) -> None:
    stops: list[Result] = [b"terminate\n"[:cut], b"terminate\n"[cut:] + lines([99])]
    others: dict[int, list[Result]] = {
        client: [lines([client]), lines([10 + client]), lines([20 + client]), END]
        for client in range(CLIENTS)
    }
    outcome = play_any(silent({**others, 3: stops}))
    assert outcome.terminated
    assert 99 not in outcome.numbers
    assert {25, 15, 5} <= outcome.numbers, "not all was taken in that had come"


def test_an_invalid_line_ends_its_client_alone(play_any: PlayBoth) -> None:
    bad: list[Result] = [lines([1]) + b"12345678", b"x\n" + lines([2])]
    outcome = play_any(silent({2: bad, 3: [lines([3]), lines([4]), END], 4: [b"\n"]}))
    assert outcome.numbers == {1, 3, 4}
    assert outcome.ended == {"invalid": 2, "eof": CLIENTS - 2}
    assert any("b'12345678x'" in line or "'12345678x" in line for line in outcome.said)


def test_terminate_of_a_client_that_may_not_is_an_invalid_line(play_any: PlayBoth) -> None:
    outcome = play_any(
        silent({0: [lines([1]) + b"terminate\n"], 1: [lines([2]), END]}, terminate=Terminate.LOCAL)
    )
    assert not outcome.terminated
    assert outcome.ended["invalid"] == 1
    assert outcome.numbers == {1, 2}


def test_a_batch_without_room_is_appended_where_the_pass_stopped(play_any: PlayBoth) -> None:
    full: dict[int, list[Result]] = {
        client: [lines(range(100 * client + 7 * i, 100 * client + 7 * i + 7)) for i in range(9)]
        for client in range(CLIENTS)
    }
    outcome = play_any(silent({client: [*each, END] for client, each in full.items()}))
    assert len(outcome.numbers) == CLIENTS * 63
    assert outcome.ended == {"eof": CLIENTS}


def test_a_piece_that_the_batch_has_no_room_for_is_not_received_before_an_append(
    play_both: PlayBoth,
) -> None:
    count = RECEIVE_BYTES // 10
    flood: dict[int, list[Result]] = {
        client: [lines(range(client * count, (client + 1) * count)), END] for client in range(3)
    }
    assert len(play_both(silent(flood)).numbers) == 3 * count


FLOODS = range(4)
QUIET = CLIENTS - 1
PIECE = lines(range(RECEIVE_BYTES // 10))


class PlayInBulk(Play):
    """Floods, beside clients that send a line after so many receives of all."""

    def __init__(
        self, says_at: dict[int, Iterable[int]], path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self._says_at = {client: list(receives) for client, receives in says_at.items()}
        super().__init__(Script([[] for _ in range(CLIENTS)]), path, monkeypatch)
        for client in FLOODS:
            self._results[client] = [PIECE] * 12

    def say_more(self, receives: int) -> None:
        for client, at in self._says_at.items():
            new = lines([1_000_000 * (client + 1) + receives])
            self._results[client] += [new for each in at if each == receives]


@pytest.fixture(params=["plain", "compiled", "appending"])
def play_in_bulk(
    request: pytest.FixtureRequest, library: tuple[FFI, Any], tmp_path: Path
) -> Iterator[Callable[[dict[int, Iterable[int]]], PlayInBulk]]:
    """Play, to one of three, floods beside those who speak up after so many receives."""
    with pytest.MonkeyPatch.context() as monkeypatch:

        def play(says_at: dict[int, Iterable[int]]) -> PlayInBulk:
            one = PlayInBulk(says_at, tmp_path / "numbers.log", monkeypatch)
            one.use(library, monkeypatch)
            one.run(compiled=request.param != "plain", with_appends=request.param == "appending")
            return one

        yield play


def test_a_quiet_client_waits_for_one_receive_of_a_flood(
    play_in_bulk: Callable[[dict[int, Iterable[int]]], PlayInBulk],
) -> None:
    """Not of each flood, wherever in a pass its line comes."""
    says_at = range(6, 40, 3)
    order = play_in_bulk({QUIET: says_at}).order
    for count, at in enumerate(says_at):
        heard_at = [i for i, client in enumerate(order) if client == QUIET][count]
        assert heard_at - at <= 1, order


def test_the_line_of_a_quiet_client_is_appended_before_the_next_flood_but_one(
    play_in_bulk: Callable[[dict[int, Iterable[int]]], PlayInBulk],
) -> None:
    one = play_in_bulk({QUIET: range(6, 40, 3)})
    heard = [i for i, client in enumerate(one.order) if client == QUIET]
    assert len(heard) == len(range(6, 40, 3))
    for at in heard:
        following = min(receives for receives in one.written_at if receives > at)
        assert following - at <= 2, (one.order, one.written_at)


def test_floods_have_equal_shares_beside_clients_that_always_say_something(
    play_in_bulk: Callable[[dict[int, Iterable[int]]], PlayInBulk],
) -> None:
    chatty = [client for client in range(CLIENTS) if client not in FLOODS]
    order = play_in_bulk({client: range(4, 400) for client in chatty}).order
    in_bulk = [client for client in order if client in FLOODS]
    for i in range(len(FLOODS), len(in_bulk) + 1, len(FLOODS)):
        assert set(in_bulk[i - len(FLOODS) : i]) == set(FLOODS), in_bulk
    places = [i for i, client in enumerate(order) if client in FLOODS]
    assert max(b - a for a, b in pairwise(places)) <= 1 + len(chatty), order


def test_floods_alone_share_a_pass(
    play_in_bulk: Callable[[dict[int, Iterable[int]]], PlayInBulk],
) -> None:
    """A pass has its price, and so has an append."""
    one = play_in_bulk({})
    assert one.order == [*FLOODS] * 12, "one has waited for longer than the others"
    assert len(one.begun_at) <= (12 // 2 if one.with_appends else 12 + 2), (
        "passes follow each other"
    )


@pytest.mark.parametrize("taken_bytes", [0, 10, 60, 65, 70, 130])
def test_a_log_without_space_holds_back_and_loses_nothing(
    play_any: PlayBoth, taken_bytes: int
) -> None:
    sending: dict[int, list[Result]] = {
        client: [*(lines([10 * client + i]) for i in range(6)), END] for client in range(CLIENTS)
    }
    outcome = play_any(silent(sending, space_bytes=[taken_bytes, 0, 0, 5, 0]))
    assert len(outcome.numbers) == CLIENTS * 6
    assert all(outcome.closes.values())


def test_a_stop_in_the_middle_of_a_pass_takes_in_what_has_come(play_any: PlayBoth) -> None:
    sending: dict[int, list[Result]] = {
        client: [lines([client]), lines([10 + client])] for client in range(CLIENTS)
    }
    sending[2].insert(1, (STOP, lines([50])))
    outcome = play_any(silent(sending))
    assert len(outcome.numbers) == 2 * CLIENTS + 1
    assert outcome.ended == {"stop": CLIENTS}


def test_an_error_is_not_forgotten_where_the_pass_is_left_before_it(play_both: PlayBoth) -> None:
    """Linux tells it once: the next receive would give the end of the stream."""
    reset: list[Result] = [errno.ECONNRESET, END]
    for client in range(CLIENTS):
        others: dict[int, list[Result]] = {
            each: [(STOP, lines([each])), END] for each in range(CLIENTS) if each != client
        }
        outcome = play_both(silent({**others, client: reset}))
        assert outcome.closes == {each: each != client for each in range(CLIENTS)}
        assert outcome.ended["reset"] == 1


def random_script(seed: int) -> Script:
    """Return the script of this seed: streams of lines, cut at will, with all kinds of faults."""
    chance = random.Random(seed)
    span = chance.choice([5, 60, 10**9])
    faults = chance.choice([0.0, 0.1, 0.4])
    in_bulk = chance.random() < 0.2

    def fault() -> list[Result]:
        return [chance.choice([errno.EAGAIN, errno.EINTR])] if chance.random() < faults else []

    def results() -> list[Result]:
        many = BULK_BYTES // 4 if in_bulk else 40
        stream = lines(chance.randrange(span) for _ in range(chance.choice([0, 1, 5, many])))
        if chance.random() < 0.3:
            stream += chance.choice([b"x", b"\n", b"1234567890\n", b"terminatf\n", b"\0" * 30])
        elif chance.random() < 0.3:
            stream += b"%09d\n" % chance.randrange(span)
            stream = stream[: -chance.randrange(1, 10)]
        if chance.random() < 0.05:
            stream += b"terminate\n" + lines([10**9 - 1])
        cuts = sorted({0, len(stream), *(chance.randrange(len(stream) + 1) for _ in range(8))})
        found: list[Result] = []
        for begin, end in pairwise(cuts):
            found += fault()
            piece = stream[begin:end]
            found.append((STOP, piece) if chance.random() < 0.01 else piece)
        error = getattr(errno, chance.choice(ERRORS))
        return [*found, *chance.choice([[END], [END], [error], []])]

    space = [
        chance.choice([0, 0, 3, 10, 50, 100, 1000]) for _ in range(chance.choice([0, 0, 3, 6]))
    ]
    return Script([results() for _ in range(CLIENTS)], space)


@pytest.mark.parametrize("seed", range(40))
def test_what_happens_does_not_depend_on_who_receives(
    play_any: PlayBoth, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if seed % 2:
        # The batch has 45 bytes to spare, after which a call returns.
        monkeypatch.setattr(native, "GATHER_BYTES", 30)
        monkeypatch.setattr(native, "GATHER_PIECE_BYTES", 30)
    for each in range(5):
        play_any(random_script(5 * seed + each))
