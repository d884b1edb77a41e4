"""When a short pause before a pass saves more than it costs: packets that are tiny and many."""

from numbers_uring.limits import (
    PACING_CHUNK_BYTES,
    PACING_INTERVAL_S,
    PACING_PASSES,
    PACING_PAUSE_S_MIN,
    PACING_PERIOD_S,
    PACING_SIGNS,
)


class Pacing:
    """Watches the passes of a reactor.

    A pass has a price of its own: the wait, a receive for each connection, the write to the log.
    Where each brings a few bytes and the next follows at once, the passes are the load. If passes
    begin PACING_PERIOD_S apart, packets pile up in the sockets, and one pass takes them all. A pass
    that takes longer has no pause behind it: packets pile up meanwhile in any case, and each of
    them would only wait longer. A stream with pauses of its own has none either: in PACING_SIGNS
    passes in a row, packets must have come within PACING_INTERVAL_S of each other. It is checked
    again after PACING_PASSES passes. Nor have clients that come and leave: each would wait for
    three passes, to be accepted, for its lines and for its end, and piles up nothing meanwhile.
    """

    def __init__(self) -> None:
        self._left = 0
        self._signs = 0
        self._pass_s = 0.0
        self._begun_s = 0.0

    def pause_s(self, now_s: float) -> float:
        """Return how long packets are to pile up before the next pass; mostly not at all."""
        if not self._left:
            return 0.0
        pause_s = min(max(self._begun_s + PACING_PERIOD_S - now_s, 0.0), PACING_PERIOD_S)
        if pause_s < PACING_PAUSE_S_MIN:
            pause_s = 0.0
        self._begun_s = now_s + pause_s
        return pause_s

    def note_pass(self, now_s: float, packets: int, received_bytes: int, others: int) -> None:
        """Learn from a pass that ended at `now_s`, of so many packets with so many bytes in all.

        And of so many other events: clients that came or left.
        """
        if self._left:
            self._left -= 1
            if not packets:
                self._left = 0
        elif (
            not others
            and received_bytes < packets * PACING_CHUNK_BYTES
            and now_s - self._pass_s < packets * PACING_INTERVAL_S
        ):
            self._signs += 1
            if self._signs >= PACING_SIGNS:
                self._signs = 0
                self._left = PACING_PASSES
        else:
            self._signs = 0
        self._pass_s = now_s
