"""What `auto` takes: the kernel and the backend."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from numbers_uring.errors import StartError
from numbers_uring.ingest.kernel import Kernel, PythonKernel
from numbers_uring.ingest.native import variants
from numbers_uring.reactor.contract import Reactor
from numbers_uring.reactor.epoll import EpollReactor
from numbers_uring.reactor.probe import why_not
from numbers_uring.reactor.uring import UringReactor

AUTO_BACKEND = "epoll"
"""What --backend auto takes where io_uring is available: perf/RESULTS.md has the figures."""


def choose_kernel(name: str, *, shared: bool = False) -> Kernel:
    """Return the kernel asked for; `auto` and `native` are the fastest compiled variant.

    `shared` stands for one whose bitmap others write to as well. Raises StartError where this CPU
    does not run it.
    """
    if name == "python":
        python = PythonKernel()
        return python.shared if shared else python
    found = variants()
    for kernel in found:
        if name in {"auto", "native", kernel.variant}:
            return kernel.shared if shared else kernel
    raise StartError(
        f"this CPU does not support the kernel {name}, only {found[0].variant} and slower"
    )


def choose_backend(
    name: str, say: Callable[[str], None], auto: str = AUTO_BACKEND
) -> tuple[str, Callable[..., Reactor]]:
    """Return the backend asked for and its reactor's class; for `auto`, what `auto` says, or epoll.

    A ring is tried before it is taken, and for `auto` in any case: `say` is told why none can be
    had. Raises StartError.
    """
    if name == "epoll":
        return "epoll", EpollReactor
    reason = why_not()
    if reason is not None and name == "uring":
        raise StartError(f"cannot use io_uring (--backend epoll works): {reason}")
    if reason is not None:
        say(f"cannot use io_uring, using epoll instead: {reason}")
    elif name == "uring" or auto == "uring":
        return "uring", UringReactor
    return "epoll", EpollReactor


@contextmanager
def room_for_buffers(backend: str) -> Iterator[None]:
    """Turn errors in creating the backend and its buffers into a StartError."""
    try:
        yield
    except MemoryError as error:
        raise StartError("not enough memory for the buffers") from error
    except OSError as error:
        raise StartError(f"cannot set up the backend {backend}: {error.strerror}") from error
