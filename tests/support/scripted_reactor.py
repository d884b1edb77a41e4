"""A server driven by a scripted reactor, without sockets, for several test modules."""

import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from numbers_uring.addresses import Peer
from numbers_uring.config import Fsync, Terminate
from numbers_uring.errors import Failure
from numbers_uring.ingest.intake import Intake
from numbers_uring.ingest.native import variants
from numbers_uring.limits import BITMAP_BYTES, CHUNK_BYTES_MAX, HEADROOM_BYTES
from numbers_uring.log.calls import FileCalls
from numbers_uring.log.writer import NumbersLog
from numbers_uring.reactor.contract import Completion, End, Kind
from numbers_uring.server.backpressure import Backpressure
from numbers_uring.server.disconnect_log import DisconnectLog
from numbers_uring.server.loop import Shared
from numbers_uring.server.server import Phase, Server

Step = Callable[[], None] | tuple[int, bytes] | tuple[int, End] | int
"""A callable to call, a piece or an end for a connection, or a connection that opens."""


class ScriptedReactor:
    """Plays one list of steps per wait, then one for the drain; time passes only in here."""

    def __init__(self, passes: list[list[Step]], drain: list[Step]) -> None:
        self.arena = bytearray(HEADROOM_BYTES + CHUNK_BYTES_MAX)
        self.refused = 0
        self.peers: dict[int, Peer] = {}
        self.now_s = 1000.0
        self.slept: list[float] = []
        self.disconnected: list[int] = []
        self.closed: list[tuple[int, bool]] = []
        self.held: dict[int, int] = {}
        self.waits: list[float] = []
        self.on_wait: Callable[[], None] = lambda: None
        self.on_sleep: Callable[[], None] = lambda: None
        self.drained = False
        self.closes_late = False
        """Whether a CLOSED that follows a `disconnect` waits for the next pass, as on a ring."""
        self._passes = iter(passes)
        self._drain = drain
        self._just_disconnected: list[int] = []

    def clock(self) -> float:
        return self.now_s

    def take_in(self, intake: Intake, appends: object = None) -> None:
        """Not here."""

    def wait(self, timeout_s: float) -> Iterator[Completion]:
        self.waits.append(timeout_s)
        self.on_wait()
        steps = next(self._passes, None)
        assert steps is not None, "the server waits beyond the script's end"
        if not steps:
            self.now_s += timeout_s
        yield from self._play(steps)

    def drain(self, end_s: float) -> Iterator[Completion]:
        assert end_s > 0
        self.drained = True
        steps, self._drain = self._drain, []
        yield from self._play(steps)

    def _play(self, steps: list[Step]) -> Iterator[Completion]:
        yield from self._take_disconnected()
        for step in steps:
            if callable(step):
                step()
            elif isinstance(step, int):
                yield Kind.OPENED, step, 0, 0
            elif isinstance(step[1], bytes):
                connection, piece = step[0], step[1]
                if connection in self.disconnected:
                    continue
                self.arena[HEADROOM_BYTES : HEADROOM_BYTES + len(piece)] = piece
                yield Kind.RECEIVED, connection, HEADROOM_BYTES, len(piece)
            else:
                yield Kind.CLOSED, step[0], int(step[1]), 0
            if not self.closes_late:
                yield from self._take_disconnected()

    def _take_disconnected(self) -> Iterator[Completion]:
        while self._just_disconnected:
            yield Kind.CLOSED, self._just_disconnected.pop(), End.DISCONNECTED, 0

    def finish_close(self, connection: int, *, orderly: bool) -> None:
        self.closed.append((connection, orderly))

    def held_bytes(self, connection: int) -> int:
        return self.held.get(connection, 0)

    def disconnect(self, connection: int) -> None:
        self.disconnected.append(connection)
        self._just_disconnected.append(connection)

    def peer(self, connection: int) -> Peer:
        return self.peers.get(connection, Peer("127.0.0.1", connection))

    def release(self, connection: int) -> int:
        raise AssertionError(f"there is only one reactor for {connection}")

    def adopt(self, fd: int, peer: Peer) -> None:
        raise AssertionError(f"there is only one reactor for {fd} of {peer}")

    def set_connections_elsewhere(self, connections: int) -> None:
        raise AssertionError(f"there is only one reactor for {connections}")

    def sleep(self, timeout_s: float) -> None:
        self.slept.append(timeout_s)
        self.now_s += timeout_s
        self.on_sleep()

    def close(self) -> None:
        raise AssertionError("the parts are the caller's to close")


class FakeRequests:
    stop: signal.Signals | None = None
    failure: Failure | None = None
    reopen = False
    report = False

    def take_reopen(self) -> bool:
        taken, self.reopen = self.reopen, False
        return taken

    def quiet(self) -> None:
        raise AssertionError("there is only one reactor")

    def take_report(self) -> bool:
        taken, self.report = self.report, False
        return taken


class Run:
    """A server on a script, with everything that it said and wrote."""

    def __init__(
        self,
        tmp_path: Path,
        passes: list[list[Step]],
        drain: list[Step] | None = None,
        *,
        idle_timeout_s: float = 0,
        fsync: Fsync = Fsync.NEVER,
        bitmap: bytearray | None = None,
        calls: dict[str, Callable[..., Any]] | None = None,
        terminate: Terminate = Terminate.ANY,
        disconnects: DisconnectLog | None = None,
        **settings: Any,
    ) -> None:
        self.path = tmp_path / "numbers.log"
        self.reactor = ScriptedReactor(passes, drain or [])
        self.requests = FakeRequests()
        self.reports: list[tuple[str, bool]] = []
        self.said: list[str] = []
        self.phases: list[Phase] = []
        self.reader_is_there = True
        self.log = NumbersLog(
            self.path,
            say=self.said.append,
            fsync=fsync,
            calls=replace(FileCalls(), **(calls or {})),
        )
        intake = Intake(
            variants()[0],
            self.reactor.arena,
            bytearray(BITMAP_BYTES) if bitmap is None else bitmap,
            connections_max=3,
            batch_bytes=2 * CHUNK_BYTES_MAX,
        )
        self.server = Server(
            self.reactor,
            intake,
            Shared(
                sink=self.log,
                backpressure=Backpressure(self.log, self.said.append, self.reactor.clock),
                connections_max=3,
                idle_timeout_s=idle_timeout_s,
                terminate=terminate,
                disconnects=disconnects,
            ),
            self.requests,
            report_interval_s=10,
            report=self._report,
            clock=self.reactor.clock,
            sleep=self.reactor.sleep,
            **{"on_phase": self.phases.append, **settings},
        )

    def _report(self, line: str, last: bool) -> bool:
        if self.reader_is_there:
            self.reports.append((line, last))
        return self.reader_is_there

    def stop_now(self) -> None:
        self.requests.stop = signal.SIGTERM

    def stall(self, seconds: float) -> Callable[[], None]:
        def pass_time() -> None:
            self.reactor.now_s += seconds

        return pass_time

    @property
    def file(self) -> bytes:
        return self.path.read_bytes()
