"""Further loops, each with a reactor of its own in a thread of its own."""

import math
import threading
import time
from collections.abc import Callable

from numbers_uring.errors import SinkError
from numbers_uring.ingest.intake import Intake
from numbers_uring.ingest.report import Counts
from numbers_uring.reactor.contract import Reactor
from numbers_uring.server.loop import Loop, Shared
from numbers_uring.server.mailbox import Mailbox
from numbers_uring.server.statistics import Statistics, sum_of
from numbers_uring.server.worker import Worker
from numbers_uring.system.threads import start_thread, wait_for_beginning


class Workers:
    """`count` workers; `make` gives each, in its thread, the reactor on a wake-up descriptor.

    The threads are there, and their reactors, once this returns; they serve from `start` on.
    `make_intake` gives the intake for a reactor. `wake` makes the accepting loop come round; any
    thread calls it. Raises StartError and OSError where one of the reactors cannot be made.
    """

    def __init__(
        self,
        count: int,
        *,
        make: Callable[[int], Reactor],
        make_intake: Callable[[Reactor], Intake],
        wake: Callable[[], None],
    ) -> None:
        self.terminated = False
        """Whether a client of one of the workers has sent `terminate`."""
        self._wake_at_close = False
        self._shared: Shared | None = None
        self._round_s = math.inf
        self._make = make
        self._make_intake = make_intake
        self._wake = wake
        self._notified = False
        # The accepting loop sets `wake_at_close` and then looks at the counts; a worker does the
        # opposite. One of the two sees what the other has done only if they take a lock between.
        self._close_lock = threading.Lock()
        self._failure: BaseException | None = None
        self._loops: list[Loop] = []
        self._decided = threading.Event()
        self._mailboxes: list[Mailbox] = []
        self._threads: list[threading.Thread] = []
        self._intakes: list[Intake] = []
        try:
            for number in range(1, count + 1):
                self._add(number)
        except BaseException:
            self.close()
            raise

    def _add(self, number: int) -> None:
        mailbox, ready = Mailbox(), threading.Event()
        self._mailboxes.append(mailbox)
        self._threads.append(start_thread(lambda: self._live(mailbox, ready), f"reactor {number}"))
        wait_for_beginning(self._threads[-1], ready)
        if self._failure is not None:
            raise self._failure

    def _live(self, mailbox: Mailbox, ready: threading.Event) -> None:
        """Be one worker's thread, from its reactor's beginning to its end."""
        try:
            # A ring belongs to the thread that makes it.
            reactor = self._make(mailbox.wakeup_fd)
        except BaseException as error:
            self._failure = error
            ready.set()
            return
        try:
            intake = self._make_intake(reactor)
            self._intakes.append(intake)
            ready.set()
            self._decided.wait()
            # Even if it is to stop already: it may have been handed clients before it woke up.
            if self._shared is not None:
                self._serve(mailbox, reactor, intake, self._shared)
        except BaseException as error:
            self._fail(error)
        finally:
            ready.set()
            reactor.close()

    def _serve(self, mailbox: Mailbox, reactor: Reactor, intake: Intake, shared: Shared) -> None:
        worker = Worker(
            mailbox, reactor, intake, shared, round_s=self._round_s, on_close=self._note_close
        )
        shared.batches.states.append(worker.loop.batch)
        self._loops.append(worker.loop)
        try:
            worker.run()
            if not mailbox.stop.is_set():
                self.terminated = True
                self._notify()
        except BaseException as error:
            shared.batches.failed = True
            self._fail(error)
            if isinstance(error, SinkError):
                # Part of its batch may be stored: what is appended again would be there twice.
                return
        # Clients are handed over until then, and are not to be lost.
        mailbox.stop.wait()
        try:
            worker.finish()
        except BaseException:
            shared.batches.failed = True
            raise

    def _fail(self, error: BaseException) -> None:
        self._failure = self._failure or error
        self._notify()

    def _note_close(self) -> None:
        with self._close_lock:
            wake = self._wake_at_close
        if wake:
            self._notify()

    def _notify(self) -> None:
        """Make the accepting loop come round and look; from any thread."""
        self._notified = True
        self._wake()

    # For the accepting loop.

    def start(self, shared: Shared, *, round_s: float) -> None:
        """Make the workers serve, and come round every `round_s` at least."""
        self._shared = shared
        self._round_s = round_s
        self._decided.set()

    def take_notice(self) -> bool:
        """Return whether a worker has woken the accepting loop since this was last asked."""
        if not self._notified:
            return False
        # Cleared only where it was set, since a worker may set it at this moment. The caller looks
        # at the workers after this, so what such a worker has done is seen, too.
        self._notified = False
        return True

    @property
    def wake_at_close(self) -> bool:
        """Whether a client waits for one of the workers' clients to leave."""
        return self._wake_at_close

    @wake_at_close.setter
    def wake_at_close(self, wake: bool) -> None:
        with self._close_lock:
            self._wake_at_close = wake

    @property
    def ended(self) -> bool:
        """Whether a worker has seen a `terminate`, or has failed."""
        return self.terminated or self._failure is not None

    @property
    def connected(self) -> int:
        """Clients of all workers."""
        return sum(mailbox.connected for mailbox in self._mailboxes)

    def least_loaded(self, own: int) -> Mailbox | None:
        """Return the mailbox of the worker with the fewest clients, if fewer than `own`."""
        mailbox = min(self._mailboxes, key=lambda mailbox: mailbox.connected)
        return mailbox if mailbox.connected < own else None

    def came_round(self, since_s: float) -> bool:
        """Return whether every loop came round since then."""
        return all(mailbox.came_round_s >= since_s for mailbox in self._mailboxes)

    def add_counts(self, own: Counts) -> Counts:
        """Return the numbers of all loops."""
        return Counts(
            own.unique + sum(intake.unique for intake in self._intakes),
            own.duplicate + sum(intake.duplicate for intake in self._intakes),
        )

    def add_statistics(self, own: Statistics) -> Statistics:
        """Return what became of the connections of all loops."""
        return sum_of([own, *(loop.statistics for loop in self._loops)])

    def stop(self, drain_end_s: float) -> None:
        """Make the workers drain until then, and return when they have; once is enough."""
        for mailbox in self._mailboxes:
            if not mailbox.stop.is_set():
                mailbox.drain_end_s = drain_end_s
                mailbox.stop.set()
                mailbox.wake()
        self._decided.set()
        for thread in self._threads:
            thread.join()

    def raise_failure(self) -> None:
        """Raise what a worker has failed for, if one has."""
        if self._failure is not None:
            raise self._failure

    def close(self) -> None:
        """End the threads, and close clients that no worker has taken."""
        self.stop(time.monotonic())
        while self._mailboxes:
            self._mailboxes.pop().close()
