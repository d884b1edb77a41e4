"""One reactor's loop: its completions to its intake, and the batch of that to the sink."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol, final

from numbers_uring.config import Terminate
from numbers_uring.errors import SinkError
from numbers_uring.ingest.intake import Intake
from numbers_uring.ingest.kernel import Verdict
from numbers_uring.ingest.report import Counts
from numbers_uring.limits import (
    CHUNK_BYTES_MAX,
    CLOSE_POLL_S,
    GATHER_S_MAX,
    NO_SPACE_RETRY_S,
    SLOW_APPEND_S,
    STOP_RETRY_S,
    STOP_TRIES,
    WAIT_S_MAX,
)
from numbers_uring.log.sink import Sink
from numbers_uring.reactor.contract import End, Kind, Reactor
from numbers_uring.server.backpressure import Backpressure
from numbers_uring.server.closes import Batches, BatchState, PendingCloses
from numbers_uring.server.disconnect_log import DisconnectLog
from numbers_uring.server.idle import IdleTimeouts
from numbers_uring.server.statistics import Statistics

_OPENED, _RECEIVED, _TAKEN = int(Kind.OPENED), int(Kind.RECEIVED), int(Kind.TAKEN)
_RESET, _DISCONNECTED = int(End.RESET), int(End.DISCONNECTED)
_END_NAMES = tuple(end.name.lower() for end in End)
_MORE, _TERMINATE = int(Verdict.MORE), int(Verdict.TERMINATE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shared:
    """What all loops of a server have in common."""

    sink: Sink
    backpressure: Backpressure
    connections_max: int
    idle_timeout_s: float
    """Zero: clients may be idle without limit."""
    terminate: Terminate = Terminate.ANY
    disconnects: DisconnectLog | None = None
    batches: Batches = field(default_factory=Batches)


class Runner(Protocol):
    """What differs between the loop that accepts clients and the loops that are handed theirs."""

    @property
    def stopping(self) -> bool:
        """Whether the loop is to end; asked after each completion."""

    def due_s(self) -> float:
        """Return when the loop must wake up without an event of a client."""

    def take_over(self, connection: int) -> bool:
        """Move a connection that was just OPENED to another loop; return False if it stays."""

    def connection_closed(self) -> None:
        """Called when one of the loop's slots is free again."""


