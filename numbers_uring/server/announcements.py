"""The line that a server begins with, and the one that it ends with."""

from numbers_uring.ingest.bitmap import Bitmap
from numbers_uring.server.parts import Parts
from numbers_uring.server.server import Server
from numbers_uring.server.statistics import END_REASONS
from numbers_uring.words import counted


def tell_start(parts: Parts, took_s: float) -> None:
    """Log the start line: where and how clients are served."""
    config, kernel, sink = parts.config, parts.kernel.variant, parts.sink
    reactors = "" if config.reactors == 1 else f"{config.reactors} reactors, "
    urls = [] if parts.metrics is None else parts.metrics.urls
    dropped = ""
    if parts.dropped_bytes:
        dropped = f" ({counted(parts.dropped_bytes, 'byte')} of an earlier run dropped)"
    seen = f"{counted(parts.seen.numbers, 'number')} of --seen, " if config.seen else ""
    parts.say.info(
        f"listening on {' and '.join(parts.addresses)}, backend {parts.backend}, "
        f"kernel {kernel}, {reactors}{_bitmap_text(parts.bitmap)}"
        f"at most {counted(config.connections_max, 'client')}, "
        f"{sink.name.removeprefix('the ')}{dropped}, {seen}"
        f"started in {took_s:.2f} s"
        f"{', metrics on ' if urls else ''}{' and '.join(urls)}",
        event="started",
        listen=parts.addresses,
        backend=parts.backend,
        kernel=kernel,
        reactors=config.reactors,
        **sink.fields,
        dropped_bytes=parts.dropped_bytes,
        seen_files=parts.seen.files,
        seen_numbers=parts.seen.numbers,
        metrics=urls,
    )


def _bitmap_text(bitmap: Bitmap) -> str:
    if bitmap.huge_bytes is None:
        return ""
    share = 100 * bitmap.huge_bytes // len(bitmap.memory)
    if share == 0:
        return "no huge pages, "
    return "huge pages, " if share >= 95 else f"huge pages for {share} % of the bitmap, "


def tell_end(parts: Parts, server: Server) -> None:
    """Log the last line, for the service manager too: the results of the run."""
    statistics, sink, refused = server.statistics, parts.sink, parts.reactor.refused
    ended = statistics.ended
    summary = (
        f"stopped by {server.stopped_by}: {sink.summary()}, "
        f"{counted(statistics.accepted, 'client')} served, {refused} refused, "
        f"{ended['invalid']} disconnected for an invalid line, "
        f"{ended['idle']} for being idle, {ended['incomplete']} left within a line"
    )
    parts.manager.status(summary)
    parts.say.info(
        summary,
        event="stopped",
        by=server.stopped_by,
        unique=server.counts.unique,
        duplicate=server.counts.duplicate,
        **sink.fields,
        accepted=statistics.accepted + refused,
        ended={reason: {**ended, "refused": refused}.get(reason, 0) for reason in END_REASONS},
    )
