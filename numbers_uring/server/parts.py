"""The parts of a server, and the steps of its start, which take or try one part each."""

import os
import socket
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

from numbers_uring.config import Config
from numbers_uring.ingest.bitmap import Bitmap
from numbers_uring.ingest.intake import Intake
from numbers_uring.ingest.kernel import Kernel
from numbers_uring.ingest.report import Counts
from numbers_uring.log.seen import Seen
from numbers_uring.log.seen_files import SeenFiles
from numbers_uring.log.sink import Sink
from numbers_uring.net.listeners import Listeners
from numbers_uring.reactor.contract import Reactor
from numbers_uring.server.workers import Workers
from numbers_uring.system.descriptors import SpareDescriptor
from numbers_uring.system.diagnostics import Diagnostics
from numbers_uring.system.signals import Requests
from numbers_uring.systemd.notify import ServiceManager

if TYPE_CHECKING:
    from numbers_uring.server.metrics import Metrics


class Parts:
    """What the steps have taken so far, closed with `stack`; nothing is there before its step."""

    spare: SpareDescriptor
    kernel: Kernel
    backend: str
    backend_warning: str | None
    """Why `auto` could not take a ring."""
    make_reactor: Callable[..., Reactor]
    requests: Requests
    profile_tool: str
    bitmap: Bitmap
    listeners: Listeners
    addresses: list[str]
    reactor: Reactor
    intake: Intake
    workers: Workers | None
    sink: Sink
    has_log_state: Callable[[os.stat_result], bool]
    """Returns whether a file with this state is the log."""
    log_bytes: int | None
    """The size of the log that is there; None where there is none. Known when it was tried."""

    def __init__(
        self,
        config: Config,
        stack: ExitStack,
        say: Diagnostics,
        manager: ServiceManager,
        inherited: list[socket.socket],
    ) -> None:
        self.config = config
        self.stack = stack
        self.say = say
        self.manager = manager
        self.inherited = inherited
        self.metrics: Metrics | None = None
        self.take_over: Callable[[], None] = lambda: None
        """Makes what an earlier run has left the beginning of this one's log, or drops it."""
        self.dropped_bytes = 0
        """Of an earlier run's log."""
        self.seen_files: SeenFiles | None = None
        self.seen = Seen()
        """What was read of them."""
        self.watch: Callable[[Callable[[], Counts], Callable[[], int]], None] = lambda *_: None
        """Gives the sink the server's counts and the number of its clients."""

    def have(self, *names: str) -> bool:
        """Return whether all of these attributes are there."""
        return all(hasattr(self, name) for name in names)


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One step of a start."""

    name: str
    """The same in every release: the doctor's finding."""
    take: Callable[[Parts], None]
    """Takes it for a server. Raises StartError."""
    probe: Callable[[Parts], None]
    """Tries it, and leaves nothing behind once the parts are closed. Raises the same StartError."""
    advice: str
    """What to do where it fails, in one line."""
    needs: tuple[str, ...] = ()
    """The parts without which it can't be tried."""
