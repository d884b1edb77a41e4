"""The connection to the NATS server: connects, reconnects, and gives up for good.

Facts of nats-py 2.16 that it relies on:

- If the NATS server refuses a reconnect, for example because the password has changed, nats-py
  tries again for ever.
- A message without permission for its subject is only reported to the error callback; there is no
  answer, and a request waits until its timeout.
"""

import asyncio
import json
import os
import re
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from ssl import SSLError
from typing import TYPE_CHECKING, Any, NoReturn
from urllib.parse import urlsplit

from numbers_uring.cluster.access import AccessFileError, NoTlsError, client_for, is_refusal
from numbers_uring.cluster.tasks import unless_stopped
from numbers_uring.config import BrokerAccess
from numbers_uring.errors import ExtraLibraryError, StartError
from numbers_uring.limits import (
    BROKER_CONNECT_S,
    BROKER_POLL_S,
    BROKER_REFUSALS_MAX,
    BROKER_REQUEST_S,
    BROKER_START_S,
)

if TYPE_CHECKING:
    from nats.aio.client import Client
    from nats.js import JetStreamContext

    from numbers_uring.cluster.client import BoundedClient


def require_nats_library() -> None:
    """Raise ExtraLibraryError where the library for clusters can't be loaded."""
    try:
        # Here, because it is an extra, and takes a tenth of a second to import.
        import nats  # noqa: F401, PLC0415
    except ImportError as error:
        library = "the nats-py library"
        raise ExtraLibraryError("a cluster", library, "cluster", error) from error


def url_text(url: str) -> str:
    """Return `url` as it may be shown: without a password."""
    texts = []
    for each in url.split(","):
        parts = urlsplit(each.strip())
        texts.append(f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}")
    return ",".join(texts)


class _Events:
    """Turns the client's events into lines for the operator, and ends what is hopeless."""

    def __init__(self, client: "BoundedClient", url: str, say: Callable[[str], None]) -> None:
        self.name = f"the NATS server at {url_text(url)}"
        self.reason: Exception | None = None
        """The last error of the connection."""
        self.forbidden: str | None = None
        """The last permission that was missing."""
        self.attempt: asyncio.Timeout | None = None
        """The timeout of the first connection, until that is there."""
        self._client = client
        self.servers = url.count(",") + 1
        """How many the URL names."""
        self._say = say
        self._refusals = 0
        self._said: set[str] = set()
        self._closing: asyncio.Task[None] | None = None

    async def note(self, error: Exception) -> None:
        text = reason_text(error)
        if "permissions violation" in text.lower():
            self.forbidden = text
            self._say_once(f"{self.name} forbids something: {text}")
            return
        self.reason = error
        if is_refusal(text) or isinstance(error, NoTlsError):
            self._refuse(text)
        elif isinstance(error, SSLError) and not self._client.is_closed:
            self._fail_tls(text)
        elif isinstance(error, AccessFileError):
            self._say_once(f"{text}; retrying")

    def _fail_tls(self, text: str) -> None:
        """Retry, because the certificate may be replaced soon; fail if this is the start."""
        if self.attempt is not None:
            self._refuse(text)
        else:
            self._say_once(f"TLS fails with {self.name}: {text}; retrying")

    def _refuse(self, text: str) -> None:
        self._refusals += 1
        if self.attempt is not None:
            if self._refusals >= self.servers and not self.attempt.expired():
                self.attempt.reschedule(asyncio.get_running_loop().time())
        elif self._refusals >= BROKER_REFUSALS_MAX * self.servers and self._closing is None:
            self._closing = asyncio.create_task(_close(self._client))
        else:
            self._say_once(f"{self.name} refuses the connection: {text}; retrying a few times")

    def _say_once(self, text: str) -> None:
        """Report each text once, until the connection is back."""
        if text not in self._said:
            self._said.add(text)
            self._say(text)

    async def lost(self) -> None:
        self._client.forget_unsent()
        if not self._client.is_closed:
            why = f", {self._client.silence}" if self._client.silence else ""
            self._say(f"lost the connection to {self._server}{why}: reconnecting")

    async def found(self) -> None:
        self._refusals = 0
        self._said.clear()
        self._say(f"reconnected to {self._server}")

    @property
    def _server(self) -> str:
        return f"the NATS server at {url_text(self._client.server_url)}"


