"""Signals, turned into requests and a readable descriptor.

What it stands on:

- A process inherits which signals are blocked (sigprocmask(2)) and ignored (signal(7)) from its
  parent. Redis and nginx catch their signals whatever was ignored, and so do we: under nohup(1) and
  as a background job of a script, SIGHUP and SIGINT are requests all the same.
- A write to the terminal by a background job stops the whole process where `stty tostop` is set,
  unless SIGTTOU is ignored (termios(3)).
- A handler of Python's runs in the main thread, and not while that waits for a disk. A signal that
  all threads have blocked goes to the one that is in sigwait(3).
- Python's end gives every signal that has a handler its default action back, before the process is
  gone; one that is ignored stays ignored.
"""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Self

from numbers_uring.errors import Failure
from numbers_uring.limits import SIGNAL_REPEAT_S, SIGNAL_THREAD_END_S
from numbers_uring.system.threads import start_thread

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_REQUESTS = (*STOP_SIGNALS, signal.SIGHUP, signal.SIGUSR1)

SIGNALS_THREAD = "signals"
"""The name of the thread that takes them."""


def unblock_signals() -> None:
    """Let the signals through that end a command or ask a server for something."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (*_REQUESTS, signal.SIGCHLD))


def prepare_signals() -> None:
    """Make signals harmless that would stop or end a server which only writes. Main thread only.

    Children's ends can be waited for afterwards, also where the parent has ignored SIGCHLD.
    """
    for number in (signal.SIGTTOU, signal.SIGTTIN, signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)


@contextmanager
def caught(
    numbers: tuple[signal.Signals, ...],
    catch: Callable[[signal.Signals], None],
    *,
    unless_ignored: bool = False,
) -> Iterator[None]:
    """Call `catch` for each of these signals within the context. Main thread only.

    With `unless_ignored`, one that the parent has made ignored stays so, as nohup(1) wants it.
    """

    def handle(number: int, _frame: FrameType | None) -> None:
        catch(signal.Signals(number))

    before = {
        number: signal.getsignal(number)
        for number in numbers
        if not unless_ignored or signal.getsignal(number) != signal.SIG_IGN
    }
    try:
        for number in before:
            signal.signal(number, handle)
        yield
    finally:
        for number, action in before.items():
            signal.signal(number, action)


@contextmanager
def unblocked() -> Iterator[None]:
    """Unblock what Requests takes within the context: child processes inherit the mask."""
    mask = signal.pthread_sigmask(signal.SIG_UNBLOCK, _REQUESTS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


class Requests:
    """Takes SIGTERM, SIGINT, SIGHUP and SIGUSR1 from its construction on; main thread only.

    Once left as a context, which may be done more than once, it has them ignored until the end.

    The first stop signal sets `stop`. A further one, unless it comes within SIGNAL_REPEAT_S and so
    is the same request, ends the process at once with 128 + its number, as a shell would count it,
    or with the exit code of `failure`, once that is set. `warn` takes one line for the operator.
    Raises StartError where its thread can't be started.
    """

    def __init__(self, warn: Callable[[str], None]) -> None:
        self.stop: signal.Signals | None = None
        self.failure: Failure | None = None
        """Why the run has failed, while it is still being ended."""
        self._warn = warn
        self._requested = {signal.SIGHUP: False, signal.SIGUSR1: False}
        self.wakeup_fd, self._wake_fd = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        # All later threads inherit the mask.
        signal.pthread_sigmask(signal.SIG_BLOCK, _REQUESTS)
        for number in _REQUESTS:
            signal.signal(number, self._catch)
        self._over = False
        self._thread = start_thread(self.take_signals, SIGNALS_THREAD)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Ignore all of them until the process ends: nothing is left to stop."""
        if self._over:
            return
        self._over = True
        # Ends the thread, which would take signals that others want to catch from here on.
        assert self._thread.ident is not None
        signal.pthread_kill(self._thread.ident, signal.SIGUSR1)
        # One that outlives the interpreter is ended by pthread_exit(3), which needs a library that
        # may be missing, and then aborts.
        self._thread.join(SIGNAL_THREAD_END_S)
        for number in _REQUESTS:
            signal.signal(number, signal.SIG_IGN)
        unblock_signals()

    def wake(self) -> None:
        """Make the wake-up descriptor readable; from any thread. It may fail: see WAIT_S_MAX."""
        with suppress(OSError):
            os.write(self._wake_fd, b"\0")

    def take_reopen(self) -> bool:
        """Return whether SIGHUP came since the last call, and quiet the descriptor."""
        return self._take(signal.SIGHUP)

    def take_report(self) -> bool:
        """Return whether SIGUSR1 came since the last call, and quiet the descriptor."""
        return self._take(signal.SIGUSR1)

    def _take(self, number: signal.Signals) -> bool:
        if not self._requested[number]:
            return False
        # In this order: a signal that comes in between is seen by the call before the next wait.
        self._requested[number] = False
        self.quiet()
        return True

    def quiet(self) -> None:
        """Make the wake-up descriptor unreadable until the next request."""
        with suppress(BlockingIOError):
            os.read(self.wakeup_fd, 65536)

    def take_signals(self) -> None:
        """Take signals until the end: what the thread does, which flame graphs leave out."""
        try:
            while self._take_signal(signal.Signals(signal.sigwait(_REQUESTS))):
                pass
        except OSError as error:
            self._warn(f"cannot wait for signals, which are handled late: {error.strerror}")
            # From now on they reach _catch, between two waits of the main thread.
            unblock_signals()
            threading.Event().wait()

    def _take_signal(self, number: signal.Signals) -> bool:
        """Take it, and stop signals that repeat it; return False at the end."""
        if self._over:
            return False
        if number in STOP_SIGNALS and self.stop is not None:
            self._exit(number)
        self._note(number)
        if number not in STOP_SIGNALS:
            return True
        end_s = time.monotonic() + SIGNAL_REPEAT_S
        while (left_s := end_s - time.monotonic()) > 0:
            more = signal.sigtimedwait(_REQUESTS, left_s)
            if more is not None and more.si_signo not in STOP_SIGNALS:
                if self._over:
                    return False
                self._note(signal.Signals(more.si_signo))
        return True

    def _catch(self, number: int, _frame: FrameType | None) -> None:
        # While they are not blocked, as when a child process is started.
        self._note(signal.Signals(number))

    def _note(self, number: signal.Signals) -> None:
        if number not in STOP_SIGNALS:
            self._requested[number] = True
        elif self.stop is None:
            self.stop = number
        self.wake()

    def _exit(self, number: signal.Signals) -> None:
        text = f"a second signal, {number.name}: exiting at once"
        if self.failure is None:
            self._warn(text)
            os._exit(128 + number)
        self._warn(f"{self.failure}; {text}")
        os._exit(self.failure.exit_code)
