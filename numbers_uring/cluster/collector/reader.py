"""Reads a partition's stream strictly in sequence: never passes over a message, but by a skip.

A consumer delivers (feed.py). Where it leaves a message out, all replicas are asked (lookup.py),
and what none has is waited for: a replica may come back, or an operator decides, for all copies
alike. The first message read is the last one that is in the log, so that a stream that
was put back, and has used its sequences again, is noticed.
"""

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Container, Sequence
from contextlib import nullcontext, suppress
from itertools import islice, takewhile
from typing import TYPE_CHECKING

from numbers_uring.cluster.collector.feed import Feed, Message
from numbers_uring.cluster.collector.lookup import (
    Lookup,
    NoAnswerError,
    NoStreamError,
    StreamState,
    read_state,
)
from numbers_uring.cluster.collector.waits import Wait, Waits
from numbers_uring.cluster.partitions import stream_name
from numbers_uring.errors import BackendError
from numbers_uring.limits import (
    LOOKUP_RETRY_S,
    MESSAGE_BYTES_MAX,
    READ_AHEAD_BYTES,
    READ_BACK_ASKS,
    READ_BYTES,
    READ_IDLE_S,
    READ_IDLE_S_MAX,
    READ_MESSAGES,
    READ_RETRY_S,
    READ_SILENT_S,
    READ_WAIT_S,
)

if TYPE_CHECKING:
    from nats.js import JetStreamContext


class StreamReplacedError(BackendError):
    """The stream was deleted and made again; its text is the one line for the user."""


def malformed(message: Message) -> str | None:
    """Return why no node can have sent this message; None if one can, for all that is outside it.

    Every copy comes to the same result, whichever way it got the message.
    """
    if len(message.data) > MESSAGE_BYTES_MAX:
        return f"has {len(message.data)} bytes, which no node sends"
    if not message.data:
        return "is empty"
    if message.headers and "Status" in message.headers:
        return "has a header Status, which no node sends"
    return None


