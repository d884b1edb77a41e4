"""The reactor over epoll(7).

`_receive_each` is the plain loop, in Python with the standard library alone; `_take_all` does the
same in few calls of native/epoll/pass.c. What both stand on:

- Level-triggered: a socket that still holds data is reported again by the next wait (epoll(7)), so
  one receive per ready connection per pass is fair and forgets nothing, a pass may be left early,
  and a connection may be left to a later one: see BulkTurns.
- epoll hands out ready sockets in rotation when there are more than fit into one answer
  (epoll_wait(2), NOTES), so a bounded answer starves no client.
- Closing a descriptor removes it from the set as long as it was never duplicated (epoll(7),
  questions and answers); ours never are. Its number is free at once, and the next accept takes the
  lowest free one: an event that was fetched before then speaks of another connection. Here nothing
  is accepted before the last event of a pass was dealt with, so none is stale.
- Accepted sockets inherit SO_KEEPALIVE, the TCP_KEEP* times and SO_OOBINLINE from their listener on
  Linux (socket(7), tcp(7)), and what arrived before a reset can still be read after it.
- A receive tells an error of a socket once; the next one finds the end of the stream (SO_ERROR in
  socket(7)).
- FIONREAD is what a socket holds (tcp(7), SIOCINQ).
"""

import errno
import fcntl
import os
import select
import socket
import termios
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import suppress

from numbers_uring.addresses import Peer
from numbers_uring.config import WhenFull
from numbers_uring.ingest.intake import Intake
from numbers_uring.limits import (
    ACCEPTS_PER_PASS_MAX,
    DRAIN_BYTES_MAX,
    DRAIN_QUIET_S,
    HEADROOM_BYTES,
    NEWCOMERS_MAX,
    RECEIVE_BYTES,
    RECEIVE_FAILURES_MAX,
    REFUSE_GRACE_S,
)
from numbers_uring.net import sockets
from numbers_uring.net.closing import close_all
from numbers_uring.net.listeners import backlog_connections
from numbers_uring.reactor.accept_backoff import StopAccepts
from numbers_uring.reactor.bulk_turns import BulkTurns
from numbers_uring.reactor.contract import Appends, Completion, End, Kind
from numbers_uring.reactor.drain_bound import DrainBound
from numbers_uring.reactor.epoll_listeners import Accepted, EpollListeners
from numbers_uring.reactor.epoll_pass import EpollPass, Step
from numbers_uring.reactor.epoll_set import EpollSet
from numbers_uring.reactor.pacing import Pacing
from numbers_uring.reactor.receive_errors import ReceiveWarnings
from numbers_uring.reactor.retries import Retries

# Plain integers: comparing and building with enumeration members costs on the hot path.
_OPENED, _RECEIVED, _CLOSED = int(Kind.OPENED), int(Kind.RECEIVED), int(Kind.CLOSED)
_TAKEN = int(Kind.TAKEN)
_EOF, _RESET, _DISCONNECTED = int(End.EOF), int(End.RESET), int(End.DISCONNECTED)
_STEP_TAKEN, _STEP_ENDED, _STEP_OTHER = int(Step.TAKEN), int(Step.ENDED), int(Step.OTHER)

_NO_FD = -1
_CONNECTION_EVENTS = select.EPOLLIN | select.EPOLLRDHUP
_LEAVING = select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR
"""Level-triggered like EPOLLIN, so a client that leaves is seen behind what it has sent."""


