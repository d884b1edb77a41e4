"""The parts of a server, put together for one run."""

import math
import os
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from numbers_uring.addresses import TcpAddress
from numbers_uring.config import DEFAULT_ADDRESS, Config
from numbers_uring.errors import ExitCode, Failure, UnexpectedError, comes_from
from numbers_uring.ingest.bitmap import Bitmap, allocate
from numbers_uring.ingest.kernel import Kernel
from numbers_uring.limits import HEARTBEAT_INTERVAL_S, LAST_REPORT_WAIT_S
from numbers_uring.log.resume import resume
from numbers_uring.log.sink import Sink
from numbers_uring.log.writer import NumbersLog
from numbers_uring.metrics.library import require_metrics_library
from numbers_uring.net.listeners import Listeners, address_text, listen, listen_for_metrics
from numbers_uring.reactor.contract import Reactor
from numbers_uring.server.backpressure import Backpressure
from numbers_uring.server.disconnect_log import DisconnectLog
from numbers_uring.server.loop import Shared
from numbers_uring.server.reactors import open_reactors
from numbers_uring.server.select import choose_backend, choose_kernel
from numbers_uring.server.server import Server
from numbers_uring.server.status import ServiceStatus
from numbers_uring.system.descriptors import (
    SpareDescriptor,
    descriptors_needed,
    raise_descriptor_limit,
)
from numbers_uring.system.diagnostics import Diagnostics
from numbers_uring.system.signals import Requests, prepare_signals
from numbers_uring.system.stdio import STDOUT, LineWriter
from numbers_uring.systemd.activation import take_inherited
from numbers_uring.systemd.notify import ServiceManager

if TYPE_CHECKING:
    from numbers_uring.cluster.node.forwarder import Forwarder
    from numbers_uring.server.metrics import Metrics


def run_server(config: Config, say: Diagnostics) -> None:
    """Serve until the end. Raises StartError, StopRequestedError, SinkError or BackendError."""
    prepare_signals()
    manager = ServiceManager.from_environment(os.environ, say)
    try:
        # Before anything else is opened.
        inherited = take_inherited(os.environ)
        manager.status("Starting")
        _serve(config, say, inherited, manager)
    except Failure as error:
        manager.status(str(error))
        raise
    finally:
        manager.close()


def _serve(
    config: Config, say: Diagnostics, inherited: list[socket.socket], manager: ServiceManager
) -> None:
    begin_s = time.monotonic()
    stdout = LineWriter(STDOUT)

    def report(line: str, last: bool) -> bool:
        status.refresh()
        return stdout.write(line, wait_s=LAST_REPORT_WAIT_S if last else 0)

    def heartbeat() -> None:
        manager.heartbeat()
        if metrics is not None:
            metrics.health.heartbeat()

    with ExitStack() as parts:
        profile = None
        if config.profile_path is not None:
            from numbers_uring.profiling.profile import Profile  # noqa: PLC0415 - few servers need it

            # Entered first and so left last: all is closed and said before a picture is drawn.
            profile = parts.enter_context(Profile(config.profile_path, config.log_path, say))
        kernel = choose_kernel(config.kernel, shared=config.reactors > 1)
        backend, make_reactor = choose_backend(config.backend, say)
        raise_descriptor_limit(config.connections_max, reactors=config.reactors)
        spare = SpareDescriptor()
        parts.callback(spare.close)
        requests = parts.enter_context(Requests(say))
        metrics = None
        if config.metrics is not None:
            metrics = _serve_metrics(config, config.metrics, backend, kernel.variant, say)
            parts.callback(metrics.close)
        bitmap = allocate()
        listeners = _open_listeners(config, inherited)
        parts.callback(listeners.close)
        reactor, intake, workers = open_reactors(
            config,
            backend,
            make_reactor,
            kernel,
            bitmap,
            listeners.sockets,
            requests.wakeup_fd,
            wake=requests.wake,
            warn=say,
            parts=parts,
        )
        # Left first, while the sockets still listen.
        parts.callback(listeners.remove_files)
        sink = _open_sink(config, requests, say)
        parts.callback(sink.close)
        if profile is not None:
            profile.start(f"backend {backend}, kernel {kernel.variant}")
        if isinstance(sink, NumbersLog):
            _take_over(sink, config, kernel, bitmap, requests, say, manager)
        addresses = list(map(address_text, listeners.sockets))
        status = ServiceStatus(
            manager,
            " and ".join(addresses),
            lacking=lambda: sink.full_status,
            counts=lambda: server.counts,
            clients=lambda: server.statistics.connected,
        )
        shared = Shared(
            sink=sink,
            backpressure=Backpressure(sink, say),
            connections_max=config.connections_max,
            idle_timeout_s=config.idle_timeout_s,
            terminate=config.terminate,
            disconnects=DisconnectLog(say.debug) if config.verbose else None,
        )
        heartbeat_interval_s = min(
            manager.heartbeat_interval_s, math.inf if metrics is None else HEARTBEAT_INTERVAL_S
        )
        server = Server(
            reactor,
            intake,
            shared,
            requests,
            report_interval_s=config.report_interval_s,
            report=report,
            workers=workers,
            heartbeat=heartbeat,
            heartbeat_interval_s=heartbeat_interval_s,
            on_phase=status.enter,
            before_drain=spare.release,
        )
        if workers is not None:
            workers.start(shared, round_s=heartbeat_interval_s)
        if metrics is not None:
            metrics.watch(server, reactor, sink)
        if not isinstance(sink, NumbersLog):
            sink.watch(lambda: server.taken, lambda: server.statistics.connected)
        _tell_start(
            config,
            addresses,
            backend,
            kernel,
            bitmap,
            sink,
            [] if metrics is None else metrics.urls,
            time.monotonic() - begin_s,
            say,
        )
        with _unexpected_failures():
            with requests:
                server.run()
            _tell_end(server, reactor, sink, say, manager)


