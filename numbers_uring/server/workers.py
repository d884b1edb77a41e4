"""Further loops, each with a reactor of its own in a thread of its own."""

import math
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress

from numbers_uring.addresses import Peer
from numbers_uring.ingest.intake import Intake
from numbers_uring.ingest.report import Counts
from numbers_uring.reactor.contract import Reactor
from numbers_uring.server.loop import Loop, Shared, Statistics
from numbers_uring.system.threads import start_thread, wait_for_beginning


class Worker(Loop):
    """A loop that is handed its clients; all but its constructor's caller is its own thread."""

    def __init__(
        self, crew: "Crew", shared: Shared, post: "Post", reactor: Reactor, intake: Intake
    ) -> None:
        super().__init__(reactor, intake, shared)
        self._crew = crew
        self._post = post

    @property
    def stopping(self) -> bool:
        return self._terminated or self._post.stop.is_set()

    def run(self) -> None:
        """Serve until a client of this loop says `terminate`, or the crew is to stop."""
        while True:
            self._post.quiet()
            # Asked behind that: what was told before is seen now, what comes later wakes the wait.
            if self.stopping:
                return
            self._adopt()
            self._turn()
            self._post.came_round_s = self._clock()

    def finish(self, end_s: float) -> None:
        """Drain, and put everything on file."""
        self._adopt()
        self._drain(end_s)
        self._append_or_fail()

    def _adopt(self) -> None:
        for fd, peer in self._post.take():
            self._reactor.adopt(fd, peer)

    def _due_s(self) -> float:
        return self._clock() + self._crew.round_s

    def _left(self) -> None:
        self._post.closed += 1
        if self._crew.wake_at_close:
            self._crew.tell()


class Post:
    """What passes between a worker and the loop that accepts."""

    def __init__(self) -> None:
        self.wakeup_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.stop = threading.Event()
        self.end_s = 0.0
        # Written to by one thread each, so that both can be read without a lock.
        self.handed_over = 0
        self.closed = 0
        self.came_round_s = math.inf
        self._clients: deque[tuple[int, Peer]] = deque()

    @property
    def connected(self) -> int:
        """Clients that are the worker's, or on their way to it."""
        return self.handed_over - self.closed

    def hand_over(self, fd: int, peer: Peer) -> None:
        """Give the worker a connection that another reactor has released."""
        self.handed_over += 1
        self._clients.append((fd, peer))
        self.wake()

    def take(self) -> "list[tuple[int, Peer]]":
        """Return the clients that were handed over since the last time."""
        return [self._clients.popleft() for _ in range(len(self._clients))]

    def wake(self) -> None:
        with suppress(BlockingIOError):
            os.eventfd_write(self.wakeup_fd, 1)

    def quiet(self) -> None:
        with suppress(BlockingIOError):
            os.eventfd_read(self.wakeup_fd)

    def close(self) -> None:
        for fd, _ in self.take():
            os.close(fd)
        os.close(self.wakeup_fd)


