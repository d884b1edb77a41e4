"""The parts of a server, put together for one run."""

import math
import os
import socket
import time
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING

from numbers_uring.addresses import TcpAddress
from numbers_uring.bitmap import Bitmap, allocate
from numbers_uring.choices import (
    choose_backend,
    choose_kernel,
    raise_descriptor_limit,
    require_metrics_library,
    room_for_buffers,
)
from numbers_uring.config import (
    BATCH_BYTES,
    BEAT_INTERVAL_S,
    DEFAULT_ADDRESS,
    LAST_REPORT_WAIT_S,
    RECEIVE_BYTES_PYTHON,
    Config,
    StartError,
)
from numbers_uring.console import STDOUT, Diagnostics, Lines
from numbers_uring.disconnect_lines import DisconnectLines
from numbers_uring.epoll_reactor import EpollReactor
from numbers_uring.intake import Intake
from numbers_uring.kernel import Kernel, PythonKernel
from numbers_uring.listeners import Listeners, address_text, listen, listen_for_metrics
from numbers_uring.numbers_log import LogError, NumbersLog
from numbers_uring.reactor import BackendError, Reactor
from numbers_uring.report import Counts
from numbers_uring.resume import resume
from numbers_uring.server import Server
from numbers_uring.service_manager import ServiceManager
from numbers_uring.service_status import ServiceStatus
from numbers_uring.signals import Requests
from numbers_uring.socket_activation import take_inherited

if TYPE_CHECKING:
    from numbers_uring.metrics import Metrics


def run_server(config: Config, say: Diagnostics) -> None:
    """Serve until the end. Raises StartError, StopRequestedError, LogError or BackendError."""
    manager = ServiceManager.from_environment(os.environ, say)
    try:
        # Before anything else is opened.
        inherited = take_inherited(os.environ)
        manager.status("Starting")
        _serve(config, say, inherited, manager)
    except (StartError, LogError, BackendError) as error:
        manager.status(str(error))
        raise
    finally:
        manager.close()


def _serve(
    config: Config, say: Diagnostics, inherited: list[socket.socket], manager: ServiceManager
) -> None:
    begin_s = time.monotonic()
    stdout = Lines(STDOUT)

    def report(line: str, last: bool) -> bool:
        status.refresh()
        return stdout.write(line, wait_s=LAST_REPORT_WAIT_S if last else 0)

    def beat() -> None:
        manager.beat()
        if metrics is not None:
            metrics.health.beat()

    with ExitStack() as parts:
        profile = None
        if config.profile_path is not None:
            from numbers_uring.profile import Profile  # noqa: PLC0415 - few servers need it

            # Entered first and so left last: all is closed and said before a picture is drawn.
            profile = parts.enter_context(Profile(config.profile_path, config.log_path, say))
        kernel = choose_kernel(config.kernel)
        backend, make_reactor = choose_backend(config.backend, say)
        if make_reactor is EpollReactor and isinstance(kernel, PythonKernel):
            make_reactor = partial(EpollReactor, receive_bytes=RECEIVE_BYTES_PYTHON)
        raise_descriptor_limit(config.connections_max)
        requests = Requests(say)
        metrics = None
        if config.metrics is not None:
            metrics = _serve_metrics(config, config.metrics, backend, kernel.variant)
            parts.callback(metrics.close)
        bitmap = allocate()
        listeners = _open_listeners(config, inherited)
        parts.callback(listeners.close)
        with room_for_buffers(backend):
            reactor = make_reactor(
                listeners.sockets,
                requests.wakeup_fd,
                connections_max=config.connections_max,
                when_full=config.when_full,
                warn=say,
            )
            parts.callback(reactor.close)
            parts.callback(listeners.remove_files)
            intake = Intake(
                kernel,
                reactor.arena,
                bitmap.memory,
                connections_max=config.connections_max,
                batch_bytes=BATCH_BYTES,
            )
        log = NumbersLog(
            config.log_path,
            say=say,
            inform=say.info,
            fsync=config.fsync,
            write_behind=config.write_behind,
            wake=requests.wake,
        )
        parts.callback(log.close)
        if profile is not None:
            profile.start(f"backend {backend}, kernel {kernel.variant}")
        if config.resume:
            _resume(log, kernel, bitmap, requests, say, manager)
        else:
            log.truncate()
        addresses = list(map(address_text, listeners.sockets))
        status = ServiceStatus(
            manager,
            " and ".join(addresses),
            counts=lambda: Counts(intake.unique, intake.duplicate),
            clients=lambda: server.statistics.connected,
        )
        server = Server(
            reactor,
            intake,
            log,
            requests,
            connections_max=config.connections_max,
            report_interval_s=config.report_interval_s,
            idle_timeout_s=config.idle_timeout_s,
            report=report,
            say=say,
            terminate=config.terminate,
            disconnects=DisconnectLines(say.debug) if config.verbose else None,
            beat=beat,
            beat_interval_s=min(
                manager.beat_interval_s, math.inf if metrics is None else BEAT_INTERVAL_S
            ),
            enter=status.enter,
        )
        urls = []
        if metrics is not None:
            metrics.watch(server, intake, reactor, log)
            urls = metrics.urls
        say.info(
            f"listening on {' and '.join(addresses)}, backend {backend}, "
            f"kernel {kernel.variant}, {_bitmap_text(bitmap)}, "
            f"at most {config.connections_max} clients, log {log.path}, "
            f"started in {time.monotonic() - begin_s:.2f} s"
            f"{', metrics on ' if urls else ''}{' and '.join(urls)}",
            event="started",
            listen=addresses,
            backend=backend,
            kernel=kernel.variant,
            log=log.path,
            metrics=urls,
        )
        server.run()
        requests.ignore_stops()
        _tell_end(server, intake, reactor, log, say, manager)


