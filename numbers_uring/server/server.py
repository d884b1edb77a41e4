"""The server: one loop or several, what stops them, and the reports on what they took in."""

import math
import time
from collections.abc import Callable
from contextlib import suppress
from enum import StrEnum
from signal import Signals
from typing import Protocol

from numbers_uring.errors import BackendError, Failure, SinkError
from numbers_uring.ingest.intake import Intake
from numbers_uring.ingest.report import Counts, next_due_s, report_line
from numbers_uring.limits import DRAIN_S
from numbers_uring.reactor.contract import Reactor
from numbers_uring.server.loop import Loop, Shared, Statistics
from numbers_uring.server.workers import Crew


class Phase(StrEnum):
    """What a server is about, as far as whoever runs it is concerned."""

    SERVING = "serving"
    HELD_BACK = "held back"
    """The sink has no space, and nothing is received."""
    RELOADING = "reloading"
    """The log is being reopened."""
    STOPPING = "stopping"
    """The last one: drained, synced, and then over."""


class Requests(Protocol):
    """Where requests from outside show; the reactor's wake-up descriptor tells of them."""

    failure: Failure | None
    """Set once the run has failed: a second stop signal exits at once with its exit code."""

    @property
    def stop(self) -> Signals | None: ...

    def take_reopen(self) -> bool:
        """Say whether the log is to be reopened; asked before each wait."""

    def take_report(self) -> bool:
        """Say whether a report is wanted now; asked before each wait."""

    def quiet(self) -> None:
        """Have the wake-up descriptor be readable no more, until the next request."""


