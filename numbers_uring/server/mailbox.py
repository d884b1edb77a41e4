"""What passes between the loop that accepts and a worker: clients, a stop, and counts of both."""

import math
import os
import threading
from collections import deque
from contextlib import suppress

from numbers_uring.addresses import Peer
from numbers_uring.net.closing import close_all


class Mailbox:
    """What passes between a worker and the loop that accepts."""

    def __init__(self) -> None:
        self.wakeup_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.stop = threading.Event()
        self.drain_end_s = 0.0
        # Written to by one thread each, so that both can be read without a lock.
        self.handed_over = 0
        self.closed = 0
        self.came_round_s = math.inf
        self._clients: deque[tuple[int, Peer]] = deque()

    @property
    def connected(self) -> int:
        """Clients that are the worker's, or on their way to it."""
        return self.handed_over - self.closed

    def hand_over(self, fd: int, peer: Peer) -> None:
        """Give the worker a connection that another reactor has released."""
        self.handed_over += 1
        self._clients.append((fd, peer))
        self.wake()

    def take(self) -> "list[tuple[int, Peer]]":
        """Return the clients that were handed over since the last time."""
        return [self._clients.popleft() for _ in range(len(self._clients))]

    def wake(self) -> None:
        """Make the worker come round; where that fails, it does within WAIT_S_MAX."""
        with suppress(OSError):
            os.eventfd_write(self.wakeup_fd, 1)

    def quiet(self) -> None:
        """Make the wake-up descriptor unreadable until the next `wake`. Raises OSError."""
        with suppress(BlockingIOError):
            os.eventfd_read(self.wakeup_fd)

    def close(self) -> None:
        close_all(*(fd for fd, _ in self.take()), self.wakeup_fd)
