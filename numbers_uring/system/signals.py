"""Signals, turned into requests and a readable descriptor."""

import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from types import FrameType

from numbers_uring.limits import SIGNAL_REPEAT_S

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Requests:
    """Catches SIGTERM, SIGINT, SIGHUP and SIGUSR1 from its construction on; main thread only.

    The first stop signal sets `stop`. A further one, unless it comes within SIGNAL_REPEAT_S and so
    is the same request, ends the process at once with 128 + its number, as a shell would count it.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self.stop: signal.Signals | None = None
        self._say = say
        self._stop_s = 0.0
        self._asked = {signal.SIGHUP: False, signal.SIGUSR1: False}
        self.wakeup_fd, self._write_fd = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        # Written to by the C-level handler: a wait that had not begun yet returns at once, too.
        signal.set_wakeup_fd(self._write_fd, warn_on_full_buffer=False)
        for number in STOP_SIGNALS:
            signal.signal(number, self._catch_stop)
        for number in self._asked:
            signal.signal(number, self._catch)

    def ignore_stops(self) -> None:
        """Let stop signals pass from now on: there is nothing left to stop.

        Python gives every signal its default action back when it ends, and a late repeat would make
        a failure of an end that was clean; what is ignored stays ignored.
        """
        for number in STOP_SIGNALS:
            signal.signal(number, signal.SIG_IGN)

    def wake(self) -> None:
        """Make the wake-up descriptor readable; from any thread."""
        with suppress(BlockingIOError):
            os.write(self._write_fd, b"\0")

    def take_reopen(self) -> bool:
        """Say whether SIGHUP came since this was last asked, and quiet the descriptor."""
        return self._take(signal.SIGHUP)

    def take_report(self) -> bool:
        """Say whether SIGUSR1 came since this was last asked, and quiet the descriptor."""
        return self._take(signal.SIGUSR1)

    def _take(self, number: signal.Signals) -> bool:
        if not self._asked[number]:
            return False
        # In this order: a signal that comes in between is asked for again before the next wait.
        self._asked[number] = False
        self.quiet()
        return True

    def quiet(self) -> None:
        """Have the wake-up descriptor be readable no more, until the next request."""
        with suppress(BlockingIOError):
            os.read(self.wakeup_fd, 65536)

    def _catch(self, number: int, _frame: FrameType | None) -> None:
        self._asked[signal.Signals(number)] = True

    def _catch_stop(self, number: int, _frame: FrameType | None) -> None:
        now_s = time.monotonic()
        if self.stop is None:
            self.stop = signal.Signals(number)
            self._stop_s = now_s
        elif now_s - self._stop_s > SIGNAL_REPEAT_S:
            self._say(f"a second signal, {signal.Signals(number).name}: exiting at once")
            os._exit(128 + number)
