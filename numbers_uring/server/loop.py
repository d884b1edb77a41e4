"""One reactor's loop: its completions to its intake, and the batch of that to the sink."""

import math
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from numbers_uring.config import Terminate
from numbers_uring.errors import SinkError
from numbers_uring.ingest.intake import Intake
from numbers_uring.ingest.kernel import Verdict
from numbers_uring.ingest.report import Counts
from numbers_uring.limits import (
    CHUNK_BYTES_MAX,
    ENDED_POLL_S,
    NO_SPACE_RETRY_S,
    STOP_RETRY_S,
    STOP_TRIES,
)
from numbers_uring.log.sink import Sink
from numbers_uring.reactor.contract import End, Kind, Reactor
from numbers_uring.server.backpressure import Backpressure
from numbers_uring.server.disconnect_log import DisconnectLog
from numbers_uring.server.idle import IdleTimeouts

_OPENED, _RECEIVED = int(Kind.OPENED), int(Kind.RECEIVED)
_MORE, _TERMINATE = int(Verdict.MORE), int(Verdict.TERMINATE)
_NEVER_S = 3600.0
"""The longest wait. It only bounds one call: waiting again costs nothing at this rate."""


@dataclass(slots=True)
class Statistics:
    """What became of the connections of one run, beside the numbers that the intake counts."""

    accepted: int = 0
    ended: Counter[str] = field(default_factory=Counter)
    """By reason: eof, reset, incomplete, invalid, idle, stop."""
    received_bytes: int = 0
    reports_dropped: int = 0
    """Reports that nobody read, each folded into the next."""

    @property
    def connected(self) -> int:
        """Clients that are connected now."""
        return self.accepted - self.ended.total()


@dataclass(frozen=True, slots=True, kw_only=True)
class Shared:
    """What all loops of a server have in common."""

    sink: Sink
    space: Backpressure
    connections_max: int
    idle_timeout_s: float
    """Zero: clients may be silent for ever."""
    terminate: Terminate = Terminate.ANY
    disconnects: DisconnectLog | None = None
    loops: "list[Loop]" = field(default_factory=list)
    """All of them, each from its constructor on."""


@dataclass(slots=True)
class _Ended:
    """A connection that its client has ended, and sees closed when its numbers are settled."""

    connection: int
    others: "list[tuple[Loop, int]]"
    """The other loops, each with its appends at that moment."""
    mark: int | None = None
    """Of the sink, once those loops have appended what they had."""


