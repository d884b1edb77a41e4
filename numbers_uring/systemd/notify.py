"""The service manager that started us, if one did, is told how we are: sd_notify(3), by hand.

What it stands on, of systemd's src/core/service.c:

- A message is one datagram of NAME=VALUE lines. Which process sent it the kernel tells.
- The watchdog counts from READY=1 on, and also while the service reloads; from the stop on, that is
  STOPPING=1 or systemd's own SIGTERM, it does not, and TimeoutStopSec= counts instead.
- EXTEND_TIMEOUT_USEC= moves the end of whichever timeout counts, the watchdog's too, and never to
  an earlier time; the next WATCHDOG=1 sets the watchdog's back to its usual distance.
"""

import math
import os
import re
import socket
import time
from collections.abc import Callable, MutableMapping

from numbers_uring.limits import RESUME_EXTEND_S, SYNC_EXTEND_S, WATCHDOG_HEARTBEATS

_VARIABLES = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")
_WATCHDOG_US = re.compile("[1-9][0-9]{0,17}")


class ServiceManager:
    """Where messages go to; nowhere, where `address` is None.

    Nothing here waits or fails, and nothing is opened before the first message. One that finds the
    manager's queue full is dropped, but for what it said of the service's state: that goes in front
    of the next one. `watchdog_s` is the longest time that may pass without a beat, None where
    nobody counts. `say` takes one line for the operator, where the manager cannot be reached.
    """

    def __init__(
        self,
        address: str | None,
        *,
        watchdog_s: float | None,
        say: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._say = say
        self._clock = clock
        self._address = address
        self._socket: socket.socket | None = None
        self._reached = False
        self._unsent = ""
        self._beat_due_s = 0.0
        self.beat_interval_s = math.inf
        """How often `beat` has to be called at least."""
        if address is not None and watchdog_s is not None:
            self.beat_interval_s = watchdog_s / WATCHDOG_HEARTBEATS

    @classmethod
    def from_environment(
        cls, environment: MutableMapping[str, str], say: Callable[[str], None]
    ) -> "ServiceManager":
        """Return the manager that `environment` names, and take its variables out.

        Our children, and theirs, are not the service.
        """
        address, watchdog_us, watchdog_pid = (environment.pop(name, None) for name in _VARIABLES)
        watchdog_s = None
        if watchdog_us is not None and watchdog_pid in {None, str(os.getpid())}:
            if _WATCHDOG_US.fullmatch(watchdog_us):
                watchdog_s = int(watchdog_us) / 1e6
            else:
                say(f"WATCHDOG_USEC={watchdog_us} is no number of microseconds: no watchdog is fed")
        return cls(address or None, watchdog_s=watchdog_s, say=say)

    def ready(self, status: str) -> None:
        """Clients can be served; also the end of a reload."""
        self._enter(status, "READY=1")

    def status(self, status: str) -> None:
        """Tell people, in one line, what is going on."""
        self._put(f"{self._unsent}{_status(status)}")

    def starting(self, status: str) -> None:
        """The start goes on, for at most RESUME_EXTEND_S until this is called again."""
        self._put(f"{_patience(RESUME_EXTEND_S)}\n{_status(status)}")

    def reloading(self, status: str) -> None:
        """The log is being reopened; `ready` ends it, after SYNC_EXTEND_S at the latest."""
        # systemd takes a reload for the answer to its own signal only with a time after that.
        now_us = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        patience = _patience(SYNC_EXTEND_S)
        self._enter(status, "RELOADING=1", f"MONOTONIC_USEC={now_us}", patience)

    def stopping(self, status: str) -> None:
        """The server takes in no more, and ends once the log is on disk: within SYNC_EXTEND_S."""
        self._enter(status, "STOPPING=1", _patience(SYNC_EXTEND_S))

    def beat(self) -> None:
        """The loop is alive. Cheap enough for each pass: sends only when it is time."""
        if self.beat_interval_s < math.inf and self._clock() >= self._beat_due_s:
            # Whoever calls an interval after this time, at the latest, is still in time.
            self._beat_due_s = self._clock() + self.beat_interval_s
            self._put(f"{self._unsent}WATCHDOG=1")

    def _enter(self, status: str, *state: str) -> None:
        # Of a state before it that could not be sent nobody needs to know any more.
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
            # A manager that vanishes later may come back, and concerns nobody meanwhile.
            if not self._reached:
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
        self._say(
            f"the service manager is not told of our state: NOTIFY_SOCKET={self._address} {reason}"
        )
        self.close()

    def close(self) -> None:
        """Send no more."""
        self._address = None
        self.beat_interval_s = math.inf
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def _status(text: str) -> str:
    return f"STATUS={' '.join(text.split())}"


def _patience(seconds: float) -> str:
    return f"EXTEND_TIMEOUT_USEC={seconds * 1e6:.0f}"
