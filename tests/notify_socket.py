"""A stand-in for the service manager's end of sd_notify(3)."""

import socket
from contextlib import suppress
from pathlib import Path

from support import wait_until

Message = dict[str, str]


class NotifySocket:
    """Listens at `address`, a path or @NAME; keeps each message as the values of its names."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.received: list[Message] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._socket.bind("\0" + address[1:] if address.startswith("@") else address)

    @property
    def messages(self) -> list[Message]:
        """Everything that has come so far."""
        with suppress(BlockingIOError):
            while True:
                lines = self._socket.recv(65536).decode().split("\n")
                self.received.append(dict(line.split("=", 1) for line in lines))
        return self.received

    def values(self, name: str) -> list[str]:
        """Return what `name` was set to, message by message."""
        return [message[name] for message in self.messages if name in message]

    def wait_for(self, name: str, value: str, *, count: int = 1) -> None:
        """Wait until a value of `name` that begins with `value` has come `count` times."""
        wait_until(
            lambda: sum(found.startswith(value) for found in self.values(name)) >= count,
            f"{name}={value}",
        )

    def close(self) -> None:
        self._socket.close()
        if not self.address.startswith("@"):
            Path(self.address).unlink(missing_ok=True)

    def __enter__(self) -> "NotifySocket":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
