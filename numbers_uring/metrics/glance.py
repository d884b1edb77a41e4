"""One process at a glance, in words: what `status` prints, and what the page at / shows."""

from typing import NamedTuple

from numbers_uring.metrics.figures import Figures, Snapshot, figures, rate

CONNECTED, NOT_CONNECTED = "connected", "not connected"


class Row(NamedTuple):
    """A line: its title, and what is said there, in parts that a comma separates."""

    title: str
    parts: tuple[str, ...]


def server_rows(before: Snapshot | None, now: Snapshot) -> list[Row]:
    """Return what a server, or a node, is doing; rates are unknown without a `before`."""
    earlier = None if before is None else figures(before)
    shown = figures(now)
    used = (f"backend {shown.backend}", f"kernel {shown.kernel}")
    return [*rows(earlier, shown), Row("version", (shown.version, *used))]


def rows(before: Figures | None, now: Figures) -> list[Row]:
    """Return the same from what was read elsewhere, without the version."""
    numbers, unique, received = (
        rate(before, now, name) for name in ("numbers", "unique", "received_bytes")
    )
    if now.connections_waiting is None:
        waiting = "an unknown number waiting"
    else:
        waiting = f"{now.connections_waiting} waiting"
    if now.acknowledged is None:
        stored = Row("log", (f"{megabytes(now.log_written_bytes)} MB written",))
    else:
        acknowledged = f"{now.acknowledged:,} acknowledged"
        stored = Row("forwarded", (acknowledged, f"{count(now.in_flight)} in flight"))
    clients = f"{now.connections} of at most {now.connections_max}"
    return [
        Row("state", (now.state, f"up {duration(now.uptime_s)}")),
        Row("now", _rates(numbers, unique, received)),
        Row(
            "total",
            (
                f"{now.unique:,} unique",
                f"{now.duplicate:,} duplicate",
                f"{megabytes(now.received_bytes)} MB received",
            ),
        ),
        Row("clients", (clients, waiting, f"{now.accepted:,} accepted since the start")),
        Row("held back", (f"{now.held_back_s:.1f} s since the start",)),
        stored,
    ]


def collector_rows(before: Snapshot | None, now: Snapshot) -> list[Row]:
    """Return what collectors are doing, all together and each partition."""

    def grows(name: str, *results: str) -> float | None:
        if before is None:
            return None
        return (now.sum(name, *results) - before.sum(name, *results)) / (now.read_s - before.read_s)

    unique, duplicate = (now.sum("numbers_total", result) for result in ("unique", "duplicate"))
    unique_rate, duplicate_rate = (
        grows("numbers_total", result) for result in ("unique", "duplicate")
    )
    numbers = None
    if unique_rate is not None and duplicate_rate is not None:
        numbers = unique_rate + duplicate_rate
    received = megabytes(now.sum("received_bytes_total"))
    connected = now.whole("numbers_uring_collector_nats_connected")
    reconnects = now.whole("numbers_uring_collector_nats_reconnects_total")
    return [
        Row("state", (now.state, f"up {duration(now.uptime_s)}")),
        Row("now", _rates(numbers, unique_rate, grows("received_bytes_total"))),
        Row(
            "total",
            (f"{unique:,.0f} unique", f"{duplicate:,.0f} duplicate", f"{received} MB received"),
        ),
        Row(
            "NATS server",
            (
                CONNECTED if connected else NOT_CONNECTED,
                f"{count(reconnects)} reconnects since the start",
            ),
        ),
        Row("held back", (f"{now.sum('held_back_seconds_total'):.1f} s since the start",)),
        *_partitions(now),
        Row("version", (now.info["version"], f"kernel {now.info['kernel']}")),
    ]


def _partitions(now: Snapshot) -> list[Row]:
    logged = now.by_partition("log_numbers")
    lags = now.by_partition("lag_messages")
    waiting = now.by_partition("waiting_sequence")
    found = []
    for partition, position in now.by_partition("position").items():
        parts = [
            f"{count(logged.get(partition))} numbers in the log",
            f"message {position:.0f}",
            f"{count(lags.get(partition))} behind",
        ]
        if waiting.get(partition):
            parts.append(f"waits for message {waiting[partition]:.0f}")
        found.append(Row(f"partition {partition}", tuple(parts)))
    return found


def _rates(
    numbers: float | None, unique: float | None, received_bytes: float | None
) -> tuple[str, ...]:
    return (
        f"{count(numbers)} numbers/s",
        f"{count(unique)} unique/s",
        f"{megabytes(received_bytes)} MB/s received",
    )


def count(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}"


def megabytes(size_bytes: float | None) -> str:
    return "-" if size_bytes is None else f"{size_bytes / 1e6:,.1f}"


def duration(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    return f"{days}d " * bool(days) + f"{hours:02}:{minutes:02}:{rest:02}"
