"""What a load is asked to do, and what has become of it: no sockets and no compiled code."""

import math
from dataclasses import dataclass, field
from enum import StrEnum

from numbers_uring.limits import (
    LINE_BYTES,
    LOAD_CHUNK_BYTES,
    LOAD_NUMBERS_MAX,
    LOAD_PREPARE_BYTES,
    LOAD_SEND_BYTES,
    NUMBERS,
)


class Mix(StrEnum):
    """Which numbers are sent."""

    UNIQUE = "unique"
    """Each number at most once, in a pseudo-random order that the seed decides."""

    RANDOM = "random"
    """Independent and uniform over all 10^9, repeats as they fall."""

    DUPLICATE = "duplicate"
    """A given share repeats numbers that come before, drawn evenly from these."""

    SEQUENTIAL = "sequential"
    """0, 1, 2, ... whatever the seed."""

    HOT = "hot"
    """Drawn from 1,000 numbers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LineFile:
    """An open file of which the first `numbers` lines are sent."""

    path: str
    fd: int
    numbers: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadParameters:
    """One load, each value in the range of its option.

    Raises ValueError, with the text for the user, where the mix does not have so many numbers.
    """

    host: str = "127.0.0.1"
    port: int = 4000
    clients: int = 5
    numbers: int = 10_000_000
    """Of all clients; client k of n sends those from numbers * k // n on. With a duration, at most
    so many, and clients take blocks in turn."""
    mix: Mix = Mix.UNIQUE
    duplicates: float = 0.5
    """Share of repeats, for the mix `duplicate` alone."""
    send_bytes: int = LOAD_SEND_BYTES
    seed: int = 1
    rate: int = 0
    """Numbers a second over all clients; 0: as fast as they are taken."""
    prepare_bytes: int = LOAD_PREPARE_BYTES
    """Lines are made before the clock starts where all of them need no more than this."""
    terminate: bool = False
    duration_s: float = 0.0
    """After this time, counted from the first send, no client begins another line; 0: when all are
    sent."""
    timeout_s: float = 0.0
    """Ends the run, counted from its first connection; 0: never."""
    files: tuple[LineFile, ...] = ()
    """Where the numbers come from instead of a mix; `numbers` is then how many they have."""

    def __post_init__(self) -> None:
        if self.files:
            assert not self.duration_s, self
            assert self.numbers == sum(file.numbers for file in self.files), self
            return
        if self.mix in (Mix.UNIQUE, Mix.SEQUENTIAL) and self.numbers > NUMBERS:
            raise ValueError(f"there are only {NUMBERS} different numbers for mix {self.mix}")
        if self.distinct > NUMBERS:
            raise ValueError(
                f"mix duplicate would need {self.distinct} different numbers of {NUMBERS}"
            )

    @property
    def distinct(self) -> int:
        """How many different numbers the mix `duplicate` sends; for the other mixes 1."""
        if self.mix is not Mix.DUPLICATE:
            return 1
        return max(1, self.numbers - round(self.numbers * self.duplicates))

    @property
    def block_numbers(self) -> int:
        """How many numbers clients take in turn; 0 without a duration.

        Neither does the end of a block cut a send, nor is one client given all numbers.
        """
        if not self.duration_s:
            return 0
        sends = self.send_bytes // math.gcd(self.send_bytes, LINE_BYTES)
        wanted = -(-LOAD_CHUNK_BYTES // (LINE_BYTES * sends)) * sends
        return min(wanted, -(-self.numbers // self.clients))

    @property
    def prepared(self) -> bool:
        """Whether all lines are made before the clock starts; those of files never are."""
        return not self.files and self.numbers * LINE_BYTES <= self.prepare_bytes


def numbers_max(mix: Mix, duplicates: float) -> int:
    """Return how many numbers the mix has at most."""
    if mix in (Mix.UNIQUE, Mix.SEQUENTIAL):
        return NUMBERS
    if mix is not Mix.DUPLICATE or duplicates >= 1 - NUMBERS / LOAD_NUMBERS_MAX:
        return LOAD_NUMBERS_MAX
    most = int(NUMBERS / (1 - duplicates))
    # Rounding may have left one different number too many.
    while most - round(most * duplicates) > NUMBERS:
        most -= 1
    return most


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """Percentiles of `samples` times, in milliseconds; None where there are too few samples."""

    samples: int
    p50: float | None = None
    p90: float | None = None
    p99: float | None = None
    p999: float | None = None
    max: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadResult:
    """What became of a load; see `run_load` for what its times are."""

    parameters: LoadParameters
    prepared: bool
    prepare_seconds: float
    seconds: float
    """From the first send on until the last client was done."""
    numbers_sent: int
    """Whole lines that the operating system took to send."""
    numbers_taken: int
    """Of clients that the server closed orderly, after it had read all they sent."""
    numbers_not_taken_min: int
    """Of all others, those that did not even reach the server's host; more may be lost."""
    numbers_per_s: float
    """Taken in."""
    bytes_per_s: float
    cpu_user_seconds: float
    cpu_system_seconds: float
    drained_ms: Latency
    acknowledged_ms: Latency
    clients_drained: int
    clients_failed: int
    clients_unfinished: int
    """Neither drained nor failed when the run was ended by its time limit or the user."""
    errors: dict[str, int] = field(default_factory=dict)
    """What went wrong, and for how many clients."""
    terminated: bool = False
    timed_out: bool = False
    interrupted: bool = False

    @property
    def ended_early(self) -> bool:
        """Whether there were no more numbers to send for all of the duration."""
        parameters = self.parameters
        return self.numbers_sent == parameters.numbers and self.seconds < parameters.duration_s

    @property
    def complete(self) -> bool:
        """Whether everything that was asked for was done."""
        asked = self.numbers_sent if self.parameters.duration_s else self.parameters.numbers
        ended = not self.clients_unfinished
        return self.numbers_taken == asked and ended and not self.errors
