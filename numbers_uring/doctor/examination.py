"""Whether `serve` would start here: its own steps, tried in its order, with nothing left behind.

Each step is the server's own function wherever that can be undone. What it makes is kept until the
last one was tried, for a server has to find room for all of it at once; but the lock of the log and
the addresses are taken for no longer than it takes to see that they can be had.
"""

import asyncio
import os
import resource
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial

from numbers_uring.cluster.connection import connected, jetstream, url_text
from numbers_uring.cluster.streams import check_streams
from numbers_uring.config import DEFAULT_ADDRESS, Config
from numbers_uring.doctor.checks import Diagnosis, Finding, Value, Weight
from numbers_uring.doctor.file_probes import bad_line_near_ends, try_log, try_output
from numbers_uring.doctor.host_checks import limit_text, look_at_surroundings, megabytes
from numbers_uring.doctor.host_facts import (
    available_bytes,
    chosen,
    limits,
    read_integer,
    tightest_memory_group,
)
from numbers_uring.errors import StartError
from numbers_uring.ingest.bitmap import Bitmap, allocate
from numbers_uring.ingest.intake import Intake
from numbers_uring.ingest.kernel import Kernel
from numbers_uring.ingest.native import variants
from numbers_uring.limits import BATCH_BYTES, BITMAP_BYTES, RECEIVE_BYTES, START_MEMORY_SPARE_BYTES
from numbers_uring.log.background import LogBackground
from numbers_uring.metrics.library import require_metrics_library
from numbers_uring.net.listeners import listen_for_metrics, try_listening
from numbers_uring.profiling.profile import refuse_the_log
from numbers_uring.profiling.python_names import Names
from numbers_uring.profiling.recorder import start_recorder
from numbers_uring.reactor.contract import Reactor
from numbers_uring.reactor.uring_features import try_features
from numbers_uring.server.reactors import open_reactors
from numbers_uring.server.select import AUTO_BACKEND, choose_backend, choose_kernel
from numbers_uring.system.descriptors import descriptors_needed, raise_descriptor_limit

_HUGE_PAGES = "/sys/kernel/mm/transparent_hugepage"
_RING_SWITCH = "/proc/sys/kernel/io_uring_disabled"

_HUGE_SHARE_MIN = 0.95
"""A bitmap rarely begins and ends with a huge page."""


_ADVICE = {
    "profile": "give another file with --profile, or put right what is said of perf and py-spy",
    "metrics": "give another address with --metrics, or install what is missing",
    "kernel": "--kernel auto takes the fastest that runs here",
    "backend": "--backend epoll needs nothing but Linux; io_uring, above, says what is missing",
    "descriptors": "raise the hard limit (ulimit -Hn, LimitNOFILE=, docker run --ulimit nofile=) "
    "or lower --max-clients",
    "memory": "raise the limit (ulimit -v, MemoryMax=, docker run --memory) or end what uses it",
    "listen": "stop what has the address (ss -ltnp, ss -lxp), make what is missing, or give "
    "another with --port, --host or --listen",
    "buffers": "raise the limits of memory and tasks (ulimit -v, ulimit -u, MemoryMax=, TasksMax=)",
    "engine": "start the engine, put right the URL, or have 'numbers-uring cluster init' make what "
    "is missing",
    "log": "give another file with --log-file, or put right what is said of this one",
}
"""What to do about a problem, by its finding."""


def examine(config: Config) -> Diagnosis:
    """Try what a server with `config` would do before it listens, and look at what is around it.

    Limits of this process are raised as the server's would be. Raises nothing for what it finds.
    """
    with ExitStack() as parts:
        return _Examination(config, parts).run()


