"""The collector of one partition: its stream's messages into its log, each number once.

A message is acknowledged when all of its numbers are on disk, and not before. Whatever is killed,
a message that was not acknowledged is delivered again, late and out of order; it then brings
nothing but repeats. So at-least-once delivery and a step that may be repeated give each number
exactly once.
"""

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from contextlib import suppress
from typing import TYPE_CHECKING

from numbers_uring.cluster.collector.kernel import CollectKernel, ForeignNumberError
from numbers_uring.cluster.collector.lease import Lease, Progress
from numbers_uring.cluster.connection import broker_errors
from numbers_uring.cluster.partitions import stream_name
from numbers_uring.errors import BackendError, SinkError, StartError
from numbers_uring.limits import (
    BROKER_ACK_WAIT_S,
    COLLECTOR_BROKER_ANSWER_S,
    COLLECTOR_BROKER_RETRY_S,
    FETCH_BUSY_S,
    FETCH_IDLE_S,
    FETCH_MESSAGES,
    LINE_BYTES,
    MESSAGE_BYTES_MAX,
    NO_SPACE_RETRY_S,
)
from numbers_uring.log.writer import NumbersLog
from numbers_uring.system.stopwatch import Stopwatch

if TYPE_CHECKING:
    from nats.aio.msg import Msg
    from nats.js import JetStreamContext
    from nats.js.api import ConsumerConfig, ConsumerInfo

CONSUMER = "collector"
"""The durable consumer of each stream."""


def consumer_config() -> "ConsumerConfig":
    """Return how a collector's consumer is made: everything, until it is acknowledged."""
    from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy  # noqa: PLC0415

    return ConsumerConfig(
        durable_name=CONSUMER,
        deliver_policy=DeliverPolicy.ALL,
        ack_policy=AckPolicy.EXPLICIT,
        ack_wait=BROKER_ACK_WAIT_S,
        max_deliver=-1,
        max_ack_pending=4 * FETCH_MESSAGES,
    )


class CollectorError(BackendError):
    """A collector can't go on; its text is the one line for the user."""


