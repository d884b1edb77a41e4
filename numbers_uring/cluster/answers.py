"""Notes on the answers of a NATS server: when to ask again, and when to ask another server."""

import time
from bisect import bisect_left

from numbers_uring.limits import BROKER_ASK_AGAIN_S, BROKER_LEAVE_S


class Unanswered:
    """How long requests of one kind have had no answer."""

    def __init__(self) -> None:
        self._since_s: float | None = None
        """When the first request was made that was followed by no answer to any."""
        self._most_s = BROKER_LEAVE_S

    def note_request(self) -> None:
        if self._since_s is None:
            self._since_s = time.monotonic()

    def note_answer(self) -> None:
        self._since_s, self._most_s = None, BROKER_LEAVE_S

    def forget(self) -> None:
        """Called when the connection is lost: what was asked in it may never be answered."""
        self._since_s = None

    def too_long(self) -> bool:
        """Return whether to leave the server; the next one is given twice the time.

        A stream without a leader does not answer either, whichever server is asked.
        """
        if self._since_s is None or time.monotonic() < self._since_s + self._most_s:
            return False
        self._most_s *= 2
        return True


class Order:
    """When to send a request again: not while those that were sent before are being answered.

    Each answer has to wait for the ones before on a slow line, or behind a slow disk; to send
    everything again then would only make it slower.
    """

    def __init__(self) -> None:
        self._sent = 0
        self._answers: list[tuple[int, float]] = []
        """Which request was answered when: both ascending, and all that a later answer to an
        earlier request makes superfluous is left out."""

    def note_request(self) -> int:
        """Return the number of this request."""
        self._sent += 1
        return self._sent

    def note_answer(self, number: int) -> None:
        now_s = time.monotonic()
        del self._answers[bisect_left(self._answers, (number,)) :]
        self._answers.append((number, now_s))
        if self._answers[0][1] < now_s - 2 * BROKER_ASK_AGAIN_S:
            keep_s = now_s - BROKER_ASK_AGAIN_S
            self._answers = [each for each in self._answers if each[1] >= keep_s]

    def due_s(self, number: int, sent_s: float) -> float:
        """Return when the request of this number, sent then, is to be sent again."""
        index = bisect_left(self._answers, (number,))
        moved_s = self._answers[index - 1][1] if index else 0.0
        return max(sent_s, moved_s) + BROKER_ASK_AGAIN_S