class _Examination:
    def __init__(self, config: Config, parts: ExitStack) -> None:
        self._config = config
        self._parts = parts
        self._findings: list[Finding] = []
        self._error: str | None = None
        self._kernel: Kernel | None = None
        self._backend: str | None = None
        self._make_reactor: Callable[..., Reactor] | None = None
        self._bitmap: Bitmap | None = None
        self._intake: Intake | None = None

    def run(self) -> Diagnosis:
        # In the server's order, so that the first error is the one that it would say.
        self._attempt("profile", self._look_at_profile)
        self._attempt("kernel", self._look_at_kernel)
        self._attempt("backend", self._look_at_backend)
        self._attempt("descriptors", self._look_at_descriptors)
        self._attempt("metrics", self._look_at_metrics)
        self._attempt("memory", self._look_at_memory)
        self._findings.append(self._look_at_huge_pages())
        self._attempt("listen", self._look_at_addresses)
        self._attempt("buffers", self._look_at_buffers)
        if self._config.forward is None:
            self._attempt("log", self._look_at_log)
        else:
            self._attempt("engine", partial(self._look_at_engine, self._config.forward))
        # A server makes no further ring, and there may just not be room for one.
        self._parts.close()
        self._findings.insert(2, self._look_at_ring())
        return Diagnosis(
            findings=[*self._findings, *look_at_surroundings(self._config)],
            error=self._error,
            backend=self._backend,
            kernel=None if self._kernel is None else self._kernel.variant,
        )

    def _attempt(self, name: str, look: Callable[[dict[str, Value]], Finding]) -> None:
        """Have a look that raises StartError as the server would, and may have noted values."""
        values: dict[str, Value] = {}
        try:
            finding = look(values)
        except StartError as error:
            text = str(error)
            self._error = self._error or text
            finding = Finding(
                name=name, weight=Weight.PROBLEM, text=text, advice=_ADVICE[name], values=values
            )
        self._findings.append(finding)

    # What is only there if it is asked for.

    def _look_at_profile(self, values: dict[str, Value]) -> Finding:
        path = self._config.profile_path
        values |= {"path": None if path is None else str(path), "tool": None}
        if path is None:
            return Finding(name="profile", weight=Weight.OK, text="not asked for", values=values)
        refuse_the_log(path, self._config.log_path)
        try_output(path)
        recorder = start_recorder(os.getpid(), Names.NONE)
        recorder.discard()
        values["tool"] = recorder.tool
        return Finding(
            name="profile",
            weight=Weight.OK,
            text=f"{recorder.tool} can record it, and {path} can be written",
            values=values,
        )

    def _look_at_metrics(self, values: dict[str, Value]) -> Finding:
        address = self._config.metrics
        values["address"] = None if address is None else str(address)
        if address is None:
            return Finding(name="metrics", weight=Weight.OK, text="not asked for", values=values)
        require_metrics_library()
        for listener in listen_for_metrics(address, bind_only=True):
            listener.close()
        return Finding(
            name="metrics", weight=Weight.OK, text=f"{address} can be listened on", values=values
        )

    # Kernel and backend.

    def _look_at_kernel(self, values: dict[str, Value]) -> Finding:
        names = [kernel.variant for kernel in variants()]
        values |= {"asked_for": self._config.kernel, "taken": None, "variants": names}
        self._kernel = choose_kernel(self._config.kernel, shared=self._config.reactors > 1)
        values["taken"] = self._kernel.variant
        return Finding(
            name="kernel",
            weight=Weight.OK,
            text=f"{self._kernel.variant}, {_why_kernel(self._config.kernel)}; "
            f"this CPU runs {', '.join(names)}",
            values=values,
        )

    def _look_at_ring(self) -> Finding:
        switch = read_integer(_RING_SWITCH)
        try:
            outcomes = try_features()
        except OSError as error:
            return Finding(
                name="io_uring",
                weight=Weight.NOTE,
                text=f"not tried: {error.strerror}",
                values={"io_uring_disabled": switch},
            )
        failed = {name: error for name, error in outcomes.items() if error is not None}
        values = {name: error or "works" for name, error in outcomes.items()}
        told = {name: error for name, error in failed.items() if error != "ECANCELED"}
        text = "every feature that --backend uring stands on works"
        if failed:
            text = "not to be had: " + ", ".join(f"{name} {error}" for name, error in told.items())
        return Finding(
            name="io_uring",
            weight=Weight.NOTE if failed else Weight.OK,
            text=text,
            advice=_ring_advice(set(told.values()), switch) if failed else None,
            values={"features": values, "io_uring_disabled": switch},
        )

    def _look_at_backend(self, values: dict[str, Value]) -> Finding:
        said: list[str] = []
        values |= {"asked_for": self._config.backend, "taken": None}
        self._backend, self._make_reactor = choose_backend(self._config.backend, said.append)
        values["taken"] = self._backend
        if self._config.backend != "auto":
            why = "as asked for"
        elif said:
            why = said[0]
        elif self._backend == AUTO_BACKEND == "epoll":
            why = (
                "which auto takes: the faster one for a few clients that send much; "
                "--backend uring would work, too, and is for hundreds that send little"
            )
        else:
            why = "which auto takes"
        return Finding(
            name="backend",
            weight=Weight.NOTE if said else Weight.OK,
            text=f"{self._backend}, {why}",
            values=values,
        )

    # Limits and memory.

    def _look_at_descriptors(self, values: dict[str, Value]) -> Finding:
        soft, hard = limits(resource.RLIMIT_NOFILE)
        reactors = self._config.reactors
        needed = descriptors_needed(self._config.connections_max, reactors)
        values |= {"needed": needed, "soft": soft, "hard": hard}
        raise_descriptor_limit(self._config.connections_max, reactors=reactors)
        return Finding(
            name="descriptors",
            weight=Weight.OK,
            text=f"{self._config.connections_max} clients need {needed}; the limit is "
            f"{limit_text(soft)} and can be raised to {limit_text(hard)}",
            values=values,
        )

    def _look_at_memory(self, values: dict[str, Value]) -> Finding:
        """Take the bitmap's memory, but only where nobody would be killed for it."""
        group = tightest_memory_group()
        available = available_bytes()
        buffers_bytes = self._config.reactors * (BATCH_BYTES + RECEIVE_BYTES)
        needed = BITMAP_BYTES + buffers_bytes + START_MEMORY_SPARE_BYTES
        values |= {
            "needed_bytes": needed,
            "available_bytes": available,
            "group": None if group is None else str(group.path),
            "group_limit_bytes": None if group is None else group.limit_bytes,
            "group_left_bytes": None if group is None else group.left_bytes,
            "overcommit": read_integer("/proc/sys/vm/overcommit_memory"),
        }
        if group is not None and group.left_bytes < needed:
            raise StartError(
                f"the memory control group {group.path} leaves {megabytes(group.left_bytes)} of "
                f"{megabytes(group.limit_bytes)}, {megabytes(needed)} are needed: the system "
                "would kill the server"
            )
        if available is not None and available < needed:
            raise StartError(
                f"{megabytes(available)} of memory are available, {megabytes(needed)} are "
                "needed: the system might kill the server"
            )
        self._bitmap = allocate()
        text = f"{megabytes(needed)} needed"
        text += f", {megabytes(available)} available" if available is not None else ""
        if group is not None:
            text += f", {megabytes(group.left_bytes)} left by the control group {group.path}"
        return Finding(
            name="memory",
            weight=Weight.OK,
            text=text,
            values=values,
        )

    def _look_at_huge_pages(self) -> Finding:
        enabled, defrag = chosen(f"{_HUGE_PAGES}/enabled"), chosen(f"{_HUGE_PAGES}/defrag")
        modes = f"enabled {enabled or 'unknown'}, defrag {defrag or 'unknown'}"
        if self._bitmap is None:
            share, weight, text = None, Weight.NOTE, "not tried, for lack of memory"
        else:
            share = self._bitmap.huge_bytes / len(self._bitmap.memory)
            weight = Weight.OK if share >= _HUGE_SHARE_MIN else Weight.NOTE
            text = f"{share:.0%} of a bitmap lay on them"
        advice = None
        if weight is not Weight.OK:
            advice = (
                f"echo madvise > {_HUGE_PAGES}/enabled, as root; "
                if enabled == "never"
                else "echo 1 > /proc/sys/vm/compact_memory, as root, where memory is in pieces; "
            ) + "without them each number takes about a quarter longer"
        return Finding(
            name="huge_pages",
            weight=weight,
            text=f"{text} ({modes})",
            advice=advice,
            values={"enabled": enabled, "defrag": defrag, "share": share},
        )

    # Addresses, buffers and the log.

    def _look_at_addresses(self, values: dict[str, Value]) -> Finding:
        asked_for = self._config.listen or [DEFAULT_ADDRESS]
        addresses = list(map(str, asked_for))
        values["addresses"] = addresses
        try_listening(asked_for, unix_group=self._config.unix_group)
        return Finding(
            name="listen",
            weight=Weight.OK,
            text=f"{' and '.join(addresses)} can be listened on",
            values=values,
        )

    def _look_at_buffers(self, values: dict[str, Value]) -> Finding:
        if self._kernel is None or self._make_reactor is None or self._bitmap is None:
            return Finding(
                name="buffers",
                weight=Weight.NOTE,
                text="not tried: the bitmap, the kernel or the backend can't be had",
            )
        read_fd, write_fd = os.pipe2(os.O_CLOEXEC)
        for fd in (read_fd, write_fd):
            self._parts.callback(os.close, fd)
        # Without listeners, which need next to nothing, and may be in use.
        reactor, self._intake, _ = open_reactors(
            self._config,
            str(self._backend),
            self._make_reactor,
            self._kernel,
            self._bitmap,
            [],
            read_fd,
            wake=lambda: None,
            warn=lambda _: None,
            parts=self._parts,
        )
        background = LogBackground(-1, behind=None, syncs=False, on_failure=lambda: None)
        self._parts.callback(background.close)
        reactors = "" if self._config.reactors == 1 else f", {self._config.reactors} reactors"
        return Finding(
            name="buffers",
            weight=Weight.OK,
            text=f"for {self._config.connections_max} clients{reactors}, and the log's thread: "
            "can be had",
            values=values | {"arena_bytes": len(reactor.arena), "batch_bytes": BATCH_BYTES},
        )

    def _look_at_log(self, values: dict[str, Value]) -> Finding:
        config = self._config
        values |= {"path": str(config.log_path), "size_bytes": None, "resume": config.resume}
        size = try_log(config.log_path, config.fsync, resume=config.resume)
        values["size_bytes"] = size
        weight, advice = Weight.OK, None
        if size is None:
            text = "would be made"
        elif config.resume:
            text = self._resumed_text(size)
        else:
            text = f"{size} bytes of an earlier run would be dropped" if size else "is empty"
            if size:
                weight, advice = Weight.NOTE, "--resume keeps them; or save the file first"
        return Finding(
            name="log",
            weight=weight,
            text=f"{config.log_path} {text}",
            advice=advice,
            values=values,
        )

    def _look_at_engine(self, url: str, values: dict[str, Value]) -> Finding:
        partitions = self._config.partitions
        values |= {"url": url_text(url), "partitions": partitions}

        async def look() -> None:
            access = self._config.access
            async with connected(url, "numbers-uring doctor", access=access) as client:
                await check_streams(jetstream(client), partitions)

        asyncio.run(look())
        return Finding(
            name="engine",
            weight=Weight.OK,
            text=f"{url_text(url)} answers, and its {partitions} streams are as they have to be",
            values=values,
        )

    def _resumed_text(self, size: int) -> str:
        path = self._config.log_path
        if self._bitmap is None or self._kernel is None:
            return f"has {size} bytes, not looked at"
        try:
            offset = bad_line_near_ends(path, self._kernel, self._bitmap.memory)
        except OSError as error:
            raise StartError(f"cannot read the log {path}: {error.strerror}") from error
        if offset is not None:
            raise StartError(
                f"cannot resume the log {path}: the line at byte {offset} is no number; "
                "'numbers-uring check --repair' takes it out"
            )
        return (
            f"would be resumed: {size} bytes, numbers alone at both ends "
            "(numbers-uring check reads all of it)"
        )


def _why_kernel(name: str) -> str:
    if name in {"auto", "native"}:
        return f"which {name} takes: the fastest here"
    return "as asked for"


def _ring_advice(errors: set[str], switch: int | None) -> str:
    """Say what most likely stands behind the errors, and what to do about it."""
    if errors & {"EPERM", "EACCES"}:
        if switch:
            whom = "anybody" if switch > 1 else "all but the group of kernel.io_uring_group"
            return (
                f"kernel.io_uring_disabled is {switch}, which forbids it to {whom}: "
                "sysctl kernel.io_uring_disabled=0, as root"
            )
        return (
            "a seccomp profile or a security module forbids it: docker run --security-opt "
            "seccomp=FILE, with io_uring_setup, io_uring_enter and io_uring_register allowed"
        )
    if "ENOSYS" in errors:
        return "the kernel is older or built without io_uring, or a seccomp profile hides it"
    if "ENOMEM" in errors:
        return "too little memory is left, or too little of it may be locked: ulimit -l"
    if errors & {"EMFILE", "ENFILE"}:
        return "the file descriptors are used up: ulimit -n"
    return f"Linux 6.1 or newer is needed, and this is {os.uname().release}"