@asynccontextmanager
async def connected(
    url: str,
    name: str,
    *,
    access: BrokerAccess,
    say: Callable[[str], None] = lambda _text: None,
    stop: asyncio.Event | None = None,
) -> "AsyncIterator[Client]":
    """Connect to the NATS server at `url`: nats://HOST:PORT, or several with commas between.

    A lost connection is made again, without a time limit, unless the NATS server refuses it: see
    `until_closed`. `say` gets a line for the operator when the connection is lost, when it is back,
    and for each error in between. A NATS server that is silent is left for another one that `url`
    names. Raises StartError if none answers, and StopRequestedError if `stop` is set before that.
    """
    require_nats_library()
    import nats  # noqa: PLC0415

    client, arguments = client_for(url, access)
    events = _Events(client, url, say)
    start_s = BROKER_START_S + (events.servers - 1) * BROKER_CONNECT_S
    connecting = client.connect(
        servers=[each.strip() for each in url.split(",")],
        name=name,
        error_cb=events.note,
        disconnected_cb=events.lost,
        reconnected_cb=events.found,
        **arguments,
    )
    try:
        async with asyncio.timeout(start_s) as events.attempt:
            # In a task, because nats-py can lose a cancellation, and then tries on for ever.
            await unless_stopped(connecting, asyncio.Event() if stop is None else stop)
    except (OSError, nats.errors.Error, ValueError) as error:
        # A client that was never connected cannot be closed.
        raise StartError(
            f"cannot reach {events.name}: {reason_text(events.reason or error)}"
        ) from error
    events.attempt = None
    try:
        yield client
    except StartError as error:
        if events.forbidden is None:
            raise
        raise StartError(f"{error}; the NATS server says: {events.forbidden}") from error
    finally:
        await _close(client)


async def _close(client: "BoundedClient") -> None:
    import nats  # noqa: PLC0415

    # The connection may be lost at this moment.
    with suppress(OSError, nats.errors.Error):
        await client.close()


async def until_closed(client: "Client") -> NoReturn:
    """Wait until the client has given up, and raise ConnectionError with the reason."""
    while not client.is_closed:
        await asyncio.sleep(BROKER_POLL_S)
    raise ConnectionError(reason_text(client.last_error or ConnectionError("it was closed")))


_ERRNO = re.compile(r"\[Errno (-?\d+)\] ?")
_SSL = re.compile(r"\[SSL: \w+\] | \(_ssl\.c:\d+\)")


def reason_text(error: Exception) -> str:
    """Return the error's text, without what the client puts around the NATS server's text.

    And in the system's words: asyncio's have tuples in them, one for each address that it tried.
    """
    text = _SSL.sub("", str(error).removeprefix("nats: ").strip("'"))
    numbers = [int(number) for number in _ERRNO.findall(text)]
    if numbers and min(numbers) > 0:
        return ", ".join(dict.fromkeys(map(os.strerror, numbers)))
    text = _ERRNO.sub("", text)
    if not text and isinstance(error, TimeoutError):
        return "no answer"
    return text or type(error).__name__


@contextmanager
def broker_errors(doing: str) -> Iterator[None]:
    """Turn errors of the NATS server into a StartError."""
    import nats  # noqa: PLC0415

    try:
        yield
    except nats.js.errors.ServiceUnavailableError as error:
        raise StartError(
            f"cannot {doing}: the NATS server has no JetStream, or no leader of it at the moment"
        ) from error
    except nats.js.errors.APIError as error:
        raise StartError(f"cannot {doing}: {error.description}") from error
    except TimeoutError as error:
        raise StartError(f"cannot {doing}: no answer") from error
    except nats.errors.Error as error:
        raise StartError(f"cannot {doing}: {reason_text(error)}") from error


def jetstream(client: "Client") -> "JetStreamContext":
    """Return JetStream with the timeouts of a cluster."""
    return client.jetstream(timeout=BROKER_REQUEST_S)


async def request_api(
    js: "JetStreamContext", name: str, request: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Return the JSON answer to a request of JetStream's API, such as STREAM.INFO.numbers-0.

    The library's own calls leave out what they do not know, so that a configuration that is read,
    changed and written would lose it. Raises nats.errors.Error, TimeoutError, OSError.
    """
    import nats  # noqa: PLC0415

    client = js._nc  # it has no public name
    payload = b"" if request is None else json.dumps(request).encode()
    try:
        answer = await client.request(f"$JS.API.{name}", payload, timeout=BROKER_REQUEST_S)
    except nats.errors.NoRespondersError as error:
        raise nats.js.errors.ServiceUnavailableError from error
    found: dict[str, Any] = json.loads(answer.data)
    if "error" in found:
        nats.js.errors.APIError.from_error(found["error"])
    return found
