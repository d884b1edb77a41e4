"""A stand-in for the service manager's end of sd_notify(3)."""

import socket
import struct
from contextlib import suppress
from pathlib import Path

from support.waiting import wait_until

Message = dict[str, str]

_SO_TIMESTAMPNS = 35
_TIMESPEC = struct.Struct("@2l")


class NotifySocket:
    """Listens at `address`, a path or @NAME; keeps each message as the values of its names."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._received: list[Message] = []
        self._times_s: list[float] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
        self._name = "\0" + address[1:] if address.startswith("@") else address
        self._socket.bind(self._name)

    @property
    def messages(self) -> list[Message]:
        """Everything that has come so far."""
        with suppress(BlockingIOError):
            while True:
                data, ((_, _, sent),), *_ = self._socket.recvmsg(65536, 64)
                self._received.append(
                    dict(line.split("=", 1) for line in data.decode().split("\n"))
                )
                seconds, nanoseconds = _TIMESPEC.unpack(sent)
                self._times_s.append(seconds + nanoseconds / 1e9)
        return self._received

    def values(self, name: str) -> list[str]:
        """Return what `name` was set to, message by message."""
        return [message[name] for message in self.messages if name in message]

    def times_s(self, name: str) -> list[float]:
        """Return when each message with this name was sent."""
        messages = zip(self.messages, self._times_s, strict=True)
        return [time_s for message, time_s in messages if name in message]

    def wait_for(self, name: str, value: str, *, count: int = 1) -> None:
        """Wait until a value of `name` that begins with `value` has come `count` times."""
        wait_until(
            lambda: sum(found.startswith(value) for found in self.values(name)) >= count,
            f"{name}={value}",
        )

    def fill(self) -> int:
        """Leave no room for a further message; return how many that took."""
        count = 0
        sender = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        with sender, suppress(BlockingIOError):
            while True:
                sender.sendto(b"FILL=1", self._name)
                count += 1
        return count

    def close(self) -> None:
        self._socket.close()
        if not self.address.startswith("@"):
            Path(self.address).unlink(missing_ok=True)

    def __enter__(self) -> "NotifySocket":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def told(manager: NotifySocket, watchdog_s: float = 0) -> dict[str, str]:
    """Return the environment that a service has from its manager."""
    environment = {"NOTIFY_SOCKET": manager.address}
    if watchdog_s:
        environment["WATCHDOG_USEC"] = f"{watchdog_s * 1e6:.0f}"
    return environment
