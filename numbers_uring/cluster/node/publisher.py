"""The thread that publishes batches to NATS JetStream, each until it is acknowledged.

Facts of nats-server 2.15 and nats-py 2.16 that it relies on:

- A message that is sent several times with the same id is stored once within the stream's duplicate
  window, and acknowledged each time. After the window it is stored again, and its collector finds
  only repeats in it.
- While a message waits for its replicas, it is refused if it is sent again ("duplicate message id
  is in process"): a leader that is cut off from them does that until it gives up.
- Replicas that have lost their leader do not answer, or answer "no responders", until they have
  elected another one some seconds later. What is sent meanwhile is lost silently.
- The client reconnects by itself; it does not repeat the requests that were in flight.
"""

import asyncio
import math
import secrets
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

from numbers_uring.cluster.bucket import Buckets
from numbers_uring.cluster.connection import connected, jetstream, until_closed, url_text
from numbers_uring.cluster.node.kept import Kept
from numbers_uring.cluster.node.outbox import Batch, Outbox
from numbers_uring.cluster.partitions import stream_name, subject_name
from numbers_uring.cluster.streams import check_streams
from numbers_uring.cluster.tasks import unless_stopped
from numbers_uring.cluster.values import Node
from numbers_uring.config import BrokerAccess
from numbers_uring.errors import StartError
from numbers_uring.limits import (
    BROKER_POLL_S,
    FORWARD_BATCH_BYTES,
    FORWARD_CLOSE_S,
    FORWARD_HEADER_BYTES_MAX,
    FORWARD_IN_FLIGHT,
    FORWARD_LOOK_AGAIN_S,
    FORWARD_LOOK_S,
    FORWARD_RESEND_S,
    FORWARD_RETRY_S,
    NODE_STATUS_INTERVAL_S,
)
from numbers_uring.system.threads import start_thread, wait_for_beginning

if TYPE_CHECKING:
    from nats.aio.client import Client
    from nats.js import JetStreamContext


class _ClosedError(Exception):
    """Ends all tasks of the publisher."""


