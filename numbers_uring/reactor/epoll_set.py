"""epoll_ctl(2), tried again: one failure of it costs no client."""

import select
import socket

from numbers_uring.limits import EPOLL_CTL_TRIES


class EpollSet:
    """What an epoll watches. `register` and `unregister` raise OSError where all tries fail."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self.poll = self._epoll.poll
        self.fileno = self._epoll.fileno
        self.close = self._epoll.close

    def register(self, fd: int | socket.socket, events: int) -> None:
        """Watch a descriptor for these events."""
        for _ in range(EPOLL_CTL_TRIES - 1):
            try:
                return self._epoll.register(fd, events)
            except OSError:
                continue
        return self._epoll.register(fd, events)

    def unregister(self, fd: int | socket.socket) -> None:
        """Watch it no more."""
        for _ in range(EPOLL_CTL_TRIES - 1):
            try:
                return self._epoll.unregister(fd)
            except OSError:
                continue
        return self._epoll.unregister(fd)
