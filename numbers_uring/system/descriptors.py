"""How many descriptors a process may open, and how many it needs."""

import os
import resource
import sys
from contextlib import suppress

from numbers_uring.errors import StartError
from numbers_uring.limits import DESCRIPTORS_PER_REACTOR, DESCRIPTORS_RESERVED


def descriptors_needed(connections_max: int, reactors: int = 1) -> int:
    """Return the most descriptors that a server of that size has open."""
    return connections_max + DESCRIPTORS_RESERVED + (reactors - 1) * DESCRIPTORS_PER_REACTOR


def raise_descriptor_limit(
    connections_max: int, option: str | None = None, *, reactors: int = 1
) -> None:
    """Make the soft limit high enough for that many clients, or logs.

    `option` is what asked for them, for the message. Raises StartError where the hard limit is
    lower.
    """
    needed = descriptors_needed(connections_max, reactors)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise StartError(
            f"{option or f'--max-clients {connections_max}'} needs {needed} file descriptors, "
            f"and the hard limit is {hard} (ulimit -Hn)"
        )
    target = needed if hard == resource.RLIM_INFINITY else hard
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (target, hard))
    except (OSError, ValueError) as error:
        raise StartError(
            f"cannot raise the limit of file descriptors to {target}: {error}"
        ) from error


def free_descriptors(needed: int) -> int:
    """Return how many descriptors this process may open beside the `needed` ones."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return sys.maxsize if soft == resource.RLIM_INFINITY else max(soft - needed, 0)


class SpareDescriptor:
    """One descriptor kept for a stop: clients in the backlog are accepted when all are used up."""

    def __init__(self) -> None:
        self._fd: int | None = None
        with suppress(OSError):
            self._fd = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)

    def release(self) -> None:
        """Free the descriptor, and take as many more as the hard limit allows."""
        self.close()
        with suppress(OSError, ValueError):
            _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))

    def close(self) -> None:
        fd, self._fd = self._fd, None
        # Linux frees the descriptor whatever close(2) says.
        with suppress(OSError):
            if fd is not None:
                os.close(fd)
