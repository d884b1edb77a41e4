"""Listening sockets that a service manager opened and handed down: sd_listen_fds(3), by hand."""

import os
import re
import socket
from collections.abc import MutableMapping

from numbers_uring.errors import StartError
from numbers_uring.net.listeners import set_options

FIRST_FD = 3
_VARIABLES = ("LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES", "LISTEN_PIDFDID")
_COUNT = re.compile("[0-9]{1,9}")


def take_inherited(environment: MutableMapping[str, str]) -> list[socket.socket]:
    """Return the sockets that `environment` says were handed to this process; usually none.

    To be called before anything else is opened: where fewer were handed down than is said, a
    descriptor of our own could be taken for one of them. The variables are taken out and the
    descriptors closed on exec, so that no child believes them its own. The sockets stay open with
    whoever opened them, and the file of a unix socket is theirs. Raises StartError where one is no
    socket that clients can connect to.
    """
    count_text, pid_text, names_text, _ = (environment.pop(name, None) for name in _VARIABLES)
    if count_text is None or pid_text != str(os.getpid()):
        return []
    if not _COUNT.fullmatch(count_text):
        raise StartError(f"LISTEN_FDS={count_text} is no number of descriptors")
    names = dict(enumerate((names_text or "").split(":"), FIRST_FD))
    fds = range(FIRST_FD, FIRST_FD + int(count_text))
    return [_take(fd, names.get(fd, "")) for fd in fds]


def _take(fd: int, name: str) -> socket.socket:
    called = f"the inherited descriptor {fd}" + (f" ({name})" if name else "")
    listener = None
    try:
        listener = socket.socket(fileno=fd)
        listener.set_inheritable(False)
        listens = listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        families = {socket.AF_INET, socket.AF_INET6, socket.AF_UNIX}
        if not (listens and listener.type == socket.SOCK_STREAM and listener.family in families):
            raise StartError(f"{called} is no listening stream socket of TCP or unix(7)")
        set_options(listener)
    except (OSError, OverflowError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise StartError(f"cannot listen on {called}: {reason}") from error
    return listener
