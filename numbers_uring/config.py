"""What a run of the server was asked for."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from numbers_uring.addresses import Address, TcpAddress

DEFAULT_ADDRESS = TcpAddress("127.0.0.1", 4000)
"""Listened on where no other address is asked for and no socket was handed down."""


class Fsync(StrEnum):
    """When the disk is made to have what was written to the log."""

    NEVER = "never"
    INTERVAL = "interval"
    ALWAYS = "always"


class WhenFull(StrEnum):
    """What becomes of a client that comes while all slots are taken."""

    WAIT = "wait"
    REFUSE = "refuse"


class Terminate(StrEnum):
    """Which clients' `terminate` stops the server; that of others is an invalid line."""

    ANY = "any"
    LOCAL = "local"
    NEVER = "never"


class LogFormat(StrEnum):
    """How diagnostics are written to standard error."""

    TEXT = "text"
    JSON = "json"


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerAccess:
    """Credentials and certificates for a NATS server, besides the password in the URL."""

    credentials: Path | None = None
    """File with a user's JWT and seed."""
    ca: Path | None = None
    """Who signs the NATS server's certificates; None for those that the system trusts."""
    certificate: Path | None = None
    key: Path | None = None
    """None where the file of the certificate has it, too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """One run of `serve`, as asked for on the command line."""

    backend: str
    kernel: str
    listen: Sequence[Address]
    """Those that were asked for; none stands for DEFAULT_ADDRESS or for inherited sockets."""
    unix_mode: int
    """Of the socket files of unix addresses, as chmod(2) takes it."""
    unix_group: str | None
    """A name or a number; None leaves what the system gives."""
    connections_max: int
    reactors: int
    """Each in its own thread, over one bitmap and one log."""
    when_full: WhenFull
    terminate: Terminate
    verbose: bool
    log_path: Path
    resume: bool
    seen: Sequence[Path]
    """Files, or patterns of them, with numbers that count as repeats."""
    fsync: Fsync
    write_behind: bool
    report_interval_s: float
    idle_timeout_s: float
    """Zero: clients may be idle without limit."""
    metrics: TcpAddress | None
    """Where metrics are served; None where they are not."""
    forward: str | None = None
    """The NATS server for numbers, instead of a log: nats://HOST:PORT, or several with commas."""
    access: BrokerAccess = BrokerAccess()
    """How it is reached."""
    partitions: int = 0
    """Of the numbers that are forwarded."""
    profile_path: Path | None = None
    """Where a flame graph of the run goes."""
