"""The steps of a start, in the one order in which `serve` takes them and `doctor` tries them."""

import os
import socket
import threading
from collections.abc import Callable

from numbers_uring.config import DEFAULT_ADDRESS, Config
from numbers_uring.ingest.bitmap import allocate
from numbers_uring.metrics.library import require_metrics_library
from numbers_uring.net.listeners import address_text, listen, listen_for_metrics, try_listening
from numbers_uring.server.parts import Parts, Step
from numbers_uring.server.reactors import open_reactors
from numbers_uring.server.select import choose_backend, choose_kernel
from numbers_uring.server.sink_steps import BROKER_STEP, LOG_STEP, SEEN_STEP
from numbers_uring.system.descriptors import (
    SpareDescriptor,
    descriptors_needed,
    raise_descriptor_limit,
)
from numbers_uring.system.signals import SIGNALS_THREAD, Requests
from numbers_uring.system.threads import start_thread

_MEMORY_AND_TASKS = (
    "raise the limits of memory and tasks (ulimit -v, ulimit -u, MemoryMax=, TasksMax=)"
)


def start_steps(config: Config) -> list[Step]:
    """Return the steps of a server with this configuration, in their order."""
    return [
        Step(
            name="descriptors",
            take=_take_descriptors,
            probe=_raise_descriptor_limit,
            advice="raise the hard limit (ulimit -Hn, LimitNOFILE=, docker run --ulimit nofile=) "
            "or lower --max-clients",
        ),
        Step(
            name="kernel",
            take=_choose_kernel,
            probe=_choose_kernel,
            advice="--kernel auto selects the fastest one that this CPU supports",
        ),
        Step(
            name="backend",
            take=_choose_backend,
            probe=_choose_backend,
            advice="--backend epoll works on every Linux; io_uring, above, says what is missing",
        ),
        Step(
            name="signals",
            take=_take_signals,
            probe=_try_signals,
            advice=_MEMORY_AND_TASKS,
        ),
        Step(
            name="profile",
            take=_start_profile,
            probe=_try_profile,
            advice="give another file with --profile, or fix what perf and py-spy report",
        ),
        Step(
            name="metrics",
            take=_serve_metrics,
            probe=_try_metrics,
            advice="give another address with --metrics, or install what is missing",
        ),
        Step(
            name="memory",
            take=_allocate,
            probe=_allocate,
            advice="raise the limit (ulimit -v, MemoryMax=, docker run --memory) or end processes "
            "that use memory",
        ),
        Step(
            name="listen",
            take=_listen,
            probe=_try_listening,
            advice="stop the process that has the address (ss -ltnp, ss -lxp), create a missing "
            "folder, or give another address with --port, --host or --listen",
        ),
        Step(
            name="buffers",
            take=_open_reactors,
            probe=_try_reactors,
            advice=_MEMORY_AND_TASKS,
            needs=("kernel", "make_reactor", "bitmap"),
        ),
        *([LOG_STEP, SEEN_STEP] if config.forward is None else [BROKER_STEP]),
    ]


# What is asked of the system.


def _raise_descriptor_limit(parts: Parts) -> None:
    raise_descriptor_limit(parts.config.connections_max, reactors=parts.config.reactors)


def _take_descriptors(parts: Parts) -> None:
    _raise_descriptor_limit(parts)
    parts.spare = SpareDescriptor()
    parts.stack.callback(parts.spare.close)


def _take_signals(parts: Parts) -> None:
    parts.requests = parts.stack.enter_context(Requests(parts.say))


def _wait(over: threading.Event) -> None:
    over.wait()


def _try_signals(parts: Parts) -> None:
    # Kept until the end, like a server's: its stack takes memory.
    over = threading.Event()
    thread = start_thread(lambda: _wait(over), SIGNALS_THREAD)
    parts.stack.callback(thread.join)
    parts.stack.callback(over.set)


def _choose_kernel(parts: Parts) -> None:
    parts.kernel = choose_kernel(parts.config.kernel, shared=parts.config.reactors > 1)


