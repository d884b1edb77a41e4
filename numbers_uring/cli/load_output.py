"""What `load` shows: progress while it runs, and its result, as a table or in one line."""

import sys
import time
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack
from textwrap import wrap
from typing import Any

import click

from numbers_uring.limits import LINE_BYTES, LOAD_RATE_WINDOW_S
from numbers_uring.load.model import Latency, LoadResult
from numbers_uring.words import counted

_TITLES = ("p50", "p90", "p99", "p99.9", "max")
_NAME_COLUMNS = 12
_CELL_COLUMNS = 7
_SAMPLES_COLUMNS = 9
_TIMES_COLUMNS = _NAME_COLUMNS + len(_TITLES) * _CELL_COLUMNS + _SAMPLES_COLUMNS


def result_table(result: LoadResult, columns: int) -> str:
    """Return the result for a terminal: what was sent, how fast, and the times.

    Where it is narrower than the rows of times, these are columns.
    """
    rows = [
        ("sent", f"{_sent(result, ',')}, {_megabytes(result)} MB"),
        ("taken in", _numbers(result.numbers_taken, ",")),
        ("from", f"{counted(result.parameters.clients, 'client')}, {_source(result)}"),
        ("time", f"{result.seconds:.3f} s"),
        ("rate", f"{_rate(result.numbers_per_s)}, {_figure(result.bytes_per_s / 1e6)} MB/s"),
    ]
    wide = columns >= _TIMES_COLUMNS
    begin = _NAME_COLUMNS if wide else max(len(name) for name, _ in rows)
    lines = []
    for name, text in rows:
        indented = f"{name:<{begin}}  {text}"
        lines += wrap(indented, columns, subsequent_indent=" " * (begin + 2)) or [indented]
    times: list[tuple[str, ...]] = [("times in ms", *_TITLES, "samples")]
    for name, latency in (("drained", result.drained_ms), ("acknowledged", result.acknowledged_ms)):
        cells = ("-" if each is None else _figure(each) for each in _percentiles(latency))
        times.append((name, *cells, f"{latency.samples:,}"))
    if wide:
        widths = [_CELL_COLUMNS] * len(_TITLES) + [_SAMPLES_COLUMNS]
    else:
        times = list(zip(*times, strict=True))
        widths = [len(title) + 1 for title in times[0][1:]]
    lines.append("")
    for name, *each in times:
        padded = (f"{cell:>{width}}" for cell, width in zip(each, widths, strict=True))
        lines.append(f"{name:<{_NAME_COLUMNS}}{''.join(padded)}")
    return "\n".join(lines)


def result_line(result: LoadResult) -> str:
    """Return the result as one line, for a file or a pipe."""
    taken = f" {counted(result.numbers_taken, 'number')} taken in," if not result.complete else ""
    return (
        f"Sent {_sent(result)} ({_megabytes(result)} MB, {_source(result)})"
        f" from {counted(result.parameters.clients, 'client')} in {result.seconds:.3f} s:{taken}"
        f" {_figure(result.numbers_per_s / 1e6)} M numbers/s,"
        f" {_figure(result.bytes_per_s / 1e6)} MB/s taken in;"
        f" drained after last send {_times(result.drained_ms)};"
        f" acknowledged after send {_times(result.acknowledged_ms)}"
    )


def _sent(result: LoadResult, form: str = "") -> str:
    parameters = result.parameters
    known = result.complete or parameters.duration_s
    if known:
        return _numbers(result.numbers_sent, form)
    return f"{result.numbers_sent:{form}} of {_numbers(parameters.numbers, form)}"


def _numbers(count: int, form: str) -> str:
    return f"{count:{form}} number{'' if count == 1 else 's'}"


def _megabytes(result: LoadResult) -> str:
    return f"{result.numbers_sent * LINE_BYTES / 1e6:.1f}"


def _source(result: LoadResult) -> str:
    parameters = result.parameters
    if parameters.files:
        return counted(len(parameters.files), "file")
    return f"mix {parameters.mix}, {'prepared' if result.prepared else 'made on the fly'}"


def _rate(numbers_per_s: float) -> str:
    if numbers_per_s < 1e6:
        return f"{numbers_per_s:,.0f} numbers/s"
    return f"{_figure(numbers_per_s / 1e6)} M numbers/s"


def _figure(value: float) -> str:
    """Three digits or more, never an exponent."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _percentiles(latency: Latency) -> tuple[float | None, ...]:
    return (latency.p50, latency.p90, latency.p99, latency.p999, latency.max)


def _times(latency: Latency) -> str:
    named = zip(_TITLES, _percentiles(latency), strict=True)
    known = [f"{name} {_figure(time_ms)}" for name, time_ms in named if time_ms is not None]
    samples = counted(latency.samples, "sample")
    return f"{' '.join(known)} ms ({samples})" if known else "unknown (0 samples)"


class ProgressBars:
    """One progress bar after the other on standard error, each for one stage, with the rate."""

    def __init__(self, duration_s: float = 0, clock: Callable[[], float] = time.monotonic) -> None:
        self._duration_ms = round(duration_s * 1000)
        self.wanted = sys.stderr is not None and sys.stderr.isatty()
        self._clock = clock
        self._stage = self._rate = ""
        self._begin_s = 0.0
        self._bar: Any = None
        self._recent: deque[tuple[float, int]] = deque()
        self._stack = ExitStack()

    def __enter__(self) -> "ProgressBars":
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def show(self, stage: str, numbers: int, numbers_all: int) -> None:
        """Bring the stage's bar up to `numbers`; a new stage begins a new bar.

        With a duration, the bar of the stage `send` shows how much of it has passed.
        """
        now_s = self._clock()
        timed = stage == "send" and self._duration_ms > 0
        if stage != self._stage:
            self._stack.close()
            self._stage = stage
            self._recent.clear()
            self._begin_s = now_s
            self._bar = click.progressbar(
                length=self._duration_ms if timed else numbers_all,
                label=f"{stage:7}",
                file=sys.stderr,
                item_show_func=lambda rate: rate,
                # As wide as the terminal.
                width=0,
            )
            self._stack.enter_context(self._bar)
        passed_ms = min(round((now_s - self._begin_s) * 1000), self._duration_ms)
        grown = (passed_ms if timed else numbers) - self._bar.pos
        if grown or not self._bar.finished:
            self._rate = self._recent_rate(numbers, now_s)
        self._bar.update(grown, self._rate)

    def _recent_rate(self, numbers: int, now_s: float) -> str:
        """Return the rate of the last second or so, in the same number of characters each time."""
        while len(self._recent) > 1 and self._recent[1][0] <= now_s - LOAD_RATE_WINDOW_S:
            self._recent.popleft()
        self._recent.append((now_s, numbers))
        first_s, before = self._recent[0]
        rate = (numbers - before) / (now_s - first_s) if now_s > first_s else 0
        return f"{_rate(rate):>17}"
