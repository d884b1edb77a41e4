"""The listeners of an epoll reactor: watched while clients may come in, unless accepting fails.

accept(2) passes on errors of the network, each of which belongs to one connection that is gone, and
the next one will do. Any error may come back for ever, though, and epoll reports a listener as long
as a client waits there. So a listener that fails ACCEPT_FAILURES_MAX times in a row is left alone
for a while, and all of them are where the process or the system lacks descriptors or memory.
"""

import errno
import select
import socket
from collections.abc import Callable, Sequence

from numbers_uring._native import lib
from numbers_uring.limits import ACCEPT_FAILURES_MAX
from numbers_uring.net.sockets import PeerAddress
from numbers_uring.reactor.accept_backoff import AcceptBackoff
from numbers_uring.reactor.epoll_set import EpollSet

_EXHAUSTED = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.ENOSPC}

Accepted = tuple[int, bytes]
"""A descriptor, and the address of its peer: see net.sockets.peer_of."""


class EpollListeners:
    """Takes over the listening `sockets`. `warn` is given one line when accepting fails."""

    def __init__(
        self, epoll: EpollSet, sockets: Sequence[socket.socket], warn: Callable[[str], None]
    ) -> None:
        self.sockets = list(sockets)
        self._epoll = epoll
        self._by_fd = {each.fileno(): each for each in sockets}
        self._failures = dict.fromkeys(self._by_fd, 0)
        """In a row, of each listener."""
        self._failed: set[int] = set()
        self._watched: set[int] = set()
        self._backoff = AcceptBackoff(warn)
        self._peer = PeerAddress()
        for each in sockets:
            each.setblocking(False)

    @property
    def paused(self) -> bool:
        """Whether a listener has failed, and is left alone."""
        return self._backoff.active

    def find(self, fd: int) -> socket.socket | None:
        """Return the listener with this descriptor."""
        return self._by_fd.get(fd)

    def is_watched(self, listener: socket.socket) -> bool:
        """Return whether clients may come in there."""
        return listener.fileno() in self._watched

    def watch(self) -> None:
        """Make the epoll report waiting clients, of listeners that have not failed."""
        if len(self._watched) == len(self._by_fd):
            return
        for fd in self._by_fd.keys() - self._watched - self._failed:
            try:
                self._epoll.register(fd, select.EPOLLIN)
            except OSError as error:
                self.pause(error.errno or 0)
                return
            self._watched.add(fd)

    def ignore(self) -> None:
        """Make the epoll report no waiting clients."""
        while self._watched:
            self._epoll.unregister(self._watched.pop())

    def accept(self, listener: socket.socket, *, expected: bool = True) -> Accepted | None:
        """Return a new client, or None where none waits or the listener fails.

        `expected` says that epoll has reported one, and none was accepted since.
        """
        fd = listener.fileno()
        while True:
            accepted: int = lib.nu_accept(fd, True, self._peer.pointer)
            if accepted >= 0:
                self._failures[fd] = 0
                return accepted, self._peer.copy()
            error = -accepted
            if error == errno.EAGAIN and not expected:
                return None
            self._failures[fd] += 1
            if error in _EXHAUSTED:
                self.pause(error)
            elif self._failures[fd] >= ACCEPT_FAILURES_MAX:
                self._fail(fd, error)
            elif error != errno.EAGAIN:
                continue
            return None

    def _fail(self, fd: int, error: int) -> None:
        self._failures[fd] = 0
        self._failed.add(fd)
        self._backoff.begin(error)
        if fd in self._watched:
            self._watched.remove(fd)
            self._epoll.unregister(fd)

    def pause(self, error: int) -> None:
        """Accept nothing for ACCEPT_BACKOFF_S, because of the errno `error`."""
        for fd in self._by_fd:
            self._fail(fd, error)
        if not self._by_fd:
            self._backoff.begin(error)

    def pause_left_s(self) -> float:
        """Return how long a pause lasts yet; 0 ends it."""
        left_s = self._backoff.left_s()
        if not left_s:
            self._failed.clear()
        return left_s
