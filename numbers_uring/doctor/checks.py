"""What `doctor` found, look by look, and what that comes to."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum


class Weight(StrEnum):
    """How much a finding matters."""

    OK = "ok"
    NOTE = "note"
    """Something to know, or that could be better; a server starts even so."""
    PROBLEM = "problem"
    """A server does not start."""


Value = bool | int | float | str | None | Sequence[str] | Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What one look found."""

    name: str
    """The same in every release: programs look for it."""
    weight: Weight
    text: str
    """One line. Of a problem, what a server would say."""
    advice: str | None = None
    """What to do about it, in one line."""
    values: Mapping[str, Value] = field(default_factory=dict)
    """For programs. None is what could not be found out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """All of them, and the server that would start."""

    findings: Sequence[Finding]
    error: str | None
    """What a server would say first, if it would not start."""
    backend: str | None
    kernel: str | None
    """None where what was asked for can't be had."""

    @property
    def would_start(self) -> bool:
        return self.error is None
