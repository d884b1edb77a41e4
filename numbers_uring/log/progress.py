"""How far the reading of logs at a start is, said at intervals, and whether it is to go on."""

import time
from collections.abc import Callable

from numbers_uring.errors import StopRequestedError
from numbers_uring.limits import RESUME_PROGRESS_S


class StartProgress:
    """Tells `say`, every RESUME_PROGRESS_S, which share of `size_bytes` has been read.

    `doing` is what is being done, for the text. For one thread.
    """

    read_bytes = 0
    """What has been read so far; `note` adds to it."""

    def __init__(
        self,
        doing: str,
        size_bytes: int,
        say: Callable[[str], None],
        stop_requested: Callable[[], bool],
    ) -> None:
        self._doing = doing
        self._size_bytes = size_bytes
        self._say = say
        self._stop_requested = stop_requested
        self._due_s = time.monotonic() + RESUME_PROGRESS_S

    def note(self, chunk_bytes: int) -> None:
        """Called often, with what has been read since the last call.

        Raises StopRequestedError where a stop was requested.
        """
        self.read_bytes += chunk_bytes
        if self._stop_requested():
            raise StopRequestedError
        if time.monotonic() >= self._due_s:
            self._due_s += RESUME_PROGRESS_S
            share = min(100 * self.read_bytes // max(self._size_bytes, 1), 100)
            self._say(f"{self._doing}: {share} % of {self._size_bytes / 1e9:.1f} GB")
