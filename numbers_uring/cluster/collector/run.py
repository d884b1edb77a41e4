"""The collectors of some partitions, put together for one run."""

import asyncio
import os
import threading
import time
from contextlib import AsyncExitStack, ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numbers_uring._native import lib
from numbers_uring.addresses import TcpAddress
from numbers_uring.cluster.collector.collector import PartitionCollector
from numbers_uring.cluster.collector.membership import Membership
from numbers_uring.cluster.collector.start import Start, choose_partitions, files_max
from numbers_uring.cluster.collector.state import CollectorsState
from numbers_uring.cluster.connection import (
    broker_errors,
    connected,
    jetstream,
    require_nats_library,
    until_closed,
    url_text,
)
from numbers_uring.cluster.partitions import parse_partitions
from numbers_uring.cluster.tasks import end_tasks, unless_stopped
from numbers_uring.config import BrokerAccess
from numbers_uring.errors import (
    BackendError,
    Failure,
    StopRequestedError,
    UnexpectedError,
    failure_of,
)
from numbers_uring.ingest.native import variants
from numbers_uring.ingest.report import Counts, next_due_s, report_line
from numbers_uring.limits import (
    COLLECTOR_THREADS_MAX,
    HEAP_KEPT_BYTES,
    HEARTBEAT_INTERVAL_S,
    LAST_REPORT_WAIT_S,
    PARTITIONS_MAX,
    WAIT_S_MAX,
)
from numbers_uring.metrics.library import require_metrics_library
from numbers_uring.net.listeners import listen_for_metrics
from numbers_uring.system.descriptors import descriptors_needed
from numbers_uring.system.diagnostics import Diagnostics
from numbers_uring.system.signals import Requests, prepare_signals
from numbers_uring.system.stdio import PROGRAM, STDOUT, LineWriter
from numbers_uring.system.threads import start_pool
from numbers_uring.systemd.notify import ServiceManager
from numbers_uring.words import counted

if TYPE_CHECKING:
    from nats.aio.client import Client

    from numbers_uring.cluster.collector.metrics import CollectorMetrics

SINK_WINGS = ("log", "cluster/collector/files.py", "cluster/collector/index_file.py")


@dataclass(frozen=True, slots=True, kw_only=True)
class CollectConfig:
    """One run of `collect`, as asked for on the command line."""

    url: str
    access: BrokerAccess
    partitions: str
    log_dir: Path
    replay: bool
    report_interval_s: float
    metrics: TcpAddress | None
    """Where metrics are served; None where they are not."""


def run_collectors(config: CollectConfig, say: Diagnostics) -> None:
    """Collect until a signal. Raises a Failure, or StopRequestedError."""
    prepare_signals()
    manager = ServiceManager.from_environment(os.environ, say)
    try:
        manager.status("Starting")
        _run(config, say, manager)
    except Failure as error:
        manager.status(str(error))
        raise
    finally:
        manager.close()


def _run(config: CollectConfig, say: Diagnostics, manager: ServiceManager) -> None:
    collectors = None
    try:
        require_nats_library()
        lib.nu_keep_freed(HEAP_KEPT_BYTES)
        with ExitStack() as parts:
            requests = parts.enter_context(Requests(say))
            metrics = None
            if config.metrics is not None:
                metrics = _serve_metrics(config.metrics, config.partitions, say)
                parts.callback(metrics.close)
            collectors = _Collectors(config, say, requests, manager, metrics)
            asyncio.run(collectors.run())
    except Failure:
        raise
    except StopRequestedError as error:
        # A failure in the background ends the start, too.
        if collectors is None or not collectors.has_failed:
            raise
        raise collectors.failure_of(error) from None
    except Exception as error:
        if collectors is None:
            raise UnexpectedError(error) from error
        raise collectors.failure_of(error) from error


def _serve_metrics(address: TcpAddress, partitions: str, say: Diagnostics) -> "CollectorMetrics":
    """Bind and answer from now on. Raises StartError."""
    require_metrics_library()
    from numbers_uring.cluster.collector.metrics import CollectorMetrics  # noqa: PLC0415 - it imports the library

    collected = parse_partitions(partitions, PARTITIONS_MAX)
    return CollectorMetrics(
        listen_for_metrics(address),
        collected,
        kernel=variants()[0].variant,
        say=say,
        descriptors_needed=descriptors_needed(files_max(len(collected))),
    )


