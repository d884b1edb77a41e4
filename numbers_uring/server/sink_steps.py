"""The last steps of a start: open the log and the files of --seen, or connect to a NATS server."""

import os
from contextlib import suppress
from functools import partial

from numbers_uring.errors import StartError
from numbers_uring.log.background import LogBackground
from numbers_uring.log.probe import bad_line_near_ends, try_log
from numbers_uring.log.resume import resume
from numbers_uring.log.seen import bad_line_text, read_seen
from numbers_uring.log.seen_files import SeenFiles
from numbers_uring.log.writer import NumbersLog
from numbers_uring.server.parts import Parts, Step
from numbers_uring.system.descriptors import raise_descriptor_limit


def _open_log(parts: Parts) -> None:
    config = parts.config
    log = NumbersLog(
        config.log_path,
        say=parts.say,
        inform=parts.say.info,
        fsync=config.fsync,
        write_behind=config.write_behind,
        wake=parts.requests.wake,
    )
    parts.stack.callback(log.close)
    parts.sink = log
    parts.has_log_state = log.has_state
    parts.take_over = partial(_take_over, log, parts)


def _take_over(log: NumbersLog, parts: Parts) -> None:
    # What can fail comes before the log is changed.
    if parts.seen_files is not None:
        _read_seen(parts.seen_files, parts)
    if parts.config.resume:
        _resume(log, parts)
    else:
        parts.dropped_bytes = log.truncate()


def _say_progress(parts: Parts, text: str) -> None:
    parts.say.info(text)
    parts.manager.starting(text)


def _read_seen(seen: SeenFiles, parts: Parts) -> None:
    parts.manager.starting("reading the files of --seen")
    parts.seen = read_seen(
        seen.files,
        parts.kernel,
        parts.bitmap.memory,
        say=partial(_say_progress, parts),
        stop_requested=lambda: parts.requests.stop is not None,
    )
    seen.close()


def _resume(log: NumbersLog, parts: Parts) -> None:
    parts.manager.starting(f"resuming {log.path}")
    resume(
        log,
        parts.kernel,
        parts.bitmap.memory,
        say=partial(_say_progress, parts),
        warn=parts.say,
        stop_requested=lambda: parts.requests.stop is not None,
    )


def _try_log(parts: Parts) -> None:
    config = parts.config
    parts.log_bytes = try_log(config.log_path, config.fsync, resume=config.resume)
    background = LogBackground(-1, behind=None, syncs=False, on_failure=lambda: None)
    parts.stack.callback(background.close)
    if config.resume and parts.log_bytes and parts.have("kernel", "bitmap"):
        _try_resuming(parts)


def _try_resuming(parts: Parts) -> None:
    path = parts.config.log_path
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            offset = bad_line_near_ends(fd, parts.kernel, parts.bitmap.memory)
        finally:
            os.close(fd)
    except OSError as error:
        raise StartError(f"cannot read the log {path}: {error.strerror}") from error
    if offset is not None:
        raise StartError(
            f"cannot resume the log {path}: the line at byte {offset} is not a number; "
            "remove it with 'numbers-uring check --repair'"
        )


LOG_STEP = Step(
    name="log",
    take=_open_log,
    probe=_try_log,
    advice="give another file with --log-file, or fix the error of this one",
)


def _open_seen(parts: Parts) -> None:
    config = parts.config
    if not config.seen:
        return

    def make_room(files: int) -> None:
        raise_descriptor_limit(
            config.connections_max + files, f"--seen with {files} files", reactors=config.reactors
        )

    parts.seen_files = SeenFiles(config.seen, is_log=parts.has_log_state, make_room=make_room)
    parts.stack.callback(parts.seen_files.close)


def _try_seen(parts: Parts) -> None:
    def has_log_state(state: os.stat_result) -> bool:
        with suppress(OSError):  # There is none.
            return os.path.samestat(state, parts.config.log_path.stat())
        return False

    parts.has_log_state = has_log_state
    _open_seen(parts)
    if parts.seen_files is not None and parts.have("kernel", "bitmap"):
        _try_reading(parts.seen_files, parts)


def _try_reading(seen: SeenFiles, parts: Parts) -> None:
    for file in seen.files:
        if file.compressed:
            continue
        try:
            offset = bad_line_near_ends(file.fd, parts.kernel, parts.bitmap.memory)
        except OSError as error:
            raise StartError(f"cannot read {file.path}: {error.strerror}") from error
        if offset is not None:
            raise StartError(bad_line_text(file, offset))


SEEN_STEP = Step(
    name="seen",
    take=_open_seen,
    probe=_try_seen,
    advice="correct the names or patterns of --seen, or fix the error of this file",
)


def _connect(parts: Parts) -> None:
    from numbers_uring.cluster.node.forwarder import Forwarder  # noqa: PLC0415 - needs asyncio

    assert parts.config.forward is not None
    forwarder = Forwarder(
        parts.config.forward,
        parts.config.partitions,
        access=parts.config.access,
        say=parts.say,
        inform=parts.say.info,
        wake=parts.requests.wake,
        stop_requested=lambda: parts.requests.stop is not None,
    )
    parts.stack.callback(forwarder.close)
    parts.sink = forwarder
    parts.watch = forwarder.watch


def _try_connecting(parts: Parts) -> None:
    import asyncio  # noqa: PLC0415 - few servers need it

    from numbers_uring.cluster.connection import connected, jetstream  # noqa: PLC0415
    from numbers_uring.cluster.streams import check_streams  # noqa: PLC0415

    config = parts.config

    async def connect() -> None:
        assert config.forward is not None
        async with connected(
            config.forward, "numbers-uring doctor", access=config.access
        ) as client:
            await check_streams(jetstream(client), config.partitions)

    asyncio.run(connect())


BROKER_STEP = Step(
    name="nats",
    take=_connect,
    probe=_try_connecting,
    advice="start the NATS server, correct the URL, or create what is missing with "
    "'numbers-uring cluster init'",
)
