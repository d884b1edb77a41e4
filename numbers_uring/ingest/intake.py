"""The core without I/O: pieces of streams in, a batch of new lines and counters out."""

from numbers_uring.ingest.kernel import Kernel, Memory, Verdict
from numbers_uring.limits import CHUNK_BYTES_MAX, LINE_BYTES, TAIL_BYTES_MAX

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
        self._tails = bytearray(connections_max * LINE_BYTES)
        """For each connection TAIL_BYTES_MAX bytes, and a byte that says how many are used."""
        self.compiled = self._kernel.compile_intake(self._tails)
        """The same for compiled passes; None where the kernel is not compiled."""
        self.rejected = b""
        """The first bytes of the line that was INVALID last, at most LINE_BYTES of them."""

    def open(self, connection: int) -> None:
        """Drop what an earlier connection left in this slot."""
        self._tails[connection * LINE_BYTES + TAIL_BYTES_MAX] = 0

    def receive(self, connection: int, start: int, size: int) -> int:
        """Take in arena[start:start + size], the next piece of this connection's stream.

        Returns a Verdict (as a plain int). After INVALID or TERMINATE nothing more of the
        connection may be received. The headroom before `start` is overwritten. Raises ValueError
        where `free_bytes` is below CHUNK_BYTES_MAX and the piece does not fit.
        """
        stop = start + size
        place = connection * LINE_BYTES
        tail_bytes = self._tails[place + TAIL_BYTES_MAX]
        if tail_bytes:
            self._arena[start - tail_bytes : start] = self._tails[place : place + tail_bytes]
            start -= tail_bytes
        verdict = self._ingest(start, stop)
        end = start + self._kernel.consumed
        if verdict == _MORE and end != stop:
            self._tails[place : place + stop - end] = self._arena[end:stop]
            self._tails[place + TAIL_BYTES_MAX] = stop - end
        elif tail_bytes:
            self._tails[place + TAIL_BYTES_MAX] = 0
        if verdict == _INVALID:
            self._reject(end, stop)
        return verdict

    def note_taken(self, verdict: int) -> None:
        """Note what a call of a compiled pass has ended with, before the next one."""
        assert verdict >= 0, "the pass did not look for room in the batch"
        if verdict == _INVALID:
            assert self.compiled is not None
            self._reject(*self.compiled.rejected)

    def note_complete(self) -> None:
        """Make `complete` tell something."""
        if self.compiled is not None:
            self.compiled.note_complete()

    @property
    def complete(self) -> list[int]:
        """The connections of which the last compiled call took in at least one whole line."""
        return [] if self.compiled is None else self.compiled.complete

    def _reject(self, start: int, stop: int) -> None:
        self.rejected = bytes(self._arena[start : min(start + LINE_BYTES, stop)])

    def has_tail(self, connection: int) -> bool:
        """Return whether the connection's stream, as received so far, ends within a line."""
        return self._tails[connection * LINE_BYTES + TAIL_BYTES_MAX] > 0

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
