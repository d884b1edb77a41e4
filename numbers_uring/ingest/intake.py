"""The core without I/O: pieces of streams in, a batch of new lines and counters out."""

from numbers_uring.ingest.kernel import Kernel, Memory, Verdict
from numbers_uring.limits import CHUNK_BYTES_MAX, LINE_BYTES

_MORE, _INVALID = int(Verdict.MORE), int(Verdict.INVALID)


class Intake:
    """All connections' lines, de-duplicated.

    `arena` is the memory that the reactor receives into; it holds HEADROOM_BYTES in front of each
    piece that `receive` is given. `bitmap`, BITMAP_BYTES long, has the bits of the numbers that
    count as seen. Everything is allocated here, nothing on the way.
    """

    def __init__(
        self,
        kernel: Kernel,
        arena: Memory,
        bitmap: bytearray,
        *,
        connections_max: int,
        batch_bytes: int,
    ) -> None:
        assert batch_bytes >= CHUNK_BYTES_MAX
        batch = bytearray(batch_bytes)
        self._arena = memoryview(arena)
        self._batch = memoryview(batch)
        self._kernel = kernel.bind(arena, bitmap, batch)
        self._ingest = self._kernel.ingest
        self._tails = [b""] * connections_max
        self.rejected = b""
        """The first bytes of the line that was INVALID last, at most LINE_BYTES of them."""

    def open(self, connection: int) -> None:
        """Drop what an earlier connection left in this slot."""
        self._tails[connection] = b""

    def receive(self, connection: int, start: int, size: int) -> int:
        """Take in arena[start:start + size], the next piece of this connection's stream.

        Returns a Verdict (as a plain int). After INVALID or TERMINATE nothing more of the
        connection may be received. The headroom before `start` is overwritten. Raises ValueError
        where `free_bytes` is below CHUNK_BYTES_MAX and the piece does not fit.
        """
        stop = start + size
        tail = self._tails[connection]
        if tail:
            begin = start - len(tail)
            self._arena[begin:start] = tail
            start = begin
        verdict = self._ingest(start, stop)
        end = start + self._kernel.consumed
        if verdict == _MORE and end != stop:
            self._tails[connection] = bytes(self._arena[end:stop])
        elif tail:
            self._tails[connection] = b""
        if verdict == _INVALID:
            self.rejected = bytes(self._arena[end : min(end + LINE_BYTES, stop)])
        return verdict

    def has_tail(self, connection: int) -> bool:
        """Return whether the connection's stream, as received so far, ends within a line."""
        return bool(self._tails[connection])

    @property
    def completed_a_line(self) -> bool:
        """Whether the last `receive` took in at least one whole line."""
        return self._kernel.consumed > 0

    @property
    def free_bytes(self) -> int:
        """Bytes free in the batch."""
        return len(self._batch) - self._kernel.batch_used

    @property
    def batch(self) -> memoryview:
        """The lines that are not yet taken away: a view, valid until `receive` or `discard`."""
        return self._batch[: self._kernel.batch_used]

    def discard(self, size: int) -> None:
        """Drop the first `size` bytes of the batch: they are on file."""
        left = self._kernel.batch_used - size
        assert left >= 0
        if left:
            self._batch[:left] = self._batch[size : size + left]
        self._kernel.batch_used = left

    @property
    def unique(self) -> int:
        """Numbers seen for the first time, since the start."""
        return self._kernel.unique

    @property
    def duplicate(self) -> int:
        """Repeated numbers, since the start."""
        return self._kernel.duplicate
