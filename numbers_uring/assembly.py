"""The parts of a server, put together for one run."""

import os
import socket
import time
from contextlib import ExitStack
from functools import partial

from numbers_uring.bitmap import Bitmap, allocate
from numbers_uring.choices import choose_backend, choose_kernel, raise_descriptor_limit
from numbers_uring.config import (
    BATCH_BYTES,
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
from numbers_uring.kernel import PythonKernel
from numbers_uring.listeners import address_text, listen
from numbers_uring.numbers_log import LogError, NumbersLog
from numbers_uring.reactor import BackendError
from numbers_uring.report import Counts
from numbers_uring.resume import resume
from numbers_uring.server import Server
from numbers_uring.service_manager import ServiceManager
from numbers_uring.service_status import ServiceStatus
from numbers_uring.signals import Requests
from numbers_uring.socket_activation import take_inherited


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

    def say_progress(text: str) -> None:
        say.info(text)
        manager.starting(text)

    def report(line: str, last: bool) -> bool:
        status.refresh()
        return stdout.write(line, wait_s=LAST_REPORT_WAIT_S if last else 0)

    with ExitStack() as parts:
        kernel = choose_kernel(config.kernel)
        backend, make_reactor = choose_backend(config.backend, say)
        if make_reactor is EpollReactor and isinstance(kernel, PythonKernel):
            make_reactor = partial(EpollReactor, receive_bytes=RECEIVE_BYTES_PYTHON)
        requests = Requests(say)
        raise_descriptor_limit(config.connections_max)
        bitmap = allocate()
        addresses = config.listen or ([] if inherited else [DEFAULT_ADDRESS])
        listeners = listen(addresses, unix_mode=config.unix_mode, unix_group=config.unix_group)
        parts.callback(listeners.close)
        listeners.sockets[:0] = inherited
        try:
            reactor = make_reactor(
                listeners.sockets,
                requests.wakeup_fd,
                connections_max=config.connections_max,
                when_full=config.when_full,
                warn=say,
            )
        except OSError as error:
            raise StartError(f"cannot set up the backend {backend}: {error.strerror}") from error
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
            manager.starting(f"resuming {log.path}")
            resume(
                log,
                kernel,
                bitmap.memory,
                say=say_progress,
                warn=say,
                stop_requested=lambda: requests.stop is not None,
            )
        else:
            log.truncate()
        listening = " and ".join(map(address_text, listeners.sockets))
        status = ServiceStatus(
            manager,
            listening,
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
            beat=manager.beat,
            beat_interval_s=manager.beat_interval_s,
            enter=status.enter,
        )
        say.info(
            f"listening on {listening}, backend {backend}, "
            f"kernel {kernel.variant}, {_bitmap_text(bitmap)}, "
            f"at most {config.connections_max} clients, log {log.path}, "
            f"started in {time.monotonic() - begin_s:.2f} s",
            event="started",
            listen=[address_text(listener) for listener in listeners.sockets],
            backend=backend,
            kernel=kernel.variant,
            log=log.path,
        )
        server.run()
        requests.ignore_stops()
        ended = server.statistics.ended
        summary = (
            f"stopped by {server.stopped_by}: {log.written_lines} numbers written to {log.path}, "
            f"{server.statistics.accepted} clients served, {reactor.refused} refused, "
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
