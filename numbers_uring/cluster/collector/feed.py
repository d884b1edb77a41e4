"""One consumer of a stream: messages from a sequence on, asked for ahead, within a bound.

Facts of nats-server 2.15 that it relies on:

- A message of the stream comes with the subject that it was published to. What has our inbox as
  its subject is of the NATS server itself: a heartbeat, or the end of a request. Headers tell
  nothing, because any publisher can write `Status: 404`.
- The reply subject, `$JS.ACK...`, has the message's sequence in the stream, its time in
  nanoseconds, and its sequence in this consumer. That one has no gaps, so where it jumps, messages
  were lost on their way, and where it does not, the stream's server has no others.
- A request with `max_bytes` is charged subject, reply, headers and payload of each message. Its
  end returns what was not used. All open requests are served in turn.
- While a request is open and has nothing, a heartbeat comes every `idle_heartbeat`. A consumer
  that is in one server's memory alone is gone with that server, without a word.

Not nats-py's fetch: that takes a publisher's `Status: 404` for the server's, drops the message,
and asks for the next ones only when the last ones were handed out.
"""

import asyncio
import json
import time
from collections import deque
from secrets import token_hex
from typing import TYPE_CHECKING, NamedTuple, Self

from numbers_uring.limits import (
    NANOSECONDS_PER_S,
    READ_AHEAD_MESSAGES,
    READ_ANSWER_S,
    READ_CONSUMER_S,
    READ_EXPIRES_S,
    READ_HEARTBEAT_S,
    READ_SILENT_S,
)

if TYPE_CHECKING:
    from nats.aio.msg import Msg
    from nats.aio.subscription import Subscription
    from nats.js import JetStreamContext

_ASK_SHARE = 4
"""What is asked for next is at least the fourth part of all."""


class Message(NamedTuple):
    """A message of a stream."""

    sequence: int
    time_ns: int
    """When it was stored; 0 where the message is missing and skipped."""
    data: bytes
    headers: dict[str, str] | None
    skipped: bool = False
    """Whether an operator has decided that no copy takes it in; it has no data then."""


class Delivery(NamedTuple):
    """What the reply subject of a delivered message tells."""

    sequence: int
    consumer_sequence: int
    time_ns: int
    pending: int
    """Messages behind this one."""


def parse_delivery(reply: str) -> Delivery:
    """Parse `$JS.ACK.<stream>.<consumer>.<times>.<sequence>.<consumer sequence>.<time>.<pending>`.

    A server with a domain has it and the account before the stream, and one more at the end.
    Raises ValueError.
    """
    parts = reply.split(".")
    if parts[:2] != ["$JS", "ACK"] or (len(parts) != 9 and len(parts) < 11):
        raise ValueError(f"{reply!r} is of no message of a stream")
    first = 5 if len(parts) == 9 else 7
    return Delivery(*map(int, parts[first : first + 4]))


def size_bytes(message: "Msg") -> int:
    """Return what the NATS server charges a request for it."""
    headers = message.headers
    size = len(message.subject) + len(message.reply) + len(message.data)
    if headers:
        size += len("NATS/1.0\r\n\r\n") + sum(len(key) + len(headers[key]) + 4 for key in headers)
    return size


