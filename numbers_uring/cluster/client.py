"""nats-py's client with every wait bounded: a NATS server that is silent is left for another.

Facts of nats-py 2.16 that it relies on:

- It pings every two minutes, and needs three pings without an answer to leave a server: a host
  whose link is down, or a process that is suspended, keeps it for six minutes.
- It closes a connection only after all that was written has been sent, which a suspended server
  never receives; and the server that it has just left may be the next one that it tries.
- What a caller is waiting for in a lost connection is not sent again. What was not written yet is
  sent on the next connection, and a caller that writes more than `pending_size` can't be cancelled.
- A name with several addresses is connected to the first that accepts a connection, within the time
  for all of them: one that does not answer, or is suspended, keeps it from the others.
- An unexpected error in an attempt to reconnect ends all attempts; it stays disconnected.
- asyncio is not told that its streams are encrypted, and warns at each end of a connection,
  and reads without a limit.
"""

import asyncio
import random
import socket
import ssl
import time
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from urllib.parse import ParseResult

from nats.aio.client import DEFAULT_BUFFER_SIZE, Client, Server, Srv
from nats.aio.transport import TcpTransport
from nats.errors import Error, NoRespondersError, StaleConnectionError

from numbers_uring.cluster.answers import Order, Unanswered
from numbers_uring.limits import (
    BROKER_CLOSE_S,
    BROKER_CONNECT_S,
    BROKER_LEADER_S,
    BROKER_LOOK_S,
    BROKER_NO_LEADER_RETRY_S,
    BROKER_PENDING_BYTES_MAX,
    BROKER_PENDING_FLUSHES_MAX,
    BROKER_PING_S,
    BROKER_RECONNECT_S,
    BROKER_SILENT_PINGS,
    BROKER_UNSENT_S,
)

if TYPE_CHECKING:
    from nats.aio.msg import Msg

STEPS = ("_connect_to_server", "_ping_interval", "_process_connect_init", "_process_op_err")
"""What is overridden here or called, and nats-py does not promise to keep."""

_NUMERIC = socket.NI_NUMERICHOST | socket.NI_NUMERICSERV

_PING = b"PING\r\n"

_CLOSE_STEPS = 3
"""What an aborted connection with TLS takes: its protocol, its transport, its reader."""

_API = "$JS.API."
_QUESTIONS = tuple(
    f"{_API}{name}."
    for name in ("CONSUMER.INFO", "DIRECT.GET", "STREAM.INFO", "STREAM.MSG.GET", "STREAM.NAMES")
)
"""What a server that is cut off from the others may answer."""

_PULL = f"{_API}CONSUMER.MSG.NEXT."

MESSAGE_IN_PROCESS = 10158
"""An error of JetStream: a message of this id waits for the other replicas, maybe in vain."""

_NO_LEADER = (10008, 10009)
"""Errors of JetStream: it has no leader at the moment."""

_ERROR_BYTES_MAX = 1024
"""Of an answer that is an error."""


