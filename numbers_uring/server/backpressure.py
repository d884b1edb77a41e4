"""Whether the sink has space for numbers: what one loop finds holds for all of them."""

import threading
import time
from collections.abc import Callable

from numbers_uring.limits import NO_SPACE_RETRY_S
from numbers_uring.log.sink import Sink
from numbers_uring.system.stopwatch import Stopwatch


class Backpressure:
    """Full from the first loop whose batch did not fit until every such batch was appended.

    `say` is given one line for the operator when that begins and when it ends. For any thread.
    """

    def __init__(
        self,
        sink: Sink,
        say: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._sink = sink
        self._say = say
        self._lock = threading.Lock()
        self._short: set[object] = set()
        self._held_back = Stopwatch(clock)

    @property
    def full(self) -> bool:
        """Whether clients are held back."""
        return bool(self._short)

    @property
    def held_back_s(self) -> float:
        """How long clients were held back, up to now."""
        return self._held_back.total_s

    def note(self, loop: object, *, full: bool) -> None:
        """Note whether the batch of this loop did not fit."""
        with self._lock:
            before = self.full
            if full:
                self._short.add(loop)
            else:
                self._short.discard(loop)
            if self.full == before:
                return
            if before:
                self._held_back.stop()
                self._say(f"{self._sink.room_message}: continuing")
            else:
                self._held_back.start()
                self._say(
                    f"{self._sink.full_message}: holding the clients back, "
                    f"retrying every {NO_SPACE_RETRY_S:g} s"
                )