@final
class Loop:
    """What every reactor's loop does, whether it is the only one or one of several.

    Its creator adds its `batch` to the shared batches before the first turn.
    """

    def __init__(
        self,
        reactor: Reactor,
        intake: Intake,
        shared: Shared,
        runner: Runner,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._reactor = reactor
        self._intake = intake
        self._sink = shared.sink
        self._backpressure = shared.backpressure
        self._terminate = shared.terminate
        self._disconnects = shared.disconnects
        self._runner = runner
        self._clock = clock
        self._sleep = sleep
        self._idle = IdleTimeouts(shared.idle_timeout_s, clock) if shared.idle_timeout_s else None
        self._reasons: list[str | None] = [None] * shared.connections_max
        self._rejected: dict[int, bytes] = {}
        self._retry_due_s = 0.0
        self._append_s = 0.0
        """How long the last append took."""
        self._closes = PendingCloses(reactor, shared.sink, shared.batches, runner.connection_closed)
        self.batch = BatchState()
        self.statistics = Statistics()
        self.terminated = False
        """Whether one of its clients has sent `terminate`."""
        if self._idle is not None:
            intake.note_complete()
        if intake.compiled is not None:
            intake.compiled.note_unwritten(self.batch.flag)
        reactor.take_in(intake, shared.sink.compiled)

    @property
    def taken(self) -> Counts:
        """The numbers that this loop has taken in; from any thread."""
        return Counts(self._intake.unique, self._intake.duplicate)

    # One turn.

    def turn(self) -> None:
        """Append, wait, take in; or only wait, while clients are held back."""
        if self._backpressure.full and self._clock() < self._retry_due_s:
            # Nothing is received meanwhile: the clients are held back.
            self._reactor.sleep(min(self._retry_due_s, self._runner.due_s()) - self._clock())
        elif self.append():
            if self._backpressure.full:
                # It is another loop's batch that did not fit.
                self._retry_due_s = self._clock() + NO_SPACE_RETRY_S
                return
            self._closes.finish()
            self._pass()

    def retry_now(self) -> None:
        """Append with the next turn, however recently the sink was full."""
        self._retry_due_s = 0.0

    def _pass(self) -> None:
        timeout_s = self._timeout_s()
        if self._idle is None:
            self._take_completions(timeout_s)
            return
        self._idle.begin_pass(timeout_s)
        complete = self._take_completions(timeout_s)
        if complete:
            self._end_idle(self._idle)
        self._idle.end_pass()

    def _take_completions(self, timeout_s: float) -> bool:
        """Act on what has happened; return False where that was left early.

        Before an append that takes long, as one with a sync does, take in all that is there: for as
        long as the last one took, and as far as the batch has room.
        """
        received_bytes = self.statistics.received_bytes
        complete = self._take_pass(timeout_s)
        if self._append_s < SLOW_APPEND_S:
            return complete
        until_s = self._clock() + min(self._append_s, GATHER_S_MAX)
        while (
            complete
            and self.statistics.received_bytes > received_bytes
            and self._intake.free_bytes >= CHUNK_BYTES_MAX
            and self._clock() < until_s
        ):
            received_bytes = self.statistics.received_bytes
            complete = self._take_pass(0)
        return complete

    def _take_pass(self, timeout_s: float) -> bool:
        runner = self._runner
        for completion in self._reactor.wait(timeout_s):
            if not self._handle(*completion) or self.terminated or runner.stopping:
                return False
        return True

    def _handle(self, kind: int, connection: int, start: int, size: int) -> bool:
        """Act on one completion; return False where no further chunk may be received."""
        if kind == _TAKEN:
            self._taken(connection, start, size)
        elif kind == _RECEIVED:
            self._receive(connection, start, size)
        elif kind == _OPENED:
            if not self._runner.take_over(connection):
                self._opened(connection)
            return True
        else:
            self._closed(connection, start)
            return True
        # The next chunk must fit whole, or not be received at all.
        return self._intake.free_bytes >= CHUNK_BYTES_MAX or self.append()

    def _taken(self, connection: int, verdict: int, size: int) -> None:
        self.statistics.received_bytes += size
        self._intake.note_taken(verdict)
        if self._idle is not None:
            for each in self._intake.complete:
                self._idle.touch(each)
        if verdict != _MORE:
            self._stop_receiving(connection, verdict)

    def _receive(self, connection: int, start: int, size: int) -> None:
        self.statistics.received_bytes += size
        self.batch.unwritten = True
        verdict = self._intake.receive(connection, start, size)
        if self._idle is not None and self._intake.completed_a_line:
            self._idle.touch(connection)
        if verdict != _MORE:
            self._stop_receiving(connection, verdict)

    def _stop_receiving(self, connection: int, verdict: int) -> None:
        if verdict == _TERMINATE and self._may_terminate(connection):
            self.terminated = True
            self._disconnect(connection, "stop")
        else:
            if self._disconnects is not None:
                rejected = b"terminate\n" if verdict == _TERMINATE else self._intake.rejected
                self._rejected[connection] = rejected
            self._disconnect(connection, "invalid")

    def _may_terminate(self, connection: int) -> bool:
        if self._terminate is Terminate.LOCAL:
            return self._reactor.peer(connection).is_local
        return self._terminate is Terminate.ANY

    def _opened(self, connection: int) -> None:
        self._intake.open(connection)
        self.statistics.accepted += 1
        self._reasons[connection] = None
        if self._idle is not None:
            self._idle.touch(connection)

    def _closed(self, connection: int, end: int) -> None:
        reason = self._reasons[connection]
        if reason is None:
            if end == _DISCONNECTED:
                reason = "stop"
            elif self._intake.has_tail(connection):
                reason = "incomplete"
            else:
                reason = _END_NAMES[end]
        self.statistics.ended[reason] += 1
        if self._disconnects is not None:
            rejected = self._rejected.pop(connection, None)
            self._disconnects.note(self._reactor.peer(connection), reason, rejected)
        if self._idle is not None:
            self._idle.forget(connection)
        self._closes.add(connection, orderly=end != _RESET)

    def _disconnect(self, connection: int, reason: str) -> None:
        self._reasons[connection] = reason
        if self._idle is not None:
            # Its CLOSED may come with a later pass: it is not idle meanwhile.
            self._idle.forget(connection)
        self._reactor.disconnect(connection)

    def _end_idle(self, idle: IdleTimeouts) -> None:
        for connection in idle.take_due():
            if self._reactor.held_bytes(connection):
                # It has sent something that the server has not read yet.
                idle.touch(connection)
            else:
                self._disconnect(connection, "idle")

    def _timeout_s(self) -> float:
        timeout_s = self._runner.due_s() - self._clock()
        if self._idle is not None:
            left_s = self._idle.left_s()
            timeout_s = min(timeout_s, math.inf if left_s is None else left_s)
        if self._closes:
            timeout_s = min(timeout_s, self._closes.poll_s)
        return min(max(timeout_s, 0), WAIT_S_MAX)

    # The sink.

    def append(self) -> bool:
        """Append the batch; return False if it did not fit. Raises SinkError."""
        lines = self._intake.batch
        if not lines:
            if self.batch.unwritten and self._sink.compiled is not None:
                # A pass appends only while that is quick.
                self._append_s = 0.0
                self._sink.note_appends()
            self._note_append()
            return True
        begin_s = self._clock()
        self._intake.discard(self._sink.append(lines))
        self._append_s = self._clock() - begin_s
        full = bool(self._intake.batch)
        if full:
            self._retry_due_s = self._clock() + NO_SPACE_RETRY_S
        else:
            self._note_append()
        if full or self._backpressure.full:
            self._backpressure.note(self, full=full)
        return not full

    def _note_append(self) -> None:
        if self.batch.unwritten:
            self.batch.appends += 1
            self.batch.unwritten = False

    # Stopping.

    def drain(self, end_s: float) -> None:
        """Take in what the clients had delivered, and until `end_s` what comes on top.

        Closes every connection once its numbers are stored, which makes room for clients that wait
        in the backlog. Raises SinkError where not everything can be appended.
        """
        self.append_or_fail()
        self._closes.finish()
        handed_out = True
        while handed_out or self._closes:
            handed_out = False
            for completion in self._reactor.drain(end_s):
                handed_out = True
                if not self._handle(*completion):
                    self.append_or_fail()
            self.append_or_fail()
            self._closes.finish()
            if self._closes and not handed_out:
                self._wait_until_stored()

    def _wait_until_stored(self) -> None:
        mark = self._closes.awaited_mark
        if mark is not None:
            self._sink.wait_until_stored(mark)
        else:
            # Another loop appends its batch at this moment, or fails.
            self._sleep(CLOSE_POLL_S)
        self._closes.finish()

    def append_or_fail(self) -> None:
        """Append the batch, with a few retries on a full disk. Raises SinkError."""
        for _ in range(STOP_TRIES - 1):
            if self.append():
                return
            self._sleep(STOP_RETRY_S)
        if not self.append():
            raise SinkError(self._sink.full_message)
