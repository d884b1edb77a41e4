"""Takes listening sockets that a service manager has opened: sd_listen_fds(3), by hand.

PyPI's systemd-python was weighed: it needs libsystemd to be built and to run, and returns whatever
the descriptors are. Ours needs nothing, and refuses at the start what clients can't connect to.
"""

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
    """Return the sockets that `environment` says this process inherits; usually none.

    Must be called before anything else is opened: where fewer are inherited than the variables say,
    a descriptor of our own could be taken for one of them. The variables are removed and the
    descriptors set to be closed on exec, so that no child process takes them. The sockets stay open
    in the process that opened them, which also owns the file of a unix socket. Raises StartError
    where one is not a socket that clients can connect to.
    """
    count_text, pid_text, names_text, _ = (environment.pop(name, None) for name in _VARIABLES)
    if count_text is None or pid_text != str(os.getpid()):
        return []
    if not _COUNT.fullmatch(count_text):
        raise StartError(f"LISTEN_FDS={count_text} is not a number of descriptors")
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
            raise StartError(f"{called} is not a listening stream socket of TCP or unix(7)")
        set_options(listener)
    except (OSError, OverflowError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise StartError(f"cannot listen on {called}: {reason}") from error
    return listener
