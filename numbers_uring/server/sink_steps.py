"""The last step of a start: opens the log, or connects to the NATS server that takes its place."""

from functools import partial

from numbers_uring.errors import StartError
from numbers_uring.log.background import LogBackground
from numbers_uring.log.probe import bad_line_near_ends, try_log
from numbers_uring.log.resume import resume
from numbers_uring.log.writer import NumbersLog
from numbers_uring.server.parts import Parts, Step


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
    parts.take_over = partial(_resume if config.resume else _truncate, log, parts)


def _truncate(log: NumbersLog, parts: Parts) -> None:
    parts.dropped_bytes = log.truncate()


def _resume(log: NumbersLog, parts: Parts) -> None:
    def say_progress(text: str) -> None:
        parts.say.info(text)
        parts.manager.starting(text)

    parts.manager.starting(f"resuming {log.path}")
    resume(
        log,
        parts.kernel,
        parts.bitmap.memory,
        say=say_progress,
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
        offset = bad_line_near_ends(path, parts.kernel, parts.bitmap.memory)
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
