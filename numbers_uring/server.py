"""The only loop: completions to the intake, its batch to the log, its counters to reports."""

import math
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from enum import StrEnum
from signal import Signals
from typing import Protocol

from numbers_uring.config import (
    NO_SPACE_RETRY_S,
    PIECE_BYTES_MAX,
    STOP_RETRY_S,
    STOP_TRIES,
    Terminate,
)
from numbers_uring.disconnect_lines import DisconnectLines
from numbers_uring.idle import IdleClock
from numbers_uring.intake import Intake
from numbers_uring.kernel import Verdict
from numbers_uring.numbers_log import LogError, NumbersLog
from numbers_uring.reactor import BackendError, End, Kind, Reactor
from numbers_uring.report import Counts, next_due_s, report_line

_OPENED, _RECEIVED = int(Kind.OPENED), int(Kind.RECEIVED)
_MORE, _TERMINATE = int(Verdict.MORE), int(Verdict.TERMINATE)
_NEVER_S = 3600.0
"""The longest wait. It only bounds one call: waiting again costs nothing at this rate."""


class Phase(StrEnum):
    """What a server is about, as far as whoever runs it is concerned."""

    SERVING = "serving"
    HELD_BACK = "held back"
    """There is no space for the log, and nothing is received."""
    RELOADING = "reloading"
    """The log is being reopened."""
    STOPPING = "stopping"
    """The last one: drained, synced, and then over."""


class Requests(Protocol):
    """Where requests from outside show; the reactor's wake-up descriptor tells of them."""

    @property
    def stop(self) -> Signals | None: ...

    def take_reopen(self) -> bool:
        """Say whether the log is to be reopened; asked before each wait."""

    def take_report(self) -> bool:
        """Say whether a report is wanted now; asked before each wait."""


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


