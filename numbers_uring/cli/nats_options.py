"""The options of all commands that connect to NATS: its URL, credentials and certificates."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import click

from numbers_uring.cli.help import option_group
from numbers_uring.config import BrokerAccess

_Command = TypeVar("_Command", bound=Callable[..., Any])

DEFAULT_NATS_URL = "nats://127.0.0.1:4222"

ACCESS_NAMES = ("nats_credentials", "nats_ca", "nats_cert", "nats_key")


def check_url(_ctx: click.Context, _parameter: click.Parameter, url: str | None) -> str | None:
    """Refuse what is no URL of NATS servers. The error leaves out the password in it."""
    for each in [] if url is None else url.split(","):
        try:
            parts = urlsplit(each.strip())
            usable = parts.scheme in {"nats", "tls"} and parts.hostname and parts.port != 0
        except ValueError:  # a port that is no number, or beyond 65535
            usable = False
        if not usable:
            shown = each.rpartition("@")[2]
            raise click.BadParameter(f"{shown!r} is not like nats://HOST:PORT.")
    return url


def _file(option: str, text: str) -> Callable[[_Command], _Command]:
    return click.option(
        option, type=click.Path(path_type=Path, dir_okay=False), metavar="FILE", help=text
    )


ACCESS_OPTIONS = (
    _file(
        "--nats-credentials",
        "Authenticate with this credentials file (.creds), as nsc writes it. It is read again at "
        "each connect.",
    ),
    _file(
        "--nats-ca",
        "Require TLS, and verify the NATS server's certificate with this CA. Without it, the "
        "system's CAs are used.",
    ),
    _file("--nats-cert", "Require TLS, and authenticate with this client certificate."),
    _file("--nats-key", "The private key of --nats-cert, if that file does not contain it."),
)

_NATS = click.option(
    "--nats",
    metavar="URL",
    default=DEFAULT_NATS_URL,
    callback=check_url,
    help="Connect to NATS at nats://HOST:PORT, or at tls://HOST:PORT with TLS. Separate several "
    "servers with commas.",
)


def broker_options(command: _Command) -> _Command:
    """Decorate a command with --nats and the others."""
    return option_group("NATS server", _NATS, *ACCESS_OPTIONS)(command)


def access_of(options: dict[str, Any]) -> BrokerAccess:
    """Return the BrokerAccess for the options. Raises click.UsageError."""
    if options["nats_key"] is not None and options["nats_cert"] is None:
        raise click.UsageError("--nats-key needs --nats-cert.")
    return BrokerAccess(
        credentials=options["nats_credentials"],
        ca=options["nats_ca"],
        certificate=options["nats_cert"],
        key=options["nats_key"],
    )
