"""Single messages of a stream, and its state: for when a consumer does not deliver what it should.

Facts of nats-server 2.15 that it relies on:

- A direct get is answered by any replica, chosen at random each time; one that has lost the message
  answers 404 although the others have it. STREAM.MSG.GET is answered by the leader alone.
- An answer has the publisher's headers, and behind them the server's own, `Nats-Sequence` and so
  on. nats-py keeps the last one of each name, so a publisher's are not believed. `Nats-Stream` is
  in each message, and in no control message.
"""

import asyncio
import base64
import json
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from datetime import UTC, datetime
from typing import TYPE_CHECKING, NamedTuple

from numbers_uring.cluster.collector.feed import Message
from numbers_uring.cluster.streams import time_ns
from numbers_uring.limits import (
    LOOKUP_ASKS,
    LOOKUP_FAILURES_MAX,
    LOOKUP_MESSAGES,
    LOOKUP_PAUSE_S,
    LOOKUP_TIME_ASKS,
    NANOSECONDS_PER_S,
    READ_ANSWER_S,
    READ_BYTES,
)

if TYPE_CHECKING:
    from nats.aio.msg import Msg
    from nats.js import JetStreamContext

_NO_MESSAGE = 10037
_NO_STREAM = 10059


class NoStreamError(Exception):
    """The NATS server has no such stream, at least at the moment."""


class NoAnswerError(Exception):
    """No server could answer whether it has the message."""


class StreamState(NamedTuple):
    """A stream, as its leader has it."""

    created_ns: int
    first_sequence: int
    """One more than the last one where it has no messages."""
    last_sequence: int
    messages: int
    bytes: int
    bytes_max: int
    """What it may hold; -1 stands for no limit."""
    now_ns: int
    """The time of the NATS server."""


def time_text(time_ns: int) -> str:
    """Return a time in nanoseconds as NATS servers write it; see `time_ns` in streams.py."""
    seconds, rest = divmod(time_ns, NANOSECONDS_PER_S)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{rest:09d}Z"


async def read_state(js: "JetStreamContext", stream: str) -> StreamState:
    """Ask the stream's leader.

    Raises NoStreamError, and what the client raises: nats.errors.Error, TimeoutError, OSError.
    """
    from nats.js.errors import APIError  # noqa: PLC0415

    answer = await js._nc.request(f"$JS.API.STREAM.INFO.{stream}", b"", READ_ANSWER_S)
    info = json.loads(answer.data)
    error = info.get("error")
    if error is not None:
        if error.get("err_code") == _NO_STREAM:
            raise NoStreamError
        APIError.from_error(error)
    state = info["state"]
    return StreamState(
        created_ns=time_ns(info["created"]),
        first_sequence=state["first_seq"],
        last_sequence=state["last_seq"],
        messages=state["messages"],
        bytes=state["bytes"],
        bytes_max=info["config"].get("max_bytes", -1),
        now_ns=time_ns(info["ts"]),
    )