class Server:
    """One run. The parts are the caller's to close.

    `report` is given each report line and says whether it was written; one that was not is folded
    into the next. Its second argument is true for the last one, which is worth a short wait. `say`
    takes one line for the operator. `disconnects`, unless None, is told of each client that left.
    `beat` is called by the loop at least every `beat_interval_s`, as long as it comes round.
    `enter` is told of each Phase; the first is SERVING, when the first client can be served.
    """

    def __init__(
        self,
        reactor: Reactor,
        intake: Intake,
        log: NumbersLog,
        requests: Requests,
        *,
        connections_max: int,
        report_interval_s: float,
        idle_timeout_s: float,
        report: Callable[[str, bool], bool],
        say: Callable[[str], None],
        terminate: Terminate = Terminate.ANY,
        disconnects: DisconnectLines | None = None,
        beat: Callable[[], None] = lambda: None,
        beat_interval_s: float = math.inf,
        enter: Callable[[Phase], None] = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._reactor = reactor
        self._intake = intake
        self._log = log
        self._requests = requests
        self._report = report
        self._say = say
        self._terminate = terminate
        self._disconnects = disconnects
        self._beat = beat
        self._beat_interval_s = beat_interval_s
        self._beat_due_s = clock() + beat_interval_s
        self._tell_phase = enter
        self._clock = clock
        self._sleep = sleep
        self.statistics = Statistics()
        self._reported = Counts(0, 0)
        self._report_interval_s = report_interval_s
        self._report_due_s = clock() + report_interval_s
        self._idle = IdleClock(idle_timeout_s) if idle_timeout_s else None
        self._reasons: list[str | None] = [None] * connections_max
        self._rejected: dict[int, bytes] = {}
        self._out_of_space = False
        # What is over, and since when it goes on: one object, because other threads ask for it.
        self._held_back: tuple[float, float | None] = (0.0, None)
        self._retry_due_s = 0.0
        self._terminated = False
        self._ending = False

    def run(self) -> None:
        """Serve until `terminate` or a stop request, then drain, sync and report.

        Raises, after the last report, LogError where lines that were counted are not on file, and
        BackendError where the reactor failed; what was taken in before that is on file.
        """
        failure: LogError | None = None
        backend_failure: OSError | None = None
        try:
            try:
                self._serve()
                self._drain()
            except OSError as error:
                backend_failure = error
            self._finish_log()
        except LogError as error:
            failure = error
        self._put_report(last=True)
        if self._disconnects is not None:
            self._disconnects.flush(self._reactor.refused)
        if failure is not None:
            raise LogError(f"{failure}{self._loss()}") from failure
        if backend_failure is not None:
            raise BackendError(f"the backend failed: {backend_failure}") from backend_failure

    def _serve(self) -> None:
        self._tell_phase(Phase.SERVING)
        try:
            while not self.stopping:
                self._turn()
        finally:
            self._ending = True
            self._tell_phase(Phase.STOPPING)

    def _loss(self) -> str:
        """Save what can be saved after a failure, and say what can't."""
        with suppress(LogError):
            self._log.finish()
        lost = self._intake.unique - self._log.written_lines
        return f"; {lost} counted numbers are lost, they are not in it" if lost else ""

    @property
    def stopped_by(self) -> str:
        """What ended the run, for the operator."""
        if self._requests.stop is not None and not self._terminated:
            return self._requests.stop.name
        return "terminate"

    @property
    def stopping(self) -> bool:
        """Whether a stop was asked for; from any thread."""
        return self._terminated or self._requests.stop is not None

    @property
    def out_of_space(self) -> bool:
        """Whether clients are held back because there is no space for the log; from any thread."""
        return self._out_of_space

    @property
    def held_back_s(self) -> float:
        """How long clients were held back for that, up to now; from any thread."""
        over_s, since_s = self._held_back
        return over_s if since_s is None else over_s + self._clock() - since_s

    # One pass.

    def _turn(self) -> None:
        self._log.check()
        if self._requests.take_reopen():
            self._reopen()
        if self._requests.take_report():
            self._put_report(last=False)
        if self._out_of_space and self._clock() < self._retry_due_s:
            # Nothing is received meanwhile: the clients are held back.
            due_s = min(self._retry_due_s, self._report_due_s, self._beat_due_s)
            self._reactor.sleep(due_s - self._clock())
            self._report_and_beat(self._clock())
        elif self._append():
            self._pass()
            self._timers()

    def _pass(self) -> None:
        for completion in self._reactor.wait(self._timeout_s()):
            if not self._handle(*completion) or self.stopping:
                return

    def _handle(self, kind: int, connection: int, start: int, size: int) -> bool:
        """Act on one completion; False where no further piece may be received."""
        if kind == _RECEIVED:
            self._receive(connection, start, size)
            # The next piece must fit whole, or not be received at all.
            return self._intake.room >= PIECE_BYTES_MAX or self._append()
        if kind == _OPENED:
            self._opened(connection)
        else:
            self._closed(connection, start)
        return True

    def _receive(self, connection: int, start: int, size: int) -> None:
        self.statistics.received_bytes += size
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
        self.statistics.accepted += 1
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
        self.statistics.ended[reason] += 1
        if self._disconnects is not None:
            rejected = self._rejected.pop(connection, None)
            self._disconnects.note(self._reactor.peer(connection), reason, rejected)
        if self._idle is not None:
            self._idle.forget(connection)

    def _disconnect(self, connection: int, reason: str) -> None:
        self._reasons[connection] = reason
        self._reactor.disconnect(connection)

    # The log.

    def _append(self) -> bool:
        """Put the batch on file; False where there is no space for all of it."""
        lines = self._intake.batch
        if not lines:
            return True
        self._intake.discard(self._log.append(lines))
        full = bool(self._intake.batch)
        if full or self._out_of_space:
            self._note_space(full)
        return not full

    def _note_space(self, full: bool) -> None:
        now_s = self._clock()
        self._retry_due_s = now_s + NO_SPACE_RETRY_S
        over_s = self.held_back_s
        if full and not self._out_of_space:
            self._held_back = over_s, now_s
            self._say(
                f"no space for the log {self._log.path}: holding the clients back, "
                f"trying again every {NO_SPACE_RETRY_S:g} s"
            )
        elif not full:
            self._held_back = over_s, None
            self._say(f"there is space for the log {self._log.path} again: going on")
            if self._idle is not None:
                self._idle.touch_all(now_s)
        if full != self._out_of_space and not self._ending:
            self._tell_phase(Phase.HELD_BACK if full else Phase.SERVING)
        self._out_of_space = full

    def _reopen(self) -> None:
        """Leave everything so far in the old file, and go on in what the path names now."""
        self._append()
        self._tell_phase(Phase.RELOADING)
        self._log.reopen()
        self._tell_phase(Phase.HELD_BACK if self._out_of_space else Phase.SERVING)
        self._retry_due_s = 0.0

    # Timers.

    def _timeout_s(self) -> float:
        due_s = min(self._report_due_s, self._beat_due_s)
        if self._idle is not None:
            due_s = min(due_s, self._idle.next_due_s() or math.inf)
        return min(max(due_s - self._clock(), 0), _NEVER_S)

    def _timers(self) -> None:
        now_s = self._clock()
        self._report_and_beat(now_s)
        if self._idle is not None:
            for connection in self._idle.take_due(now_s):
                self._disconnect(connection, "idle")
        if self._disconnects is not None:
            self._disconnects.note_refused(self._reactor.refused)

    def _report_and_beat(self, now_s: float) -> None:
        if now_s >= self._beat_due_s:
            self._beat_due_s = now_s + self._beat_interval_s
            self._beat()
        if now_s >= self._report_due_s:
            self._report_due_s = next_due_s(self._report_due_s, now_s, self._report_interval_s)
            self._put_report(last=False)

    def _put_report(self, *, last: bool) -> None:
        counts = Counts(self._intake.unique, self._intake.duplicate)
        if self._report(report_line(self._reported, counts), last):
            self._reported = counts
        else:
            self.statistics.reports_dropped += 1

    # Stopping.

    def _drain(self) -> None:
        """Take in what the clients had delivered."""
        self._append_or_fail()
        for completion in self._reactor.drain():
            if not self._handle(*completion):
                self._append_or_fail()

    def _finish_log(self) -> None:
        self._append_or_fail()
        self._log.finish()

    def _append_or_fail(self) -> None:
        """Put the batch on file, with a little patience for a full disk."""
        for _ in range(STOP_TRIES - 1):
            if self._append():
                return
            self._sleep(STOP_RETRY_S)
        if not self._append():
            raise LogError(f"no space for the log {self._log.path}")
