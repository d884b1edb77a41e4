"""epoll(7): an epoll_ctl(2) is tried again, so one failure costs no client."""

import os
import select
import socket

from numbers_uring.limits import EPOLL_CTL_TRIES


def wait_error(number: int) -> OSError:
    """Return what a failed epoll_wait(2) is to be raised as."""
    return OSError(number, f"epoll_wait: {os.strerror(number)}")


class EpollSet:
    """What an epoll watches. `register` and `unregister` raise OSError where all tries fail."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self.fileno = self._epoll.fileno
        self.close = self._epoll.close

    def poll(self, timeout_s: float, events_max: int) -> list[tuple[int, int]]:
        """Wait for events. Raises OSError, which names the system call."""
        try:
            return self._epoll.poll(timeout_s, events_max)
        except OSError as error:
            raise wait_error(error.errno or 0) from error

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
