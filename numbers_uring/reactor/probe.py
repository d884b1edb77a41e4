"""Whether a ring works here: tried with a real one, because a list of features does not tell."""

import errno
import os
import socket
import time

from numbers_uring.addresses import Peer
from numbers_uring.config import WhenFull
from numbers_uring.limits import RING_PROBE_S
from numbers_uring.reactor.contract import Kind
from numbers_uring.reactor.uring import UringReactor

_LIKELY_CAUSES = {
    errno.EPERM: "forbidden by a container's seccomp profile or by kernel.io_uring_disabled",
    errno.EACCES: "forbidden by a security module",
    errno.ENOSYS: "the kernel was built without io_uring, or a seccomp profile hides it",
    errno.ENOMEM: "too little memory, or too little of it may be locked (ulimit -l)",
    errno.EINVAL: "Linux 6.1 or newer is needed",
    errno.EOPNOTSUPP: "Linux 6.1 or newer is needed",
}


def why_not() -> str | None:
    """Return why no ring can be used here, with the likely cause, or None where one can."""
    try:
        works = receives()
    except OSError as error:
        cause = _LIKELY_CAUSES.get(error.errno or 0)
        return f"{error.strerror} ({cause})" if cause else str(error.strerror)
    return None if works else "a trial receive failed"


def receives() -> bool:
    """Return whether a ring receives two chunks and the end of a stream. Raises OSError."""
    wakeup_read, wakeup_write = os.pipe2(os.O_CLOEXEC)
    near, far = socket.socketpair()
    reactor = None
    try:
        reactor = UringReactor(
            [], wakeup_read, connections_max=1, when_full=WhenFull.WAIT, warn=lambda _: None
        )
        reactor.adopt(near.detach(), Peer("", 0))
        handed_out = [_next_completion(reactor)]
        for chunk in (b"first", b"second"):
            far.sendall(chunk)
            handed_out.append(_next_completion(reactor))
        far.close()
        handed_out.append(_next_completion(reactor))
    finally:
        if reactor is not None:
            reactor.close()
        near.close()
        far.close()
        os.close(wakeup_read)
        os.close(wakeup_write)
    return handed_out == [
        (Kind.OPENED, b""),
        (Kind.RECEIVED, b"first"),
        (Kind.RECEIVED, b"second"),
        (Kind.CLOSED, b""),
    ]


def _next_completion(reactor: UringReactor) -> tuple[int, bytes] | None:
    """Return the kind and the bytes of what happens within RING_PROBE_S, or None."""
    end_s = time.monotonic() + RING_PROBE_S
    while (left_s := end_s - time.monotonic()) > 0:
        # A wait may end early: after a signal, or where the ring is worth another try.
        for kind, _, start, size in reactor.wait(left_s):
            return kind, bytes(reactor.arena[start : start + size]) if size else b""
    return None
