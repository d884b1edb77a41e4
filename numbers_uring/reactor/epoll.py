"""The reactor over epoll(7): standard library only.

What it stands on:

- Level-triggered: a socket that still holds data is reported again by the next wait (epoll(7)), so
  one receive per ready connection per pass is fair and forgets nothing, and a pass may be left
  early.
- epoll hands out ready sockets in rotation when there are more than fit into one answer
  (epoll_wait(2), NOTES), so a bounded answer starves nobody.
- Closing a descriptor removes it from the set as long as it was never duplicated (epoll(7),
  questions and answers); ours never are. Its number is free at once, and the next accept takes the
  lowest free one: an event that was fetched before then speaks of another connection. Here nothing
  is accepted before the last event of a pass was dealt with, so none is stale.
- Accepted sockets inherit SO_KEEPALIVE, the TCP_KEEP* times and SO_OOBINLINE from their listener on
  Linux (socket(7), tcp(7)), and what arrived before a reset can still be read after it.
- FIONREAD is what a socket holds (tcp(7), SIOCINQ).
"""

import errno
import fcntl
import os
import select
import socket
import termios
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress

from numbers_uring.addresses import Peer, tcp_address
from numbers_uring.config import WhenFull
from numbers_uring.limits import (
    ACCEPTS_PER_PASS_MAX,
    DRAIN_BYTES_MAX,
    DRAIN_QUIET_S,
    HEADROOM_BYTES,
    RECEIVE_BYTES,
)
from numbers_uring.net.listeners import CLOSE_WITH_FIN, backlog_connections
from numbers_uring.reactor.accept_backoff import AcceptBackoff
from numbers_uring.reactor.contract import Completion, End, Kind
from numbers_uring.reactor.pacing import Pacing

# Plain integers: comparing and building with enumeration members costs on the hot path.
_OPENED, _RECEIVED, _CLOSED = int(Kind.OPENED), int(Kind.RECEIVED), int(Kind.CLOSED)
_EOF, _RESET, _DISCONNECTED = int(End.EOF), int(End.RESET), int(End.DISCONNECTED)

_EXHAUSTED = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.ENOSPC}


