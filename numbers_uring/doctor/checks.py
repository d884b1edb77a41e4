"""What `doctor` has checked, one by one, and what that comes to."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum


class Severity(StrEnum):
    """How much a check's outcome matters."""

    OK = "ok"
    NOTE = "note"
    """Something to know, or that could be better; a server starts even so."""
    PROBLEM = "problem"
    """A server does not start."""


Value = bool | int | float | str | None | Sequence[str] | Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """The result of one check."""

    name: str
    """The same in every release: programs look for it."""
    severity: Severity
    text: str
    """One line. Of a problem, the server's error."""
    advice: str | None = None
    """What to do about it, in one line."""
    values: Mapping[str, Value] = field(default_factory=dict)
    """For programs. None is what could not be found out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """All of them, and the server that would start."""

    checks: Sequence[Check]
    error: str | None
    """The error with which a server would not start."""
    backend: str | None
    kernel: str | None
    """None where what was asked for is not available."""

    @property
    def would_start(self) -> bool:
        return self.error is None