class _Transport(TcpTransport):
    """A connection that is closed at once, and that Linux ends if the peer takes no data."""

    def __init__(self, attempt: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._attempt = attempt
        self.heard = True
        """Whether anything was received since this was last set to False."""

    async def connect(self, uri: Any, buffer_size: int, connect_timeout: float) -> None:
        """Try all addresses of the name, and begin with another one at each attempt."""
        end_s = time.monotonic() + connect_timeout
        async with asyncio.timeout(connect_timeout):
            addresses = await _addresses(uri.hostname, uri.port)
        first = self._attempt % len(addresses)
        addresses = addresses[first:] + addresses[:first]
        for left in range(len(addresses), 0, -1):
            address: Any = SimpleNamespace(hostname=addresses[-left], port=uri.port)
            try:
                left_s: Any = end_s - time.monotonic()  # nats-py asks for an int
                await super().connect(address, buffer_size, left_s / left)
                break
            except OSError:
                if left == 1:
                    raise
        assert self._io_writer is not None
        connection = self._io_writer.get_extra_info("socket")
        connection.setsockopt(
            socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(BROKER_UNSENT_S * 1000)
        )

    async def connect_tls(
        self,
        uri: str | ParseResult,
        ssl_context: ssl.SSLContext,
        buffer_size: int,
        connect_timeout: int,
    ) -> None:
        await super().connect_tls(uri, ssl_context, buffer_size, connect_timeout)
        assert self._io_writer is not None
        transport = self._io_writer.transport
        protocol: asyncio.BaseProtocol | None = transport.get_protocol()
        # asyncio's start_tls leaves this to its caller. None: it is closed already.
        if protocol is not None:
            protocol.connection_made(transport)

    async def read(self, buffer_size: int) -> bytes:
        data: bytes = await super().read(buffer_size)
        self.heard = True
        return data

    def close(self) -> None:
        """Close it now: nothing that is still unsent may keep it."""
        if self._io_writer is not None:
            self._io_writer.transport.abort()

    async def wait_closed(self) -> None:
        """Let the event loop close it. A TLS handshake that failed would never say that it has."""
        for _ in range(_CLOSE_STEPS):
            await asyncio.sleep(0)


async def _addresses(name: str, port: int) -> list[str]:
    """Return the addresses of a host, as text. Raises OSError."""
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(name, port, type=socket.SOCK_STREAM)
    # Those of link-local addresses name the interface.
    return [socket.getnameinfo(each[4], _NUMERIC)[0] for each in found]


class BoundedClient(Client):
    """Leaves a NATS server that is silent, or answers no request, for another one."""

    def __init__(self) -> None:
        super().__init__()
        self._tried: dict[str, float] = {}
        """When each server was tried, or left, since the connection was lost."""
        self._questions, self._changes = Unanswered(), Unanswered()
        """Apart, because a server that is cut off from the others answers some questions: from what
        it has, and that may be old."""

        self._order = Order()
        self._attempts = 0
        self.silence = ""
        """What a server did not do that was left for it, for the line about the lost connection."""

    async def connect(self, *arguments: Any, **settings: Any) -> None:
        """Connect as nats-py does, which gets the settings that keep every wait short."""
        settings |= {
            "connect_timeout": BROKER_CONNECT_S,
            "flusher_queue_size": BROKER_PENDING_FLUSHES_MAX,
            "max_reconnect_attempts": -1,
            "pending_size": BROKER_PENDING_BYTES_MAX,
            "reconnect_time_wait": BROKER_RECONNECT_S,
            "reconnect_to_server_handler": self._choose,
        }
        await super().connect(*arguments, **settings)

    async def close(self) -> None:
        """Close the connection for good, whether or not the NATS server takes part."""
        try:
            async with asyncio.timeout(BROKER_CLOSE_S):
                await super().close()
        finally:
            self._abort()

    # Which server, and how long each may take.

    def _choose(self, servers: list[Server], _info: dict[str, Any]) -> tuple[Server, float]:
        """Return the server to try next, the one just left last, and the pause before that."""
        now_s = time.monotonic()
        random.shuffle(servers)
        chosen = min(servers, key=lambda each: self._tried.get(each.uri.netloc, 0.0))
        name = chosen.uri.netloc
        pause_s = max(self._tried.get(name, 0.0) + BROKER_RECONNECT_S - now_s, 0.0)
        self._tried[name] = now_s + pause_s
        return chosen, pause_s

    async def _connect_to_server(self, s: Srv) -> None:
        self._abort()
        self.silence = ""
        s.last_attempt = time.monotonic()
        self._transport = _Transport(self._attempts)
        self._attempts += 1
        await self._transport.connect(s.uri, DEFAULT_BUFFER_SIZE, self.options["connect_timeout"])

    def _abort(self) -> None:
        """Leave nothing of an earlier attempt, which may have failed at any point."""
        for task in (self._reading_task, self._ping_interval_task, self._flusher_task):
            if task is not None and task is not asyncio.current_task():
                task.cancel()
        if self._transport is not None:
            self._transport.close()  # type: ignore[no-untyped-call]

    async def _process_connect_init(self) -> None:
        try:
            async with asyncio.timeout(BROKER_CONNECT_S):
                await super()._process_connect_init()
        except (OSError, Error):
            raise
        except Exception as error:
            raise Error(f"nats: it is no NATS server: {error}") from error

    # When to leave it.

    async def _ping_interval(self) -> None:
        """Ping, and leave the server when nothing at all has come for some pings."""
        silent = 0
        ping_s = time.monotonic() + BROKER_PING_S
        while True:
            await asyncio.sleep(BROKER_LOOK_S)
            transport = self._transport
            if not self.is_connected or not isinstance(transport, _Transport):
                continue
            pings = time.monotonic() >= ping_s
            if pings:
                ping_s = time.monotonic() + BROKER_PING_S
                silent = 0 if transport.heard else silent + 1
                transport.heard = False
            if silent >= BROKER_SILENT_PINGS:
                self.silence = "which is silent"
            elif self._answers_no_request():
                self.silence = "which answers no requests"
            if self.silence:
                await self._process_op_err(StaleConnectionError())
                return
            if pings:
                self._pongs.append(asyncio.get_running_loop().create_future())
                # Written at once: the queue of what is to be flushed may be full.
                transport.write(_PING)  # type: ignore[no-untyped-call]

    def _answers_no_request(self) -> bool:
        """Return whether to ask another server: this one may be cut off from the others."""
        if len(self._server_pool) == 1:
            return False
        return self._questions.too_long() or self._changes.too_long()

    async def _process_op_err(self, e: Exception) -> None:
        if self.is_connected and self._current_server is not None:
            self._tried = {self._current_server.uri.netloc: time.monotonic()}
            self._questions.forget()
            self._changes.forget()
        await super()._process_op_err(e)

    @property
    def server_url(self) -> str:
        """Return the URL of the server that it is connected to, or was last."""
        return "" if self._current_server is None else self._current_server.uri.geturl()

    def forget_unsent(self) -> None:
        """Drop what was not written before the connection was lost: its sender sends it again."""
        self._pending = []
        self._pending_data_size = 0

    # Requests.

    async def request(
        self,
        subject: str,
        payload: bytes = b"",
        timeout: float = 0.5,
        old_style: bool = False,
        headers: dict[str, Any] | None = None,
    ) -> "Msg":
        """Return the answer; a question to JetStream or to a bucket is asked until one comes.

        Servers that have lost their leader, and a connection that is lost, swallow questions. The
        first answer counts, whichever time it was asked. A change that depends on what was there
        before is only sent again if nothing received it. Raises TimeoutError, and NoRespondersError
        if that was the last word.
        """
        del old_style
        if subject.startswith((_API, "$KV.")) and not subject.startswith(_PULL):
            once = any(name.startswith("Nats-Expected-") for name in headers or {})
            return await self._ask(subject, payload, timeout, headers, once=once)
        return await self._request(subject, payload, timeout, headers, self._order.note_request())

    async def _request(
        self,
        subject: str,
        payload: bytes,
        timeout_s: float,
        headers: dict[str, Any] | None,
        number: int,
    ) -> "Msg":
        kind = self._questions if subject.startswith(_QUESTIONS) else self._changes
        kind.note_request()
        answer = await super().request(subject, payload, timeout_s, headers=headers)
        self._order.note_answer(number)
        # A leader that is cut off refuses what it has not confirmed before, with several errors.
        refused = kind is self._changes and b'"error":' in (answer.data or b"")[:_ERROR_BYTES_MAX]
        if not refused and not _has_error(answer, *_NO_LEADER):
            kind.note_answer()
        return answer

    async def _ask(
        self,
        subject: str,
        payload: bytes,
        timeout_s: float,
        headers: dict[str, Any] | None,
        *,
        once: bool,
    ) -> "Msg":
        begin_s = time.monotonic()
        final_s = begin_s + min(timeout_s, BROKER_LEADER_S) - BROKER_NO_LEADER_RETRY_S
        asked: set[asyncio.Task[Msg]] = set()
        try:
            while True:
                sent_s, number = time.monotonic(), self._order.note_request()
                left_s = max(begin_s + timeout_s - sent_s, 0)
                request = self._request(subject, payload, left_s, headers, number)
                asked.add(task := asyncio.create_task(request))
                task.add_done_callback(_look_at)
                done: set[asyncio.Task[Msg]] = set()
                while not done and (once or time.monotonic() < self._order.due_s(number, sent_s)):
                    wait_s = self._order.due_s(number, sent_s) - time.monotonic()
                    done, asked = await asyncio.wait(
                        asked,
                        timeout=None if once else wait_s,
                        return_when=asyncio.FIRST_COMPLETED,
                    )
                for task in done:
                    if not self._may_recover(task) or time.monotonic() > final_s:
                        return task.result()
                if done:
                    await asyncio.sleep(BROKER_NO_LEADER_RETRY_S)
        finally:
            for task in asked:
                task.cancel()

    def _may_recover(self, asked: "asyncio.Task[Msg]") -> bool:
        """Return whether this answer only says that there is no leader at the moment."""
        error = asked.exception()
        if error is None:
            return _has_error(asked.result(), *_NO_LEADER)
        has_streams = self._server_info.get("jetstream") or self._server_info.get("cluster")
        return isinstance(error, NoRespondersError) and bool(has_streams)


def _look_at(asked: "asyncio.Task[Msg]") -> None:
    """Keep asyncio from reporting an error that came too late to be of interest."""
    if not asked.cancelled():
        asked.exception()


def _has_error(answer: "Msg", *codes: int) -> bool:
    data = answer.data or b""
    return len(data) < _ERROR_BYTES_MAX and any(b'"err_code":%d,' % code in data for code in codes)
