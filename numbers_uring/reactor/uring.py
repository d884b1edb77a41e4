"""The reactor over io_uring(7): a thin wrapper of native/uring.

What it stands on, beside what native/uring/pass.c says of the kernel:

- A chunk stays where Linux put it until the next pass gives its buffer back, so rows that an
  iterator left behind keep their buffers, and the next wait hands them out first.
- A stop receives with recv(2): see native/uring/drain.c.
- With IORING_SETUP_DEFER_TASKRUN completions are made only inside of the ring's own system call
  (io_uring_setup(2)): who does not wait receives nothing, and TCP holds the clients back.
"""

import errno
import os
import select
import socket
import struct
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from operator import length_hint
from typing import Any

from numbers_uring._native import ffi, lib
from numbers_uring.addresses import Peer
from numbers_uring.config import WhenFull
from numbers_uring.ingest.intake import Intake
from numbers_uring.ingest.kernel import CompiledIntake
from numbers_uring.limits import (
    ACCEPT_FAILURES_MAX,
    ACCEPTS_PER_PASS_MAX,
    BULK_PASS_BYTES,
    DRAIN_BYTES_MAX,
    DRAIN_FULL_BYTES,
    DRAIN_PAUSE_S,
    DRAIN_QUIET_S,
    HEADROOM_BYTES,
    RECEIVE_FAILURES_MAX,
    REFUSE_GRACE_S,
    RING_COMPLETIONS_MAX,
    RING_LARGE_BUFFERS,
    RING_LARGE_BYTES,
    RING_QUEUED_MIN,
    RING_SMALL_BUFFERS,
    RING_SMALL_BYTES,
    RING_SUBMISSIONS_MAX,
)
from numbers_uring.net.closing import close_all
from numbers_uring.net.listeners import backlog_connections
from numbers_uring.net.sockets import PeerAddress, peer_of
from numbers_uring.reactor.accept_backoff import AcceptBackoff, StopAccepts
from numbers_uring.reactor.contract import Appends, Completion, End, Kind
from numbers_uring.reactor.drain_bound import DrainBound
from numbers_uring.reactor.pacing import Pacing
from numbers_uring.reactor.receive_errors import ReceiveWarnings
from numbers_uring.reactor.retries import Retries
from numbers_uring.reactor.uring_arena import allocate

assert tuple(Kind)[:3] == (lib.NU_OPENED, lib.NU_RECEIVED, lib.NU_CLOSED)
assert tuple(End) == (lib.NU_EOF, lib.NU_RESET, lib.NU_DISCONNECTED)

_TAKEN = int(Kind.TAKEN)
_RECEIVED, _CLOSED, _DISCONNECTED = int(Kind.RECEIVED), int(Kind.CLOSED), int(End.DISCONNECTED)

_ROWS_OVER, _ROWS_TAKEN, _ROWS_OTHER = (
    int(step) for step in (lib.NU_ROWS_OVER, lib.NU_ROWS_TAKEN, lib.NU_ROWS_OTHER)
)

_EXHAUSTED = {-errno.EMFILE, -errno.ENFILE, -errno.ENOBUFS, -errno.ENOMEM}

_ROW = struct.Struct("=4I")


