"""The word on receives that fail for another reason than the network."""

import errno
import os
import time
from collections.abc import Callable

from numbers_uring.limits import RECEIVE_WARNING_INTERVAL_S

NETWORK_ERRORS = frozenset(
    {
        *(errno.ECONNRESET, errno.ECONNABORTED, errno.ECONNREFUSED, errno.EHOSTDOWN),
        *(errno.EHOSTUNREACH, errno.ENETDOWN, errno.ENETRESET, errno.ENETUNREACH, errno.ENONET),
        *(errno.ENOPROTOOPT, errno.ENOTCONN, errno.EPIPE, errno.EPROTO, errno.ETIMEDOUT),
    }
)
"""By which a client is gone; the same as in native/uring/connections.c."""


class ReceiveWarnings:
    """Gives `warn` one line in RECEIVE_WARNING_INTERVAL_S."""

    def __init__(self, warn: Callable[[str], None]) -> None:
        self._warn = warn
        self._warned_s = -RECEIVE_WARNING_INTERVAL_S

    def note(self, error: int) -> None:
        """Say that a client is disconnected because of this errno, unless it is the network's."""
        now_s = time.monotonic()
        if error not in NETWORK_ERRORS and now_s - self._warned_s >= RECEIVE_WARNING_INTERVAL_S:
            self._warned_s = now_s
            self._warn(f"cannot receive from a client, disconnecting it: {os.strerror(error)}")
