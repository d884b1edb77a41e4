"""Where the loops put the numbers they take in: the contract of a log and of its substitutes."""

from typing import NamedTuple, Protocol

from numbers_uring.ingest.report import Counts


class Forwarded(NamedTuple):
    """What became of numbers that were forwarded, since the start."""

    acknowledged: int
    """Numbers whose batch the engine has."""
    in_flight: int
    """Numbers that were taken in, and are not acknowledged."""
    resent: int
    """Batches that were published once more, each time that they were."""
    published_bytes: int
    """Payloads, those that were resent included."""


class Sink(Protocol):
    """Takes lines of numbers, each once. `append`, and all that is read, is for any thread."""

    @property
    def name(self) -> str:
        """What it is, for the operator: `the log /var/lib/numbers.log`."""

    @property
    def fields(self) -> dict[str, object]:
        """The same for programs: what the start line and the last one name it by."""

    @property
    def written_lines(self) -> int:
        """Whole lines that are where they belong."""

    @property
    def write_s(self) -> float:
        """Seconds spent in writing, or in waiting for room."""

    @property
    def sync_s(self) -> float:
        """Seconds spent in syncs, in whatever thread."""

    @property
    def forwarded(self) -> Forwarded | None:
        """Where numbers are forwarded, what became of them."""

    @property
    def full_message(self) -> str:
        """What it lacks when `append` took less than it was given: `no space for the log ...`."""

    @property
    def room_message(self) -> str:
        """The opposite, said when `append` takes everything again."""

    def count(self, taken: Counts) -> Counts:
        """Return what of the numbers taken in from clients is to be reported."""

    def append(self, lines: memoryview) -> int:
        """Take lines; return how many bytes of them were taken, fewer where there is no room.

        Raises SinkError where there will never be any.
        """

    def check(self) -> None:
        """Raise SinkError where something has failed in another thread."""

    def reopen(self) -> None:
        """Go on in what the name stands for now. Raises SinkError."""

    def mark(self) -> int:
        """Return what stands for all that was appended up to now."""

    def has(self, mark: int) -> bool:
        """Say whether everything up to the mark is where it belongs, for good or for the kernel."""

    def begin_stop(self) -> None:
        """Know that the server is stopping: whatever comes now is the last."""

    def finish(self) -> None:
        """Have everything where it belongs for good. Raises SinkError."""

    def loss(self, lines: int) -> str:
        """Say, behind a failure's text, that so many counted numbers are not there."""

    def summary(self) -> str:
        """Say, at the end, how many numbers are where."""
