"""Which clients that send in bulk a pass receives from, so that a quiet one waits for few."""

from array import array
from collections.abc import Iterable, Iterator

from numbers_uring.limits import BULK_BYTES, BULK_SHARE_BYTES


class BulkTurns:
    """Orders what is ready in each look of a pass: first all that is quiet, then some in bulk.

    Those that send in bulk have their turns in rounds: one that was received from waits until each
    other one that is ready was, too. A look ends once `look_bytes` were received from them, or
    BULK_SHARE_BYTES times as many as are ready. Another look follows in the same pass, until the
    round is over, or one finds something quiet: that is to reach the log, and no more in bulk is
    received before. What is left is reported again by the next wait.
    """

    def __init__(self, connections_max: int, look_bytes: int) -> None:
        self.rounds = array("Q", bytes(8 * connections_max))
        """Of each connection, the round of its last turn; 0 where it does not send in bulk."""
        self.look_bytes = look_bytes
        self._round = 1
        self._left_bytes = 0
        self._first, self._quiet = True, False

    def begin_pass(self) -> None:
        """To be called before the first look of a pass."""
        self._first, self._quiet = True, False

    def order(self, ready: Iterable[int | None]) -> Iterator[int]:
        """Hand out the connections to receive from, of those that a look has found.

        None stands for what is no connection. `note` is to be called before the next one.
        """
        first, self._first = self._first, False
        bulk = []
        for connection in ready:
            if connection is not None and self.rounds[connection]:
                bulk.append(connection)
                continue
            self._quiet = True
            if connection is not None:
                yield connection
        if self._quiet and not first:
            return
        if first and all(self.rounds[each] == self._round for each in bulk):
            self._round += 1
        self._left_bytes = max(self.look_bytes, len(bulk) * BULK_SHARE_BYTES)
        for connection in bulk:
            if self._left_bytes <= 0:
                return
            if self.rounds[connection] != self._round:
                self.rounds[connection] = self._round
                yield connection

    def note(self, connection: int, size: int) -> None:
        """Note how many bytes were received from it; not where there was nothing to receive."""
        self._left_bytes -= size
        if size < BULK_BYTES:
            self.rounds[connection] = 0
        elif not self.rounds[connection]:
            self.rounds[connection] = self._round

    @property
    def looks_again(self) -> bool:
        """Whether another look is to follow in the same pass, which may find nothing."""
        return not self._quiet and self._left_bytes <= 0

    def open(self, connection: int) -> None:
        """Forget what an earlier connection in this slot has sent."""
        self.rounds[connection] = 0
