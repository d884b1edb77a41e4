"""The options of all commands that reach the engine: where it is, and who we are to it."""

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
    """Refuse what is no URL of the engine's servers. Never says it: there may be a password."""
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
        "Who we are to the engine: a file with a user's JWT and seed, as nsc writes it (.creds); "
        "it is read each time that a connection is made.",
    ),
    _file(
        "--nats-ca",
        "Encrypt, and trust the engine if this CA has signed its certificate; without it, the "
        "system's CAs.",
    ),
    _file("--nats-cert", "Encrypt, and show the engine this certificate."),
    _file("--nats-key", "The key of --nats-cert, where that file does not have it, too."),
)

_NATS = click.option(
    "--nats",
    metavar="URL",
    default=DEFAULT_NATS_URL,
    callback=check_url,
    help="The engine: nats://HOST:PORT, or tls:// to have it encrypted, or several servers of it "
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
        raise click.UsageError("--nats-key is of use with --nats-cert alone.")
    return BrokerAccess(
        credentials=options["nats_credentials"],
        ca=options["nats_ca"],
        certificate=options["nats_cert"],
        key=options["nats_key"],
    )
