"""Accepts connections in batches, also when the process is out of descriptors."""

import errno
import os
import select
import socket
from collections.abc import Callable, Iterator
from contextlib import suppress

from numbers_uring.limits import HTTP_ACCEPTS_PER_PASS_MAX, HTTP_FAILED_ACCEPTS_MAX

_OUT_OF_DESCRIPTORS = frozenset({errno.EMFILE, errno.ENFILE})


class Acceptor:
    """Accepts from non-blocking listeners, with one descriptor in reserve.

    Out of descriptors it calls `drop_oldest`, which closes a client's and returns whether there was
    one; then it gives up the reserve. `warn` is called when it has to stop for a while. Raises
    OSError without a descriptor for the reserve.
    """

    def __init__(
        self, drop_oldest: Callable[[], bool], warn: Callable[[str, Exception], None]
    ) -> None:
        self._drop_oldest = drop_oldest
        self._warn = warn
        self._reserve_fd: int | None = os.eventfd(0, os.EFD_CLOEXEC)
        self.failed = False
        """Whether the last `accept` has stopped early: the next one should wait a little."""

    def accept(self, listener: socket.socket) -> Iterator[socket.socket]:
        """Yield the connections that wait, HTTP_ACCEPTS_PER_PASS_MAX at most; raises nothing."""
        failures = 0
        for _ in range(HTTP_ACCEPTS_PER_PASS_MAX):
            try:
                sock, _ = listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in _OUT_OF_DESCRIPTORS:
                    if not _has_connection(listener):
                        # Linux takes a descriptor before it checks for a connection.
                        return
                    if self._drop_oldest() or self._use_reserve():
                        continue
                    failures = HTTP_FAILED_ACCEPTS_MAX
                # Most failures belong to one connection, which is gone then.
                failures += 1
                if failures >= HTTP_FAILED_ACCEPTS_MAX:
                    self._warn("cannot accept connections", error)
                    self.failed = True
                    return
            else:
                yield sock

    def restore_reserve(self) -> None:
        """Take a descriptor for the reserve if there is none; called when one was closed."""
        if self._reserve_fd is None:
            with suppress(OSError):
                self._reserve_fd = os.eventfd(0, os.EFD_CLOEXEC)

    def _use_reserve(self) -> bool:
        if self._reserve_fd is None:
            return False
        os.close(self._reserve_fd)
        self._reserve_fd = None
        return True

    def close(self) -> None:
        self._use_reserve()


def _has_connection(listener: socket.socket) -> bool:
    """Return whether a connection waits to be accepted."""
    poll = select.poll()
    poll.register(listener, select.POLLIN)
    return bool(poll.poll(0))
