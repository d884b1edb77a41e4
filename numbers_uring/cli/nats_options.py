"""The options of all commands that connect to a NATS server: its address and credentials."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import click

from numbers_uring.config import BrokerAccess

_Command = TypeVar("_Command", bound=Callable[..., Any])

DEFAULT_NATS_URL = "nats://127.0.0.1:4222"

ACCESS_NAMES = ("nats_credentials", "nats_ca", "nats_cert", "nats_key")


def check_url(_ctx: click.Context, _parameter: click.Parameter, url: str | None) -> str | None:
    """Refuse what is no URL of the NATS servers. Never says it: there may be a password."""
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
        "Credentials file with a user's JWT and seed, as nsc writes it (.creds); re-read at each "
        "connect.",
    ),
    _file(
        "--nats-ca",
        "Encrypt, and accept only certificates that this CA has signed; by default, the system's "
        "CAs.",
    ),
    _file("--nats-cert", "Encrypt, and present this client certificate."),
    _file("--nats-key", "The key of --nats-cert, if it is in a file of its own."),
)

_NATS = click.option(
    "--nats",
    metavar="URL",
    default=DEFAULT_NATS_URL,
    callback=check_url,
    help="The NATS server: nats://HOST:PORT, or tls:// to encrypt; several servers of one cluster "
    "with commas between.",
)


def engine_options(command: _Command) -> _Command:
    """Decorate a command with --nats and the others."""
    for option in reversed((_NATS, *ACCESS_OPTIONS)):
        command = option(command)
    return command


def access_of(options: dict[str, Any]) -> BrokerAccess:
    """Return what the options say. Raises click.UsageError."""
    if options["nats_key"] is not None and options["nats_cert"] is None:
        raise click.UsageError("--nats-key needs --nats-cert.")
    return BrokerAccess(
        credentials=options["nats_credentials"],
        ca=options["nats_ca"],
        certificate=options["nats_cert"],
        key=options["nats_key"],
    )