class Reader:
    """Reads one partition from behind `position`, its log's last message, stored at `time_ns`.

    Position 0 is the begin of the stream; time 0 stands for a message that is not checked. The
    stream is the one made at `created_ns`. `skipped` has the sequences that an operator has decided
    to skip, at any moment. `passed_by` returns the name of another copy that has passed a sequence,
    or None; `tail_bytes` how much the log has that no message has brought yet. `say` takes one line
    for the operator, `inform` one that is no warning. `opens` bounds how many readers make a
    consumer at once.

    The counters may be read from any thread.
    """

    def __init__(
        self,
        js: "JetStreamContext",
        partition: int,
        *,
        position: int,
        time_ns: int,
        created_ns: int,
        skipped: Container[int],
        say: Callable[[str], None],
        inform: Callable[[str], None],
        passed_by: Callable[[int], Awaitable[str | None]] | None = None,
        tail_bytes: Callable[[], int] = lambda: 0,
        ahead_bytes: int = READ_AHEAD_BYTES,
        opens: asyncio.Semaphore | None = None,
    ) -> None:
        self.position = position
        """The last message that was returned, and not refused."""
        self.last_sequence: int | None = None
        """Of the stream, as the NATS server said last; None before."""
        self.received_messages = 0
        self.received_bytes = 0
        self._js = js
        self._client = js._nc  # it has no public name
        self._partition = partition
        self._stream = stream_name(partition)
        self._time_ns = self._time_before_ns = time_ns
        self._created_ns = created_ns
        self._skipped = skipped
        self._waits = Waits(partition, say=say, inform=inform)
        self._inform = inform
        self._passed_by = passed_by
        self._tail_bytes = tail_bytes
        self._ahead_bytes = ahead_bytes
        self._opens = nullcontext() if opens is None else opens
        self._lookup = Lookup(js, self._stream)
        self._feed: Feed | None = None
        self._overlaps = False
        """Whether the feed begins at the position, so that its first message is to be checked."""
        self._returned: Sequence[Message] = ()
        self._again: deque[Message] = deque()
        """To be returned before what the feed has: found by lookup, or behind a refused one."""
        self._checked_s = 0.0
        """When the stream was asked last whether it has more."""
        self._idle_s = READ_IDLE_S
        """How long nothing comes before it is asked again."""
        self._behind_at: int | None = None
        """The position at which it had."""
        self._opens_s = 0.0
        """When the next consumer may be made."""
        self._looks_s = 0.0
        """When missing messages may be looked for again."""
        self._back_asks = 0
        self._failing_s: float | None = None
        """Since when the NATS server does not answer."""

    @property
    def waits(self) -> Wait | None:
        """Why nothing is returned; None if it is only that there is nothing."""
        return self._waits.current

    @property
    def lag_messages(self) -> int | None:
        """Messages of the stream behind the position; None if that is not known."""
        return None if self.last_sequence is None else max(0, self.last_sequence - self.position)

    async def read(self) -> Sequence[Message]:
        """Return the next messages, with consecutive sequences; none after a while without any.

        Raises StreamReplacedError. May be cancelled; what it had read is then lost.
        """
        import nats  # noqa: PLC0415

        failures = (nats.errors.Error, OSError, NoAnswerError, NoStreamError)
        end_s = time.monotonic() + READ_WAIT_S
        while True:
            try:
                messages = await self._step()
            except failures as error:
                self._fail(error)
                messages = []
            if messages:
                self._pass(messages)
                return messages
            left_s = end_s - time.monotonic()
            if left_s <= 0:
                return []
            await self._pause(left_s)

    def refuse(self, message: Message, why: str) -> None:
        """Take back a message that the last read has returned, and all behind it.

        It is no batch, for the reason `why`: the partition waits until it is skipped.
        """
        index = message.sequence - self._returned[0].sequence
        assert self._returned[index] is message
        self._again.extendleft(reversed(self._returned[index:]))
        self.position = message.sequence - 1
        self._time_ns = self._returned[index - 1].time_ns if index else self._time_before_ns
        self._returned = ()
        self._waits.begin_malformed(message.sequence, why)

    async def close(self) -> None:
        feed, self._feed = self._feed, None
        if feed is not None:
            await feed.close()

    # One step.

    async def _step(self) -> list[Message]:
        """Return messages if there are any, or do what is needed to have some."""
        if self.waits is not None and self.waits.kind == "malformed":
            if self.waits.first_sequence not in self._skipped:
                return []
            self._clear()
        if found := self._take():
            return found
        if self._feed is not None:
            return await self._tend(self._feed)
        if time.monotonic() >= self._opens_s:
            async with self._opens:
                await self._open()
        return []

    async def _tend(self, feed: Feed) -> list[Message]:
        await feed.tend()
        if feed.messages and self._overlaps:
            await self._check_overlap(feed.messages[0])
            return []
        if feed.messages:
            return await self._fill(self.position + 1, feed.messages[0].sequence - 1)
        if feed.broken is not None:
            if feed.silent_s >= READ_SILENT_S and self._failing_s is None:
                self._failing_s = time.monotonic() - feed.silent_s
            await self.close()
        elif time.monotonic() - self._checked_s >= self._idle_s:
            return await self._check_idle(feed)
        return []

    async def _pause(self, most_s: float) -> None:
        """Wait until there may be something to do."""
        feed = self._feed
        if feed is None or self._waits.kind not in {None, "broker"}:
            await asyncio.sleep(min(most_s, READ_RETRY_S))
            return
        if feed.messages or feed.broken is not None:
            return
        feed.changed.clear()
        checks_s = self._checked_s + self._idle_s - time.monotonic()
        with suppress(TimeoutError):
            async with asyncio.timeout(min(most_s, max(checks_s, 0))):
                await feed.changed.wait()

    def _pass(self, messages: list[Message]) -> None:
        self._clear()
        self._returned = messages
        self._time_before_ns = self._time_ns
        self.position, self._time_ns = messages[-1].sequence, messages[-1].time_ns
        self.received_messages += len(messages)
        self.received_bytes += sum(len(message.data) for message in messages)
        self._checked_s = time.monotonic()
        self._idle_s = READ_IDLE_S
        self._behind_at = None
        self._failing_s = None
        if self._feed is not None:
            self.last_sequence = max(self.position, self._feed.last_sequence)

    # Messages that are there.

    def _take(self) -> list[Message]:
        """Return those that follow the position without a gap: some of them, if they are many."""
        taken: list[Message] = []
        taken_bytes = 0
        position = self.position
        while len(taken) < READ_MESSAGES and taken_bytes < READ_BYTES:
            message = self._next_in_memory(position + 1)
            if message is None:
                break
            if message.sequence in self._skipped:
                self._inform_skip(message.sequence, message.sequence)
                message = message._replace(data=b"", skipped=True)
            taken.append(message)
            taken_bytes += len(message.data)
            position = message.sequence
        return taken

    def _next_in_memory(self, sequence: int) -> Message | None:
        while self._again:
            message = self._again.popleft()
            if message.sequence == sequence:
                return message
            assert message.sequence < sequence, "it was put back in order"
        feed = self._feed
        if feed is None or self._overlaps:
            return None
        while feed.messages and feed.messages[0].sequence < sequence:
            feed.take()
        if feed.messages and feed.messages[0].sequence == sequence:
            return feed.take()
        return None

    def _inform_skip(self, first: int, last: int) -> None:
        of = f"of the stream {self._stream}"
        if first == last:
            self._inform(f"message {first} {of} is skipped, as recorded")
        else:
            self._inform(f"messages {first} to {last} {of} are skipped, as recorded")

    async def _check_overlap(self, there: Message | None) -> bool:
        """Compare the message at the position with what the log was told of it.

        `there` is the first one that the consumer has delivered, or None before that.
        """
        if there is not None and there.sequence == self.position:
            is_other = there.time_ns != self._time_ns
        else:
            is_other = await self._lookup.is_other(self.position, self._time_ns)
        if is_other:
            self._wait_back(f"its message {self.position} is another one now")
            await self.close()
        else:
            self._overlaps = False
        return not is_other

    # A consumer.

    async def _open(self) -> None:
        self._opens_s = time.monotonic() + READ_RETRY_S
        state = await self._state()
        if state.last_sequence < self.position:
            self._opens_s = time.monotonic() + READ_IDLE_S
            self._back_asks += 1
            if self._back_asks >= READ_BACK_ASKS:
                self._wait_back(f"it ends at message {state.last_sequence}")
            return
        self._back_asks = 0
        overlaps = bool(self._time_ns) and state.first_sequence <= self.position
        first = self.position if overlaps else self.position + 1
        self._feed = await Feed.open(self._js, self._stream, first, self._ahead_bytes)
        self._overlaps = overlaps
        self._checked_s = time.monotonic()
        self._note_answer()

    async def _state(self) -> StreamState:
        state = await read_state(self._js, self._stream)
        if state.created_ns != self._created_ns:
            raise StreamReplacedError(
                f"the stream {self._stream} was deleted and made again: its log is of another one"
            )
        self.last_sequence = state.last_sequence
        return state

    async def _check_idle(self, feed: Feed) -> list[Message]:
        """Ask whether the stream has more than the consumer delivers."""
        self._checked_s = time.monotonic()
        state = await self._state()
        self._note_answer()
        if feed.messages:
            return []
        if state.last_sequence <= self.position:
            self._idle_s = min(2 * self._idle_s, READ_IDLE_S_MAX)
            self._behind_at = None
            if state.last_sequence < self.position:
                # Seen again, or not, when the next consumer is made.
                await self.close()
            else:
                self._clear()
            return []
        if self._behind_at != self.position:
            # They may be on their way.
            self._behind_at = self.position
            self._idle_s = READ_IDLE_S
            return []
        if self._overlaps and not await self._check_overlap(None):
            return []
        found = await self._fill(self.position + 1, state.last_sequence)
        if found and not found[0].skipped:
            # The consumer should have delivered them.
            await self.close()
        return found

    def _note_answer(self) -> None:
        self._failing_s = None
        if self._waits.kind == "broker":
            self._clear()

    # Messages that are missing.

    async def _fill(self, first: int, last: int) -> list[Message]:
        """Look for missing messages; wait where there are none."""
        import nats  # noqa: PLC0415

        missing = range(first, last + 1)
        skipped = list(islice(takewhile(self._skipped.__contains__, missing), READ_MESSAGES))
        if skipped:
            self._inform_skip(skipped[0], skipped[-1])
            return [Message(sequence, 0, b"", None, skipped=True) for sequence in skipped]
        if time.monotonic() < self._looks_s:
            return []
        found = await self._lookup.find(first, last)
        if found:
            self._again.extend(found)
            return self._take()
        self._looks_s = time.monotonic() + LOOKUP_RETRY_S
        state = await self._state()
        copy = None
        if self._passed_by is not None:
            # It is only a hint.
            with suppress(nats.errors.Error, OSError):
                copy = await self._passed_by(last)
        self._waits.begin_missing(first, last, state.first_sequence, copy, self._tail_bytes())
        return []

    # Waiting.

    def _wait_back(self, what: str) -> None:
        self._opens_s = time.monotonic() + READ_IDLE_S
        self._waits.begin_went_back(self.position, what)

    def _clear(self) -> None:
        self._waits.end(self.position + 1)

    def _fail(self, error: Exception) -> None:
        now_s = time.monotonic()
        if self._failing_s is None:
            self._failing_s = now_s
        if self.waits is None and now_s - self._failing_s >= READ_SILENT_S:
            self._waits.begin_broker(
                self.position + 1,
                is_gone=isinstance(error, NoStreamError),
                # A lost connection is said once, for all partitions.
                quiet=not self._client.is_connected,
            )
