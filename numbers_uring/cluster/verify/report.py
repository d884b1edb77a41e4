"""What `cluster verify` has found, as text and as JSON."""

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(slots=True, kw_only=True)
class CopyReport:
    """A log of one partition, as its index says, and how it compares with the stream."""

    log: str
    numbers: int = 0
    """In the log, each once."""
    sequence: int = 0
    """The last message that was taken in, as the index says."""
    log_only: int | None = None
    """Numbers in the log that no message of the stream has; None if they were not compared."""


@dataclass(slots=True, kw_only=True)
class PartitionReport:
    """One partition; it is clean where there are no findings."""

    partition: int
    numbers: int = 0
    """In the stream's messages, each once."""
    first_sequence: int = 0
    last_sequence: int = 0
    skipped: int = 0
    """Messages that an operator has decided to skip."""
    copies: list[CopyReport] = field(default_factory=list)
    findings: list[str] = field(default_factory=list)
    """What is wrong, a line each."""

    def as_text(self) -> str:
        """Return a line for the partition, and one for each finding."""
        numbers = sorted({copy.numbers for copy in self.copies})
        text = f"partition {self.partition}: {_count(len(self.copies), 'log')}"
        if numbers:
            text += f" of {' and '.join(map(str, numbers))} numbers"
        if self.last_sequence < self.first_sequence:
            text += ", an empty stream"
        else:
            text += (
                f", {self.numbers} in messages {self.first_sequence} to {self.last_sequence} of "
                "the stream"
            )
        if log_only := max((copy.log_only or 0 for copy in self.copies), default=0):
            text += f", {log_only} only in logs"
        if self.skipped:
            text += f", {_count(self.skipped, 'message')} skipped"
        return "\n".join(
            [text, *(f"partition {self.partition}: {finding}" for finding in self.findings)]
        )


@dataclass(frozen=True, slots=True)
class Report:
    """All partitions that were compared."""

    partitions: list[PartitionReport]

    @property
    def clean(self) -> bool:
        return not any(each.findings for each in self.partitions)

    @property
    def totals(self) -> dict[str, int]:
        each = self.partitions
        return {
            "partitions": len(each),
            "logs": sum(len(one.copies) for one in each),
            "numbers": sum(max((copy.numbers for copy in one.copies), default=0) for one in each),
            "numbers_in_streams": sum(one.numbers for one in each),
            "log_only": sum(
                max((copy.log_only or 0 for copy in one.copies), default=0) for one in each
            ),
            "findings": sum(len(one.findings) for one in each),
        }

    def as_json(self) -> dict[str, Any]:
        return {
            "clean": self.clean,
            "partitions": [asdict(each) for each in self.partitions],
            "totals": self.totals,
        }

    def as_text(self) -> str:
        """Return it for people: partition by partition, and one line for all."""
        totals = self.totals
        findings = totals["findings"]
        return "\n".join(
            [
                *(each.as_text() for each in self.partitions),
                f"{_count(totals['partitions'], 'partition')}, {_count(totals['logs'], 'log')}: "
                f"{totals['numbers']} numbers in logs, {totals['numbers_in_streams']} in streams, "
                + (_count(findings, "finding") if findings else "clean"),
            ]
        )


def _count(count: int, thing: str) -> str:
    return f"{count} {thing}{'' if count == 1 else 's'}"
