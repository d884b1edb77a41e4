"""The connection to the engine: made, made again when it is lost, and given up for good.

Facts of nats-py 2.16 that it stands on:

- What the engine says against a connection that is made again, such as that a password is wrong by
  now, is no end of it: it is tried for ever.
- Of a message without a right to its subject there is a word for the error callback alone; nobody
  answers, and who waits for the answer waits in vain.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from ssl import SSLError
from typing import TYPE_CHECKING, NoReturn
from urllib.parse import urlsplit

from numbers_uring.cluster.access import CredentialsError, NoTlsError, client_for, is_refusal
from numbers_uring.config import BrokerAccess
from numbers_uring.errors import StartError
from numbers_uring.limits import (
    BROKER_POLL_S,
    BROKER_REFUSALS_MAX,
    BROKER_REQUEST_S,
    BROKER_START_S,
)

if TYPE_CHECKING:
    from nats.aio.client import Client
    from nats.js import JetStreamContext


def require_nats_library() -> None:
    """Raise StartError, with a hint, where the library for clusters is missing."""
    try:
        # Here, because it is an extra, and takes a tenth of a second to import.
        import nats  # noqa: F401, PLC0415
    except ImportError as error:
        raise StartError(
            f"a cluster needs the nats-py library ({error}): pip install 'numbers-uring[cluster]'"
        ) from error


def url_text(url: str) -> str:
    """Return `url` as it may be shown: without a password."""
    texts = []
    for each in url.split(","):
        parts = urlsplit(each.strip())
        texts.append(f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}")
    return ",".join(texts)


class _Talk:
    """What the client says of the connection, on its way to the operator."""

    def __init__(self, client: "Client", url: str, say: Callable[[str], None]) -> None:
        self.name = f"the engine at {url_text(url)}"
        self.reason: Exception | None = None
        """What was said last against the connection."""
        self.forbidden: str | None = None
        """What we have no right to, of late."""
        self.patience: asyncio.Timeout | None = None
        """While the first connection is made, what ends the attempt."""
        self._client = client
        self._servers = url.count(",") + 1
        self._say = say
        self._refusals = 0
        self._told: set[str] = set()
        self._closing: asyncio.Task[None] | None = None

    async def note(self, error: Exception) -> None:
        text = reason_text(error)
        if "permissions violation" in text.lower():
            self.forbidden = text
            self._tell(f"{self.name} forbids something: {text}")
            return
        self.reason = error
        if is_refusal(text) or isinstance(error, NoTlsError):
            self._refuse(text)
        elif isinstance(error, SSLError):
            self._distrust(text)
        elif isinstance(error, CredentialsError):
            self._tell(f"{text}; trying again until they are there")

    def _distrust(self, text: str) -> None:
        """Wait for another certificate, which may be on its way, unless this is the start."""
        if self.patience is not None:
            self._refuse(text)
        else:
            self._tell(f"{self.name} can't be trusted: {text}; trying again until it can")

    def _refuse(self, text: str) -> None:
        self._refusals += 1
        if self.patience is not None:
            if self._refusals >= self._servers and not self.patience.expired():
                self.patience.reschedule(asyncio.get_running_loop().time())
        elif self._refusals >= BROKER_REFUSALS_MAX * self._servers and self._closing is None:
            self._closing = asyncio.create_task(_close(self._client))
        else:
            self._tell(f"{self.name} refuses the connection: {text}; trying again some times")

    def _tell(self, text: str) -> None:
        """Say it once, until the connection is back."""
        if text not in self._told:
            self._told.add(text)
            self._say(text)

    async def lost(self) -> None:
        if not self._client.is_closed and not self._client.is_draining:
            self._say(f"{self.name} is gone: trying again until it is back")

    async def found(self) -> None:
        self._refusals = 0
        self._told.clear()
        self._say(f"{self.name} is back: going on")


@asynccontextmanager
async def connected(
    url: str,
    name: str,
    *,
    access: BrokerAccess,
    say: Callable[[str], None] = lambda _text: None,
) -> "AsyncIterator[Client]":
    """Connect to the engine: `url` is nats://HOST:PORT, or several of them with commas between.

    A connection that is lost later is made again, for as long as it takes, unless the engine
    refuses it: see `until_closed`. `say` takes a line for the operator when that begins and when it
    ends, and what is in its way. Raises StartError where there is no engine.
    """
    require_nats_library()
    import nats  # noqa: PLC0415

    client, arguments = client_for(url, access)
    talk = _Talk(client, url, say)
    try:
        async with asyncio.timeout(BROKER_START_S) as talk.patience:
            await client.connect(
                servers=[each.strip() for each in url.split(",")],
                name=name,
                error_cb=talk.note,
                disconnected_cb=talk.lost,
                reconnected_cb=talk.found,
                max_reconnect_attempts=-1,
                reconnect_time_wait=1,
                **arguments,
            )
    except (OSError, nats.errors.Error, ValueError) as error:
        # Closing one that never was connected can't be waited for.
        raise StartError(
            f"cannot reach {talk.name}: {reason_text(talk.reason or error)}"
        ) from error
    talk.patience = None
    try:
        yield client
    except StartError as error:
        if talk.forbidden is None:
            raise
        raise StartError(f"{error}; the engine says: {talk.forbidden}") from error
    finally:
        await _close(client)


async def _close(client: "Client") -> None:
    import nats  # noqa: PLC0415

    # One that is lost just now can't be told that it is over.
    with suppress(OSError, nats.errors.Error):
        await client.close()


async def until_closed(client: "Client") -> NoReturn:
    """Wait until there will be no connection again, and raise ConnectionError that says why."""
    while not client.is_closed:
        await asyncio.sleep(BROKER_POLL_S)
    raise ConnectionError(reason_text(client.last_error or ConnectionError("it was closed")))


def reason_text(error: Exception) -> str:
    """Return the error's text, without what the client puts around the engine's words."""
    text = str(error).removeprefix("nats: ").strip("'")
    return text or type(error).__name__


@contextmanager
def engine_errors(doing: str) -> Iterator[None]:
    """Turn what the engine says against it into a StartError."""
    import nats  # noqa: PLC0415

    try:
        yield
    except nats.js.errors.ServiceUnavailableError as error:
        raise StartError(
            f"cannot {doing}: the engine has no JetStream, or no leader of it just now"
        ) from error
    except nats.js.errors.APIError as error:
        raise StartError(f"cannot {doing}: {error.description}") from error
    except TimeoutError as error:
        raise StartError(f"cannot {doing}: no answer") from error
    except nats.errors.Error as error:
        raise StartError(f"cannot {doing}: {reason_text(error)}") from error


def jetstream(client: "Client") -> "JetStreamContext":
    """Return JetStream as a cluster uses it."""
    return client.jetstream(timeout=BROKER_REQUEST_S)