class Crew:
    """`count` workers; `make` gives each, in its thread, the reactor on a wake-up descriptor.

    The threads are there, and their reactors, once this returns; they serve from `start` on.
    `make_intake` gives the intake for a reactor. `wake` makes the accepting loop come round; any
    thread calls it. Raises StartError and OSError where one of the reactors can't be had.
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
        """Whether a client of one of the workers has said `terminate`."""
        self.wake_at_close = False
        """Whether a client waits for one of the workers' clients to leave."""
        self.round_s = math.inf
        """How often each loop has to come round, whether anything happens or not."""
        self.shared: Shared | None = None
        self._make = make
        self._make_intake = make_intake
        self._wake = wake
        self._news = False
        self._failure: BaseException | None = None
        self._workers: list[Worker] = []
        self._decided = threading.Event()
        self._posts: list[Post] = []
        self._threads: list[threading.Thread] = []
        self._intakes: list[Intake] = []
        try:
            for number in range(1, count + 1):
                self._add(number)
        except BaseException:
            self.close()
            raise

    def _add(self, number: int) -> None:
        post, ready = Post(), threading.Event()
        self._posts.append(post)
        self._threads.append(start_thread(lambda: self._live(post, ready), f"reactor {number}"))
        wait_for_beginning(self._threads[-1], ready)
        if self._failure is not None:
            raise self._failure

    def _live(self, post: Post, ready: threading.Event) -> None:
        """Be one worker's thread, from its reactor's beginning to its end."""
        try:
            # A ring belongs to the thread that makes it.
            reactor = self._make(post.wakeup_fd)
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
            if self.shared is not None:
                self._serve(post, Worker(self, self.shared, post, reactor, intake))
        except BaseException as error:
            self._fail(error)
        finally:
            ready.set()
            reactor.close()

    def _serve(self, post: Post, worker: Worker) -> None:
        self._workers.append(worker)
        try:
            worker.run()
            if not post.stop.is_set():
                self.terminated = True
                self.tell()
        except BaseException as error:
            self._fail(error)
        # Clients are handed over until then, and are not to be lost.
        post.stop.wait()
        worker.finish(post.end_s)

    def _fail(self, error: BaseException) -> None:
        self._failure = self._failure or error
        self.tell()

    # For the accepting loop.

    def start(self, shared: Shared, *, round_s: float) -> None:
        """Have the workers serve, and come round every `round_s`."""
        self.shared = shared
        self.round_s = round_s
        self._decided.set()

    def tell(self) -> None:
        """Have the accepting loop come round and look; from any thread."""
        self._news = True
        self._wake()

    def take_news(self) -> bool:
        """Say whether a worker has told something since this was last asked."""
        news, self._news = self._news, False
        return news

    @property
    def ends(self) -> bool:
        """Whether a worker has seen a `terminate`, or has failed."""
        return self.terminated or self._failure is not None

    @property
    def connected(self) -> int:
        """Clients of all workers."""
        return sum(post.connected for post in self._posts)

    def least_loaded(self, own: int) -> Post | None:
        """Return who has the fewest clients; None where nobody has fewer than `own`."""
        post = min(self._posts, key=lambda post: post.connected)
        return post if post.connected < own else None

    def came_round(self, since_s: float) -> bool:
        """Say whether every loop came round since then."""
        return all(post.came_round_s >= since_s for post in self._posts)

    def add_counts(self, own: Counts) -> Counts:
        """Return the numbers of all loops."""
        return Counts(
            own.unique + sum(intake.unique for intake in self._intakes),
            own.duplicate + sum(intake.duplicate for intake in self._intakes),
        )

    def add_statistics(self, own: Statistics) -> Statistics:
        """Return what became of the connections of all loops."""
        return sum_of([own, *(worker.own_statistics for worker in self._workers)])

    def stop(self, end_s: float) -> None:
        """Have the workers drain until `end_s`, and return when they have; once is enough."""
        for post in self._posts:
            if not post.stop.is_set():
                post.end_s = end_s
                post.stop.set()
                post.wake()
        self._decided.set()
        for thread in self._threads:
            thread.join()

    def raise_failure(self) -> None:
        """Raise what a worker has failed for, if one has."""
        if self._failure is not None:
            raise self._failure

    def close(self) -> None:
        """End the threads, and whatever was handed over to nobody."""
        self.stop(time.monotonic())
        while self._posts:
            self._posts.pop().close()


def sum_of(statistics: Sequence[Statistics]) -> Statistics:
    """Return them added up; a copy, whatever their threads do meanwhile."""
    total = Statistics()
    for each in statistics:
        total.accepted += each.accepted
        total.received_bytes += each.received_bytes
        total.reports_dropped += each.reports_dropped
        total.ended.update(dict(each.ended))
    return total
