"""Connections that have ended, until their numbers are stored and their clients may see it."""

from collections.abc import Callable
from dataclasses import dataclass, field

from numbers_uring.limits import CLOSE_POLL_GROWTH, CLOSE_POLL_MAX_S, CLOSE_POLL_S
from numbers_uring.log.sink import Sink
from numbers_uring.reactor.contract import Reactor


@dataclass(slots=True, eq=False)
class BatchState:
    """Whether one loop's numbers have reached the sink: written by its thread, read by all."""

    flag: bytearray = field(default_factory=lambda: bytearray(1))
    """The byte that compiled passes set to 1 before they take in anything: `unwritten`."""
    appends: int = 0
    """How often that has ended."""

    @property
    def unwritten(self) -> bool:
        """Whether the loop has taken in anything that the sink may not have."""
        return self.flag[0] != 0

    @unwritten.setter
    def unwritten(self, unwritten: bool) -> None:
        self.flag[0] = unwritten


@dataclass(slots=True)
class Batches:
    """The batches of all loops of a server."""

    states: list[BatchState] = field(default_factory=list)
    failed: bool = False
    """Whether the sink or a reactor has failed: no close may look orderly any more."""


@dataclass(slots=True)
class _Close:
    connection: int
    orderly: bool
    """Whether it was received from to its end, or its client disconnected."""
    others: list[tuple[BatchState, int]]
    """Batches that were unwritten when the connection ended, each with its appends then."""
    mark: int | None = None
    """Of the sink, once it has all of those."""


class PendingCloses:
    """The ended connections of one loop.

    A client may take an orderly close to mean that every number it sent is stored, in whichever
    loop's batch that number is: a repeat may be new in another one's. `on_closed` is called when a
    slot is free again.
    """

    def __init__(
        self, reactor: Reactor, sink: Sink, batches: Batches, on_closed: Callable[[], None]
    ) -> None:
        self._reactor = reactor
        self._sink = sink
        self._batches = batches
        self._on_closed = on_closed
        self._pending: list[_Close] = []
        self.poll_s = CLOSE_POLL_S
        """When to try again; the longer they have waited for it, the later."""

    def __bool__(self) -> bool:
        return bool(self._pending)

    @property
    def awaited_mark(self) -> int | None:
        """The sink's mark of all that they wait for; None while a loop's batch is missing."""
        marks = [each.mark for each in self._pending if each.mark is not None]
        return max(marks) if marks and len(marks) == len(self._pending) else None

    def add(self, connection: int, *, orderly: bool = True) -> None:
        """Close a connection that was CLOSED, at once or later. Raises SinkError.

        Without `orderly` its client is reset: what it sent could not all be received.

        It alone is looked at: thousands that end in one pass must not each look at all the others.
        """
        others = [(state, state.appends) for state in self._batches.states if state.unwritten]
        self._sink.check()
        close = _Close(connection, orderly, others)
        if not self._finished(close):
            self._pending.append(close)
            self.poll_s = CLOSE_POLL_S

    def finish(self) -> None:
        """Close the connections whose numbers are stored. Raises SinkError."""
        if not self._pending:
            return
        self._sink.check()
        pending, self._pending = self._pending, []
        self._pending = [each for each in pending if not self._finished(each)]
        if len(self._pending) < len(pending):
            self.poll_s = CLOSE_POLL_S
        else:
            self.poll_s = min(self.poll_s * CLOSE_POLL_GROWTH, CLOSE_POLL_MAX_S)

    def _finished(self, close: _Close) -> bool:
        """Close the connection if its numbers are stored, or can no longer be."""
        stored = self._is_stored(close)
        if not stored and not self._batches.failed:
            return False
        orderly = close.orderly and stored and not self._batches.failed
        self._reactor.finish_close(close.connection, orderly=orderly)
        self._on_closed()
        return True

    def _is_stored(self, close: _Close) -> bool:
        if close.mark is None:
            for state, before in close.others:
                if state.unwritten and state.appends == before:
                    return False
            close.mark = self._sink.mark()
        return self._sink.has(close.mark)
