"""The parts of a server, put together for one run."""

import math
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
    room_for_buffers,
)
from numbers_uring.config import (
    BATCH_BYTES,
    BEAT_INTERVAL_S,
    LAST_REPORT_WAIT_S,
    RECEIVE_BYTES_PYTHON,
    Config,
    StartError,
)
from numbers_uring.console import STDOUT, Diagnostics, Lines
from numbers_uring.disconnect_lines import DisconnectLines
from numbers_uring.epoll_reactor import EpollReactor
from numbers_uring.intake import Intake
from numbers_uring.kernel import PythonKernel
from numbers_uring.listeners import address_text, listen, listen_tcp
from numbers_uring.numbers_log import NumbersLog
from numbers_uring.resume import resume
from numbers_uring.server import Server
from numbers_uring.signals import Requests

if TYPE_CHECKING:
    from numbers_uring.metrics import Metrics


def run_server(config: Config, say: Diagnostics) -> None:
    """Serve until the end. Raises StartError, StopRequestedError, LogError or BackendError."""
    begin_s = time.monotonic()
    stdout = Lines(STDOUT)

    def report(line: str, last: bool) -> bool:
        return stdout.write(line, wait_s=LAST_REPORT_WAIT_S if last else 0)

    with ExitStack() as parts:
        kernel = choose_kernel(config.kernel)
        backend, make_reactor = choose_backend(config.backend, say)
        if make_reactor is EpollReactor and isinstance(kernel, PythonKernel):
            make_reactor = partial(EpollReactor, receive_bytes=RECEIVE_BYTES_PYTHON)
        raise_descriptor_limit(config.connections_max)
        requests = Requests(say)
        metrics = None
        if config.metrics is not None:
            metrics = _serve_metrics(
                config.metrics,
                backend=backend,
                kernel=kernel.variant,
                connections_max=config.connections_max,
            )
            parts.callback(metrics.close)
        bitmap = allocate()
        listeners = listen(config.listen, unix_mode=config.unix_mode, unix_group=config.unix_group)
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
        if config.resume:
            resume(
                log,
                kernel,
                bitmap.memory,
                say=say.info,
                warn=say,
                stop_requested=lambda: requests.stop is not None,
            )
        else:
            log.truncate()
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
            beat=_no_beat if metrics is None else metrics.health.beat,
            beat_interval_s=math.inf if metrics is None else BEAT_INTERVAL_S,
        )
        metrics_urls = []
        if metrics is not None:
            metrics.watch(server, intake, reactor, log)
            metrics_urls = metrics.urls
        addresses = [address_text(listener) for listener in listeners.sockets]
        say.info(
            f"listening on {' and '.join(addresses)}, backend {backend}, "
            f"kernel {kernel.variant}, {_bitmap_text(bitmap)}, "
            f"at most {config.connections_max} clients, log {log.path}, "
            f"started in {time.monotonic() - begin_s:.2f} s"
            f"{', metrics on ' if metrics_urls else ''}{' and '.join(metrics_urls)}",
            event="started",
            listen=addresses,
            backend=backend,
            kernel=kernel.variant,
            log=log.path,
            metrics=metrics_urls,
        )
        server.run()
        requests.ignore_stops()
        ended = server.statistics.ended
        say.info(
            f"stopped by {server.stopped_by}: {log.written_lines} numbers written to {log.path}, "
            f"{server.statistics.accepted} clients served, {reactor.refused} refused, "
            f"{ended['invalid']} disconnected for an invalid line, "
            f"{ended['idle']} for being idle, {ended['incomplete']} left within a line",
            event="stopped",
            by=server.stopped_by,
            unique=intake.unique,
            duplicate=intake.duplicate,
            log=log.path,
            accepted=server.statistics.accepted,
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
    address: TcpAddress, *, backend: str, kernel: str, connections_max: int
) -> "Metrics":
    """Bind and answer from now on. Raises StartError."""
    try:
        # Here, because it is an extra, and takes a tenth of a second to import.
        import prometheus_client  # noqa: F401, PLC0415
    except ImportError as error:
        raise StartError(
            f"--metrics needs the prometheus-client library ({error}): "
            "pip install 'numbers-uring[metrics]'"
        ) from error
    from numbers_uring.metrics import Metrics  # noqa: PLC0415 - it imports the library

    try:
        listeners = listen_tcp(*address)
    except StartError as error:
        raise StartError(f"--metrics: {error}") from error
    return Metrics(listeners, backend=backend, kernel=kernel, connections_max=connections_max)


def _no_beat() -> None:
    """Nobody asks whether the loop is alive."""
