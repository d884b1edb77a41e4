"""Threads beside the reactor's, which leave the signals to the main thread."""

import resource
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from mmap import MAP_ANONYMOUS, MAP_PRIVATE, mmap

from numbers_uring.errors import StartError
from numbers_uring.limits import THREAD_START_BYTES, THREAD_START_POLL_S


def start_thread(run: Callable[[], None], name: str) -> threading.Thread:
    """Start a daemon thread. Raises StartError, which says the name, where none can be had."""
    thread = threading.Thread(target=run, name=name, daemon=True)
    with _starting(name):
        _require_room()
        thread.start()
    return thread


def start_pool(count: int, name: str) -> ThreadPoolExecutor:
    """Return a pool whose `count` threads are all there. Raises StartError as `start_thread`."""
    pool = ThreadPoolExecutor(count, name)
    all_there = threading.Barrier(count + 1)
    try:
        with _starting(name):
            for _ in range(count):
                _require_room()
                pool.submit(all_there.wait)
            all_there.wait()
    except StartError:
        all_there.abort()
        pool.shutdown()
        raise
    return pool


@contextmanager
def _starting(name: str) -> Iterator[None]:
    # Threads inherit this mask.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        yield
    except (RuntimeError, OSError) as error:
        # Its stack is what memory or a limit of tasks does not suffice for.
        raise StartError(
            f"cannot start a thread for the {name}: too little memory, or too many tasks "
            "(ulimit -v, ulimit -u)"
        ) from error
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def wait_for_beginning(thread: threading.Thread, begun: threading.Event) -> None:
    """Wait until the thread says that it has begun.

    Raises MemoryError where it has ended without: it had too little memory even for that.
    """
    while not begun.wait(THREAD_START_POLL_S):
        if not thread.is_alive() and not begun.is_set():
            raise MemoryError(f"the {thread.name} could not begin")


def _require_room() -> None:
    """Raise OSError where a thread would find too little memory to begin with.

    Where Python finds that out inside of the thread, before anything of ours, whoever has started
    it waits for ever.
    """
    stack_bytes, _ = resource.getrlimit(resource.RLIMIT_STACK)
    if stack_bytes == resource.RLIM_INFINITY:
        stack_bytes = 0
    # Not touched, so it costs nothing but a moment of address space.
    mmap(-1, stack_bytes + THREAD_START_BYTES, flags=MAP_PRIVATE | MAP_ANONYMOUS).close()