class Loop:
    """What every reactor's loop does, whether it is the only one or one of several."""

    def __init__(
        self,
        reactor: Reactor,
        intake: Intake,
        shared: Shared,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._reactor = reactor
        self._intake = intake
        self._sink = shared.sink
        self._space = shared.space
        self._terminate = shared.terminate
        self._disconnects = shared.disconnects
        self._clock = clock
        self._sleep = sleep
        self._statistics = Statistics()
        self._idle = IdleTimeouts(shared.idle_timeout_s) if shared.idle_timeout_s else None
        self._reasons: list[str | None] = [None] * shared.connections_max
        self._rejected: dict[int, bytes] = {}
        self._terminated = False
        self._held = False
        self._retry_due_s = 0.0
        self._ended: list[_Ended] = []
        self._loops = shared.loops
        self.unwritten = False
        """Whether it has taken in anything that the sink does not have; from any thread."""
        self.appends = 0
        """Times that this was over; from any thread."""
        self._loops.append(self)

    @property
    def taken(self) -> Counts:
        """The numbers that this loop has taken in."""
        return Counts(self._intake.unique, self._intake.duplicate)

    @property
    def own_statistics(self) -> Statistics:
        """What became of this loop's connections, as it goes on."""
        return self._statistics

    @property
    def stopping(self) -> bool:
        """Whether a stop was asked for; from any thread."""
        raise NotImplementedError

    # One pass.

    def _turn(self) -> None:
        """Append, wait, take in; or only wait, while clients are held back."""
        if self._space.full and self._clock() < self._retry_due_s:
            # Nothing is received meanwhile: the clients are held back.
            self._held = True
            self._reactor.sleep(min(self._retry_due_s, self._due_s()) - self._clock())
        elif self._append():
            if self._space.full:
                # It is another loop's batch that found no room.
                self._retry_due_s = self._clock() + NO_SPACE_RETRY_S
                return
            if self._held:
                self._held = False
                if self._idle is not None:
                    self._idle.touch_all(self._clock())
            self._finish_closes()
            self._pass()
            self._end_idle()

    def _pass(self) -> None:
        for completion in self._reactor.wait(self._timeout_s()):
            if not self._handle(*completion) or self.stopping:
                return

    def _handle(self, kind: int, connection: int, start: int, size: int) -> bool:
        """Act on one completion; False where no further piece may be received."""
        if kind == _RECEIVED:
            self._receive(connection, start, size)
            # The next piece must fit whole, or not be received at all.
            return self._intake.room >= CHUNK_BYTES_MAX or self._append()
        if kind == _OPENED:
            self._opened(connection)
        else:
            self._closed(connection, start)
        return True

    def _receive(self, connection: int, start: int, size: int) -> None:
        self._statistics.received_bytes += size
        self.unwritten = True
        verdict = self._intake.receive(connection, start, size)
        if self._idle is not None and self._intake.completed_a_line:
            self._idle.touch(connection, self._clock())
        if verdict == _MORE:
            return
        if verdict == _TERMINATE and self._may_terminate(connection):
            self._terminated = True
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
        self._statistics.accepted += 1
        self._reasons[connection] = None
        if self._idle is not None:
            self._idle.touch(connection, self._clock())

    def _closed(self, connection: int, end: int) -> None:
        reason = self._reasons[connection]
        if reason is None:
            if end == End.DISCONNECTED:
                reason = "stop"
            elif self._intake.has_tail(connection):
                reason = "incomplete"
            else:
                reason = End(end).name.lower()
        self._statistics.ended[reason] += 1
        if self._disconnects is not None:
            rejected = self._rejected.pop(connection, None)
            self._disconnects.note(self._reactor.peer(connection), reason, rejected)
        if self._idle is not None:
            self._idle.forget(connection)
        others = [(loop, loop.appends) for loop in self._loops if loop.unwritten]
        self._ended.append(_Ended(connection, others))
        self._finish_closes()

    def _finish_closes(self) -> None:
        """Close the connections whose clients have ended them, once that is true which they see.

        They may take it to mean that all that they sent is where it belongs, and so must be what
        was a repeat of numbers in another loop's batch.
        """
        if self._ended:
            ended, self._ended = self._ended, []
            for each in ended:
                if self._is_settled(each):
                    self._reactor.finish_close(each.connection, orderly=True)
                    self._left()
                else:
                    self._ended.append(each)

    def _is_settled(self, ended: "_Ended") -> bool:
        if ended.mark is None:
            if any(loop.unwritten and loop.appends == appends for loop, appends in ended.others):
                return False
            # The sink has the others' numbers by now.
            ended.mark = self._sink.mark()
        return self._sink.has(ended.mark)

    def _left(self) -> None:
        """Know that one of this loop's slots is free again."""

    def _disconnect(self, connection: int, reason: str) -> None:
        self._reasons[connection] = reason
        self._reactor.disconnect(connection)

    def _end_idle(self) -> None:
        if self._idle is not None:
            for connection in self._idle.take_due(self._clock()):
                self._disconnect(connection, "idle")

    def _due_s(self) -> float:
        """When the loop has to come round for something else than clients."""
        raise NotImplementedError

    def _timeout_s(self) -> float:
        due_s = self._due_s()
        if self._idle is not None:
            due_s = min(due_s, self._idle.next_due_s() or math.inf)
        if self._ended:
            due_s = min(due_s, self._clock() + ENDED_POLL_S)
        return min(max(due_s - self._clock(), 0), _NEVER_S)

    # The sink.

    def _append(self) -> bool:
        """Hand the batch on; False where there is no space for all of it."""
        lines = self._intake.batch
        if not lines:
            self._note_append()
            return True
        self._intake.discard(self._sink.append(lines))
        full = bool(self._intake.batch)
        if full:
            self._retry_due_s = self._clock() + NO_SPACE_RETRY_S
        else:
            self._note_append()
        if full or self._space.full:
            self._space.note(self, full=full)
        return not full

    def _note_append(self) -> None:
        if self.unwritten:
            self.appends += 1
            self.unwritten = False

    # Stopping.

    def _drain(self, end_s: float) -> None:
        """Take in what the clients had delivered, and until `end_s` what comes on top."""
        self._append_or_fail()
        handed_out = True
        while handed_out or self._ended:
            handed_out = False
            for completion in self._reactor.drain(end_s):
                handed_out = True
                if not self._handle(*completion):
                    self._append_or_fail()
            self._append_or_fail()
            self._finish_closes()
            if self._ended:
                self._sink.check()
                self._sleep(ENDED_POLL_S)

    def _append_or_fail(self) -> None:
        """Hand the batch on, with a little patience for a full disk."""
        for _ in range(STOP_TRIES - 1):
            if self._append():
                return
            self._sleep(STOP_RETRY_S)
        if not self._append():
            raise SinkError(self._sink.full_message)
