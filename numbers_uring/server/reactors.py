"""All reactors of a server, each with its intake, opened as its configuration says."""

import socket
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial

from numbers_uring.config import Config
from numbers_uring.ingest.bitmap import Bitmap
from numbers_uring.ingest.intake import Intake
from numbers_uring.ingest.kernel import Kernel, PythonKernel
from numbers_uring.limits import BATCH_BYTES, RECEIVE_BYTES_PYTHON
from numbers_uring.reactor.contract import Reactor
from numbers_uring.reactor.epoll import EpollReactor
from numbers_uring.server.select import room_for_buffers
from numbers_uring.server.workers import Workers


def open_reactors(
    config: Config,
    backend: str,
    make_reactor: Callable[..., Reactor],
    kernel: Kernel,
    bitmap: Bitmap,
    listeners: list[socket.socket],
    wakeup_fd: int,
    *,
    wake: Callable[[], None],
    warn: Callable[[str], None],
    parts: ExitStack,
) -> tuple[Reactor, Intake, Workers | None]:
    """Return the reactor that accepts, with its intake, and the further ones.

    `wake` makes `wakeup_fd` readable. All are closed with `parts`. Raises StartError.
    """
    if make_reactor is EpollReactor and isinstance(kernel, PythonKernel):
        make_reactor = partial(EpollReactor, receive_bytes=RECEIVE_BYTES_PYTHON)

    def make(sockets: list[socket.socket], wakeup_fd: int) -> Reactor:
        return make_reactor(
            sockets,
            wakeup_fd,
            connections_max=config.connections_max,
            when_full=config.when_full,
            warn=warn,
        )

    def make_intake(reactor: Reactor) -> Intake:
        return Intake(
            kernel,
            reactor.arena,
            bitmap.memory,
            connections_max=config.connections_max,
            batch_bytes=BATCH_BYTES,
        )

    workers = None
    with room_for_buffers(backend):
        reactor = make(listeners, wakeup_fd)
        parts.callback(reactor.close)
        intake = make_intake(reactor)
        if config.reactors > 1:
            workers = Workers(
                config.reactors - 1,
                make=partial(make, []),
                make_intake=make_intake,
                wake=wake,
            )
            parts.callback(workers.close)
    return reactor, intake, workers
