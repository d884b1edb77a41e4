"""The server: one loop or several, what stops them, and the reports on what they took in."""

import math
import time
from collections.abc import Callable
from contextlib import suppress
from enum import StrEnum
from signal import Signals
from typing import Protocol, final

from numbers_uring.errors import BackendError, Failure, SinkError
from numbers_uring.ingest.intake import Intake
from numbers_uring.ingest.report import Counts, next_due_s, report_line
from numbers_uring.limits import DRAIN_S
from numbers_uring.reactor.contract import Reactor
from numbers_uring.server.loop import Loop, Shared
from numbers_uring.server.statistics import Statistics
from numbers_uring.server.waiting import WaitingClients
from numbers_uring.server.workers import Workers


class Phase(StrEnum):
    """The state of a server, as its operator sees it."""

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
        """Return whether the log is to be reopened; called before each wait."""

    def take_report(self) -> bool:
        """Return whether a report is wanted now; called before each wait."""

    def quiet(self) -> None:
        """Make the wake-up descriptor unreadable until the next request."""


@final
class Server:
    """One run. The parts are the caller's to close.

    It runs the loop of the reactor that accepts. With `workers`, whose reactors are served by loops
    in threads of their own, clients are spread over all of them.

    `report` is given each report line and returns whether it was written; one that was not is
    folded into the next. Its second argument is true for the last one, which is worth a short wait.
    `heartbeat` is called at least every `heartbeat_interval_s`, as long as every loop comes round.
    `on_phase` is given each Phase; the first is SERVING, when the first client can be served.
    `before_drain` is called once, where it may free descriptors for clients in the backlog.
    `waiting` is None where no client waits: they are refused.
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
        workers: Workers | None = None,
        waiting: WaitingClients | None = None,
        heartbeat: Callable[[], None] = lambda: None,
        heartbeat_interval_s: float = math.inf,
        on_phase: Callable[[Phase], None] = lambda _: None,
        before_drain: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._reactor = reactor
        self._shared = shared
        self._sink = shared.sink
        self._backpressure = shared.backpressure
        self._disconnects = shared.disconnects
        self._requests = requests
        self._workers = workers
        self._waiting = waiting
        self._loop = Loop(reactor, intake, shared, self, clock=clock, sleep=sleep)
        self._clock = clock
        self._report = report
        self._heartbeat = heartbeat
        self._heartbeat_interval_s = heartbeat_interval_s
        self._heartbeat_due_s = clock() + heartbeat_interval_s
        self._on_phase = on_phase
        self._phase_held_back = False
        self._reported = Counts(0, 0)
        self._report_interval_s = report_interval_s
        self._report_due_s = clock() + report_interval_s
        self._ending = False
        self._before_drain = before_drain

    def run(self) -> None:
        """Serve until `terminate` or a stop request, then drain, sync and report.

        Raises, after the last report, SinkError where lines that were counted are not on file, and
        BackendError where a reactor failed; what was taken in before that is on file.
        """
        self._shared.batches.states.append(self._loop.batch)
        failure: Exception | None = None
        for step in (self._serve, self._drain_all, self._finish_sink):
            try:
                step()
            except SinkError as error:
                # Nothing more is appended: part of a batch may be stored already.
                failure = error
                break
            except Exception as error:
                failure = failure or error
                self._shared.batches.failed = True
        if isinstance(failure, SinkError):
            self._shared.batches.failed = True
            self._requests.failure = failure
        self._stop_workers()
        # Before the report, so that both add up to what was taken in.
        loss = self._loss() if isinstance(failure, SinkError) else ""
        self._put_report(last=True)
        if self._disconnects is not None:
            self._disconnects.flush(self._reactor.refused)
        if isinstance(failure, SinkError):
            raise SinkError(f"{failure}{loss}") from failure
        if isinstance(failure, OSError):
            raise BackendError(f"the backend failed: {failure}") from failure
        if failure is not None:
            raise failure

    def _serve(self) -> None:
        self._on_phase(Phase.SERVING)
        try:
            while not self.stopping:
                self._turn()
        finally:
            self._ending = True
            self._sink.begin_stop()
            self._on_phase(Phase.STOPPING)

    def _drain_all(self) -> None:
        end_s = time.monotonic() + DRAIN_S
        self._before_drain()
        if self._workers is None:
            self._loop.drain(end_s)
            return
        # Before the others are joined: their closes may wait for this loop's numbers.
        self._loop.append_or_fail()
        self._workers.stop(end_s)
        self._reactor.set_connections_elsewhere(0)
        self._loop.drain(end_s)
        self._workers.raise_failure()

    def _finish_sink(self) -> None:
        self._stop_workers()
        self._loop.append_or_fail()
        self._sink.finish()

    def _stop_workers(self) -> None:
        """Serve the workers' clients to the end, even if this loop has failed."""
        if self._workers is not None:
            self._workers.stop(time.monotonic() + DRAIN_S)

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
        terminated = self._loop.terminated or (
            self._workers is not None and self._workers.terminated
        )
        if self._requests.stop is not None and not terminated:
            return self._requests.stop.name
        return "terminate"

    @property
    def stopping(self) -> bool:
        """Whether a stop was asked for; from any thread."""
        return (
            self._loop.terminated
            or self._requests.stop is not None
            or (self._workers is not None and self._workers.ended)
        )

    @property
    def counts(self) -> Counts:
        """The numbers taken in as they are reported; from any thread."""
        return self._sink.count(self.taken)

    @property
    def taken(self) -> Counts:
        """The numbers taken in; from any thread."""
        own = self._loop.taken
        return own if self._workers is None else self._workers.add_counts(own)

    @property
    def statistics(self) -> Statistics:
        """What became of the connections; from any thread, a copy where there are workers."""
        own = self._loop.statistics
        return own if self._workers is None else self._workers.add_statistics(own)

    @property
    def held_back(self) -> bool:
        """Whether clients are held back because there is no space in the sink; from any thread."""
        return self._backpressure.full

    @property
    def lacking(self) -> str:
        """In a few words why clients are held back; empty if they are not; from any thread."""
        return self._sink.full_status if self.held_back else ""

    @property
    def held_back_s(self) -> float:
        """How long clients were held back for that, up to now; from any thread."""
        return self._backpressure.held_back_s

    @property
    def clients_waiting(self) -> int | None:
        """How many clients wait for a slot; None if that is unknown; from any thread."""
        return 0 if self._waiting is None else self._waiting.clients

    # One turn.

    def _turn(self) -> None:
        self._sink.check()
        if self._requests.take_reopen():
            self._reopen()
        if self._requests.take_report():
            self._put_report(last=False)
        if self._workers is not None:
            self._look_at(self._workers)
        # Asked again after all of that, which may have quieted the descriptor: what was asked
        # before is seen now, and what comes later wakes the wait.
        if self.stopping:
            return
        self._loop.turn()
        if self._backpressure.full != self._phase_held_back:
            self._enter_serving_phase()
        self._report_and_show_alive(self._clock())
        if self._disconnects is not None:
            self._disconnects.note_refused(self._reactor.refused)
        if self._waiting is not None:
            self._waiting.look(lambda: self.statistics.connected)

    def _enter_serving_phase(self) -> None:
        self._phase_held_back = self._backpressure.full
        self._on_phase(Phase.HELD_BACK if self._phase_held_back else Phase.SERVING)

    def _reopen(self) -> None:
        """Write everything so far to the old file, and switch to the file that the path names."""
        self._loop.append()
        self._on_phase(Phase.RELOADING)
        self._sink.reopen()
        self._enter_serving_phase()
        self._loop.retry_now()

    # What differs from a worker's loop: it accepts, and has timers.

    def due_s(self) -> float:
        """Return when a report or a heartbeat is due."""
        return min(self._report_due_s, self._heartbeat_due_s)

    def take_over(self, connection: int) -> bool:
        """Hand the client to a worker that has fewer clients; return False if it stays."""
        if self._workers is None or self._ending:
            return False
        mailbox = self._workers.least_loaded(self._loop.statistics.connected)
        if mailbox is None:
            return False
        peer = self._reactor.peer(connection)
        mailbox.hand_over(self._reactor.release(connection), peer)
        self._look_at(self._workers)
        return True

    def connection_closed(self) -> None:
        """Nothing to do: the reactor that accepts knows its own slots."""

    def _look_at(self, workers: Workers) -> None:
        """Set how many clients the other reactors have."""
        if workers.take_notice():
            self._requests.quiet()
        self._reactor.set_connections_elsewhere(workers.connected)
        own = self._loop.statistics.connected
        # Asked again after that: a client may have left before its worker saw that one waits.
        workers.wake_at_close = own + workers.connected >= self._shared.connections_max
        if workers.wake_at_close:
            self._reactor.set_connections_elsewhere(workers.connected)

    # Timers.

    def _report_and_show_alive(self, now_s: float) -> None:
        if now_s >= self._heartbeat_due_s:
            self._heartbeat_due_s = now_s + self._heartbeat_interval_s
            since_s = now_s - 2 * self._heartbeat_interval_s
            if self._workers is None or self._workers.came_round(since_s):
                self._heartbeat()
        if now_s >= self._report_due_s:
            self._report_due_s = next_due_s(self._report_due_s, now_s, self._report_interval_s)
            self._put_report(last=False)

    def _put_report(self, *, last: bool) -> None:
        counts = self.counts
        if self._report(report_line(self._reported, counts), last):
            self._reported = counts
        else:
            self._loop.statistics.reports_dropped += 1
