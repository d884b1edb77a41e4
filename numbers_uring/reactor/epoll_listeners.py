"""The listeners of an epoll reactor: watched while clients may come in, unless accepting fails.

accept(2) passes errors of the network on, each of which belongs to one connection that is gone. Any
other error may come back at once, and epoll tells of a listener as long as a client waits there.
"""

import errno
import select
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress

from numbers_uring.addresses import Peer
from numbers_uring.limits import ACCEPT_FAILURES_MAX
from numbers_uring.net.listeners import address_text
from numbers_uring.reactor.accept_backoff import AcceptBackoff

_GONE = {
    *(errno.ECONNABORTED, errno.EPROTO, errno.ENOPROTOOPT, errno.EOPNOTSUPP, errno.EINTR),
    *(errno.ENETDOWN, errno.EHOSTDOWN, errno.ENONET, errno.EHOSTUNREACH, errno.ENETUNREACH),
}
"""One connection is gone, and the next may be had: accept(2), "Error handling"."""

Accepted = tuple[socket.socket, Peer]


class EpollListeners:
    """Takes over the listening `sockets`. `warn` is given one line when accepting fails."""

    def __init__(
        self, epoll: select.epoll, sockets: Sequence[socket.socket], warn: Callable[[str], None]
    ) -> None:
        self._epoll = epoll
        self._sockets = {each.fileno(): each for each in sockets}
        self._warn = warn
        self._backoff = AcceptBackoff(warn)
        self.watched = False
        for each in sockets:
            each.setblocking(False)

    @property
    def paused(self) -> bool:
        """Whether accepting has failed, and is not to be tried again yet."""
        return self._backoff.active

    @property
    def sockets(self) -> list[socket.socket]:
        return list(self._sockets.values())

    def find(self, fd: int) -> socket.socket | None:
        """Return the listener with this descriptor."""
        return self._sockets.get(fd)

    def watch(self) -> None:
        """Make the epoll tell of waiting clients, unless accepting is paused."""
        if self.watched or self.paused:
            return
        self.watched = True
        try:
            for fd in self._sockets:
                self._epoll.register(fd, select.EPOLLIN)
        except OSError as error:
            self.pause(error)

    def ignore(self) -> None:
        """Make the epoll tell of waiting clients no more."""
        if self.watched:
            self.watched = False
            for fd in self._sockets:
                with suppress(FileNotFoundError):
                    self._epoll.unregister(fd)

    def accept(self, listener: socket.socket) -> Accepted | None:
        """Return a new client; None where none waits, or accepting has failed."""
        error: OSError | None = None
        for _ in range(ACCEPT_FAILURES_MAX):
            try:
                sock, address = listener.accept()
            except BlockingIOError:
                return None
            except OSError as failure:
                error = failure
                if error.errno not in _GONE:
                    break
            else:
                return sock, Peer(*address[:2]) if address else Peer("", 0)
        assert error is not None
        if error.errno == errno.EINVAL and not _listens(listener):
            self._drop(listener)
        else:
            self.pause(error)
        return None

    def _drop(self, listener: socket.socket) -> None:
        name = "a listener"
        with suppress(OSError):
            name = address_text(listener)
        fd = listener.fileno()
        if self.watched:
            self._epoll.unregister(fd)
        del self._sockets[fd]
        listener.close()
        self._warn(f"another process has shut {name} down: no longer listening there")

    def pause(self, error: OSError) -> None:
        """Accept nothing for ACCEPT_BACKOFF_S."""
        self._backoff.begin(error.errno or 0)
        self.ignore()

    def pause_left_s(self) -> float:
        """Return how long a pause lasts yet; 0 ends it."""
        return self._backoff.left_s()

    def close(self) -> None:
        for listener in self._sockets.values():
            with suppress(OSError):
                listener.close()


def _listens(listener: socket.socket) -> bool:
    try:
        return bool(listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
    except OSError:
        return True
