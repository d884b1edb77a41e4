"""What `auto` takes: the kernel, the backend, and room for descriptors and buffers."""

import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from numbers_uring.config import DESCRIPTORS_PER_REACTOR, DESCRIPTORS_RESERVED, StartError
from numbers_uring.epoll_reactor import EpollReactor
from numbers_uring.kernel import Kernel, PythonKernel
from numbers_uring.native_kernel import variants
from numbers_uring.reactor import Reactor
from numbers_uring.ring_probe import why_not
from numbers_uring.uring_reactor import UringReactor

AUTO_BACKEND = "epoll"
"""What --backend auto takes where a ring can be had: perf/RESULTS.md has the figures."""


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
    raise StartError(f"this CPU does not run the kernel {name}, only {found[0].variant} and slower")


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
        say(f"cannot use io_uring, taking epoll: {reason}")
    elif name == "uring" or auto == "uring":
        return "uring", UringReactor
    return "epoll", EpollReactor


def descriptors_needed(connections_max: int, reactors: int = 1) -> int:
    """Return how many descriptors a server of that size has open at most."""
    return connections_max + DESCRIPTORS_RESERVED + (reactors - 1) * DESCRIPTORS_PER_REACTOR


def raise_descriptor_limit(
    connections_max: int, wish: str | None = None, *, reactors: int = 1
) -> None:
    """See to it that so many clients, or logs, fit, as `wish` asks for. Raises StartError."""
    needed = descriptors_needed(connections_max, reactors)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise StartError(
            f"{wish or f'--max-clients {connections_max}'} needs {needed} file descriptors, "
            f"and the hard limit is {hard} (ulimit -Hn)"
        )
    target = needed if hard == resource.RLIM_INFINITY else hard
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (target, hard))
    except (OSError, ValueError) as error:
        raise StartError(
            f"cannot raise the limit of file descriptors to {target}: {error}"
        ) from error


@contextmanager
def room_for_buffers(backend: str) -> Iterator[None]:
    """Turn whatever keeps the backend and its buffers from being made into a StartError."""
    try:
        yield
    except MemoryError as error:
        raise StartError("not enough memory for the buffers") from error
    except OSError as error:
        raise StartError(f"cannot set up the backend {backend}: {error.strerror}") from error


def require_metrics_library() -> None:
    """Raise StartError, with a hint, where the library for --metrics is missing."""
    try:
        # Here, because it is an extra, and takes a tenth of a second to import.
        import prometheus_client  # noqa: F401, PLC0415
    except ImportError as error:
        raise StartError(
            f"--metrics needs the prometheus-client library ({error}): "
            "pip install 'numbers-uring[metrics]'"
        ) from error