class EpollReactor:
    """See numbers_uring.reactor.contract.Reactor.

    Takes over the listening `listeners`; `wakeup_fd` stays the caller's. `warn` is given one line
    when connections can't be accepted for lack of descriptors or memory.
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
        self._payload = memoryview(self.arena)[HEADROOM_BYTES:]
        self._listeners = {listener.fileno(): listener for listener in listeners}
        self._wakeup_fd = wakeup_fd
        self._refuse = when_full is WhenFull.REFUSE
        self._backoff = AcceptBackoff(warn)
        self._events_max = min(connections_max, 4096) + len(listeners) + 1
        self._sockets: list[socket.socket | None] = [None] * connections_max
        self._peers = [Peer("", 0)] * connections_max
        self._slots: dict[int, int] = {}
        self._free = list(reversed(range(connections_max)))
        self._occupied = 0
        self._adopted: list[tuple[int, Peer]] = []
        self._disconnected: list[int] = []
        self._closing: dict[int, socket.socket] = {}
        """Those that `finish_close` has to come for."""
        self._listening = False
        self._draining = False
        self._waiting: dict[socket.socket, int] = {}
        """Of each listener, the clients in its backlog when the first drain began."""
        self._pacing = Pacing()
        self._backoff_until_s = 0.0
        self._epoll = select.epoll()
        self._epoll.register(wakeup_fd, select.EPOLLIN)
        self._wakeup = select.poll()
        self._wakeup.register(wakeup_fd, select.POLLIN)
        for listener in listeners:
            listener.setblocking(False)
        self._listen_if_possible()

    # Waiting.

    def wait(self, timeout_s: float) -> Iterator[Completion]:
        if self._backoff.active:
            timeout_s = self._end_backoff(timeout_s)
        if self._disconnected:
            yield from self._take_disconnected()
            timeout_s = 0
        if self._adopted:
            yield from self._take_adopted()
            timeout_s = 0
        acceptable = []
        events = self._poll(max(timeout_s, 0))
        received_bytes = 0
        for fd, _ in events:
            connection = self._slots.get(fd)
            if connection is not None:
                completion = self._receive(connection)
                if completion is not None:
                    received_bytes += completion[3]
                    yield completion
            elif fd in self._listeners:
                acceptable.append(self._listeners[fd])
        yield from self._take_disconnected()
        for listener in acceptable:
            yield from self._accept(listener)
        self._pacing.note_pass(time.monotonic(), len(events), received_bytes)

    def _poll(self, timeout_s: float) -> list[tuple[int, int]]:
        sleep_s = self._pacing.sleep_s()
        if sleep_s:
            time.sleep(sleep_s)
        return self._epoll.poll(timeout_s, self._events_max)

    def sleep(self, timeout_s: float) -> None:
        self._wakeup.poll(max(timeout_s, 0) * 1000)

    # Connections.

    def _receive(self, connection: int) -> Completion | None:
        sock = self._sockets[connection]
        assert sock is not None
        try:
            size = sock.recv_into(self._payload)
        except BlockingIOError:
            return None
        except OSError:
            # Whatever the network says (reset, keepalive timed out, no route): the client is gone.
            return self._end(connection, _RESET)
        if size:
            return _RECEIVED, connection, HEADROOM_BYTES, size
        return self._end(connection, _EOF)

    def _end(self, connection: int, end: int) -> Completion:
        self._closing[connection] = self._take_out(connection)
        return _CLOSED, connection, end, 0

    def finish_close(self, connection: int, *, orderly: bool) -> None:
        sock = self._closing.pop(connection)
        if orderly:
            # Without effect on a unix socket. Where it is refused, the client sees a reset.
            with suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, CLOSE_WITH_FIN)
        sock.close()
        self._free.append(connection)
        self._listen_if_possible()

    def held_bytes(self, connection: int) -> int:
        sock = self._sockets[connection]
        assert sock is not None
        try:
            answer = fcntl.ioctl(sock, termios.FIONREAD, b"\0" * 4)
        except OSError:
            return 0
        return int.from_bytes(answer, "little", signed=True)

    def disconnect(self, connection: int) -> None:
        self._closing[connection] = self._take_out(connection)
        self._disconnected.append(connection)

    def peer(self, connection: int) -> Peer:
        return self._peers[connection]

    def _take_out(self, connection: int) -> socket.socket:
        sock = self._sockets[connection]
        assert sock is not None
        del self._slots[sock.fileno()]
        self._sockets[connection] = None
        # Open but not read from, it would be ready for ever.
        self._epoll.unregister(sock)
        return sock

    def _take_disconnected(self) -> Iterator[Completion]:
        while self._disconnected:
            yield _CLOSED, self._disconnected.pop(), _DISCONNECTED, 0

    # Accepting.

    def _listen_if_possible(self) -> None:
        if self._listening or self._draining or self._backoff.active:
            return
        if not (self._has_room or self._refuse):
            return
        for fd in self._listeners:
            self._epoll.register(fd, select.EPOLLIN)
        self._listening = True

    def _stop_listening(self) -> None:
        if self._listening:
            for fd in self._listeners:
                self._epoll.unregister(fd)
            self._listening = False

    def _accept(self, listener: socket.socket) -> Iterator[Completion]:
        for _ in range(ACCEPTS_PER_PASS_MAX):
            # One that would be refused has a slot soon, where others have ended.
            if not self._listening or (self._closing and not self._has_room):
                return
            connection = self._accept_one(listener)
            if connection is None:
                return
            if connection >= 0:
                yield _OPENED, connection, 0, 0

    def _accept_one(self, listener: socket.socket) -> int | None:
        """Return the new connection; -1 where one was accepted and is gone; None where none is."""
        try:
            sock, address = listener.accept()
        except BlockingIOError:
            return None
        except OSError as error:
            if error.errno in _EXHAUSTED:
                self._back_off(error)
                return None
            # The connection ended before it was accepted, or brought a network error: accept(2).
            return -1
        if not self._has_room:
            sock.close()
            self.refused += 1
            return -1
        try:
            connection = self._open(sock, Peer(*tcp_address(address)) if address else Peer("", 0))
        except OSError as error:
            sock.close()
            if error.errno not in _EXHAUSTED:
                raise
            self._back_off(error)
            return None
        if not (self._has_room or self._refuse):
            self._stop_listening()
        return connection

    @property
    def _has_room(self) -> bool:
        return len(self._free) > self._occupied

    def _open(self, sock: socket.socket, peer: Peer) -> int:
        sock.setblocking(False)
        self._epoll.register(sock, select.EPOLLIN)
        connection = self._free.pop()
        self._sockets[connection] = sock
        self._peers[connection] = peer
        self._slots[sock.fileno()] = connection
        return connection

    # Between reactors.

    def release(self, connection: int) -> int:
        sock = self._take_out(connection)
        self._free.append(connection)
        return sock.detach()

    def adopt(self, fd: int, peer: Peer) -> None:
        self._adopted.append((fd, peer))

    def _take_adopted(self) -> Iterator[Completion]:
        while self._adopted:
            fd, peer = self._adopted.pop()
            yield _OPENED, self._open(socket.socket(fileno=fd), peer), 0, 0

    def set_connections_elsewhere(self, connections: int) -> None:
        self._occupied = connections
        if self._has_room:
            self._listen_if_possible()
        elif not self._refuse:
            self._stop_listening()

    def _back_off(self, error: OSError) -> None:
        self._stop_listening()
        self._backoff.begin(error.errno or 0)

    def _end_backoff(self, timeout_s: float) -> float:
        left_s = self._backoff.left_s()
        if left_s:
            return min(timeout_s, left_s)
        self._listen_if_possible()
        return timeout_s

    # Stopping.

    def drain(self, end_s: float) -> Iterator[Completion]:
        if not self._draining:
            self._draining = True
            self._stop_listening()
            self._epoll.unregister(self._wakeup_fd)
            self._waiting = {each: backlog_connections(each) for each in self._listeners.values()}
        yield from self._take_disconnected()
        yield from self._take_adopted()
        while True:
            yield from self._accept_waiting()
            if not (self._slots or self._disconnected):
                return
            yield from self._drain_connected(end_s)
            for connection in list(self._slots.values()):
                self.disconnect(connection)
            yield from self._take_disconnected()

    def _drain_connected(self, end_s: float) -> Iterator[Completion]:
        """Receive what each socket holds now, and what its client goes on to send until `end_s`.

        A client that has written all and left may have part of that in its own send buffer, because
        the window was closed: it comes as soon as there is room. So silence ends this, and for a
        client that never stops, DRAIN_S and DRAIN_BYTES_MAX do.
        """
        owed_bytes = {
            connection: self.held_bytes(connection) for connection in self._slots.values()
        }
        quiet_s = 0.0
        while self._slots and (events := self._epoll.poll(quiet_s, self._events_max)):
            late = time.monotonic() >= end_s
            quiet_s = 0.0 if late else DRAIN_QUIET_S
            received = False
            for fd, _ in events:
                connection = self._slots.get(fd)
                completion = None if connection is None else self._receive(connection)
                if completion is None:
                    continue
                received = True
                kind, connection, _, size = completion
                yield completion
                owed_bytes[connection] -= size
                enough = owed_bytes[connection] <= (0 if late else -DRAIN_BYTES_MAX)
                if kind == _RECEIVED and enough and self._sockets[connection] is not None:
                    self.disconnect(connection)
            if late and not received:
                # A descriptor that epoll_ctl(2) failed to take out is ready for ever.
                return

    def _accept_waiting(self) -> Iterator[Completion]:
        """Accept, of those that were in the backlog when the stop began, as many as may come in."""
        for listener in self._waiting:
            while self._waiting[listener] > 0 and self._has_room:
                connection = self._accept_one(listener)
                if connection is None:
                    if not self._backoff.active:
                        self._waiting[listener] = 0
                    break
                self._waiting[listener] -= 1
                if connection >= 0:
                    yield _OPENED, connection, 0, 0

    def close(self) -> None:
        for sock in (*self._sockets, *self._closing.values(), *self._listeners.values()):
            if sock is not None:
                sock.close()
        for fd, _ in self._adopted:
            os.close(fd)
        self._epoll.close()
