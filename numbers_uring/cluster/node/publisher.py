"""The thread that publishes batches to NATS JetStream, each until it is acknowledged.

Facts of nats-server 2.15 and nats-py 2.16 that it stands on:

- A message is stored once, however often it is sent with the same id within the stream's duplicate
  window, and each time is acknowledged. After the window it is stored again, and its owner finds
  only repeats in it.
- A group of replicas that has lost its leader answers nothing, or that nobody is there, until it
  has chosen another one some seconds later. What was sent meanwhile is lost without a word.
- A connection that is lost is made again by the client; requests that were under way are not.
"""

import asyncio
import json
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from numbers_uring.cluster.connection import connected, jetstream, until_closed, url_text
from numbers_uring.cluster.node.outbox import Batch, Outbox
from numbers_uring.cluster.partitions import NODES_BUCKET, subject_name
from numbers_uring.cluster.streams import check_streams
from numbers_uring.config import BrokerAccess
from numbers_uring.errors import StartError
from numbers_uring.limits import (
    FORWARD_BATCH_BYTES,
    FORWARD_CLOSE_S,
    FORWARD_IN_FLIGHT,
    FORWARD_RESEND_S,
    FORWARD_RETRY_S,
    NODE_STATUS_INTERVAL_S,
)
from numbers_uring.system.threads import start_thread, wait_for_beginning

if TYPE_CHECKING:
    from nats.aio.client import Client
    from nats.js import JetStreamContext

_HEADER_BYTES_MAX = 1024


class _ClosedError(Exception):
    """Ends all tasks."""


