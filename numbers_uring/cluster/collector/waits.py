"""What a partition waits for: said once when it begins, and when it ends, and shown meanwhile."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from numbers_uring.cluster.partitions import stream_name

WaitKind = Literal["gap", "trimmed", "went_back", "malformed", "broker"]
"""Why a partition waits: messages are missing within the stream, or before its first one; the
stream lost what is in the log; a message is no batch; the NATS server does not answer for it."""


@dataclass(frozen=True, slots=True)
class Wait:
    """What a partition waits for."""

    kind: WaitKind
    first_sequence: int
    last_sequence: int
    text: str
    """For people, a part of a line."""
    since_s: float = field(default_factory=time.monotonic, compare=False)


class Waits:
    """The wait of one partition, if there is one, and the lines about it.

    `say` takes one line for the operator, `inform` one that is no warning.
    """

    def __init__(
        self, partition: int, *, say: Callable[[str], None], inform: Callable[[str], None]
    ) -> None:
        self.current: Wait | None = None
        """May be read from any thread."""
        self._partition = partition
        self._stream = stream_name(partition)
        self._say = say
        self._inform = inform
        self._said = False

    @property
    def kind(self) -> WaitKind | None:
        return None if self.current is None else self.current.kind

    def begin(
        self, kind: WaitKind, first: int, last: int, text: str, *, quiet: bool = False
    ) -> None:
        """Wait for messages `first` to `last`, or go on with that.

        `quiet`: say nothing, because another line does.
        """
        before = self.current
        same = before is not None and (before.kind, before.first_sequence) == (kind, first)
        since_s = before.since_s if before is not None and same else time.monotonic()
        self.current = Wait(kind, first, last, text, since_s)
        if not same:
            self._said = not quiet
            if not quiet:
                self._say(f"partition {self._partition} waits: {text}")

    def end(self, next_sequence: int) -> None:
        """Wait no more: the partition continues at message `next_sequence`."""
        if self.current is not None and self._said:
            self._inform(f"partition {self._partition} continues at message {next_sequence}")
        self.current = None

    # The reasons.

    def begin_malformed(self, sequence: int, why: str) -> None:
        hint = self._skip_hint(sequence, sequence)
        text = f"message {sequence} of the stream {self._stream} {why}; {hint}"
        self.begin("malformed", sequence, sequence, text)

    def begin_missing(
        self,
        first: int,
        last: int,
        first_of_stream: int,
        passed_by: str | None,
        tail_bytes: int,
    ) -> None:
        """Wait for messages that no replica has; `passed_by` names a copy that has them.

        `tail_bytes` is what the log has behind the position: it can be of these messages.
        """
        kind: WaitKind = "gap"
        which = f"message {first} is" if first == last else f"messages {first} to {last} are"
        text = f"{which} missing in the stream {self._stream}"
        if first_of_stream > first:
            kind, last = "trimmed", min(last, first_of_stream - 1)
            text = f"the stream {self._stream} begins at message {first_of_stream}, not {first}"
        hint = self._skip_hint(first, last)
        if kind == "trimmed" and tail_bytes:
            # A skip would be an end: what comes then is not what the log has.
            hint = (
                "start once with --replay, which passes over them and keeps all of the log, also "
                f"{tail_bytes} bytes that can be of them"
            )
        if passed_by is not None:
            hint = (
                f"{passed_by} has passed it: stop this collector, copy the index and then the log "
                "from there, and start it again"
            )
        self.begin(kind, first, last, f"{text}; {hint}")

    def begin_went_back(self, position: int, what: str) -> None:
        self.begin(
            "went_back",
            position,
            position,
            f"the stream {self._stream} was put back: {what}, and this log has that of before; put "
            "back what it was, or start once with --replay",
        )

    def begin_broker(self, sequence: int, *, is_gone: bool, quiet: bool) -> None:
        why = "is gone" if is_gone else "has no server that answers"
        text = f"the stream {self._stream} {why}; retrying"
        self.begin("broker", sequence, sequence, text, quiet=quiet)

    def _skip_hint(self, first: int, last: int) -> str:
        which = str(first) if first == last else f"{first}-{last}"
        it = "it" if first == last else "them"
        return f"'numbers-uring cluster skip {self._partition} {which}' passes over {it}"