class Lookup:
    """Asks for messages of a stream by their sequence."""

    def __init__(self, js: "JetStreamContext", stream: str) -> None:
        self._client = js._nc  # it has no public name
        self._stream = stream

    async def find(self, first: int, last: int) -> Sequence[Message]:
        """Return message `first`, and some of those up to `last` that follow it without a gap.

        Nothing where no replica has it that was asked, and each one probably was. Raises
        NoAnswerError.
        """
        answers = failures = 0
        while answers < LOOKUP_ASKS and failures < LOOKUP_FAILURES_MAX:
            try:
                messages = await self._direct(first, last)
            except NoAnswerError:
                failures += 1
            else:
                answers += 1
                if messages:
                    return messages
            await asyncio.sleep(LOOKUP_PAUSE_S)
        try:
            return await self._of_leader(first)
        except NoAnswerError:
            if not answers:
                raise
        return []

    async def first_since(self, time_ns: int) -> Message | None:
        """Return the first message that was stored at this time or later.

        A replica may have lost some: so several are asked. Raises NoAnswerError.
        """
        request = {"start_time": time_text(time_ns), "batch": 1}
        found: list[Message] = []
        for _ in range(LOOKUP_TIME_ASKS):
            found += [message async for message in self._ask(request)]
        return min(found, key=lambda message: message.sequence, default=None)

    async def is_other(self, sequence: int, time_ns: int) -> bool:
        """Return whether the message that was stored as `sequence` at this time is another one now.

        So it is, too, where it is gone and an earlier sequence has a younger message. That it is
        gone is no harm by itself. Raises NoAnswerError.
        """
        found = await self.find(sequence, sequence)
        if found:
            return found[0].time_ns != time_ns
        since = await self.first_since(time_ns)
        return since is not None and since.sequence <= sequence

    async def first_there(self, first: int, last: int) -> Message | None:
        """Return the first message from `first` to `last` that any replica has; None without any.

        Raises NoAnswerError.
        """
        request = {"seq": first, "batch": 1}
        there: Message | None = None
        answers = failures = 0
        while answers < LOOKUP_ASKS and failures < LOOKUP_FAILURES_MAX:
            try:
                for message in [each async for each in self._ask(request)]:
                    if message.sequence <= last and (
                        there is None or message.sequence < there.sequence
                    ):
                        there = message
            except NoAnswerError:
                failures += 1
            else:
                answers += 1
                if there is not None and there.sequence == first:
                    return there
            await asyncio.sleep(LOOKUP_PAUSE_S)
        if not answers:
            raise NoAnswerError
        return there

    async def _direct(self, first: int, last: int) -> Sequence[Message]:
        """Ask any replica for as many as it has without a gap."""
        found: list[Message] = []
        request = {
            "seq": first,
            "batch": min(last - first + 1, LOOKUP_MESSAGES),
            "max_bytes": READ_BYTES,
        }
        try:
            async with aclosing(self._ask(request)) as answers:
                async for message in answers:
                    if message.sequence != first + len(found) or message.sequence > last:
                        break
                    found.append(message)
        except NoAnswerError:
            if not found:
                raise
        return found

    async def _ask(self, request: Mapping[str, object]) -> AsyncGenerator[Message, None]:
        """Ask any replica: its answers come one after the other, then a control message.

        Not by nats-py's `request`, which takes a publisher's `Status: 503` for the server's.
        """
        import nats  # noqa: PLC0415

        inbox = self._client.new_inbox()
        try:
            answers = await self._client.subscribe(inbox)
            try:
                await self._client.publish(
                    f"$JS.API.DIRECT.GET.{self._stream}", json.dumps(request).encode(), inbox
                )
                while (message := self._message(await answers.next_msg(READ_ANSWER_S))) is not None:
                    yield message
            finally:
                await answers.unsubscribe()
        except (nats.errors.Error, TimeoutError, OSError) as error:
            raise NoAnswerError from error

    def _message(self, answer: "Msg") -> Message | None:
        """Return the message of an answer; None where it has none. Raises NoAnswerError."""
        headers = answer.headers or {}
        if headers.get("Nats-Stream") != self._stream:
            if headers.get("Status") not in {"404", "204"}:
                raise NoAnswerError(headers.get("Status"))
            return None
        own = {key: value for key, value in headers.items() if not key.startswith("Nats-")}
        try:
            return Message(
                int(headers["Nats-Sequence"]),
                time_ns(headers["Nats-Time-Stamp"]),
                answer.data,
                own,
            )
        except (KeyError, ValueError) as error:
            raise NoAnswerError from error

    async def _of_leader(self, sequence: int) -> Sequence[Message]:
        import nats  # noqa: PLC0415

        try:
            answer = await self._client.request(
                f"$JS.API.STREAM.MSG.GET.{self._stream}",
                json.dumps({"seq": sequence}).encode(),
                READ_ANSWER_S,
            )
        except (nats.errors.Error, TimeoutError, OSError) as error:
            raise NoAnswerError from error
        found = json.loads(answer.data)
        if "error" in found:
            if found["error"].get("err_code") == _NO_MESSAGE:
                return []
            raise NoAnswerError(found["error"].get("description"))
        message = found["message"]
        if message["seq"] != sequence:
            return []
        return [
            Message(
                sequence,
                time_ns(message["time"]),
                base64.b64decode(message.get("data", "")),
                _headers(base64.b64decode(message.get("hdrs", ""))),
            )
        ]


def _headers(block: bytes) -> dict[str, str]:
    """Return the headers of a message as nats-py does: the last one of each name."""
    lines = block.decode("utf-8", "replace").split("\r\n")[1:]
    pairs = (line.partition(":") for line in lines if ":" in line)
    return {key.strip(): value.strip() for key, _, value in pairs}
