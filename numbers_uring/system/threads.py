"""Starts threads, with enough memory, which leave all signals to the main thread."""

import resource
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from mmap import MAP_ANONYMOUS, MAP_PRIVATE, mmap
from typing import TYPE_CHECKING

from numbers_uring.errors import StartError
from numbers_uring.limits import THREAD_HEAP_BYTES, THREAD_START_BYTES, THREAD_START_POLL_S

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor


def start_thread(run: Callable[[], None], name: str) -> threading.Thread:
    """Start a daemon thread. Raises StartError with its name where the system refuses one."""
    thread = threading.Thread(target=run, name=name, daemon=True)
    with _starting(name):
        _require_memory()
        thread.start()
    return thread


def start_pool(count: int, name: str) -> "ThreadPoolExecutor":
    """Return a pool whose `count` threads have all started. Raises StartError."""
    from concurrent.futures import ThreadPoolExecutor  # noqa: PLC0415 - few commands need it

    pool = ThreadPoolExecutor(count, name)
    all_started = threading.Barrier(count + 1)
    try:
        with _starting(name):
            for _ in range(count):
                _require_memory()
                pool.submit(all_started.wait)
            all_started.wait()
    except StartError:
        all_started.abort()
        pool.shutdown()
        raise
    return pool


@contextmanager
def _starting(name: str) -> Iterator[None]:
    """Block all signals, which the new thread inherits, and turn errors into StartError."""
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        yield
    except (RuntimeError, OSError) as error:
        raise StartError(
            f"cannot start a thread for the {name}: too little memory, or too many tasks "
            "(ulimit -v, ulimit -u)"
        ) from error
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def wait_for_beginning(thread: threading.Thread, begun: threading.Event) -> None:
    """Wait until the thread has set `begun`.

    Raises MemoryError where it ended before: it had too little memory even for that.
    """
    while not begun.wait(THREAD_START_POLL_S):
        if not thread.is_alive() and not begun.is_set():
            raise MemoryError(f"the {thread.name} could not begin")


def _require_memory() -> None:
    """Raise OSError where a new thread would have too little memory to begin.

    Where Python runs out of memory in the thread before it calls our function, Thread.start()
    waits for ever.
    """
    stack_bytes, _ = resource.getrlimit(resource.RLIMIT_STACK)
    if stack_bytes == resource.RLIM_INFINITY:
        stack_bytes = 0
    heap_bytes = THREAD_HEAP_BYTES if "t" in sys.abiflags else 0
    # Never touched: it takes address space for a moment, and no memory.
    mmap(
        -1, stack_bytes + heap_bytes + THREAD_START_BYTES, flags=MAP_PRIVATE | MAP_ANONYMOUS
    ).close()