class Publisher:
    """Connected to the engine at `url`, whose streams were checked, once this returns.

    Publishes what `attach` gives, under ids that begin with `boot_id`. `say` takes a line for the
    operator when batches are refused, and when that ends. `on_failure` is called, in the thread,
    when there is a `failure`. Raises StartError.
    """

    def __init__(
        self,
        url: str,
        partitions: int,
        *,
        access: BrokerAccess,
        boot_id: str,
        say: Callable[[str], None],
        inform: Callable[[str], None],
        on_failure: Callable[[], None],
    ) -> None:
        self.name = f"the engine at {url_text(url)}"
        self.trouble: str | None = None
        """Why the engine does not take batches, where it has said so, or said nothing."""
        self.failure: BaseException | None = None
        """What has ended the thread."""
        self._url = url
        self._access = access
        self._partitions = partitions
        self._boot_id = boot_id
        self._say = say
        self._inform = inform
        self._on_failure = on_failure
        self._outbox: Outbox
        self._state: Callable[[], tuple[str, dict[str, object]]] | None = None
        self._told: set[str] = set()
        self._patience: set[asyncio.Timeout] = set()
        self._loop: asyncio.AbstractEventLoop
        self._news = asyncio.Event()
        self._attached = asyncio.Event()
        self._closing = asyncio.Event()
        self._ready = threading.Event()
        self._thread = start_thread(self._live, "publisher")
        wait_for_beginning(self._thread, self._ready)
        if self.failure is not None:
            self._thread.join()
            raise self.failure

    # For others' threads.

    def attach(self, outbox: Outbox) -> None:
        """Publish what is put there from now on."""
        self._outbox = outbox
        self._call(self._attached.set)

    def wake(self) -> None:
        """Look into the outbox; from any thread."""
        self._call(self._news.set)

    def tell(self, state: Callable[[], tuple[str, dict[str, object]]]) -> None:
        """Put what `state` returns, a key and a JSON object, where the cluster's nodes are listed.

        It is called, in this thread, every NODE_STATUS_INTERVAL_S from now on.
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
            # It ends what the client leaves behind, too, where the engine is away.
            with asyncio.Runner() as runner:
                self._loop = runner.get_loop()
                runner.run(self._run())
        except BaseException as error:
            while isinstance(error, BaseExceptionGroup):
                error = error.exceptions[0]
            self.failure = error
            if self._ready.is_set():
                self._on_failure()
        finally:
            self._ready.set()

    async def _run(self) -> None:
        name = f"numbers-uring {self._boot_id}"
        async with connected(self._url, name, access=self._access, say=self._note) as client:
            if client.max_payload < FORWARD_BATCH_BYTES + _HEADER_BYTES_MAX:
                raise StartError(
                    f"{self.name} takes messages of {client.max_payload} bytes at most "
                    f"(max_payload), and batches have {FORWARD_BATCH_BYTES} and a header"
                )
            js = jetstream(client)
            await check_streams(js, self._partitions)
            self._ready.set()
            try:
                async with asyncio.TaskGroup() as tasks:
                    tasks.create_task(self._dispatch(client, js, tasks))
                    tasks.create_task(self._tell_state(js))
                    tasks.create_task(until_closed(client))
                    await self._closing.wait()
                    raise _ClosedError
            except* _ClosedError:
                await self._forget_state(client, js)

    def _note(self, text: str) -> None:
        """Say that the connection is lost, or back; what was under way is to be sent again."""
        self._say(text)
        self._resend_all()
        self._news.set()

    def _resend_all(self) -> None:
        for patience in self._patience:
            if not patience.expired():
                patience.reschedule(self._loop.time())

    async def _dispatch(
        self, client: "Client", js: "JetStreamContext", tasks: asyncio.TaskGroup
    ) -> None:
        await self._attached.wait()
        slots = asyncio.Semaphore(FORWARD_IN_FLIGHT)
        while True:
            await slots.acquire()
            # Before the look, so that whatever comes behind it is not missed.
            self._news.clear()
            while (batch := self._outbox.take() if client.is_connected else None) is None:
                pause_s = self._outbox.due_in_s() if client.is_connected else FORWARD_RETRY_S
                with suppress(TimeoutError):
                    async with asyncio.timeout(pause_s):
                        await self._news.wait()
                self._news.clear()
            task = tasks.create_task(self._publish(js, batch))
            task.add_done_callback(lambda _: slots.release())

    async def _publish(self, js: "JetStreamContext", batch: Batch) -> None:
        import nats  # noqa: PLC0415

        try:
            async with asyncio.timeout(FORWARD_RESEND_S) as patience:
                self._patience.add(patience)
                # Its own time-out would not see that the connection was lost.
                await js.publish(
                    subject_name(batch.partition),
                    batch.payload,
                    timeout=2 * FORWARD_RESEND_S,
                    headers={"Nats-Msg-Id": f"{self._boot_id}-{batch.number}"},
                )
        except (OSError, nats.errors.Error) as error:
            self._outbox.fail(batch, FORWARD_RETRY_S)
            self._note_trouble(batch.partition, error)
        else:
            if self._outbox.acknowledge(batch):
                self._note_relief()
        finally:
            self._patience.discard(patience)
            self._news.set()

    def _note_trouble(self, partition: int, error: Exception) -> None:
        """Say what is wrong, once until everything is acknowledged that was refused."""
        from nats.js.errors import APIError, NoStreamResponseError  # noqa: PLC0415

        if isinstance(error, TimeoutError):
            kind, text = "silent", "does not answer"
        elif isinstance(error, NoStreamResponseError):
            kind = "nobody"
            text = f"has nobody to take {subject_name(partition)}: no stream, or no leader of it"
        elif isinstance(error, APIError):
            kind = f"refused {error.description}"
            text = f"refuses {subject_name(partition)}: {error.description}"
        else:
            kind, text = type(error).__name__, f"does not take batches: {error}"
        self.trouble = f"{self.name} {text}"
        if kind not in self._told and not self._closing.is_set():
            self._told.add(kind)
            self._say(f"{self.trouble}; sending again until it is acknowledged")

    def _note_relief(self) -> None:
        self.trouble = None
        if self._told:
            self._told.clear()
            self._inform(f"{self.name} has acknowledged what it had not: going on")

    async def _tell_state(self, js: "JetStreamContext") -> None:
        import nats  # noqa: PLC0415

        while True:
            await asyncio.sleep(NODE_STATUS_INTERVAL_S)
            if self._state is not None:
                key, state = self._state()
                # It is only for those who look; an engine that does not answer is told of anyway.
                with suppress(OSError, nats.errors.Error):
                    bucket: Any = await js.key_value(NODES_BUCKET)
                    await bucket.put(key, json.dumps(state).encode())

    async def _forget_state(self, client: "Client", js: "JetStreamContext") -> None:
        """Leave the list of nodes, rather than be in it for some seconds more."""
        import nats  # noqa: PLC0415

        if self._state is not None and client.is_connected:
            key, _ = self._state()
            with suppress(OSError, nats.errors.Error):
                async with asyncio.timeout(FORWARD_CLOSE_S / 2):
                    bucket: Any = await js.key_value(NODES_BUCKET)
                    await bucket.delete(key)