def _choose_backend(parts: Parts) -> None:
    def warn(text: str) -> None:
        parts.backend_warning = text
        parts.say(text)

    parts.backend_warning = None
    parts.backend, parts.make_reactor = choose_backend(parts.config.backend, warn)


def _allocate(parts: Parts) -> None:
    parts.bitmap = allocate()


# What is only there where it is asked for.


def _start_profile(parts: Parts) -> None:
    if parts.config.profile_path is None:
        return
    from numbers_uring.profiling.profile import Profile  # noqa: PLC0415 - few servers need it

    # Entered before what follows, so left behind it: all is closed before a picture is drawn.
    profile = parts.stack.enter_context(
        Profile(parts.config.profile_path, parts.config.log_path, parts.say)
    )
    profile.start(f"backend {parts.backend}, kernel {parts.kernel.variant}")


def _try_profile(parts: Parts) -> None:
    path = parts.config.profile_path
    if path is None:
        return
    from numbers_uring.profiling.profile import refuse_the_log  # noqa: PLC0415
    from numbers_uring.profiling.python_names import Names  # noqa: PLC0415
    from numbers_uring.profiling.recorder import start_recorder  # noqa: PLC0415
    from numbers_uring.system.output_file import try_output  # noqa: PLC0415

    refuse_the_log(path, parts.config.log_path)
    try_output(path)
    recorder = start_recorder(os.getpid(), Names.NONE)
    recorder.discard()
    parts.profile_tool = recorder.tool


def _serve_metrics(parts: Parts) -> None:
    if parts.config.metrics is None:
        return
    require_metrics_library()
    from numbers_uring.server.metrics import Metrics  # noqa: PLC0415 - it imports the library

    parts.metrics = Metrics(
        listen_for_metrics(parts.config.metrics),
        backend=parts.backend,
        kernel=parts.kernel.variant,
        connections_max=parts.config.connections_max,
        forwards=parts.config.forward is not None,
        say=parts.say,
        descriptors_needed=descriptors_needed(parts.config.connections_max, parts.config.reactors),
    )
    parts.stack.callback(parts.metrics.close)


def _try_metrics(parts: Parts) -> None:
    if parts.config.metrics is None:
        return
    require_metrics_library()
    for listener in listen_for_metrics(parts.config.metrics, bind_only=True):
        listener.close()


# Listeners and reactors.


def _listen(parts: Parts) -> None:
    """Take the sockets that were handed down, and behind them those asked for."""
    config = parts.config
    addresses = config.listen or ([] if parts.inherited else [DEFAULT_ADDRESS])
    listeners = listen(addresses, unix_mode=config.unix_mode, unix_group=config.unix_group)
    parts.stack.callback(listeners.close)
    listeners.sockets[:0] = parts.inherited
    parts.listeners = listeners
    parts.addresses = list(map(address_text, listeners.sockets))


def _try_listening(parts: Parts) -> None:
    config = parts.config
    addresses = config.listen or [DEFAULT_ADDRESS]
    try_listening(addresses, unix_group=config.unix_group, metrics=config.metrics)


def _open_reactors(parts: Parts) -> None:
    requests = parts.requests
    _make_reactors(parts, parts.listeners.sockets, requests.wakeup_fd, requests.wake)
    # Left first, while the sockets still listen.
    parts.stack.callback(parts.listeners.remove_files)


def _try_reactors(parts: Parts) -> None:
    # Without listeners, which need next to nothing, and may be in use.
    wakeup_fd = os.eventfd(0, os.EFD_CLOEXEC)
    parts.stack.callback(os.close, wakeup_fd)
    _make_reactors(parts, [], wakeup_fd, lambda: None)


def _make_reactors(
    parts: Parts, listeners: list[socket.socket], wakeup_fd: int, wake: Callable[[], None]
) -> None:
    parts.reactor, parts.intake, parts.workers = open_reactors(
        parts.config,
        parts.backend,
        parts.make_reactor,
        parts.kernel,
        parts.bitmap,
        listeners,
        wakeup_fd,
        wake=wake,
        warn=parts.say,
        parts=parts.stack,
    )
