"""How we and the NATS server prove who we are: from files to what the client takes.

All files are read anew for each connection, so that replaced ones are used without a restart.

Facts of nats-py 2.16 that it stands on:

- Its own reader of credentials looks for their first line for ever where there is none.
- It asks for the credentials and for the TLS settings each time it makes a connection. It tries
  again if an OSError is raised then, and ends the attempts for other errors.
- Where the NATS server ends a connection because credentials have expired, it is closed for good.
- With tls:// it encrypts if the NATS server asks for that, and sends in the clear if not.
- It also connects to servers that a NATS server names, but without the password of the URL.
"""

import base64
import re
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn
from urllib.parse import urlsplit

from numbers_uring.config import BrokerAccess
from numbers_uring.errors import ExtraLibraryError, StartError

if TYPE_CHECKING:
    from numbers_uring.cluster.client import BoundedClient

_CREDENTIALS = re.compile(
    rb"-+BEGIN NATS USER JWT-+\s+(\S+)\s+-+END NATS USER JWT-+"
    rb".*-+BEGIN USER NKEY SEED-+\s+(\S+)\s+-+END USER NKEY SEED-+",
    re.DOTALL,
)


_SUBJECT_NAME = re.compile(r"[0-9A-Za-z_-]+")


_REFUSED = ("authorization violation", "authentication expired", "authentication revoked")


_STEPS = ("_connect_command", "_process_err", "_process_info", "_process_op_err", "ssl_context")
"""The client's own, which it does not promise to keep, and which we go into."""


class NoTlsError(OSError):
    """The NATS server does not ask for TLS, and we are not to do without."""


class AccessFileError(OSError):
    """A file of ours is missing or cannot be used at the moment; its text is for the user."""


def client_for(url: str, access: BrokerAccess) -> "tuple[BoundedClient, dict[str, Any]]":
    """Return a client that is not connected yet, and what its `connect` needs. Raises StartError.

    It encrypts, or is not connected, where `url` begins with tls:// or `access` has certificates.
    """
    from nats.aio.client import Client  # noqa: PLC0415
    from nats.errors import Error  # noqa: PLC0415

    from numbers_uring.cluster.client import STEPS, BoundedClient  # noqa: PLC0415

    for step in (*STEPS, *_STEPS):
        if not hasattr(Client, step):
            # Without it there would be no word of a refusal, or passwords in the clear.
            raise StartError(
                f"this nats-py has no Client.{step}, which is needed: install another version, "
                "pip install 'numbers-uring[cluster]'"
            )
    encrypt = "tls://" in url or access.ca is not None or access.certificate is not None

    class OurClient(BoundedClient):
        @property
        def ssl_context(self) -> ssl.SSLContext:
            return _tls(access)

        # Only the servers that the user named: each with its password and the name to verify.
        async def _process_info(
            self, info: dict[str, Any], initial_connection: bool = False
        ) -> None:
            known = {name: value for name, value in info.items() if name != "connect_urls"}
            await super()._process_info(known, initial_connection)

        # The last step before anything of ours is sent, passwords among it.
        def _connect_command(self) -> bytes:
            if encrypt and not self._server_info.get("tls_required"):
                raise NoTlsError("it does not offer TLS, which is required")
            return super()._connect_command()

        # Credentials that have expired may have been replaced: no reason to give up at once.
        async def _process_err(self, err_msg: str) -> None:
            if not is_refusal(err_msg):
                await super()._process_err(err_msg)
                return
            error = Error(err_msg)
            await self._error_cb(error)
            await self._process_op_err(error)

    arguments: dict[str, Any] = {"inbox_prefix": _inbox(url)}
    if access.credentials is not None:
        arguments |= _credentials(access.credentials)
    if encrypt:
        try:
            _tls(access)
        except AccessFileError as error:
            raise StartError(str(error)) from error
    return OurClient(), arguments


def _inbox(url: str) -> str:
    """Return below which subject answers arrive: the user's own, which no other may then read."""
    parts = urlsplit(url.partition(",")[0].strip())
    # A name without a password is a token, which is secret.
    named = parts.password is not None and _SUBJECT_NAME.fullmatch(parts.username or "")
    return f"_INBOX.{parts.username}" if named else "_INBOX"


def is_refusal(text: str) -> bool:
    """Return whether these words of the NATS server mean that it will not have us."""
    return any(words in text.lower() for words in _REFUSED)


def _tls(access: BrokerAccess) -> ssl.SSLContext:
    """Return the TLS settings by the files as they are now. Raises AccessFileError."""
    try:
        context = ssl.create_default_context(cafile=access.ca)
    except (OSError, ValueError) as error:
        raise AccessFileError(
            f"cannot use the certificates of the CA {access.ca}: {_text(error)}"
        ) from error
    if access.certificate is not None:

        def refuse() -> NoReturn:
            raise ValueError("its key is encrypted, and a service cannot ask for the passphrase")

        try:
            context.load_cert_chain(access.certificate, access.key, password=refuse)
        except (OSError, ValueError) as error:
            of = "" if access.key is None else f" with the key {access.key}"
            raise AccessFileError(
                f"cannot use the certificate {access.certificate}{of}: {_text(error)}"
            ) from error
    return context


def _text(error: Exception) -> str:
    if isinstance(error, ssl.SSLError) and error.reason is not None:
        return error.reason.lower().replace("_", " ")
    return str(error.strerror) if isinstance(error, OSError) else str(error)


def _credentials(path: Path) -> dict[str, Callable[..., bytes]]:
    """Return what gives the user's JWT and what signs with its key, of the file as it is then."""
    try:
        import nkeys  # type: ignore[import-untyped] # noqa: PLC0415
    except ImportError as error:
        library = "the nkeys library"
        raise ExtraLibraryError("--nats-credentials", library, "cluster", error) from error

    def read() -> tuple[bytes, Any]:
        try:
            found = _CREDENTIALS.search(path.read_bytes())
            if found is None:
                raise ValueError
            return found[1], nkeys.from_seed(bytearray(found[2]))
        except OSError as error:
            why = str(error.strerror)
        except Exception:  # whatever the library raises for what is no seed
            why = "they are no user's JWT and seed, as nsc writes them"
        raise AccessFileError(f"cannot use the credentials {path}: {why}")

    def sign(nonce: str) -> bytes:
        _, pair = read()
        try:
            return base64.b64encode(pair.sign(nonce.encode()))
        finally:
            pair.wipe()

    try:
        read()[1].wipe()
    except AccessFileError as error:
        raise StartError(str(error)) from error
    return {"user_jwt_cb": lambda: read()[0], "signature_cb": sign}