class PartitionCollector:
    """Takes in one partition. `log` is synced with each append; `resumed` lines are in it.

    `halt` ends a wait for space; `say` takes one line for the operator, `inform` one that is no
    warning. What it counts may be read from any thread.
    """

    def __init__(
        self,
        partition: int,
        *,
        js: "JetStreamContext",
        kernel: CollectKernel,
        log: NumbersLog,
        lease: Lease,
        pool: Executor,
        halt: threading.Event,
        say: Callable[[str], None],
        inform: Callable[[str], None],
    ) -> None:
        self.partition = partition
        self.log = log
        self.lease = lease
        self.out_of_space = Stopwatch()
        self.resumed_lines = 0
        self.received_messages = 0
        self.received_bytes = 0
        self.redelivered_messages = 0
        self.acknowledged_messages = 0
        self.lag_messages: int | None = None
        """Messages of the stream that are not acknowledged; None if that is unknown."""
        self.step_s: float | None = None
        """Since when a thread is in a step, of which the longest is a sync; None where in none."""
        self._stream = stream_name(partition)
        self._js = js
        self._kernel = kernel
        self._pool = pool
        self._halt = halt
        self._say = say
        self._inform = inform
        self._duplicate = 0
        self._bad: str | None = None
        self._busy = True
        self._inode = log.path.stat().st_ino

    @property
    def progress(self) -> Progress:
        """What is on file."""
        unique = self.log.written_lines
        return Progress(
            numbers=self.resumed_lines + unique, unique=unique, duplicates=self._duplicate
        )

    # Starting.

    async def prepare(self, recorded_lines: int, *, replay: bool) -> None:
        """Make the consumer, or take up that of an earlier collector. Raises StartError.

        Where the log has less than what was acknowledged, its disk was lost or put back: the
        stream is then taken in from its start, as with `replay`.
        """
        info = await self._consumer_info()
        acknowledged = 0 if info is None or info.ack_floor is None else info.ack_floor.stream_seq
        lines = self.resumed_lines
        lost = lines < recorded_lines or (bool(acknowledged) and not lines)
        if lost and not replay:
            await self._require_whole_stream(max(recorded_lines, 1))
        if info is not None and (lost or replay):
            await self._js.delete_consumer(self._stream, CONSUMER)
            info = None
        if lost or replay:
            of = f", of {recorded_lines} once acknowledged" if lines < recorded_lines else ""
            self._say(
                f"the log {self.log.path} has {lines} numbers{of}: taking in the stream "
                f"{self._stream} from its start"
            )
        if info is None:
            info = await self._make_consumer()
        else:
            self._check_consumer(info.config)
        self._note_lag(info)

    async def _require_whole_stream(self, recorded_lines: int) -> None:
        state = (await self._js.stream_info(self._stream)).state
        if state.first_seq > 1 or state.num_deleted:
            raise StartError(
                f"the log {self.log.path} has {self.resumed_lines} numbers, of {recorded_lines} "
                f"or more once acknowledged, and the stream {self._stream} has lost messages "
                "since: put the log back, or take in what is left with --replay"
            )

    async def _consumer_info(self) -> "ConsumerInfo | None":
        from nats.js.errors import NotFoundError  # noqa: PLC0415

        try:
            info: ConsumerInfo = await self._js.consumer_info(self._stream, CONSUMER)
            return info
        except NotFoundError:
            return None

    def _note_lag(self, info: "ConsumerInfo") -> None:
        self.lag_messages = (info.num_pending or 0) + (info.num_ack_pending or 0)

    async def ask_lag(self) -> None:
        """Ask the NATS server for `lag_messages`."""
        import nats  # noqa: PLC0415

        info = None
        with suppress(nats.errors.Error, TimeoutError, OSError):
            info = await self._consumer_info()
        if info is None:
            self.lag_messages = None
        else:
            self._note_lag(info)

    async def _make_consumer(self) -> "ConsumerInfo":
        return await self._js.add_consumer(self._stream, consumer_config())

    def _check_consumer(self, config: "ConsumerConfig") -> None:
        from nats.js.api import AckPolicy, DeliverPolicy  # noqa: PLC0415

        right = (
            config.ack_policy == AckPolicy.EXPLICIT
            and config.deliver_policy == DeliverPolicy.ALL
            and config.max_deliver in {None, -1}
            and not config.filter_subject
            and not config.filter_subjects
            and not config.headers_only
        )
        if not right:
            raise StartError(
                f"the consumer {CONSUMER} of the stream {self._stream} was not made by a "
                f"collector: delete it with 'nats consumer rm {self._stream} {CONSUMER}'"
            )

    # Taking in.

    async def run(self, stop: asyncio.Event) -> None:
        """Take in until `stop` is set. Raises SinkError and CollectorError."""
        stopped = asyncio.create_task(stop.wait())
        with broker_errors(f"subscribe to the stream {self._stream}"):
            self._subscription = await self._js.pull_subscribe_bind(CONSUMER, self._stream)
        fetch = asyncio.create_task(self._fetch())
        try:
            while not stop.is_set():
                await asyncio.wait({fetch, stopped}, return_when=asyncio.FIRST_COMPLETED)
                if not fetch.done():
                    break
                # The next ones are on their way while these are written and synced.
                messages, fetch = fetch.result(), asyncio.create_task(self._fetch())
                if messages and not await self._process(messages, stop):
                    break
        finally:
            stopped.cancel()
            await self._give_back(fetch)

    async def _fetch(self) -> "Sequence[Msg]":
        """Return some messages, at once if there are any; none, sooner or later, if not."""
        import nats  # noqa: PLC0415

        # To ask for several waits for several, and to ask for one brings one at a time.
        count, timeout_s = (FETCH_MESSAGES, FETCH_BUSY_S) if self._busy else (1, FETCH_IDLE_S)
        messages: Sequence[Msg] = []
        try:
            messages = await self._subscription.fetch(count, timeout=timeout_s)
        except TimeoutError:
            pass
        except nats.errors.Error:
            await self._look_after_consumer()
        self._busy = bool(messages)
        self.received_messages += len(messages)
        self.received_bytes += sum(len(message.data) for message in messages)
        self.redelivered_messages += sum(message.metadata.num_delivered > 1 for message in messages)
        return messages

    async def _look_after_consumer(self) -> None:
        """Recreate the consumer if it was deleted; wait while the NATS server does not answer."""
        import nats  # noqa: PLC0415

        await asyncio.sleep(COLLECTOR_BROKER_RETRY_S)
        with suppress(nats.errors.Error, TimeoutError):
            async with asyncio.timeout(COLLECTOR_BROKER_ANSWER_S):
                await self._require_stream()
                info = await self._consumer_info()
            if info is None:
                self._say(
                    f"the consumer {CONSUMER} of the stream {self._stream} was deleted: taking in "
                    "the stream from its start"
                )
                await self._make_consumer()

    async def _require_stream(self) -> None:
        from nats.js.errors import NotFoundError  # noqa: PLC0415

        try:
            await self._js.stream_info(self._stream)
        except NotFoundError as error:
            raise CollectorError(f"the stream {self._stream} is gone") from error

    async def _process(self, messages: "Sequence[Msg]", stop: asyncio.Event) -> bool:
        """Put them on disk, then acknowledge them; False where the stop came before that."""
        import nats  # noqa: PLC0415

        while not self.lease.fresh:
            if stop.is_set():
                return False
            await asyncio.sleep(COLLECTOR_BROKER_RETRY_S)
        datas = [message.data for message in messages]
        loop = asyncio.get_running_loop()
        taken = await loop.run_in_executor(self._pool, self._take_in, datas)
        # One that does not get through means another delivery, of repeats.
        with suppress(nats.errors.Error):
            for message in messages[:taken]:
                await message.ack()
                self.acknowledged_messages += 1
        if self._bad is not None:
            sequence = messages[taken].metadata.sequence.stream
            raise CollectorError(
                f"message {sequence} of the stream {self._stream} {self._bad}; it was not taken "
                f"in: 'nats stream rmm {self._stream} {sequence}' removes it"
            )
        return taken == len(messages)

    async def _give_back(self, fetch: "asyncio.Task[Sequence[Msg]]") -> None:
        """Have what was delivered, but not taken in, delivered to the next collector at once."""
        import nats  # noqa: PLC0415

        if not fetch.done():
            fetch.cancel()
        with suppress(asyncio.CancelledError, nats.errors.Error, CollectorError):
            for message in await fetch:
                await message.nak()

    # In a thread of the pool.

    def _take_in(self, datas: Sequence[bytes]) -> int:
        """Return how many of the messages, from the first on, are on disk. Raises SinkError."""
        self.step_s = time.monotonic()
        try:
            return self._take_in_by_steps(datas)
        finally:
            self.step_s = None

    def _take_in_by_steps(self, datas: Sequence[bytes]) -> int:
        count = 0
        for data in datas:
            if len(data) > MESSAGE_BYTES_MAX:
                self._bad = f"has {len(data)} bytes, which no node sends"
                break
            if not self._kernel.room(len(data)) and not self._put_on_disk():
                return 0
            try:
                self._kernel.take(data)
            except ForeignNumberError:
                self._bad = "holds something else than whole numbers of this partition"
                break
            count += 1
        return count if self._put_on_disk() else 0

    def _put_on_disk(self) -> bool:
        """Write and sync the batch; False where there was no space until the stop."""
        lines = self._kernel.lines()
        self._require_file()
        offset = self.log.append(lines)
        while offset < len(lines):
            if not self.out_of_space.runs:
                self.out_of_space.start()
                self._say(
                    f"no space for the log {self.log.path}: its stream waits, retrying every "
                    f"{NO_SPACE_RETRY_S:g} s"
                )
            self.step_s = None
            if self._halt.wait(NO_SPACE_RETRY_S):
                return False
            self.step_s = time.monotonic()
            offset += self.log.append(lines[offset:])
        if self.out_of_space.runs:
            self.out_of_space.stop()
            self._say(f"there is space for the log {self.log.path} again: continuing")
        self._kernel.clear()
        self._duplicate = self._kernel.duplicate
        self.step_s = time.monotonic()
        return True

    def _require_file(self) -> None:
        """Raise SinkError where the log is no longer what was acknowledged."""
        try:
            state = self.log.path.stat()
            whole = state.st_ino == self._inode
            whole = whole and state.st_size >= self.progress.numbers * LINE_BYTES
        except OSError:
            whole = False
        if not whole:
            raise SinkError(
                f"the log {self.log.path} was removed, replaced or truncated by another process: "
                "the next start puts back what is missing, from the stream"
            )