class _Collectors:
    def __init__(
        self,
        config: CollectConfig,
        say: Diagnostics,
        requests: Requests,
        manager: ServiceManager,
        metrics: "CollectorMetrics | None",
    ) -> None:
        self._config = config
        self._say = say
        self._requests = requests
        self._manager = manager
        self._metrics = metrics
        self._stdout = LineWriter(STDOUT)
        self._collectors: list[PartitionCollector] = []
        self._stop = asyncio.Event()
        self._halt = threading.Event()
        self._report_now = asyncio.Event()
        self._reported = Counts(0, 0)
        self._reports_dropped = 0
        self._has_started = False
        self._failure: Failure | None = None

    async def run(self) -> None:
        """Start, collect, and stop."""
        begin_s = time.monotonic()
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(self._note_loop_error)
        loop.add_reader(self._requests.wakeup_fd, self._look_at_requests)
        loop.call_later(WAIT_S_MAX, self._come_round, loop)
        async with AsyncExitStack() as parts:
            client = await parts.enter_async_context(
                connected(
                    self._config.url,
                    f"{PROGRAM} collect",
                    access=self._config.access,
                    say=self._say,
                    stop=self._stop,
                )
            )
            self._state = CollectorsState(
                self._names,
                self._collectors,
                client,
                self._manager,
                None if self._metrics is None else self._metrics.health,
                counts=lambda: self._counts,
                stopped=self._stop.is_set,
            )
            js = jetstream(client)
            with broker_errors("ask the NATS server for the partitions"):
                chosen, partitions = await unless_stopped(
                    choose_partitions(js, self._config.partitions), self._stop
                )
            parts.push_async_callback(_cancel, asyncio.create_task(self._watch(client)))
            pool = parts.enter_context(
                start_pool(min(len(chosen), COLLECTOR_THREADS_MAX), "partitions")
            )
            start = Start(js, partitions, pool, say=self._say, inform=self._say_progress)
            start.open(parts, chosen, self._config.log_dir, self._collectors)
            with broker_errors("ask the NATS server for the streams"):
                states = await unless_stopped(start.ask_states(chosen), self._stop)
            membership = Membership(
                js,
                self._collectors,
                states,
                self._config.log_dir,
                say=self._say,
                inform=self._say_progress,
            )
            if self._metrics is not None:
                self._metrics.watch(
                    self._collectors,
                    membership,
                    partitions,
                    broker=lambda: (client.is_connected, client.stats["reconnects"]),
                    reports_dropped=lambda: self._reports_dropped,
                )
            parts.push_async_callback(membership.copies.leave)
            with broker_errors("register the copies"):
                await unless_stopped(membership.register(), self._stop)
            # From here on, what they have is reported: to read long logs takes minutes.
            parts.push_async_callback(_cancel, asyncio.create_task(self._tend(membership)))
            await start.resume(
                self._collectors,
                states,
                replay=self._config.replay,
                stop_requested=lambda: self._requests.stop is not None,
                halt=self._halt,
            )
            start.make_readers(self._collectors, states, membership)
            membership.started.set()
            self._has_started = True
            self._tell_start(partitions, time.monotonic() - begin_s)
            await self._serve()
            self._report(LAST_REPORT_WAIT_S)
        if self._failure is not None:
            raise self._failure
        self._tell_end()

    # Starting.

    def _say_progress(self, text: str) -> None:
        self._say.info(text)
        self._manager.starting(text)

    # Running.

    async def _serve(self) -> None:
        """Return when all collectors have ended: each as asked, or the first for what it says."""
        tasks = [asyncio.create_task(collector.run(self._stop)) for collector in self._collectors]
        tending = [asyncio.create_task(self._tend_report())]
        try:
            all_ended: asyncio.Future[Any] = asyncio.gather(*tasks)
            done, _ = await asyncio.wait({all_ended, *tending}, return_when=asyncio.FIRST_COMPLETED)
            self._fail(*(each.exception() for each in done))
            self._end()
            self._fail(*await asyncio.gather(*tasks, all_ended, return_exceptions=True))
        finally:
            for task in tending:
                await _cancel(task)

    @property
    def has_failed(self) -> bool:
        """Whether the run ends because of a failure."""
        return self._failure is not None

    def failure_of(self, error: Exception) -> Failure:
        """Return why the run has failed: the first failure, or else this error."""
        if self._failure is not None:
            return self._failure
        return failure_of(error, has_started=self._has_started, sink_wings=SINK_WINGS)

    def _fail(self, *results: BaseException | None) -> None:
        """End the run where one of the results is an error; the first one is why."""
        for result in results:
            if isinstance(result, Exception):
                self._requests.failure = self._failure = self.failure_of(result)
                self._end()

    def _end(self) -> None:
        if not self._stop.is_set():
            self._manager.stopping("Stopping")
        self._stop.set()
        self._halt.set()

    def _look_at_requests(self) -> None:
        try:
            self._take_requests()
        except Exception as error:
            self._fail(error)

    def _take_requests(self) -> None:
        self._requests.quiet()
        if self._requests.stop is not None:
            self._end()
        if self._requests.take_report():
            self._report_now.set()
        if self._requests.take_reopen():
            self._say(
                "the logs of a collector are not reopened: it needs all of them to start again"
            )

    def _come_round(self, loop: asyncio.AbstractEventLoop) -> None:
        """See what a wake-up that has failed was for: a request, or what a thread has done.

        No task, because the loop waits for a thread once more when all tasks have ended.
        """
        self._look_at_requests()
        loop.call_later(WAIT_S_MAX, self._come_round, loop)

    def _note_loop_error(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """End the run where the loop itself cannot read: it would try again at once, for ever."""
        error = context.get("exception")
        if "handle" in context and isinstance(error, (OSError, MemoryError)):
            self._fail(error)
        else:
            loop.default_exception_handler(context)

    async def _tend(self, membership: Membership) -> None:
        """End the run where another process is this copy."""
        try:
            await membership.tend()
        except Exception as error:
            self._fail(error)

    async def _watch(self, client: "Client") -> None:
        """End the run where the connection is closed for good."""
        try:
            await until_closed(client)
        except ConnectionError as error:
            self._fail(
                BackendError(
                    f"the NATS server at {url_text(self._config.url)} is no longer usable: "
                    f"{error}; the logs have all that was taken in, and the next start goes on "
                    "from there"
                )
            )

    async def _tend_report(self) -> None:
        interval_s = self._config.report_interval_s
        due_s = time.monotonic() + interval_s
        while True:
            wait_s = min(
                due_s - time.monotonic(), self._manager.heartbeat_interval_s, HEARTBEAT_INTERVAL_S
            )
            with suppress(TimeoutError):
                async with asyncio.timeout(max(wait_s, 0)):
                    await self._report_now.wait()
            self._state.heartbeat()
            now_s = time.monotonic()
            if now_s >= due_s or self._report_now.is_set():
                if now_s >= due_s:
                    due_s = next_due_s(due_s, now_s, interval_s)
                self._report_now.clear()
                self._report(0)
            else:
                self._state.send_changed()

    @property
    def _counts(self) -> Counts:
        return Counts(
            sum(collector.unique for collector in self._collectors),
            sum(collector.duplicate for collector in self._collectors),
        )

    def _report(self, wait_s: float) -> None:
        now = self._counts
        if self._stdout.write(report_line(self._reported, now), wait_s=wait_s):
            self._reported = now
        else:
            self._reports_dropped += 1
        self._state.refresh()

    # Ending.

    @property
    def _names(self) -> str:
        return f"partitions {self._config.partitions}"

    def _tell_start(self, partitions: int, took_s: float) -> None:
        numbers = sum(collector.record.count for collector in self._collectors)
        urls = [] if self._metrics is None else self._metrics.urls
        self._say.info(
            f"collecting {self._names} of {partitions} at {url_text(self._config.url)}, "
            f"logs in {self._config.log_dir} with {counted(numbers, 'number')}, started in "
            f"{took_s:.2f} s"
            f"{', metrics on ' if urls else ''}{' and '.join(urls)}",
            event="started",
            partitions=[collector.partition for collector in self._collectors],
            log_dir=self._config.log_dir,
            metrics=urls,
        )
        self._state.ready()

    def _tell_end(self) -> None:
        counts = self._counts
        by = "no signal" if self._requests.stop is None else self._requests.stop.name
        summary = (
            f"stopped by {by}: {counted(counts.unique, 'number')} written to "
            f"{self._config.log_dir}, {counted(counts.duplicate, 'repeat')}"
        )
        self._manager.status(summary)
        self._say.info(
            summary,
            event="stopped",
            by=by,
            unique=counts.unique,
            duplicate=counts.duplicate,
        )


async def _cancel(task: "asyncio.Task[None]") -> None:
    """End the task, and raise what it has failed for."""
    for error in await end_tasks(task):
        raise error
