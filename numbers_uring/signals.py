"""SIGTERM and SIGINT, turned into a stop request and a readable descriptor."""

import os
import signal
import time
from collections.abc import Callable
from types import FrameType

from numbers_uring.config import SIGNAL_REPEAT_S

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopSignals:
    """Catches the stop signals from its construction on; main thread only.

    The first one sets `received`. A further one, unless it comes within SIGNAL_REPEAT_S and so is
    the same request, ends the process at once with 128 + its number, as a shell would count it.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self.received: signal.Signals | None = None
        self._say = say
        self._received_s = 0.0
        self.wakeup_fd, self._write_fd = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        # Written to by the C-level handler: a wait that had not begun yet returns at once, too.
        signal.set_wakeup_fd(self._write_fd, warn_on_full_buffer=False)
        for number in STOP_SIGNALS:
            signal.signal(number, self._catch)

    def _catch(self, number: int, _frame: FrameType | None) -> None:
        now_s = time.monotonic()
        if self.received is None:
            self.received = signal.Signals(number)
            self._received_s = now_s
        elif now_s - self._received_s > SIGNAL_REPEAT_S:
            self._say(f"a second signal, {signal.Signals(number).name}: exiting at once")
            os._exit(128 + number)
