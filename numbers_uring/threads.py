"""Threads beside the reactor's, which leave the signals to the main thread."""

import signal
import threading
from collections.abc import Callable

from numbers_uring.config import StartError


def start_thread(run: Callable[[], None], name: str) -> threading.Thread:
    """Start a daemon thread. Raises StartError, which says the name, where none can be had."""
    thread = threading.Thread(target=run, name=name, daemon=True)
    # The thread inherits this mask.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        thread.start()
    except RuntimeError as error:
        # Its stack is what memory or a limit of tasks does not suffice for.
        raise StartError(
            f"cannot start a thread for the {name}: too little memory, or too many tasks "
            "(ulimit -v, ulimit -u)"
        ) from error
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    return thread
