"""Which connections have been without a complete line for too long."""

from collections.abc import Iterator


class IdleTimeouts:
    """Connections in the order of their last complete line, or of their opening before the first.

    Each call costs the same however many connections there are: a dict keeps its order of
    insertion, so whoever has just sent a line is taken out and put in again at the end.
    """

    def __init__(self, timeout_s: float) -> None:
        self.timeout_s = timeout_s
        self._since_s: dict[int, float] = {}

    def touch(self, connection: int, now_s: float) -> None:
        """Start the connection's time anew."""
        self._since_s.pop(connection, None)
        self._since_s[connection] = now_s

    def forget(self, connection: int) -> None:
        """Leave the connection out from now on."""
        self._since_s.pop(connection, None)

    def touch_all(self, now_s: float) -> None:
        """Start everyone's time anew, as after a time in which the server did not listen."""
        self._since_s = dict.fromkeys(self._since_s, now_s)

    def next_due_s(self) -> float | None:
        """Return when the first connection is due, or None where there is none."""
        for since_s in self._since_s.values():
            return since_s + self.timeout_s
        return None

    def take_due(self, now_s: float) -> Iterator[int]:
        """Hand out, and forget, the connections whose time is up."""
        while self._since_s:
            connection, since_s = next(iter(self._since_s.items()))
            if since_s + self.timeout_s > now_s:
                return
            del self._since_s[connection]
            yield connection