class Feed:
    """A consumer and what it has delivered; made by `open`, used up when `broken`."""

    def __init__(self, js: "JetStreamContext", stream: str, ahead_bytes: int) -> None:
        self.messages: deque[Message] = deque()
        """Delivered in order; the reader takes from the left by `take`."""
        self.broken: str | None = None
        """Why nothing more comes."""
        self.last_sequence = 0
        """Of the stream: the last delivered one, and as many as there are behind it."""
        self.changed = asyncio.Event()
        """Set when something was delivered, or it is broken."""
        self._client = js._nc  # it has no public name
        self._stream = stream
        # A name of ours: the question that makes it may be sent again.
        self._name = token_hex(8)
        self._inbox = self._client.new_inbox()
        self._subscription: Subscription | None = None
        self._reconnects = self._client.stats["reconnects"]
        self._ahead_bytes = ahead_bytes
        self._held_bytes = 0
        """In `messages`."""
        self._asked_bytes = 0
        self._asked_messages = 0
        """Of all open requests, less what came."""
        self._requests = 0
        self._open: dict[str, float] = {}
        """Open requests, and when each is over at the latest."""
        self._too_large = False
        """Whether the next message is larger than all that is asked for."""
        self._consumer_sequence = 0
        self._heard_s = time.monotonic()

    @classmethod
    async def open(
        cls, js: "JetStreamContext", stream: str, first_sequence: int, ahead_bytes: int
    ) -> Self:
        """Make a consumer that begins at `first_sequence`.

        Raises what the client raises: nats.errors.Error, TimeoutError, OSError.
        """
        feed = cls(js, stream, ahead_bytes)
        try:
            await feed._make(first_sequence)
        except BaseException:
            await feed.close()
            raise
        return feed

    async def _make(self, first_sequence: int) -> None:
        from nats.js.errors import APIError  # noqa: PLC0415

        self._subscription = await self._client.subscribe(f"{self._inbox}.*", cb=self._receive)
        config = {
            "name": self._name,
            "deliver_policy": "by_start_sequence",
            "opt_start_seq": first_sequence,
            "ack_policy": "none",
            "mem_storage": True,
            "num_replicas": 1,
            "inactive_threshold": int(READ_CONSUMER_S * NANOSECONDS_PER_S),
        }
        answer = await self._client.request(
            f"$JS.API.CONSUMER.CREATE.{self._stream}",
            json.dumps({"stream_name": self._stream, "config": config}).encode(),
            READ_ANSWER_S,
        )
        made = json.loads(answer.data)
        if "error" in made:
            APIError.from_error(made["error"])
        await self._ask()

    def take(self) -> Message:
        """Return the next message, and make place for another."""
        message = self.messages.popleft()
        self._held_bytes -= len(message.data)
        return message

    async def tend(self) -> None:
        """Ask for more, if there is place; notice that nothing comes any more."""
        if self.broken is None and self._client.stats["reconnects"] != self._reconnects:
            self._break("the connection was made anew")
        if self.broken is None and self._open and self.silent_s > READ_SILENT_S:
            self._break("it is silent")
        if self.broken is None:
            await self._ask()

    @property
    def silent_s(self) -> float:
        """How long nothing was heard, not even a heartbeat."""
        return time.monotonic() - self._heard_s

    async def close(self) -> None:
        """Delete the consumer, without waiting for an answer."""
        import nats  # noqa: PLC0415

        self._break("it is closed")
        try:
            if self._subscription is not None:
                await self._subscription.unsubscribe()
            if self._client.is_connected:
                subject = f"$JS.API.CONSUMER.DELETE.{self._stream}.{self._name}"
                await self._client.publish(subject)
        except (nats.errors.Error, OSError):
            pass  # The NATS server deletes it after READ_CONSUMER_S.

    # Asking.

    async def _ask(self) -> None:
        now_s = time.monotonic()
        for token in [token for token, end_s in self._open.items() if end_s < now_s]:
            del self._open[token]
        if not self._open:
            self._asked_bytes = self._asked_messages = 0
        free_bytes = self._ahead_bytes - self._held_bytes - self._asked_bytes
        free_messages = READ_AHEAD_MESSAGES - len(self.messages) - self._asked_messages
        enough = (
            free_bytes * _ASK_SHARE >= self._ahead_bytes
            and free_messages * _ASK_SHARE >= READ_AHEAD_MESSAGES
        )
        if not enough or not self._client.is_connected:
            return
        request: dict[str, int] = {
            "expires": int(READ_EXPIRES_S * NANOSECONDS_PER_S),
            "idle_heartbeat": int(READ_HEARTBEAT_S * NANOSECONDS_PER_S),
        }
        if self._too_large:
            # By itself, whatever its size: the stream has a limit, too.
            if self.messages or self._open:
                return
            request["batch"] = 1
            free_messages = 1
        else:
            request |= {"batch": free_messages, "max_bytes": free_bytes}
        if not self._open:
            self._heard_s = now_s
        self._requests += 1
        token = str(self._requests)
        self._open[token] = now_s + READ_EXPIRES_S + READ_SILENT_S
        self._asked_bytes += free_bytes
        self._asked_messages += free_messages
        await self._client.publish(
            f"$JS.API.CONSUMER.MSG.NEXT.{self._stream}.{self._name}",
            json.dumps(request).encode(),
            f"{self._inbox}.{token}",
        )

    # What comes.

    async def _receive(self, message: "Msg") -> None:
        if self.broken is not None:
            return
        self._heard_s = time.monotonic()
        if message.subject.startswith(self._inbox):
            self._control(message)
        else:
            self._deliver(message)
        if self.broken is None:
            await self._ask()

    def _deliver(self, message: "Msg") -> None:
        try:
            delivery = parse_delivery(message.reply)
        except ValueError as error:
            self._break(str(error))
            return
        if delivery.consumer_sequence != self._consumer_sequence + 1:
            self._break("messages were lost on their way")
            return
        self._consumer_sequence = delivery.consumer_sequence
        self._asked_bytes -= size_bytes(message)
        self._asked_messages -= 1
        if self._too_large or self._asked_bytes <= 0 or self._asked_messages <= 0:
            # What is used up to the last byte ends without a word.
            self._open.clear()
        self._too_large = False
        self._held_bytes += len(message.data)
        self.last_sequence = delivery.sequence + delivery.pending
        self.messages.append(
            Message(delivery.sequence, delivery.time_ns, message.data, message.headers)
        )
        self.changed.set()

    def _control(self, message: "Msg") -> None:
        headers = message.headers or {}
        status = headers.get("Status")
        if status == "100":
            return
        text = f"{status} {headers.get('Description', '')}".strip()
        unused_bytes = headers.get("Nats-Pending-Bytes")
        if unused_bytes is None and status != "408":
            # The consumer, its server, or the stream is gone.
            self._break(text)
            return
        token = message.subject.rpartition(".")[2]
        if self._open.pop(token, None) is None:
            return
        self._asked_bytes -= int(unused_bytes or 0)
        self._asked_messages -= int(headers.get("Nats-Pending-Messages", "0"))
        if "MaxBytes" in text and not self.messages and not self._open:
            self._too_large = int(unused_bytes or 0) >= self._ahead_bytes

    def _break(self, why: str) -> None:
        if self.broken is None:
            self.broken = why
        self.changed.set()
