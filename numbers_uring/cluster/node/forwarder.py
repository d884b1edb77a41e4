"""Forwards numbers to the NATS server of a cluster: the Sink of a node, which has no log."""

import secrets
import socket
from collections.abc import Callable

from numbers_uring.cluster.connection import url_text
from numbers_uring.cluster.node.outbox import Outbox
from numbers_uring.cluster.node.publisher import Publisher
from numbers_uring.cluster.values import Node
from numbers_uring.config import BrokerAccess
from numbers_uring.errors import SinkError
from numbers_uring.ingest.report import Counts
from numbers_uring.log.sink import Forwarded
from numbers_uring.words import counted, counted_and


class ForwardError(SinkError):
    """Numbers that were taken in will not be acknowledged."""


class Forwarder:
    """Publishes each number to its partition's stream, at the NATS server at `url`.

    A number counts once the NATS server has acknowledged its batch. `say` gets warnings for the
    operator, `inform` other lines, one at a time; `wake` is called, from another thread, when the
    next `check` will raise. Raises StartError if the NATS server does not answer, or its streams
    are not configured to keep what they are given.
    """

    def __init__(
        self,
        url: str,
        partitions: int,
        *,
        access: BrokerAccess,
        say: Callable[[str], None],
        inform: Callable[[str], None],
        wake: Callable[[], None],
        stop_requested: Callable[[], bool] = lambda: False,
    ) -> None:
        self._url_text = url_text(url)
        self._partitions = partitions
        self._inform = inform
        self._run = secrets.token_hex(8)
        self._publisher = Publisher(
            url,
            partitions,
            access=access,
            run=self._run,
            say=say,
            inform=inform,
            on_failure=wake,
            stop_requested=stop_requested,
        )
        self._outbox = Outbox(partitions, wake=self._publisher.wake)
        self._publisher.attach(self._outbox)

    def watch(self, taken: Callable[[], Counts], clients: Callable[[], int]) -> None:
        """Publish the status of the server whose counts and connected clients these are."""

        def state() -> Node:
            forwarded = self.forwarded
            return Node(
                run=self._run,
                host=socket.gethostname(),
                unique=taken().unique,
                duplicate=taken().duplicate,
                acknowledged=forwarded.acknowledged,
                in_flight=forwarded.in_flight,
                clients=clients(),
            )

        self._publisher.publish_status(state)

    @property
    def name(self) -> str:
        return self._publisher.name

    @property
    def fields(self) -> dict[str, object]:
        return {"forward": self._url_text, "partitions": self._partitions, "node": self._run}

    @property
    def written_lines(self) -> int:
        """Numbers that are acknowledged."""
        return self._outbox.acknowledged

    @property
    def write_s(self) -> float:
        """Seconds spent in packing, and in waiting for free space."""
        return self._outbox.write_s

    @property
    def sync_s(self) -> float:
        """Zero: the NATS server syncs."""
        return 0.0

    @property
    def forwarded(self) -> Forwarded:
        return self._outbox.forwarded

    @property
    def compiled(self) -> None:
        """No pass publishes."""

    def note_appends(self) -> None:
        """There are none."""

    @property
    def full_status(self) -> str:
        return "The NATS server is behind"

    @property
    def full_message(self) -> str:
        return self._publisher.problem or f"{self.name} is slower than the clients"

    @property
    def room_message(self) -> str:
        return f"{self.name} accepts batches again"

    def count(self, taken: Counts) -> Counts:
        """Return the acknowledged numbers, and all repeats."""
        return Counts(self._outbox.acknowledged, taken.duplicate)

    def append(self, lines: memoryview) -> int:
        """Pack lines for the NATS server; return how many bytes of them were accepted.

        Waits for free space, without holding the GIL, and accepts less if there is none within
        about a second, or within FORWARD_STOP_ACK_S while the server stops. Raises ForwardError.
        """
        self.check()
        return self._outbox.put(lines)

    def check(self) -> None:
        """Raise ForwardError if the connection was closed for good."""
        failure = self._publisher.failure
        if failure is not None:
            raise ForwardError(f"{self.name} is no longer usable: {failure}") from failure

    def reopen(self) -> None:
        """Do nothing: there is no file that could have been rotated."""
        self._inform("numbers are forwarded: there is no log to reopen")

    def mark(self) -> int:
        return self._outbox.mark()

    def has(self, mark: int) -> bool:
        """Return whether the NATS server has acknowledged everything up to the mark."""
        return self._outbox.has_acknowledged(mark)

    def wait_until_stored(self, mark: int) -> None:
        """Wait until all up to the mark is acknowledged. Raises ForwardError if it is not."""
        self.check()
        if not self._outbox.wait_until_acknowledged(mark):
            self.check()
            raise ForwardError(self._publisher.problem or f"{self.name} does not answer")

    def begin_stop(self) -> None:
        self._outbox.begin_stop()

    def finish(self) -> None:
        """Wait until everything is acknowledged. Raises ForwardError after FORWARD_STOP_ACK_S.

        What is acknowledged after that does not count: what is reported as lost adds up.
        """
        try:
            self.wait_until_stored(self.mark())
        finally:
            self._outbox.close()

    def loss(self, lines: int) -> str:
        were = counted_and(lines, "number", "that was taken in is", "that were taken in are")
        return f"{were} not acknowledged"

    def summary(self) -> str:
        return f"{counted(self.written_lines, 'number')} acknowledged by {self.name}"

    def close(self) -> None:
        self._publisher.close()
