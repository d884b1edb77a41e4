"""Forwards numbers to the engine of a cluster: the Sink of a node, which has no log."""

import os
import re
import secrets
import socket
import time
from collections.abc import Callable

from numbers_uring.cluster.connection import url_text
from numbers_uring.cluster.node.outbox import Outbox
from numbers_uring.cluster.node.publisher import Publisher
from numbers_uring.config import BrokerAccess
from numbers_uring.errors import SinkError
from numbers_uring.ingest.report import Counts
from numbers_uring.log.sink import Forwarded


class ForwardError(SinkError):
    """Numbers that were taken in are not acknowledged, and won't be."""


class Forwarder:
    """Publishes each number to its partition's stream, at the engine at `url`.

    A number counts once the engine has acknowledged its batch. `say` takes one line for the
    operator, `inform` one that is no warning; `wake` is called, from another thread, when the next
    `check` will raise. Raises StartError where the engine can't be reached, or its streams would
    not keep what they are given.
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
    ) -> None:
        self._url_text = url_text(url)
        self._partitions = partitions
        self._inform = inform
        self._boot_id = secrets.token_hex(8)
        host = re.sub(r"[^A-Za-z0-9_-]", "-", socket.gethostname())
        self._node = f"{host}-{os.getpid()}"
        self._publisher = Publisher(
            url,
            partitions,
            access=access,
            boot_id=self._boot_id,
            say=say,
            inform=inform,
            on_failure=wake,
        )
        self._outbox = Outbox(partitions, wake=self._publisher.wake)
        self._publisher.attach(self._outbox)

    def watch(self, taken: Callable[[], Counts], clients: Callable[[], int]) -> None:
        """Tell the cluster of the server whose counts and connected clients these are."""

        def state() -> tuple[str, dict[str, object]]:
            forwarded = self.forwarded
            return self._node, {
                "node": self._node,
                "boot_id": self._boot_id,
                "unique": taken().unique,
                "duplicate": taken().duplicate,
                "acknowledged": forwarded.acknowledged,
                "in_flight": forwarded.in_flight,
                "clients": clients(),
                "time": time.time(),
            }

        self._publisher.tell(state)

    @property
    def name(self) -> str:
        return self._publisher.name

    @property
    def fields(self) -> dict[str, object]:
        return {"forward": self._url_text, "partitions": self._partitions, "node": self._node}

    @property
    def written_lines(self) -> int:
        """Numbers that are acknowledged."""
        return self._outbox.acknowledged

    @property
    def write_s(self) -> float:
        """Seconds spent in packing, and in waiting for room."""
        return self._outbox.write_s

    @property
    def sync_s(self) -> float:
        """None: the engine does it."""
        return 0.0

    @property
    def forwarded(self) -> Forwarded:
        return self._outbox.forwarded

    @property
    def full_status(self) -> str:
        return "The engine is behind"

    @property
    def full_message(self) -> str:
        return self._publisher.trouble or f"{self.name} is slower than the clients"

    @property
    def room_message(self) -> str:
        return f"{self.name} takes batches again"

    def count(self, taken: Counts) -> Counts:
        """Return those that are acknowledged, and all repeats."""
        return Counts(self._outbox.acknowledged, taken.duplicate)

    def append(self, lines: memoryview) -> int:
        """Pack lines for the engine; return how many bytes of them were taken.

        Waits for room, with the interpreter free for others, and takes less where there is none in
        about a second, or in FORWARD_STOP_ACK_S while the server stops. Raises ForwardError.
        """
        self.check()
        return self._outbox.put(lines)

    def check(self) -> None:
        """Raise ForwardError where the connection was closed for good."""
        failure = self._publisher.failure
        if failure is not None:
            raise ForwardError(f"{self.name} can't be used any more: {failure}") from failure

    def reopen(self) -> None:
        """There is no file of ours that could have been rotated."""
        self._inform("numbers are forwarded, there is no log to be reopened")

    def mark(self) -> int:
        return self._outbox.mark()

    def has(self, mark: int) -> bool:
        """Say whether the engine has acknowledged everything up to the mark."""
        return self._outbox.has_acknowledged(mark)

    def begin_stop(self) -> None:
        self._outbox.begin_stop()

    def finish(self) -> None:
        """Wait until everything is acknowledged. Raises ForwardError where patience has ended."""
        self.check()
        if not self._outbox.wait_until_empty():
            raise ForwardError(self._publisher.trouble or f"{self.name} does not answer")

    def loss(self, lines: int) -> str:
        return f"{lines} numbers that were taken in are not acknowledged"

    def summary(self) -> str:
        return f"{self.written_lines} numbers acknowledged by {self.name}"

    def close(self) -> None:
        self._publisher.close()
