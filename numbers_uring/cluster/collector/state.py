"""How the owners of a process are: for probes, and for the service manager and its watchdog."""

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from numbers_uring.cluster.collector.owner import PartitionOwner
from numbers_uring.ingest.report import Counts
from numbers_uring.metrics.health import Health
from numbers_uring.systemd.notify import ServiceManager

if TYPE_CHECKING:
    from nats.aio.client import Client


class OwnersState:
    """Tells `manager` how `owners` are, and is the loop that `health` looks at.

    `name` is what they own, `counts` are the numbers taken in so far, `stopped` says whether the
    end has begun. The properties are for any thread.
    """

    def __init__(
        self,
        name: str,
        owners: Sequence[PartitionOwner],
        client: "Client",
        manager: ServiceManager,
        health: Health | None,
        *,
        counts: Callable[[], Counts],
        stopped: Callable[[], bool],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._name = name
        self._owners = owners
        self._client = client
        self._manager = manager
        self._health = health
        self._counts = counts
        self._stopped = stopped
        self._clock = clock
        self._told = ""

    @property
    def stopping(self) -> bool:
        """Whether the end has begun."""
        return self._stopped()

    @property
    def held_back(self) -> bool:
        """Whether something waits for space for its log, or for the engine."""
        return (
            self._lacks_space
            or not self._client.is_connected
            or not all(owner.lease.fresh for owner in self._owners)
        )

    @property
    def _lacks_space(self) -> bool:
        return any(owner.out_of_space.runs for owner in self._owners)

    @property
    def text(self) -> str:
        """The same for people."""
        if self._lacks_space:
            return f"No space for a log, owning {self._name}"
        if self.held_back:
            return f"The engine does not answer, owning {self._name}"
        return f"Owning {self._name}"

    # For the loop alone.

    def ready(self) -> None:
        """The owners begin now."""
        if self._health is not None:
            self._health.watch(self)
        self._told = self.text
        self._manager.ready(self._told)

    def beat(self) -> None:
        """Tell that the loop lives, and that no thread has been in one write or sync for long.

        A wait for space is no such thing: it is tried again every second.
        """
        begun_s = [owner.step_s for owner in self._owners]
        oldest_s = min((each for each in begun_s if each is not None), default=None)
        if self._health is not None:
            self._health.beat(oldest_s)
        if oldest_s is None or self._clock() - oldest_s < self._manager.heartbeat_interval_s:
            self._manager.heartbeat()

    def tell(self, *, if_changed: bool = False) -> None:
        """Have the service manager's status line say how it is now, unless it is over."""
        text, counts = self.text, self._counts()
        if not self.stopping and not (if_changed and text == self._told):
            self._told = text
            self._manager.status(f"{text}; {counts.unique} unique, {counts.duplicate} repeats")
