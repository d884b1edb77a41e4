"""The contract of what the loops hand new numbers to: a log, or what takes its place."""

from typing import NamedTuple, Protocol

from numbers_uring.ingest.report import Counts
from numbers_uring.log.appends import CompiledAppends


class Forwarded(NamedTuple):
    """What became of numbers that were forwarded, since the start."""

    acknowledged: int
    """Numbers in batches that the NATS server has acknowledged."""
    in_flight: int
    """Numbers that were taken in and are not acknowledged yet."""
    resent: int
    """How often a batch was published again."""
    published_bytes: int
    """Payloads, those of batches that were published again included."""


class Sink(Protocol):
    """Stores lines of numbers, each once. `append` and everything that is read: from any thread."""

    @property
    def name(self) -> str:
        """What it is, for the operator: `the log /var/lib/numbers.log`."""

    @property
    def fields(self) -> dict[str, object]:
        """The same for programs: fields of the first and the last line of the diagnostics."""

    @property
    def written_lines(self) -> int:
        """Whole lines that are stored."""

    @property
    def write_s(self) -> float:
        """Seconds spent in writing, or in waiting until there is space."""

    @property
    def sync_s(self) -> float:
        """Seconds spent in syncs, in any thread."""

    @property
    def forwarded(self) -> Forwarded | None:
        """What became of forwarded numbers; None if numbers are not forwarded."""

    @property
    def full_status(self) -> str:
        """In a few words why `append` took less than it was given: `No space for the log`."""

    @property
    def full_message(self) -> str:
        """The same in full: `no space for the log /var/lib/numbers.log`."""

    @property
    def room_message(self) -> str:
        """The opposite, said when `append` takes everything again."""

    def count(self, taken: Counts) -> Counts:
        """Return which of the numbers taken in from clients are to be reported."""

    @property
    def compiled(self) -> CompiledAppends | None:
        """What compiled passes append with where nothing is unusual; None where they can't."""

    def note_appends(self) -> None:
        """Note what passes have appended with that. Raises as `append` does."""

    def append(self, lines: memoryview) -> int:
        """Store whole lines; return how many bytes of them, whole lines, were taken.

        Fewer than given mean that the rest can't be taken now: try again later with the same lines.
        Raises SinkError if no later try can succeed.
        """

    def check(self) -> None:
        """Raise SinkError if something has failed in another thread."""

    def reopen(self) -> None:
        """Continue in the file that the name stands for now. Raises SinkError."""

    def mark(self) -> int:
        """Return a mark that stands for everything that was appended up to now."""

    def has(self, mark: int) -> bool:
        """Return whether everything up to the mark is stored as safely as was asked for."""

    def wait_until_stored(self, mark: int) -> None:
        """Return when it has everything up to the mark, while others may go on appending.

        To be called after `begin_stop`. Raises SinkError.
        """

    def begin_stop(self) -> None:
        """Called when the server begins to stop: what is appended now is the last."""

    def finish(self) -> None:
        """Store everything for good; nothing can be appended any more. Raises SinkError."""

    def loss(self, lines: int) -> str:
        """Return, to follow a failure's text, that so many counted numbers are not stored."""

    def summary(self) -> str:
        """Return, for the last line, how many numbers are stored, and where."""
