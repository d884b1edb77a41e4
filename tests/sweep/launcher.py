"""Starts servers for the sweep: imports everything once, and forks at each request.

A server that is traced from its first instruction makes thousands of calls to import modules, which
are Python's and slow under strace. Here they are made once. The child waits until it is traced and
then runs main() as `python -m numbers_uring` does, with the interpreter's own end behind it.
"""

import importlib
import json
import os
import pkgutil
import resource
import signal
import socket
import sys
from contextlib import suppress

from numbers_uring.cli.main import main

_WITHOUT = ("numbers_uring.cluster", "numbers_uring.__main__", "numbers_uring.profiling")


def _import_everything() -> None:
    import numbers_uring  # noqa: PLC0415 - only its name is wanted

    for module in pkgutil.walk_packages(numbers_uring.__path__, "numbers_uring."):
        if not module.name.startswith(_WITHOUT):
            importlib.import_module(module.name)
    for name in (
        "prometheus_client",
        "encodings.idna",
        "encodings.ascii",
        "traceback",
        "linecache",
    ):
        with suppress(ImportError):
            importlib.import_module(name)


def _serve_requests(control: socket.socket) -> bool:
    """Fork for each request; return in a child, with true, once it is traced."""
    while True:
        message, fds, _, _ = socket.recv_fds(control, 65536, 2)
        if not message:
            return False
        request = json.loads(message)
        pid = os.fork()
        if pid == 0:
            stdout, stderr = fds
            os.dup2(stdout, 1)
            os.dup2(stderr, 2)
            control.detach()
            sys.argv = ["numbers-uring", *request["arguments"]]
            os.closerange(3, 64)
            os.chdir(request["directory"])
            # Until the tracer is there.
            os.kill(os.getpid(), signal.SIGSTOP)
            return True
        for fd in fds:
            os.close(fd)
        control.send(json.dumps({"pid": pid}).encode())
        _, status, usage = os.wait4(pid, 0)
        control.send(
            json.dumps(
                {
                    "code": os.waitstatus_to_exitcode(status),
                    "processor_s": usage.ru_utime + usage.ru_stime,
                }
            ).encode()
        )


if __name__ == "__main__":
    _import_everything()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with open(os.devnull) as null:  # noqa: PTH123 - a descriptor is wanted
        os.dup2(null.fileno(), 0)
    if _serve_requests(socket.socket(fileno=int(sys.argv[1]))):
        main()
