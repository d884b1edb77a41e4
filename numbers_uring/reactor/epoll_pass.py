"""A pass over the ready connections in few calls: see native/epoll/epoll.h."""

from array import array
from collections.abc import Iterator
from enum import IntEnum
from math import ceil
from typing import Any

from numbers_uring._native import ffi, lib
from numbers_uring.ingest.kernel import CompiledIntake
from numbers_uring.limits import (
    BULK_BYTES,
    BULK_PASS_BYTES,
    BULK_SHARE_BYTES,
    HEADROOM_BYTES,
    RECEIVE_FAILURES_MAX,
)
from numbers_uring.reactor.bulk_turns import BulkTurns
from numbers_uring.reactor.contract import Appends
from numbers_uring.reactor.epoll_set import wait_error


class Step(IntEnum):
    """Why a call has returned."""

    OVER = 0
    """Every event was dealt with."""
    TAKEN = 1
    """There is a verdict, or no room in the batch, or enough was taken in for a call."""
    ENDED = 2
    """Nothing more comes from `connection`, because of `error`; 0 is the end of its stream."""
    OTHER = 3
    """`fd` is ready, which is no connection."""


assert tuple(Step) == (lib.NU_PASS_OVER, lib.NU_PASS_TAKEN, lib.NU_PASS_ENDED, lib.NU_PASS_OTHER)
_OVER = int(Step.OVER)


class EpollPass:
    """Receives into an arena, behind its headroom, and takes in with `intake`.

    `appends` append that, if given.
    """

    def __init__(
        self,
        epoll_fd: int,
        intake: CompiledIntake,
        appends: Appends | None,
        *,
        events_max: int,
        receive_bytes: int,
        turns: BulkTurns,
    ) -> None:
        self._intake = intake
        self._log: Any = ffi.NULL if appends is None else appends.pointer
        self._events: Any = ffi.new("uint64_t[]", events_max * lib.NU_EPOLL_EVENT_BYTES // 8)
        self._rounds: Any = ffi.from_buffer("uint64_t[]", turns.rounds, require_writable=True)
        self._pass: Any = ffi.new(
            "struct nu_epoll_pass *",
            {
                "epoll_fd": epoll_fd,
                "events": self._events,
                "events_max": events_max,
                "receive_start": HEADROOM_BYTES,
                "receive_bytes": receive_bytes,
                "failures_max": RECEIVE_FAILURES_MAX,
                "rounds": self._rounds,
                "round": 1,
                "bulk_bytes": BULK_BYTES,
                "bulk_share_bytes": BULK_SHARE_BYTES,
                "bulk_look_bytes": turns.look_bytes,
                "bulk_pass_bytes": BULK_PASS_BYTES,
            },
        )
        self._first_step = _OVER
        self._connections = array("i")
        self._failures = bytearray()
        self._make_room(events_max)

    def _make_room(self, descriptors: int) -> None:
        """Make the table of connections so long."""
        more = descriptors - len(self._connections)
        self._connections = self._connections + array("i", [-1]) * more
        self._table: Any = ffi.from_buffer("int32_t[]", self._connections, require_writable=True)
        self._pass.connections, self._pass.descriptors = self._table, descriptors
        self._failures = bytearray(descriptors)
        self._failures_table: Any = ffi.from_buffer("uint8_t[]", self._failures)
        self._pass.failures = self._failures_table

    def add(self, fd: int, connection: int) -> None:
        """Receive from this descriptor for the connection."""
        if fd >= len(self._connections):
            self._make_room(2 * fd)
        self._connections[fd] = connection
        self._failures[fd] = 0

    def remove(self, fd: int) -> None:
        """Receive from this descriptor no more."""
        self._connections[fd] = -1

    def wait(self, timeout_s: float) -> int:
        """Wait, take in until there is a step, and return how many descriptors were ready.

        Raises OSError, which names the system call: InterruptedError after a signal.
        """
        step: int = lib.nu_epoll_pass(
            self._pass, self._intake.pointer, self._log, ceil(timeout_s * 1000)
        )
        if step < 0:
            raise wait_error(-step)
        self._first_step = step
        return self._pass.ready  # type: ignore[no-any-return]

    def steps(self) -> Iterator[int]:
        """Hand out, as Steps, what is to be decided of the ready descriptors; OVER comes last.

        To be called where there were any. The first step is there already.
        """
        step = self._first_step
        yield step
        while step != _OVER:
            step = lib.nu_epoll_take(self._pass, self._intake.pointer, self._log)
            yield step

    def receive(self, fd: int) -> tuple[int, int]:
        """Receive once, to HEADROOM_BYTES in the arena, and take in nothing.

        Returns the size, or -1 where it is worth another try; and why nothing more comes: an errno,
        or 0 beside a size of 0 at the end of the stream.
        """
        size: int = lib.nu_epoll_receive(self._pass, fd, self._intake.pointer.arena)
        return size, 0 if size else self._pass.error

    @property
    def taken(self) -> tuple[int, int, int]:
        """The connection whose piece was taken in last, the verdict, the bytes since the step."""
        intake = self._intake.pointer
        return intake.connection, intake.verdict, intake.taken_bytes

    @property
    def ended(self) -> tuple[int, int]:
        """The connection that has ended, and the errno."""
        return self._pass.connection, self._pass.error

    @property
    def other_fd(self) -> int:
        """The descriptor that is no connection."""
        return self._pass.fd  # type: ignore[no-any-return]