class UringReactor:
    """See numbers_uring.reactor.contract.Reactor.

    Takes over the listening `listeners`; `wakeup_fd` stays the caller's. `warn` is given one line
    when connections can't be accepted for lack of descriptors or memory. To be used only by the
    thread that made it. Raises OSError, which names the system call, where no ring can be set up;
    the listeners are then the caller's again.
    """

    def __init__(
        self,
        listeners: Sequence[socket.socket],
        wakeup_fd: int,
        *,
        connections_max: int,
        when_full: WhenFull,
        warn: Callable[[str], None],
    ) -> None:
        self._listeners = list(listeners)
        for listener in listeners:
            listener.setblocking(False)
        self._connections_max = connections_max
        self._backoff = AcceptBackoff(warn)
        self._receive_warnings = ReceiveWarnings(warn)
        self._retries = Retries("io_uring", warn)
        self._stop_accepts = StopAccepts(warn)
        self._pacing = Pacing()
        self._disconnected: set[int] = set()
        self._to_adopt: list[tuple[int, Peer]] = []
        self._adopted: dict[int, Peer] = {}
        self._rows: Iterator[Completion] = iter(())
        self._intake: CompiledIntake | None = None
        self._log: Any = ffi.NULL
        self._first_step: int | None = None
        """Of a pass, until it is handed out."""
        self._draining: DrainBound | None = None
        self._waiting: list[int] = []
        """Of each listener, the clients in its backlog when the first drain began."""
        self._wakeup = select.poll()
        self._wakeup.register(wakeup_fd, select.POLLIN)
        self._results: Any = ffi.new("struct nu_ring_results *")
        self._completions: Any = ffi.new("struct nu_completion[]", RING_COMPLETIONS_MAX)
        self._peer = PeerAddress()
        self._completion_bytes: Any = ffi.buffer(self._completions)
        descriptors = ffi.new("int32_t[]", [listener.fileno() for listener in listeners])
        config: Any = ffi.new(
            "struct nu_ring_config *",
            {
                "headroom_bytes": HEADROOM_BYTES,
                "small": (RING_SMALL_BUFFERS, RING_SMALL_BYTES),
                "large": (RING_LARGE_BUFFERS, RING_LARGE_BYTES),
                "connections_max": connections_max,
                "refuse": when_full is WhenFull.REFUSE,
                "refuse_grace_ns": int(REFUSE_GRACE_S * 1e9),
                "listener_fds": descriptors,
                "listeners": len(listeners),
                "wakeup_fd": wakeup_fd,
                "results": self._results,
                "completions": self._completions,
                "completions_max": RING_COMPLETIONS_MAX,
                "submissions_max": RING_SUBMISSIONS_MAX,
                "queued_max": max(RING_QUEUED_MIN, 2 * connections_max),
                "accepts_per_pass_max": ACCEPTS_PER_PASS_MAX,
                "bulk_pass_bytes": BULK_PASS_BYTES,
                "receive_failures_max": RECEIVE_FAILURES_MAX,
            },
        )
        self.arena = allocate(lib.nu_ring_arena_bytes(config))
        self._arena = ffi.from_buffer("uint8_t[]", self.arena, require_writable=True)
        config.arena, config.arena_bytes = self._arena, len(self.arena)
        self._ring = self._open(config)
        lib.nu_ring_listen(self._ring)

    @staticmethod
    def _open(config: Any) -> Any:
        ring: Any = ffi.new("struct nu_ring **")
        step: Any = ffi.new("char **")
        error = lib.nu_ring_open(config, ring, step)
        if error:
            name: Any = ffi.string(step[0])
            raise OSError(-error, f"{name.decode()}: {os.strerror(-error)}")
        return ring[0]

    @property
    def refused(self) -> int:
        return self._results.refused  # type: ignore[no-any-return]

    # Waiting.

    def wait(self, timeout_s: float) -> Iterator[Completion]:
        if self._backoff.active:
            timeout_s = self._end_backoff(timeout_s)
        if not self._has_rows:
            if self._to_adopt:
                return self._take_adopted()
            if self._retries.pause_s:
                self.sleep(min(timeout_s, self._retries.pause_s))
            self._pass(timeout_s, self._pacing.pause_s(time.monotonic()))
            self._note_pass()
        return self._take_rows() if self._intake is None else self._take_all(self._intake)

    def _note_pass(self) -> None:
        results = self._results
        packets = results.received
        self._pacing.note_pass(
            time.monotonic(), packets, results.received_bytes, results.count - packets
        )

    @property
    def _has_rows(self) -> bool:
        """Whether an iterator that was left early has left rows."""
        if self._intake is None:
            return length_hint(self._rows) > 0
        return self._results.next < self._results.count  # type: ignore[no-any-return]

    def _pass(self, timeout_s: float, pile_up_s: float = 0.0) -> None:
        """Make new rows, and take in of them what can be, until there is a step.

        Those of the last pass must have been handed out.
        """
        results = self._results
        timeout_ns, pile_up_ns = int(max(timeout_s, 0) * 1e9), int(pile_up_s * 1e9)
        if self._intake is None:
            done = lib.nu_ring_pass(self._ring, timeout_ns, pile_up_ns)
        else:
            taken = self._intake.pointer
            done = lib.nu_ring_serve(self._ring, taken, self._log, timeout_ns, pile_up_ns)
        if done < 0:
            raise OSError(-done, f"io_uring_enter: {os.strerror(-done)}")
        count = results.count
        if self._intake is None:
            self._rows = self._unpacked_rows(0, count)
        else:
            self._first_step = done if count or taken.taken_bytes else None
        self._note_errors()
        self._retries.note(0 if count else results.ring_errno)

    def _note_errors(self) -> None:
        results = self._results
        if results.accept_errno:
            self._backoff.begin(results.accept_errno)
            results.accept_errno = 0
        if results.receive_errno:
            self._receive_warnings.note(results.receive_errno)
            results.receive_errno = 0

    def _unpacked_rows(self, begin: int, end: int) -> Iterator[Completion]:
        rows: Iterator[Completion] = _ROW.iter_unpack(
            self._completion_bytes[begin * _ROW.size : end * _ROW.size]
        )
        return rows

    def _take_rows(self) -> Iterator[Completion]:
        for row in self._rows:
            yield from self._settled(row)

    def _settled(self, row: Completion) -> Iterator[Completion]:
        """Hand out a row as it is now, after calls of `disconnect`."""
        if self._disconnected and row[1] in self._disconnected:
            if row[0] == _RECEIVED:
                return
            self._disconnected.discard(row[1])
            # Its client may have been faster, and have ended it in the pass before.
            yield _CLOSED, row[1], _DISCONNECTED, 0
        else:
            yield row

    def _take_all(self, intake: CompiledIntake) -> Iterator[Completion]:
        """Hand out the rows, but take in what was received, in few calls."""
        taken, results = intake.pointer, self._results
        step, self._first_step = self._first_step, None
        if step is None and results.next == results.count:
            return
        while True:
            if step is None:
                step = lib.nu_ring_take(self._ring, taken, self._log)
                self._note_errors()
            if taken.taken_bytes or step == _ROWS_TAKEN:
                yield _TAKEN, taken.connection, taken.verdict, taken.taken_bytes
            if step == _ROWS_OTHER:
                row = _ROW.unpack_from(self._completion_bytes, results.next * _ROW.size)
                results.next += 1
                yield from self._settled(row)
            if step == _ROWS_OVER:
                return
            step = None

    def take_in(self, intake: Intake, appends: Appends | None = None) -> None:
        self._intake = intake.compiled
        self._log = ffi.NULL if appends is None else appends.pointer

    def sleep(self, timeout_s: float) -> None:
        self._wakeup.poll(max(timeout_s, 0) * 1000)

    def finish_close(self, connection: int, *, orderly: bool) -> None:
        assert 0 <= connection < self._connections_max
        lib.nu_ring_finish_close(self._ring, connection, orderly)

    def held_bytes(self, connection: int) -> int:
        held_bytes: int = lib.nu_ring_held_bytes(self._ring, connection)
        return max(held_bytes, 0)

    def disconnect(self, connection: int) -> None:
        assert 0 <= connection < self._connections_max
        self._disconnected.add(connection)
        lib.nu_ring_disconnect(self._ring, connection)

    def peer(self, connection: int) -> Peer:
        if connection in self._adopted:
            return self._adopted[connection]
        lib.nu_ring_peer(self._ring, connection, self._peer.pointer)
        return peer_of(self._peer.copy())

    # Between reactors.

    def release(self, connection: int) -> int:
        return lib.nu_ring_release(self._ring, connection)  # type: ignore[no-any-return]

    def adopt(self, fd: int, peer: Peer) -> None:
        self._to_adopt.append((fd, peer))

    def _take_adopted(self) -> Iterator[Completion]:
        """Hand out what was adopted; to be called when no row is left."""
        while self._to_adopt:
            fd, peer = self._to_adopt.pop()
            connection: int = lib.nu_ring_adopt(self._ring, fd)
            assert connection >= 0, "no slot is free"
            self._adopted[connection] = peer
            yield Kind.OPENED, connection, 0, 0

    def set_connections_elsewhere(self, connections: int) -> None:
        lib.nu_ring_set_connections_elsewhere(self._ring, connections)

    # Accepting.

    def _end_backoff(self, timeout_s: float) -> float:
        left_s = self._backoff.left_s()
        if left_s:
            return min(timeout_s, left_s)
        lib.nu_ring_listen(self._ring)
        return timeout_s

    # Stopping.

    def drain(self, end_s: float) -> Iterator[Completion]:
        if self._intake is not None:
            self._rows = self._unpacked_rows(self._results.next, self._results.count)
            self._intake = None
        yield from self._take_rows()
        if self._draining is None:
            self._draining = DrainBound(end_s)
            self._waiting = [backlog_connections(listener) for listener in self._listeners]
            lib.nu_ring_begin_drain(self._ring)
        yield from self._take_adopted()
        closed_any = False
        while True:
            failed = yield from self._accept_waiting(self._waiting)
            if lib.nu_ring_next_open(self._ring, 0) < 0:
                if closed_any or not self._stop_accepts.wait_to_try_again(failed):
                    return
                continue
            closed_any = True
            yield from self._drain_connected(self._draining)
            for connection in self._open_connections():
                self.disconnect(connection)
            while lib.nu_ring_next_open(self._ring, 0) >= 0:
                self._pass(0)
                yield from self._take_rows()

    def _open_connections(self) -> Iterator[int]:
        connection = lib.nu_ring_next_open(self._ring, 0)
        while connection >= 0:
            yield connection
            connection = lib.nu_ring_next_open(self._ring, connection + 1)

    def _drain_connected(self, bound: DrainBound) -> Iterator[Completion]:
        """Hand out what is held for each connection now, and what comes on top within `bound`.

        A client that has written all and left may have part of that in its own send buffer, because
        the window was closed, which takes DRAIN_FULL_BYTES: it comes as soon as there is room. So
        silence ends this, and for a client that never stops, the bound and DRAIN_BYTES_MAX do.
        """
        owed_bytes = {each: self._owed_bytes(each) for each in self._open_connections()}
        quiet_s = DRAIN_QUIET_S if max(owed_bytes.values()) >= DRAIN_FULL_BYTES else 0.0
        waited_s = 0.0
        while lib.nu_ring_next_open(self._ring, 0) >= 0:
            self._pass(0)
            late = bound.over
            if not self._results.count:
                if late or waited_s >= quiet_s:
                    return
                time.sleep(DRAIN_PAUSE_S)
                bound.waited(DRAIN_PAUSE_S)
                waited_s += DRAIN_PAUSE_S
                continue
            waited_s = 0.0
            for completion in self._take_rows():
                kind, connection, _, size = completion
                yield completion
                owed_bytes[connection] -= size
                bound.received(size, on_top=-owed_bytes[connection])
                enough = owed_bytes[connection] <= (0 if late else -DRAIN_BYTES_MAX)
                if kind == _RECEIVED and enough:
                    self.disconnect(connection)

    def _owed_bytes(self, connection: int) -> int:
        held_bytes: int = lib.nu_ring_held_bytes(self._ring, connection)
        # Where Linux does not say, as much is read as a client may send on top.
        return held_bytes if held_bytes >= 0 else DRAIN_BYTES_MAX

    def _accept_waiting(
        self, waiting: list[int]
    ) -> Generator[Completion, None, list[socket.socket]]:
        """Accept, of those that were in the backlog when the stop began, as many as may come in.

        Returns the listeners that fail.
        """
        failed: list[socket.socket] = []
        for listener in range(len(waiting)):
            failures = 0
            while waiting[listener] > 0:
                connection = lib.nu_ring_accept(self._ring, listener)
                if connection == -errno.ENOSPC:
                    return failed
                if connection in _EXHAUSTED:
                    # A close may free what is missing.
                    self._backoff.begin(-connection)
                    failed.append(self._listeners[listener])
                    break
                if connection == -errno.EAGAIN:
                    waiting[listener] = 0
                elif connection >= 0 or connection == -errno.ECONNREFUSED:
                    waiting[listener] -= 1
                    failures = 0
                elif (failures := failures + 1) == ACCEPT_FAILURES_MAX:
                    self._backoff.begin(-connection)
                    failed.append(self._listeners[listener])
                    break
                if connection >= 0:
                    yield Kind.OPENED, connection, 0, 0
        return failed

    def close(self) -> None:
        lib.nu_ring_close(self._ring)
        self._ring = ffi.NULL
        close_all(*(fd for fd, _ in self._to_adopt), *self._listeners)