class Publisher:
    """Connected to the NATS server at `url`, whose streams were checked, once this returns.

    Publishes the batches of the outbox that `attach` names, each with an id of its own.
    `say` gets a line for the operator when batches are refused, `inform` when that ends.
    `on_failure` is called, in the thread, when there is a `failure`. Raises StartError,
    and StopRequestedError if `stop_requested` returns True before it is connected.
    """

    def __init__(
        self,
        url: str,
        partitions: int,
        *,
        access: BrokerAccess,
        run: str,
        say: Callable[[str], None],
        inform: Callable[[str], None],
        on_failure: Callable[[], None],
        stop_requested: Callable[[], bool],
    ) -> None:
        self.name = f"the NATS server at {url_text(url)}"
        self.problem: str | None = None
        """Why the NATS server does not accept batches; None if it does."""
        self.failure: BaseException | None = None
        """What has ended the thread."""
        self._url = url
        self._access = access
        self._partitions = partitions
        self._run_id = run
        # Not the run's id, which others can read: who knows an id can take its place in the stream,
        # and the batch would be acknowledged as a repeat.
        self._message_id = secrets.token_hex(8)
        self._say = say
        self._inform = inform
        self._on_failure = on_failure
        self._outbox: Outbox | None = None
        self._state: Callable[[], Node] | None = None
        self._said: set[str] = set()
        self._timeouts: dict[asyncio.Timeout, int] = {}
        """Of the batches in flight, in the order of their publishing."""
        self._published = 0
        self._loop: asyncio.AbstractEventLoop
        self._changed = asyncio.Event()
        self._connection_changed = asyncio.Event()
        self._attached = asyncio.Event()
        self._closing = asyncio.Event()
        self._begun = threading.Event()
        self._ready = threading.Event()
        self._thread = start_thread(self._live, "publisher")
        wait_for_beginning(self._thread, self._begun)
        while not self._ready.wait(BROKER_POLL_S):
            if stop_requested():
                self._call(self._closing.set)
        if self.failure is not None:
            self._thread.join()
            raise self.failure

    # For other threads.

    def attach(self, outbox: Outbox) -> None:
        """Publish the batches of `outbox` from now on."""
        self._outbox = outbox
        if self.failure is not None:
            outbox.close()
        self._call(self._attached.set)

    def wake(self) -> None:
        """Look into the outbox; from any thread."""
        self._call(self._changed.set)

    def publish_status(self, state: Callable[[], Node]) -> None:
        """Write what `state` returns to the bucket of the nodes.

        `state` is called, in this thread, every NODE_STATUS_INTERVAL_S from now on.
        """
        self._state = state

    def close(self) -> None:
        """End the thread; what is not acknowledged by now may be stored or not."""
        self._call(self._closing.set)
        self._thread.join(FORWARD_CLOSE_S)

    def _call(self, function: Callable[[], None]) -> None:
        with suppress(RuntimeError):  # The loop is closed: the thread has ended.
            self._loop.call_soon_threadsafe(function)

    # The thread.

    def _live(self) -> None:
        try:
            # The runner also ends the tasks that the client leaves when there is no NATS server.
            with asyncio.Runner() as runner:
                self._loop = runner.get_loop()
                self._begun.set()
                runner.run(self._run())
        except BaseException as error:
            while isinstance(error, BaseExceptionGroup):
                error = error.exceptions[0]
            self.failure = error
            if self._outbox is not None:
                self._outbox.close()
            if self._ready.is_set():
                self._on_failure()
        finally:
            self._ready.set()
            self._begun.set()

    async def _run(self) -> None:
        name = f"numbers-uring {self._run_id}"
        async with connected(
            self._url, name, access=self._access, say=self._note, stop=self._closing
        ) as client:
            if client.max_payload < FORWARD_BATCH_BYTES + FORWARD_HEADER_BYTES_MAX:
                raise StartError(
                    f"{self.name} accepts messages of at most {client.max_payload} bytes "
                    f"(max_payload), and batches have {FORWARD_BATCH_BYTES} and a header"
                )
            js = jetstream(client)
            streams = await unless_stopped(check_streams(js, self._partitions), self._closing)
            kept = Kept(streams)
            self._ready.set()
            try:
                async with asyncio.TaskGroup() as tasks:
                    tasks.create_task(self._dispatch(client, js, kept, tasks))
                    tasks.create_task(self._look(client, js, kept))
                    tasks.create_task(self._publish_status(js))
                    tasks.create_task(until_closed(client))
                    await self._closing.wait()
                    raise _ClosedError
            except* _ClosedError:
                await self._delete_status(client, js)

    def _note(self, text: str) -> None:
        """Report that the connection is lost or back, and resend what was in flight."""
        self._say(text)
        self._resend_all()
        self._changed.set()
        self._connection_changed.set()

    def _resend_all(self) -> None:
        for timeout in self._timeouts:
            if not timeout.expired():
                timeout.reschedule(self._loop.time())

    def _wait_anew_behind(self, number: int) -> None:
        """Give the batches that were published later their whole time: the line may be slow."""
        for timeout, other in self._timeouts.items():
            if other > number and not timeout.expired():
                timeout.reschedule(self._loop.time() + FORWARD_RESEND_S)

    async def _dispatch(
        self, client: "Client", js: "JetStreamContext", kept: Kept, tasks: asyncio.TaskGroup
    ) -> None:
        await self._attached.wait()
        assert self._outbox is not None
        outbox = self._outbox
        slots = asyncio.Semaphore(FORWARD_IN_FLIGHT)
        while True:
            await slots.acquire()
            # Cleared before the outbox is asked, so that no later change is missed.
            self._changed.clear()
            while (batch := outbox.take() if client.is_connected else None) is None:
                pause_s = outbox.due_in_s() if client.is_connected else FORWARD_RETRY_S
                with suppress(TimeoutError):
                    async with asyncio.timeout(pause_s):
                        await self._changed.wait()
                self._changed.clear()
            task = tasks.create_task(self._publish(js, outbox, kept, batch))
            task.add_done_callback(lambda _: slots.release())

    async def _look(self, client: "Client", js: "JetStreamContext", kept: Kept) -> None:
        """Raise StreamLostError once a stream has lost what it has acknowledged."""
        import nats  # noqa: PLC0415

        pause_s = FORWARD_LOOK_S
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self._connection_changed.wait()
            self._connection_changed.clear()
            has_seen_all = False
            if client.is_connected:
                # No answer, or none that makes sense: publishing meets the same and reports it.
                with suppress(OSError, nats.errors.Error, ValueError, TypeError, LookupError):
                    has_seen_all = await kept.look(js)
            pause_s = FORWARD_LOOK_S if has_seen_all else FORWARD_LOOK_AGAIN_S

    async def _publish(
        self, js: "JetStreamContext", outbox: Outbox, kept: Kept, batch: Batch
    ) -> None:
        import nats  # noqa: PLC0415

        last = kept.last(batch.partition)
        self._published += 1
        number = self._published
        try:
            async with asyncio.timeout(FORWARD_RESEND_S) as timeout:
                self._timeouts[timeout] = number
                # Not the call's own timeout: that cannot be changed on the way.
                answer = await js.publish(
                    subject_name(batch.partition),
                    batch.payload,
                    timeout=math.inf,
                    # Another stream that has the subject must not acknowledge it.
                    stream=stream_name(batch.partition),
                    headers={"Nats-Msg-Id": f"{self._message_id}-{batch.number}"},
                )
        except (OSError, nats.errors.Error, ValueError, TypeError) as error:
            # The last two: what came is no acknowledgement.
            outbox.fail(batch, FORWARD_RETRY_S)
            self._note_problem(batch.partition, error)
        else:
            self._wait_anew_behind(number)
            if outbox.acknowledge(batch):
                self._note_recovery()
            kept.note(batch.partition, answer.seq, above=None if answer.duplicate else last)
        finally:
            self._timeouts.pop(timeout, None)
            self._changed.set()

    def _note_problem(self, partition: int, error: Exception) -> None:
        """Report each problem once, until everything that was refused is acknowledged."""
        from nats.js.errors import APIError, NoStreamResponseError  # noqa: PLC0415

        from numbers_uring.cluster.client import MESSAGE_IN_PROCESS  # noqa: PLC0415

        in_process = isinstance(error, APIError) and error.err_code == MESSAGE_IN_PROCESS
        if in_process or isinstance(error, TimeoutError):
            kind, text = "silent", "does not answer"
        elif isinstance(error, NoStreamResponseError):
            kind = "no responders"
            text = f"has no stream for {subject_name(partition)}, or no leader of it"
        elif isinstance(error, APIError):
            kind = f"refused {error.description}"
            text = f"refuses {subject_name(partition)}: {error.description}"
        else:
            kind, text = type(error).__name__, f"does not accept batches: {error}"
        self.problem = f"{self.name} {text}"
        if kind not in self._said and not self._closing.is_set():
            self._said.add(kind)
            self._say(f"{self.problem}; resending until it is acknowledged")

    def _note_recovery(self) -> None:
        self.problem = None
        if self._said:
            self._said.clear()
            self._inform(f"{self.name} has acknowledged everything that was resent")

    async def _publish_status(self, js: "JetStreamContext") -> None:
        import nats  # noqa: PLC0415

        while True:
            await asyncio.sleep(NODE_STATUS_INTERVAL_S)
            if self._state is not None:
                # For information only; the publisher reports a NATS server that does not answer.
                with suppress(OSError, nats.errors.Error):
                    await Buckets(js).put_node(self._state())

    async def _delete_status(self, client: "Client", js: "JetStreamContext") -> None:
        """Delete this node's status: a node that stops is not one that is gone."""
        import nats  # noqa: PLC0415

        if self._state is not None and client.is_connected:
            with suppress(OSError, nats.errors.Error):
                async with asyncio.timeout(FORWARD_CLOSE_S / 2):
                    await Buckets(js).delete_node(self._run_id)