class Server(Loop):
    """One run. The parts are the caller's to close.

    It is the loop of the reactor that accepts. With a `crew`, whose reactors are served by loops in
    threads of their own, clients are spread over all of them.

    `report` is given each report line and says whether it was written; one that was not is folded
    into the next. Its second argument is true for the last one, which is worth a short wait. `beat`
    is called at least every `beat_interval_s`, as long as every loop comes round. `enter` is told
    of each Phase; the first is SERVING, when the first client can be served.
    """

    def __init__(
        self,
        reactor: Reactor,
        intake: Intake,
        shared: Shared,
        requests: Requests,
        *,
        report_interval_s: float,
        report: Callable[[str, bool], bool],
        crew: Crew | None = None,
        beat: Callable[[], None] = lambda: None,
        beat_interval_s: float = math.inf,
        enter: Callable[[Phase], None] = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        super().__init__(reactor, intake, shared, clock=clock, sleep=sleep)
        self._requests = requests
        self._connections_max = shared.connections_max
        self._crew = crew
        self._report = report
        self._beat = beat
        self._beat_interval_s = beat_interval_s
        self._beat_due_s = clock() + beat_interval_s
        self._tell_phase = enter
        self._told_full = False
        self._reported = Counts(0, 0)
        self._report_interval_s = report_interval_s
        self._report_due_s = clock() + report_interval_s
        self._ending = False

    def run(self) -> None:
        """Serve until `terminate` or a stop request, then drain, sync and report.

        Raises, after the last report, SinkError where lines that were counted are not on file, and
        BackendError where a reactor failed; what was taken in before that is on file.
        """
        failure: SinkError | None = None
        backend_failure: OSError | None = None
        try:
            try:
                self._serve()
                self._drain_all()
            except OSError as error:
                backend_failure = error
            self._stop_crew()
            self._finish_sink()
        except SinkError as error:
            failure = self._requests.failure = error
        self._stop_crew()
        self._put_report(last=True)
        if self._disconnects is not None:
            self._disconnects.flush(self._reactor.refused)
        if failure is not None:
            raise SinkError(f"{failure}{self._loss()}") from failure
        if backend_failure is not None:
            raise BackendError(f"the backend failed: {backend_failure}") from backend_failure

    def _serve(self) -> None:
        self._tell_phase(Phase.SERVING)
        try:
            while not self.stopping:
                self._turn()
        finally:
            self._ending = True
            self._sink.begin_stop()
            self._tell_phase(Phase.STOPPING)

    def _drain_all(self) -> None:
        end_s = time.monotonic() + DRAIN_S
        if self._crew is None:
            self._drain(end_s)
            return
        self._crew.stop(end_s)
        self._reactor.set_connections_elsewhere(0)
        self._drain(end_s)
        self._crew.raise_failure()

    def _stop_crew(self) -> None:
        """Have the others' clients be served to the end, whatever has failed here."""
        if self._crew is not None:
            self._crew.stop(time.monotonic() + DRAIN_S)

    def _loss(self) -> str:
        """Save what can be saved after a failure, and say what can't."""
        with suppress(SinkError):
            self._sink.finish()
        lost = self.taken.unique - self._sink.written_lines
        return f"; {self._sink.loss(lost)}" if lost else ""

    # What all loops have done.

    @property
    def stopped_by(self) -> str:
        """What ended the run, for the operator."""
        if self._requests.stop is not None and not self._was_terminated:
            return self._requests.stop.name
        return "terminate"

    @property
    def _was_terminated(self) -> bool:
        return self._terminated or (self._crew is not None and self._crew.terminated)

    @property
    def stopping(self) -> bool:
        """Whether a stop was asked for; from any thread."""
        return (
            self._terminated
            or self._requests.stop is not None
            or (self._crew is not None and self._crew.ends)
        )

    @property
    def counts(self) -> Counts:
        """The numbers taken in as they are reported; from any thread."""
        return self._sink.count(self.taken)

    @property
    def taken(self) -> Counts:
        """The numbers taken in; from any thread."""
        own = super().taken
        return own if self._crew is None else self._crew.add_counts(own)

    @property
    def statistics(self) -> Statistics:
        """What became of the connections; from any thread, a copy where there is a crew."""
        own = self._statistics
        return own if self._crew is None else self._crew.add_statistics(own)

    @property
    def held_back(self) -> bool:
        """Whether clients are held back because there is no space in the sink; from any thread."""
        return self._space.full

    @property
    def held_back_s(self) -> float:
        """How long clients were held back for that, up to now; from any thread."""
        return self._space.held_back_s

    # One pass.

    def _turn(self) -> None:
        self._sink.check()
        if self._requests.take_reopen():
            self._reopen()
        if self._requests.take_report():
            self._put_report(last=False)
        if self._crew is not None:
            self._look_at(self._crew)
        # Asked again behind all of that, which may have quieted the descriptor: what was asked
        # before is seen now, and what comes later wakes the wait.
        if self.stopping:
            return
        super()._turn()
        if self._space.full != self._told_full:
            self._told_full = not self._told_full
            self._tell_phase(Phase.HELD_BACK if self._told_full else Phase.SERVING)
        self._report_and_beat(self._clock())
        if self._disconnects is not None:
            self._disconnects.note_refused(self._reactor.refused)

    def _reopen(self) -> None:
        """Leave everything so far in the old file, and go on in what the path names now."""
        self._append()
        self._tell_phase(Phase.RELOADING)
        self._sink.reopen()
        self._told_full = self._space.full
        self._tell_phase(Phase.HELD_BACK if self._told_full else Phase.SERVING)
        self._retry_due_s = 0.0

    # Several loops.

    def _look_at(self, crew: Crew) -> None:
        """Have the reactor know how many clients the others have."""
        if crew.take_news():
            self._requests.quiet()
        self._reactor.set_connections_elsewhere(crew.connected)
        own = self._statistics.connected
        # Asked again behind that: a client may have left before it could see that it is waited for.
        crew.wake_at_close = own + crew.connected >= self._connections_max
        if crew.wake_at_close:
            self._reactor.set_connections_elsewhere(crew.connected)

    def _opened(self, connection: int) -> None:
        if self._crew is not None and not self._ending:
            worker = self._crew.least_loaded(self._statistics.connected)
            if worker is not None:
                peer = self._reactor.peer(connection)
                worker.hand_over(self._reactor.release(connection), peer)
                self._look_at(self._crew)
                return
        super()._opened(connection)

    # Timers.

    def _due_s(self) -> float:
        return min(self._report_due_s, self._beat_due_s)

    def _report_and_beat(self, now_s: float) -> None:
        if now_s >= self._beat_due_s:
            self._beat_due_s = now_s + self._beat_interval_s
            if self._crew is None or self._crew.came_round(now_s - 2 * self._beat_interval_s):
                self._beat()
        if now_s >= self._report_due_s:
            self._report_due_s = next_due_s(self._report_due_s, now_s, self._report_interval_s)
            self._put_report(last=False)

    def _put_report(self, *, last: bool) -> None:
        counts = self.counts
        if self._report(report_line(self._reported, counts), last):
            self._reported = counts
        else:
            self._statistics.reports_dropped += 1

    # Stopping.

    def _finish_sink(self) -> None:
        self._append_or_fail()
        self._sink.finish()
