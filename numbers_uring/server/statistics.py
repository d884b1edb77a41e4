"""What became of the connections of one loop, or of all."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

END_REASONS = ("eof", "invalid", "incomplete", "reset", "idle", "refused", "stop")
"""Why a connection ends, the same in metrics and in the last line as JSON."""


@dataclass(slots=True)
class Statistics:
    """What became of the connections of one run, beside the numbers that the intake counts."""

    accepted: int = 0
    ended: Counter[str] = field(default_factory=Counter)
    """By reason, of END_REASONS, except for refused connections, which no loop has."""
    received_bytes: int = 0
    reports_dropped: int = 0
    """Reports that were not read, each folded into the next."""

    @property
    def connected(self) -> int:
        """Clients that are connected now."""
        return self.accepted - self.ended.total()


def sum_of(statistics: Sequence[Statistics]) -> Statistics:
    """Return them added up; a copy, whatever their threads do meanwhile."""
    total = Statistics()
    for each in statistics:
        total.accepted += each.accepted
        total.received_bytes += each.received_bytes
        total.reports_dropped += each.reports_dropped
        total.ended.update(dict(each.ended))
    return total
