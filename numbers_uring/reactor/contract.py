"""The contract of a reactor: what has happened on the sockets, handed out as completions."""

from collections.abc import Iterator
from enum import IntEnum
from typing import Any, Protocol

from numbers_uring.addresses import Peer
from numbers_uring.ingest.intake import Intake
from numbers_uring.ingest.kernel import Memory


class Kind(IntEnum):
    """What a completion tells. Every kind is handed out exactly once for what it stands for."""

    OPENED = 0
    """A client was accepted into this slot."""
    RECEIVED = 1
    """`size` > 0 bytes of the client's stream lie in the arena from `start` on."""
    CLOSED = 2
    """The connection is over. `start` is an End; the caller must then call `finish_close`."""
    TAKEN = 3
    """`size` bytes, of any connections, were received and taken in: see `take_in`. The last piece
    is this connection's, and `start` is the Verdict on it; on all before it, that is MORE."""


class End(IntEnum):
    """How a connection ended."""

    EOF = 0
    """The client closed or shut down its side."""
    RESET = 1
    """The client's host reset the connection, or vanished."""
    DISCONNECTED = 2
    """The server's own `disconnect`."""


Completion = tuple[int, int, int, int]
"""(Kind, connection, start, size): plain integers, because one is made for each packet."""


class Appends(Protocol):
    """What compiled passes append to the log with, see native/log/append.h."""

    pointer: Any
    """The `struct nu_log`, which lives as long as this."""


class Reactor(Protocol):
    """Sockets in, completions out; a connection is named by its slot, 0 to connections_max - 1.

    Accepted TCP sockets inherit SO_LINGER {1, 0} from their listener: whatever closes them, the end
    of the process included, resets the connection. Only an orderly `finish_close` takes it back.
    """

    @property
    def arena(self) -> Memory:
        """The memory that is received into, for the reactor's whole life.

        HEADROOM_BYTES in front of each received piece are free for the receiver of the completion.
        """

    @property
    def refused(self) -> int:
        """Clients accepted and closed at once because all slots were taken."""

    def wait(self, timeout_s: float) -> Iterator[Completion]:
        """Wait until something happens, at most `timeout_s`, and hand it out.

        At most one RECEIVED for each connection. A received piece is the caller's until it resumes
        the iterator. An iterator that is left early loses nothing: what was not handed out comes
        with the next wait. Ends early when the wake-up descriptor is readable.

        The CLOSED of a connection that its client has ended comes with a later wait than its last
        bytes.
        """

    def take_in(self, intake: Intake, appends: Appends | None = None) -> None:
        """Let `wait` take in what it receives, in few calls, where reactor and intake can do so.

        It then hands out TAKEN instead of RECEIVED, in few completions. Whenever the batch has less
        than CHUNK_BYTES_MAX free, a TAKEN comes first, of 0 bytes if need be: the caller must then
        make room, or leave the iterator. With `appends`, what was taken in is also appended, as far
        as these allow that. To be called before the first wait. `drain` hands out RECEIVED all the
        same.
        """

    def drain(self, end_s: float) -> Iterator[Completion]:
        """Stop accepting, hand out what the sockets hold at this moment, close every connection.

        Everything that a connected client, or one that waits in the backlog, had delivered to this
        host is handed out. Bytes that come later may be, until `end_s` on the monotonic clock, on
        a slow host beyond that, and in a bounded number: see DrainBound.

        Clients in the backlog are accepted as far as slots and descriptors are free, which each
        `finish_close` makes one of. Call it again after those that come later, until it hands out
        nothing. Nothing but that, `finish_close` and `close` may follow.
        """

    def finish_close(self, connection: int, *, orderly: bool) -> None:
        """Close the descriptor after the CLOSED; only then is the slot used again.

        `orderly` says that everything RECEIVED from the client is stored: it then sees a FIN, or a
        reset where bytes are left that were not RECEIVED. Otherwise it sees a reset.
        """

    def disconnect(self, connection: int) -> None:
        """End the connection: nothing more is RECEIVED from it, and its CLOSED comes soon.

        The client sees nothing of that before `finish_close`.
        """

    def held_bytes(self, connection: int) -> int:
        """Return how much the client has delivered that was not RECEIVED; 0 if that is unknown."""

    def peer(self, connection: int) -> Peer:
        """Return who was accepted into this slot; valid until the next one is."""

    def release(self, connection: int) -> int:
        """Detach a connection whose OPENED was just returned, and return its descriptor.

        To be called before the next completion is asked for; there is no CLOSED for it.
        """

    def adopt(self, fd: int, peer: Peer) -> None:
        """Take over what another reactor has released; its OPENED comes with the next wait.

        To be called between two waits, where a slot is free once all that is closed is handed out.
        """

    def set_connections_elsewhere(self, connections: int) -> None:
        """Count so many connections of other reactors against connections_max when accepting."""

    def sleep(self, timeout_s: float) -> None:
        """Wait for the wake-up descriptor alone, at most `timeout_s`: nothing is received."""

    def close(self) -> None:
        """Close everything that is open, without a further completion: clients see a reset."""