@contextmanager
def _unexpected_failures() -> Iterator[None]:
    """Give what no one expected the exit code that it has once the server serves."""
    try:
        yield
    except Failure:
        raise
    except Exception as error:
        from_sink = comes_from(error, "log", "cluster")
        code = ExitCode.LOG_FAILED if from_sink else ExitCode.FAILED
        raise UnexpectedError(error, code) from error


def _open_listeners(config: Config, inherited: list[socket.socket]) -> Listeners:
    """Return the sockets that were handed down, and behind them those asked for."""
    addresses = config.listen or ([] if inherited else [DEFAULT_ADDRESS])
    listeners = listen(addresses, unix_mode=config.unix_mode, unix_group=config.unix_group)
    listeners.sockets[:0] = inherited
    return listeners


def _open_sink(config: Config, requests: Requests, say: Diagnostics) -> "NumbersLog | Forwarder":
    """Open the log, or connect to the engine that takes its place. Raises StartError."""
    if config.forward is None:
        return NumbersLog(
            config.log_path,
            say=say,
            inform=say.info,
            fsync=config.fsync,
            write_behind=config.write_behind,
            wake=requests.wake,
        )
    from numbers_uring.cluster.node.forwarder import Forwarder  # noqa: PLC0415 - few servers need asyncio

    return Forwarder(
        config.forward,
        config.partitions,
        access=config.access,
        say=say,
        inform=say.info,
        wake=requests.wake,
    )


def _take_over(
    log: NumbersLog,
    config: Config,
    kernel: Kernel,
    bitmap: Bitmap,
    requests: Requests,
    say: Diagnostics,
    manager: ServiceManager,
) -> None:
    """Make what an earlier run has left the beginning of this one's log, or drop it."""
    if not config.resume:
        log.truncate()
        return

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


def _tell_start(
    config: Config,
    addresses: list[str],
    backend: str,
    kernel: Kernel,
    bitmap: Bitmap,
    sink: Sink,
    urls: list[str],
    took_s: float,
    say: Diagnostics,
) -> None:
    reactors = "" if config.reactors == 1 else f"{config.reactors} reactors, "
    say.info(
        f"listening on {' and '.join(addresses)}, backend {backend}, "
        f"kernel {kernel.variant}, {reactors}{_bitmap_text(bitmap)}, "
        f"at most {config.connections_max} clients, {sink.name.removeprefix('the ')}, "
        f"started in {took_s:.2f} s"
        f"{', metrics on ' if urls else ''}{' and '.join(urls)}",
        event="started",
        listen=addresses,
        backend=backend,
        kernel=kernel.variant,
        reactors=config.reactors,
        **sink.fields,
        metrics=urls,
    )


def _tell_end(
    server: Server,
    reactor: Reactor,
    sink: Sink,
    say: Diagnostics,
    manager: ServiceManager,
) -> None:
    statistics = server.statistics
    ended = statistics.ended
    summary = (
        f"stopped by {server.stopped_by}: {sink.summary()}, "
        f"{statistics.accepted} clients served, {reactor.refused} refused, "
        f"{ended['invalid']} disconnected for an invalid line, "
        f"{ended['idle']} for being idle, {ended['incomplete']} left within a line"
    )
    manager.status(summary)
    say.info(
        summary,
        event="stopped",
        by=server.stopped_by,
        unique=server.counts.unique,
        duplicate=server.counts.duplicate,
        **sink.fields,
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


def _serve_metrics(
    config: Config, address: TcpAddress, backend: str, kernel: str, say: Diagnostics
) -> "Metrics":
    """Bind and answer from now on. Raises StartError."""
    require_metrics_library()
    from numbers_uring.server.metrics import Metrics  # noqa: PLC0415 - it imports the library

    return Metrics(
        listen_for_metrics(address),
        backend=backend,
        kernel=kernel,
        connections_max=config.connections_max,
        forwards=config.forward is not None,
        say=say,
        descriptors_needed=descriptors_needed(config.connections_max, config.reactors),
    )
