"""What is known of each step of a start once it was tried."""

import resource
from collections.abc import Callable, Mapping

from numbers_uring.cluster.connection import url_text
from numbers_uring.config import DEFAULT_ADDRESS
from numbers_uring.doctor.checks import Check, Severity, Value
from numbers_uring.doctor.host_facts import limit_text, limits
from numbers_uring.doctor.memory_checks import require_memory
from numbers_uring.ingest.native import variants
from numbers_uring.limits import BATCH_BYTES
from numbers_uring.server.parts import Parts
from numbers_uring.server.select import AUTO_BACKEND
from numbers_uring.system.descriptors import descriptors_needed
from numbers_uring.words import counted, counted_and

StepCheck = Callable[[Parts, Callable[[], None], dict[str, Value]], Check]
"""Calls its second argument, which tries the step and raises a Failure, and fills the values."""


def _descriptors(parts: Parts, probe: Callable[[], None], values: dict[str, Value]) -> Check:
    soft, hard = limits(resource.RLIMIT_NOFILE)
    clients = parts.config.connections_max
    needed = descriptors_needed(clients, parts.config.reactors)
    values |= {"needed": needed, "soft": soft, "hard": hard}
    probe()
    return Check(
        name="descriptors",
        severity=Severity.OK,
        text=f"{counted_and(clients, 'client', 'needs', 'need')} {needed}; the limit is "
        f"{limit_text(soft)} and can be raised to {limit_text(hard)}",
        values=values,
    )


def _kernel(parts: Parts, probe: Callable[[], None], values: dict[str, Value]) -> Check:
    asked_for = parts.config.kernel
    names = [kernel.variant for kernel in variants()]
    values |= {"asked_for": asked_for, "taken": None, "variants": names}
    probe()
    values["taken"] = parts.kernel.variant
    why = "as asked for"
    if asked_for in {"auto", "native"}:
        why = f"which {asked_for} takes: the fastest here"
    return Check(
        name="kernel",
        severity=Severity.OK,
        text=f"{parts.kernel.variant}, {why}; this CPU runs {', '.join(names)}",
        values=values,
    )


def _backend(parts: Parts, probe: Callable[[], None], values: dict[str, Value]) -> Check:
    asked_for = parts.config.backend
    values |= {"asked_for": asked_for, "taken": None}
    probe()
    values["taken"] = parts.backend
    if asked_for != "auto":
        why = "as asked for"
    elif parts.backend_warning is not None:
        why = parts.backend_warning
    elif parts.backend == AUTO_BACKEND == "epoll":
        why = (
            "which auto takes: the faster one for a few clients that send much; "
            "--backend uring would work, too, and is for hundreds that send little"
        )
    else:
        why = "which auto takes"
    return Check(
        name="backend",
        severity=Severity.OK if parts.backend_warning is None else Severity.NOTE,
        text=f"{parts.backend}, {why}",
        values=values,
    )


def _signals(_parts: Parts, probe: Callable[[], None], values: dict[str, Value]) -> Check:
    probe()
    text = "a thread can take them"
    return Check(name="signals", severity=Severity.OK, text=text, values=values)


def _profile(parts: Parts, probe: Callable[[], None], values: dict[str, Value]) -> Check:
    path = parts.config.profile_path
    values |= {"path": None if path is None else str(path), "tool": None}
    probe()
    text = "not asked for"
    if path is not None:
        values["tool"] = parts.profile_tool
        text = f"{parts.profile_tool} can record it, and {path} can be written"
    return Check(name="profile", severity=Severity.OK, text=text, values=values)


def _metrics(parts: Parts, probe: Callable[[], None], values: dict[str, Value]) -> Check:
    address = parts.config.metrics
    values["address"] = None if address is None else str(address)
    probe()
    text = "not asked for" if address is None else f"{address} can be listened on"
    return Check(name="metrics", severity=Severity.OK, text=text, values=values)


def _memory(parts: Parts, probe: Callable[[], None], values: dict[str, Value]) -> Check:
    # First, so that no process is killed for a check.
    text = require_memory(parts.config, values)
    probe()
    return Check(name="memory", severity=Severity.OK, text=text, values=values)


def _listen(parts: Parts, probe: Callable[[], None], values: dict[str, Value]) -> Check:
    addresses = list(map(str, parts.config.listen or [DEFAULT_ADDRESS]))
    values["addresses"] = addresses
    probe()
    return Check(
        name="listen",
        severity=Severity.OK,
        text=f"{' and '.join(addresses)} can be listened on",
        values=values,
    )


def _buffers(parts: Parts, probe: Callable[[], None], values: dict[str, Value]) -> Check:
    probe()
    values |= {"arena_bytes": len(parts.reactor.arena), "batch_bytes": BATCH_BYTES}
    reactors = "" if parts.config.reactors == 1 else f", {parts.config.reactors} reactors"
    return Check(
        name="buffers",
        severity=Severity.OK,
        text=f"for {counted(parts.config.connections_max, 'client')}{reactors}: there is memory",
        values=values,
    )


def _log(parts: Parts, probe: Callable[[], None], values: dict[str, Value]) -> Check:
    config = parts.config
    values |= {"path": str(config.log_path), "size_bytes": None, "resume": config.resume}
    try:
        probe()
    finally:
        if parts.have("log_bytes"):
            values["size_bytes"] = parts.log_bytes
    severity, advice, size = Severity.OK, None, parts.log_bytes
    if size is None:
        text = "would be created"
    elif config.resume and not parts.have("kernel", "bitmap"):
        text = f"has {counted(size, 'byte')}, not read"
    elif config.resume:
        text = (
            f"would be resumed: {counted(size, 'byte')}, numbers alone at both ends "
            "(numbers-uring check reads all of it)"
        )
    elif size:
        severity, advice = Severity.NOTE, "--resume keeps them; or save the file first"
        text = f"{counted(size, 'byte')} of an earlier run would be dropped"
    else:
        text = "is empty"
    return Check(
        name="log",
        severity=severity,
        text=f"{config.log_path} {text}",
        advice=advice,
        values=values,
    )


def _seen(parts: Parts, probe: Callable[[], None], values: dict[str, Value]) -> Check:
    patterns = list(map(str, parts.config.seen))
    values |= {"patterns": patterns, "files": None, "size_bytes": None}
    probe()
    text = "not asked for"
    if parts.seen_files is not None:
        files = parts.seen_files.files
        size = sum(file.size_bytes for file in files)
        values |= {"files": len(files), "size_bytes": size}
        text = "no file matches --seen"
        if files:
            text = f"{counted(len(files), 'file')}, {counted(size, 'byte')}, would be read"
    return Check(name="seen", severity=Severity.OK, text=text, values=values)


def _broker(parts: Parts, probe: Callable[[], None], values: dict[str, Value]) -> Check:
    assert parts.config.forward is not None
    url, partitions = url_text(parts.config.forward), parts.config.partitions
    values |= {"url": url, "partitions": partitions}
    probe()
    return Check(
        name="nats",
        severity=Severity.OK,
        text=f"{url} answers, and the settings of its {counted(partitions, 'stream')} are right",
        values=values,
    )


STEP_CHECKS: Mapping[str, StepCheck] = {
    "descriptors": _descriptors,
    "kernel": _kernel,
    "backend": _backend,
    "signals": _signals,
    "profile": _profile,
    "metrics": _metrics,
    "memory": _memory,
    "listen": _listen,
    "buffers": _buffers,
    "log": _log,
    "seen": _seen,
    "nats": _broker,
}
"""By the step's name."""
