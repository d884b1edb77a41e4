"""Notifies the service manager of the service's state: sd_notify(3), by hand.

PyPI's sdnotify and systemd-python were weighed: both send from a socket that blocks while the
manager's queue is full, and drop, or raise, what could not be sent. Ours never waits, sends a state
that was dropped with the next message, and needs no libsystemd.

What it stands on, of systemd's src/core/service.c:

- A message is one datagram of NAME=VALUE lines. Linux tells which process sent it.
- The watchdog counts from READY=1 on, and also while the service reloads. From the stop on, that is
  STOPPING=1 or systemd's own SIGTERM, TimeoutStopSec= counts instead.
- EXTEND_TIMEOUT_USEC= moves the end of the timeout that counts, the watchdog's too, and never to
  an earlier time; the next WATCHDOG=1 sets the watchdog's back to its usual distance.
"""

import errno
import math
import os
import re
import socket
import time
from collections.abc import Callable, MutableMapping
from contextlib import suppress

from numbers_uring.limits import RESUME_EXTEND_S, SYNC_EXTEND_S, WATCHDOG_HEARTBEATS

_VARIABLES = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")
_WATCHDOG_US = re.compile("[1-9][0-9]{0,17}")
_TRANSIENT = {errno.EINTR, errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
"""Temporary errors: the next message may reach the manager."""


class ServiceManager:
    """Sends messages to the socket `address`; does nothing where that is None.

    Nothing here waits or raises, and nothing is opened before the first message. A message that
    finds the manager's queue full is dropped, except for the service's state in it: that is sent
    with the next one. `watchdog_s` is the longest time that may pass without a heartbeat, None
    where there is no watchdog. `warn` takes one line, once, if the manager can't be reached.
    """

    def __init__(
        self,
        address: str | None,
        *,
        watchdog_s: float | None,
        warn: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._warn = warn
        self._clock = clock
        self._address = address
        self._socket: socket.socket | None = None
        self._reached = False
        self._warned = False
        self._unsent = ""
        self._heartbeat_due_s = 0.0
        self.heartbeat_interval_s = math.inf
        """The longest time between two calls of `heartbeat`."""
        if address is not None and watchdog_s is not None:
            self.heartbeat_interval_s = watchdog_s / WATCHDOG_HEARTBEATS

    @classmethod
    def from_environment(
        cls, environment: MutableMapping[str, str], warn: Callable[[str], None]
    ) -> "ServiceManager":
        """Return the manager that `environment` names, and remove its variables.

        Child processes are not the service, and must not send messages.
        """
        address, watchdog_us, watchdog_pid = (environment.pop(name, None) for name in _VARIABLES)
        watchdog_s = None
        if watchdog_us is not None and watchdog_pid in {None, str(os.getpid())}:
            if _WATCHDOG_US.fullmatch(watchdog_us):
                watchdog_s = int(watchdog_us) / 1e6
            else:
                warn(
                    f"WATCHDOG_USEC={watchdog_us} is not a number of microseconds: "
                    "sending no heartbeats"
                )
        return cls(address or None, watchdog_s=watchdog_s, warn=warn)

    def ready(self, status: str) -> None:
        """Send that clients can be served; also at the end of a reload."""
        self._enter(status, "READY=1")

    def status(self, status: str) -> None:
        """Send one line for people about what the service is doing."""
        self._put(f"{self._unsent}{_status(status)}")

    def starting(self, status: str) -> None:
        """Send that the start continues, for at most RESUME_EXTEND_S until the next call."""
        self._put(f"{_extend_timeout(RESUME_EXTEND_S)}\n{_status(status)}")

    def reloading(self, status: str) -> None:
        """Send that the log is being reopened; `ready` must follow within SYNC_EXTEND_S."""
        # systemd takes a reload for the answer to its own signal only with a time after that.
        now_us = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        extend = _extend_timeout(SYNC_EXTEND_S)
        self._enter(status, "RELOADING=1", f"MONOTONIC_USEC={now_us}", extend)

    def stopping(self, status: str) -> None:
        """Send that the service ends, once the log is on disk: within SYNC_EXTEND_S."""
        self._enter(status, "STOPPING=1", _extend_timeout(SYNC_EXTEND_S))

    def heartbeat(self) -> None:
        """Send that the service is alive. Cheap enough for each pass: sends only when it is due."""
        if self.heartbeat_interval_s < math.inf and self._clock() >= self._heartbeat_due_s:
            # A caller that comes at most an interval after this time is still in time.
            self._heartbeat_due_s = self._clock() + self.heartbeat_interval_s
            self._put(f"{self._unsent}WATCHDOG=1")

    def _enter(self, status: str, *state: str) -> None:
        # An earlier state that could not be sent is out of date.
        self._unsent = "".join(f"{line}\n" for line in state)
        self.status(status)

    def _put(self, message: str) -> None:
        if self._address is None:
            return
        if self._address[0] not in "/@":
            self._give_up("is no absolute path and no abstract name")
            return
        try:
            self._send(message.encode(errors="replace"))
        except BlockingIOError:
            return
        except OSError as error:
            if error.errno in _TRANSIENT:
                self._warn_once(f"is not reached now: {error.strerror}")
            # A manager that was reached once may be restarting.
            elif not self._reached:
                self._give_up(f"cannot be sent to: {error.strerror or error}")
            return
        self._reached = True
        self._unsent = ""

    def _send(self, message: bytes) -> None:
        assert self._address is not None
        if self._socket is None:
            self._socket = socket.socket(
                socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
            )
        name = self._address
        self._socket.sendto(message, "\0" + name[1:] if name[0] == "@" else name)

    def _give_up(self, reason: str) -> None:
        self._warn_once(reason)
        self.close()

    def _warn_once(self, reason: str) -> None:
        if not self._warned:
            self._warned = True
            self._warn(f"cannot notify the service manager: NOTIFY_SOCKET={self._address} {reason}")

    def close(self) -> None:
        """Send no more."""
        self._address = None
        self.heartbeat_interval_s = math.inf
        if self._socket is not None:
            with suppress(OSError):
                self._socket.close()
            self._socket = None


def _status(text: str) -> str:
    return f"STATUS={' '.join(text.split())}"


def _extend_timeout(seconds: float) -> str:
    return f"EXTEND_TIMEOUT_USEC={seconds * 1e6:.0f}"