def _open_listeners(config: Config, inherited: list[socket.socket]) -> Listeners:
    """Return the sockets that were handed down, and behind them those asked for."""
    addresses = config.listen or ([] if inherited else [DEFAULT_ADDRESS])
    listeners = listen(addresses, unix_mode=config.unix_mode, unix_group=config.unix_group)
    listeners.sockets[:0] = inherited
    return listeners


def _resume(
    log: NumbersLog,
    kernel: Kernel,
    bitmap: Bitmap,
    requests: Requests,
    say: Diagnostics,
    manager: ServiceManager,
) -> None:
    def say_progress(text: str) -> None:
        say.info(text)
        manager.starting(text)

    manager.starting(f"resuming {log.path}")
    resume(
        log,
        kernel,
        bitmap.memory,
        say=say_progress,
        warn=say,
        stop_requested=lambda: requests.stop is not None,
    )


def _tell_end(
    server: Server,
    intake: Intake,
    reactor: Reactor,
    log: NumbersLog,
    say: Diagnostics,
    manager: ServiceManager,
) -> None:
    statistics = server.statistics
    ended = statistics.ended
    summary = (
        f"stopped by {server.stopped_by}: {log.written_lines} numbers written to {log.path}, "
        f"{statistics.accepted} clients served, {reactor.refused} refused, "
        f"{ended['invalid']} disconnected for an invalid line, "
        f"{ended['idle']} for being idle, {ended['incomplete']} left within a line"
    )
    manager.status(summary)
    say.info(
        summary,
        event="stopped",
        by=server.stopped_by,
        unique=intake.unique,
        duplicate=intake.duplicate,
        log=log.path,
        accepted=statistics.accepted,
        refused=reactor.refused,
        ended=ended,
    )


def _bitmap_text(bitmap: Bitmap) -> str:
    """Say, for the start line, on what pages the bitmap lies."""
    share = 100 * bitmap.huge_bytes // len(bitmap.memory)
    if share == 0:
        return "no huge pages"
    return "huge pages" if share >= 95 else f"huge pages for {share} % of the bitmap"


def _serve_metrics(config: Config, address: TcpAddress, backend: str, kernel: str) -> "Metrics":
    """Bind and answer from now on. Raises StartError."""
    require_metrics_library()
    from numbers_uring.metrics import Metrics  # noqa: PLC0415 - it imports the library

    return Metrics(
        listen_for_metrics(address),
        backend=backend,
        kernel=kernel,
        connections_max=config.connections_max,
    )
