"""The parts of a server, put together for one run."""

import time
from contextlib import ExitStack
from functools import partial

from numbers_uring.bitmap import Bitmap, allocate
from numbers_uring.choices import (
    choose_backend,
    choose_kernel,
    raise_descriptor_limit,
    room_for_buffers,
)
from numbers_uring.config import (
    BATCH_BYTES,
    LAST_REPORT_WAIT_S,
    RECEIVE_BYTES_PYTHON,
    Config,
)
from numbers_uring.console import STDOUT, Diagnostics, Lines
from numbers_uring.disconnect_lines import DisconnectLines
from numbers_uring.epoll_reactor import EpollReactor
from numbers_uring.intake import Intake
from numbers_uring.kernel import PythonKernel
from numbers_uring.listeners import address_text, listen
from numbers_uring.numbers_log import NumbersLog
from numbers_uring.profile import Profile
from numbers_uring.resume import resume
from numbers_uring.server import Server
from numbers_uring.signals import Requests


def run_server(config: Config, say: Diagnostics) -> None:
    """Serve until the end. Raises StartError, StopRequestedError, LogError or BackendError."""
    begin_s = time.monotonic()
    stdout = Lines(STDOUT)

    def report(line: str, last: bool) -> bool:
        return stdout.write(line, wait_s=LAST_REPORT_WAIT_S if last else 0)

    with ExitStack() as parts:
        profile = None
        if config.profile_path is not None:
            # Entered first and so left last: all is closed and said before a picture is drawn.
            profile = parts.enter_context(Profile(config.profile_path, config.log_path, say))
        kernel = choose_kernel(config.kernel)
        backend, make_reactor = choose_backend(config.backend, say)
        if make_reactor is EpollReactor and isinstance(kernel, PythonKernel):
            make_reactor = partial(EpollReactor, receive_bytes=RECEIVE_BYTES_PYTHON)
        raise_descriptor_limit(config.connections_max)
        requests = Requests(say)
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
        if profile is not None:
            profile.start(f"backend {backend}, kernel {kernel.variant}")
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
        )
        addresses = [address_text(listener) for listener in listeners.sockets]
        say.info(
            f"listening on {' and '.join(addresses)}, backend {backend}, "
            f"kernel {kernel.variant}, {_bitmap_text(bitmap)}, "
            f"at most {config.connections_max} clients, log {log.path}, "
            f"started in {time.monotonic() - begin_s:.2f} s",
            event="started",
            listen=addresses,
            backend=backend,
            kernel=kernel.variant,
            log=log.path,
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