class EpollReactor:
    """See numbers_uring.reactor.contract.Reactor.

    Takes over the listening `listeners`; `wakeup_fd` stays the caller's. `warn` is given one line
    when connections can't be accepted.
    """

    def __init__(
        self,
        listeners: Sequence[socket.socket],
        wakeup_fd: int,
        *,
        connections_max: int,
        when_full: WhenFull,
        warn: Callable[[str], None],
        receive_bytes: int = RECEIVE_BYTES,
    ) -> None:
        self.arena = bytearray(HEADROOM_BYTES + receive_bytes)
        self.refused = 0
        self._payload = [memoryview(self.arena)[HEADROOM_BYTES:]]
        self._wakeup_fd = wakeup_fd
        self._refuse = when_full is WhenFull.REFUSE
        self._events_max = min(connections_max, 4096) + len(listeners) + 1
        self._fds = [_NO_FD] * connections_max
        self._peers: list[Peer | bytes] = [Peer("", 0)] * connections_max
        """Those that were accepted here are an address: most often no one asks for the peer."""
        self._slots: dict[int, int] = {}
        self._free = list(reversed(range(connections_max)))
        self._connections_elsewhere = 0
        self._adopted: list[tuple[int, Peer]] = []
        self._newcomers: deque[tuple[Accepted, float]] = deque()
        """Accepted while all slots are taken, each with the time when it is refused."""
        self._ended: list[tuple[int, int]] = []
        """Connections that are taken out, and how they ended, until that is handed out."""
        self._closing: dict[int, int] = {}
        """Those that `finish_close` has to come for."""
        self._acceptable: list[socket.socket] = []
        """Listeners with a client, while what came in the same pass is to be appended first."""
        self._draining: DrainBound | None = None
        self._waiting: dict[socket.socket, int] = {}
        """Of each listener, the clients in its backlog when the first drain began."""
        self._stop_accepts = StopAccepts(warn)
        self._pacing = Pacing()
        self._retries = Retries("epoll_wait", warn)
        self._receive_warnings = ReceiveWarnings(warn)
        self._receive_failures = [0] * connections_max
        """Of the plain loop, receives in a row that gave nothing."""
        self._turns = BulkTurns(connections_max, receive_bytes // 2)
        self._pass: EpollPass | None = None
        self._epoll = EpollSet()
        self._epoll.register(wakeup_fd, select.EPOLLIN)
        self._wakeup = select.poll()
        self._wakeup.register(wakeup_fd, select.POLLIN)
        self._listeners = EpollListeners(self._epoll, listeners, warn)
        self._listen_if_possible()

    # Waiting.

    def wait(self, timeout_s: float) -> Iterator[Completion]:
        if self._listeners.paused:
            timeout_s = self._end_pause(timeout_s)
        if self._ended:
            yield from self._take_ended()
            timeout_s = 0
        if self._adopted:
            yield from self._take_adopted()
            timeout_s = 0
        if self._newcomers:
            yield from self._take_newcomers()
            timeout_s = min(timeout_s, self._newcomers_due_s())
        if self._acceptable:
            yield from self._accept_reported()
            timeout_s = 0
        self._pace()
        take = self._receive_each if self._pass is None else self._take_all
        packets, received_bytes, others = yield from take(max(timeout_s, 0), self._acceptable)
        yield from self._take_ended()
        if not received_bytes:
            yield from self._accept_reported()
        self._pacing.note_pass(time.monotonic(), packets, received_bytes, others)

    def _pace(self) -> None:
        pause_s = self._pacing.pause_s(time.monotonic())
        if pause_s:
            time.sleep(pause_s)

    def _receive_each(
        self, timeout_s: float, acceptable: list[socket.socket]
    ) -> Generator[Completion, None, tuple[int, int, int]]:
        """Receive from each connection that is ready; add listeners that are to `acceptable`.

        Returns how many had packets, how much was received, and how much else was ready.
        """
        events = self._epoll.poll(timeout_s, self._events_max)
        count, packets, received_bytes = len(events), 0, 0
        self._turns.begin_pass()
        while events:
            for connection in self._turns.order(self._ready(events, acceptable)):
                completion = None if self._is_over(connection) else self._receive(connection)
                if completion is not None:
                    size = completion[3]
                    self._turns.note(connection, size)
                    packets += size > 0
                    received_bytes += size
                    yield completion
            events = self._look_again() if self._turns.looks_again else []
        return packets, received_bytes, max(count - packets, 0)

    def _look_again(self) -> list[tuple[int, int]]:
        # What fails here fails again in the next wait, or was of no importance.
        with suppress(OSError):
            return self._epoll.poll(0, self._events_max)
        return []

    def _ready(
        self, events: list[tuple[int, int]], acceptable: list[socket.socket]
    ) -> Iterator[int | None]:
        for fd, _ in events:
            connection = self._slots.get(fd)
            if connection is None and (listener := self._listeners.find(fd)) is not None:
                acceptable.append(listener)
            yield connection

    def _take_all(
        self, timeout_s: float, acceptable: list[socket.socket]
    ) -> Generator[Completion, None, tuple[int, int, int]]:
        """Do the same by a compiled pass, which takes in what it receives."""
        assert self._pass is not None
        events = self._wait_or_retry(self._pass, timeout_s)
        received_bytes = others = 0
        for step in self._pass.steps() if events else ():
            connection, verdict, size = self._pass.taken
            if step == _STEP_ENDED:
                others += 1
                # Its end is known: an error is told once. So it is kept if the pass is left here.
                self._note_end(*self._pass.ended)
            elif step == _STEP_OTHER:
                others += 1
                listener = self._listeners.find(self._pass.other_fd)
                if listener is not None:
                    acceptable.append(listener)
            if size or step == _STEP_TAKEN:
                received_bytes += size
                yield _TAKEN, connection, verdict, size
            yield from self._take_ended()
        return events - others, received_bytes, others

    def _wait_or_retry(self, compiled: EpollPass, timeout_s: float) -> int:
        """Return how many descriptors are ready: none where the wait was interrupted."""
        if self._retries.pause_s:
            self.sleep(min(timeout_s, self._retries.pause_s))
        try:
            events = compiled.wait(timeout_s)
        except InterruptedError:
            # By a signal once; again and again only where system calls are tampered with.
            self._retries.note(errno.EINTR)
            return 0
        self._retries.note(0)
        return events

    def _note_end(self, connection: int, error: int) -> None:
        if error:
            self._receive_warnings.note(error)
        self._take_out(connection)
        self._ended.append((connection, _RESET if error else _EOF))

    def take_in(self, intake: Intake, appends: Appends | None = None) -> None:
        if intake.compiled is not None:
            self._pass = EpollPass(
                self._epoll.fileno(),
                intake.compiled,
                appends,
                events_max=self._events_max,
                receive_bytes=len(self._payload[0]),
                turns=self._turns,
            )

    def sleep(self, timeout_s: float) -> None:
        self._wakeup.poll(max(timeout_s, 0) * 1000)

    # Connections.

    def _receive(self, connection: int) -> Completion | None:
        size, error = self._receive_once(connection, self._fds[connection])
        if size < 0:
            return None
        if error:
            # Whatever the network says (reset, keepalive timed out, no route): the client is gone.
            self._receive_warnings.note(error)
            return self._end(connection, _RESET)
        if size:
            return _RECEIVED, connection, HEADROOM_BYTES, size
        return self._end(connection, _EOF)

    def _receive_once(self, connection: int, fd: int) -> tuple[int, int]:
        """Return the size, or -1 where it is worth another try; and why nothing more comes.

        That is an errno; 0 beside a size of 0 is the end of the stream.
        """
        if self._pass is not None:
            return self._pass.receive(fd)
        try:
            size = os.readv(fd, self._payload)
        except BlockingIOError as error:
            self._receive_failures[connection] += 1
            may_try = self._receive_failures[connection] < RECEIVE_FAILURES_MAX
            return (-1, 0) if may_try else (0, error.errno or 0)
        except OSError as error:
            return 0, error.errno or 0
        self._receive_failures[connection] = 0
        return size, 0

    def _end(self, connection: int, end: int) -> Completion:
        self._take_out(connection)
        return _CLOSED, connection, end, 0

    def finish_close(self, connection: int, *, orderly: bool) -> None:
        sockets.close(self._closing.pop(connection), orderly=orderly)
        self._free.append(connection)
        self._listen_if_possible()

    def held_bytes(self, connection: int) -> int:
        try:
            answer = fcntl.ioctl(self._fds[connection], termios.FIONREAD, b"\0" * 4)
        except OSError:
            return 0
        return int.from_bytes(answer, "little", signed=True)

    def disconnect(self, connection: int) -> None:
        self._take_out(connection)
        self._ended.append((connection, _DISCONNECTED))

    def peer(self, connection: int) -> Peer:
        peer = self._peers[connection]
        return sockets.peer_of(peer) if isinstance(peer, bytes) else peer

    def _take_out(self, connection: int) -> None:
        """Receive from the connection no more; it stays open until `finish_close`."""
        self._closing[connection] = self._fds[connection]
        self._forget(connection)

    def _forget(self, connection: int) -> None:
        fd, self._fds[connection] = self._fds[connection], _NO_FD
        del self._slots[fd]
        if self._pass is not None:
            self._pass.remove(fd)
        # If it stayed open and unread, it would always be ready.
        self._ignore(fd)

    def _ignore(self, fd: int) -> None:
        try:
            self._epoll.unregister(fd)
        except OSError:
            # A drain leaves out what it does not know, and comes to an end in any case.
            if self._draining is None:
                raise

    def _take_ended(self) -> Iterator[Completion]:
        while self._ended:
            connection, end = self._ended.pop()
            yield _CLOSED, connection, end, 0

    # Accepting.

    @property
    def _has_room(self) -> bool:
        return len(self._free) > self._connections_elsewhere

    def _listen_if_possible(self) -> None:
        if self._draining is None and (self._has_room or self._may_refuse):
            self._listeners.watch()

    @property
    def _may_refuse(self) -> bool:
        return self._refuse and len(self._newcomers) < NEWCOMERS_MAX

    def _accept_reported(self) -> Iterator[Completion]:
        while self._acceptable:
            yield from self._accept(self._acceptable.pop())

    def _accept(self, listener: socket.socket) -> Iterator[Completion]:
        for count in range(ACCEPTS_PER_PASS_MAX):
            if not self._listeners.is_watched(listener):
                return
            accepted = self._listeners.accept(listener, expected=not count)
            if accepted is None:
                return
            if self._has_room and not self._newcomers:
                yield from self._open_accepted(accepted)
            else:
                grace_s = REFUSE_GRACE_S if self._connections_elsewhere else 0
                self._newcomers.append((accepted, time.monotonic() + grace_s))
                yield from self._take_newcomers()
            if not (self._has_room or self._may_refuse):
                self._listeners.ignore()

    def _open_accepted(self, accepted: Accepted) -> Iterator[Completion]:
        try:
            connection = self._open(*accepted)
        except OSError as error:
            close_all(accepted[0])
            self._listeners.pause(error.errno or 0)
        else:
            yield _OPENED, connection, 0, 0

    def _open(self, fd: int, peer: Peer | bytes) -> int:
        self._epoll.register(fd, _CONNECTION_EVENTS)
        connection = self._free.pop()
        self._fds[connection] = fd
        self._peers[connection] = peer
        self._receive_failures[connection] = 0
        self._slots[fd] = connection
        self._turns.open(connection)
        if self._pass is not None:
            self._pass.add(fd, connection)
        return connection

    def _take_newcomers(self) -> Iterator[Completion]:
        """Open or refuse those who came while all slots were taken.

        One that came after another client had left is not refused: that one's slot is free as soon
        as its end was handed out, here or, within REFUSE_GRACE_S, in another reactor.
        """
        while self._newcomers:
            accepted, refused_at_s = self._newcomers[0]
            if self._has_room:
                self._newcomers.popleft()
                yield from self._open_accepted(accepted)
            elif self._closing or time.monotonic() < refused_at_s or self._is_left():
                return
            else:
                self._newcomers.popleft()
                close_all(accepted[0])
                self.refused += 1
        self._listen_if_possible()

    def _is_left(self) -> bool:
        """Return whether a client has left whose end was not handed out yet."""
        events = self._epoll.poll(0, self._events_max)
        return any(mask & _LEAVING for fd, mask in events if fd in self._slots)

    def _newcomers_due_s(self) -> float:
        """Return how long the first newcomer waits yet, unless a slot becomes free."""
        if not self._newcomers or self._closing:
            return float("inf")
        return max(self._newcomers[0][1] - time.monotonic(), 0)

    def _end_pause(self, timeout_s: float) -> float:
        left_s = self._listeners.pause_left_s()
        if left_s:
            return min(timeout_s, left_s)
        self._listen_if_possible()
        return timeout_s

    # Between reactors.

    def release(self, connection: int) -> int:
        fd = self._fds[connection]
        self._forget(connection)
        self._free.append(connection)
        return fd

    def adopt(self, fd: int, peer: Peer) -> None:
        self._adopted.append((fd, peer))

    def _take_adopted(self) -> Iterator[Completion]:
        while self._adopted:
            fd, peer = self._adopted.pop()
            try:
                os.set_blocking(fd, False)
                connection = self._open(fd, peer)
            except OSError as error:
                self._listeners.pause(error.errno or 0)
                connection = self._free.pop()
                self._peers[connection] = peer
                self._closing[connection] = fd
                yield _OPENED, connection, 0, 0
                yield _CLOSED, connection, _RESET, 0
            else:
                yield _OPENED, connection, 0, 0

    def set_connections_elsewhere(self, connections: int) -> None:
        self._connections_elsewhere = connections
        if self._has_room:
            self._listen_if_possible()
        elif not self._refuse:
            self._listeners.ignore()

    # Stopping.

    def drain(self, end_s: float) -> Iterator[Completion]:
        if self._draining is None:
            self._draining = DrainBound(end_s)
            self._waiting = {each: backlog_connections(each) for each in self._listeners.sockets}
            # Whatever goes wrong here: a drain waits for connections alone.
            with suppress(OSError):
                self._listeners.ignore()
            self._ignore(self._wakeup_fd)
        yield from self._take_ended()
        yield from self._take_adopted()
        closed_any = bool(self._closing)
        while True:
            failed = yield from self._accept_waiting()
            if not (self._slots or self._ended):
                if closed_any or not self._stop_accepts.wait_to_try_again(failed):
                    return
                continue
            closed_any = True
            yield from self._drain_connected(self._draining)
            for connection in list(self._slots.values()):
                self.disconnect(connection)
            yield from self._take_ended()

    def _drain_connected(self, bound: DrainBound) -> Iterator[Completion]:
        """Receive what each socket holds now, and what its client still sends within `bound`.

        A client that has written all and left may have part of that in its own send buffer, because
        the window was closed: it comes as soon as there is room. So silence ends this, and for a
        client that never stops, the bound and DRAIN_BYTES_MAX do.
        """
        owed_bytes = {
            connection: self.held_bytes(connection) for connection in self._slots.values()
        }
        quiet_s = 0.0
        while ready := self._ready_connections(quiet_s, bound):
            late = bound.over
            quiet_s = 0.0 if late else DRAIN_QUIET_S
            received = False
            for connection in ready:
                completion = None if self._is_over(connection) else self._receive(connection)
                if completion is None:
                    continue
                received = True
                kind, _, _, size = completion
                yield completion
                owed_bytes[connection] -= size
                bound.received(size, on_top=-owed_bytes[connection])
                enough = owed_bytes[connection] <= (0 if late else -DRAIN_BYTES_MAX)
                if kind == _RECEIVED and enough and not self._is_over(connection):
                    self.disconnect(connection)
            if late and not received:
                # A descriptor that epoll_ctl(2) failed to remove is always ready.
                return

    def _is_over(self, connection: int) -> bool:
        return self._fds[connection] == _NO_FD

    def _ready_connections(self, timeout_s: float, bound: DrainBound) -> list[int]:
        begin_s = time.monotonic()
        try:
            events = self._epoll.poll(timeout_s, self._events_max)
        except OSError:
            # It may be what has failed: a drain does with poll(2).
            poll = select.poll()
            for fd in self._slots:
                poll.register(fd, select.POLLIN)
            events = poll.poll(timeout_s * 1000)
        bound.waited(min(time.monotonic() - begin_s, timeout_s))
        return [self._slots[fd] for fd, _ in events if fd in self._slots]

    def _accept_waiting(self) -> Generator[Completion, None, list[socket.socket]]:
        """Accept, of those that were in the backlog when the stop began, as many as may come in.

        Returns the listeners that fail.
        """
        failed = []
        while self._newcomers and self._has_room:
            yield from self._open_accepted(self._newcomers.popleft()[0])
        for listener in self._listeners.sockets:
            while self._waiting[listener] > 0 and self._has_room:
                accepted = self._listeners.accept(listener, expected=False)
                if accepted is None:
                    if self._listeners.paused:
                        failed.append(listener)
                    else:
                        self._waiting[listener] = 0
                    break
                self._waiting[listener] -= 1
                yield from self._open_accepted(accepted)
        return failed

    def close(self) -> None:
        newcomers = (fd for (fd, _), _ in self._newcomers)
        close_all(*self._slots, *self._closing.values(), *newcomers, *self._listeners.sockets)
        close_all(*(fd for fd, _ in self._adopted), self._epoll)
