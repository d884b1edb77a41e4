"""One run of a server: takes the steps of its start, serves, and tells how it began and ended."""

import math
import os
import socket
import time
from contextlib import ExitStack

from numbers_uring.config import Config, WhenFull
from numbers_uring.errors import Failure, StopRequestedError, failure_of
from numbers_uring.limits import HEARTBEAT_INTERVAL_S, LAST_REPORT_WAIT_S
from numbers_uring.server.announcements import tell_end, tell_start
from numbers_uring.server.backpressure import Backpressure
from numbers_uring.server.disconnect_log import DisconnectLog
from numbers_uring.server.loop import Shared
from numbers_uring.server.parts import Parts
from numbers_uring.server.server import Server
from numbers_uring.server.status import ServiceStatus
from numbers_uring.server.steps import start_steps
from numbers_uring.server.waiting import WaitingClients
from numbers_uring.system import nonblocking  # noqa: F401 - a line is written without an import
from numbers_uring.system.diagnostics import Diagnostics
from numbers_uring.system.signals import prepare_signals
from numbers_uring.system.stdio import STDOUT, LineWriter
from numbers_uring.systemd.activation import take_inherited
from numbers_uring.systemd.notify import ServiceManager


def run_server(config: Config, say: Diagnostics) -> None:
    """Serve until the end. Raises a Failure, or StopRequestedError."""
    prepare_signals()
    manager = ServiceManager.from_environment(os.environ, say)
    try:
        # Before anything else is opened.
        inherited = take_inherited(os.environ)
        manager.status("Starting")
        _run(config, say, inherited, manager)
    except Failure as error:
        manager.status(str(error))
        raise
    finally:
        manager.close()


def _run(
    config: Config, say: Diagnostics, inherited: list[socket.socket], manager: ServiceManager
) -> None:
    begin_s, has_started = time.monotonic(), False
    try:
        with ExitStack() as stack:
            parts = Parts(config, stack, say, manager, inherited)
            for step in start_steps(config):
                step.take(parts)
            server = _make_server(parts)
            if parts.requests.stop is not None:
                raise StopRequestedError
            # The last step that can fail: until now an earlier run's log is unchanged.
            parts.take_over()
            has_started = True
            _watch(parts, server)
            tell_start(parts, time.monotonic() - begin_s)
            with parts.requests:
                server.run()
            tell_end(parts, server)
    except (Failure, StopRequestedError):
        raise
    except Exception as error:
        raise failure_of(error, has_started=has_started, sink_wings=("log", "cluster")) from error


def _make_server(parts: Parts) -> Server:
    """Put the parts together."""
    config, manager, metrics = parts.config, parts.manager, parts.metrics
    stdout = LineWriter(STDOUT)

    def report(line: str, last: bool) -> bool:
        status.refresh()
        return stdout.write(line, wait_s=LAST_REPORT_WAIT_S if last else 0)

    def heartbeat() -> None:
        manager.heartbeat()
        if metrics is not None:
            metrics.health.heartbeat()

    status = ServiceStatus(
        manager,
        " and ".join(parts.addresses),
        lacking=lambda: parts.sink.full_status,
        counts=lambda: server.counts,
        clients=lambda: server.statistics.connected,
    )
    shared = Shared(
        sink=parts.sink,
        backpressure=Backpressure(parts.sink, parts.say),
        connections_max=config.connections_max,
        idle_timeout_s=config.idle_timeout_s,
        terminate=config.terminate,
        disconnects=DisconnectLog(parts.say.debug) if config.verbose else None,
    )
    heartbeat_interval_s = min(
        manager.heartbeat_interval_s, math.inf if metrics is None else HEARTBEAT_INTERVAL_S
    )
    server = Server(
        parts.reactor,
        parts.intake,
        shared,
        parts.requests,
        report_interval_s=config.report_interval_s,
        report=report,
        workers=parts.workers,
        waiting=_make_waiting(parts),
        heartbeat=heartbeat,
        heartbeat_interval_s=heartbeat_interval_s,
        on_phase=status.enter,
        before_drain=parts.spare.release,
    )
    if parts.workers is not None:
        parts.workers.start(shared, round_s=heartbeat_interval_s)
    return server


def _make_waiting(parts: Parts) -> WaitingClients | None:
    config = parts.config
    if config.when_full is WhenFull.REFUSE:
        return None
    return WaitingClients(
        parts.listeners.sockets, connections_max=config.connections_max, say=parts.say
    )


def _watch(parts: Parts, server: Server) -> None:
    """Let those who ask see the server from now on."""
    if parts.metrics is not None:
        parts.metrics.watch(server, parts.reactor, parts.sink)
    parts.watch(lambda: server.taken, lambda: server.statistics.connected)
