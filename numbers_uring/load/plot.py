"""Draws the rate of a load over its time, with matplotlib."""

import statistics
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from numbers_uring.limits import LOAD_PLOT_INTERVAL_S_MIN
from numbers_uring.load.model import LoadResult
from numbers_uring.load.plot_file import PlotFile


class Interval(NamedTuple):
    """A piece of a run, in seconds since its first send."""

    begin_s: float
    end_s: float
    numbers_per_s: float


class LoadPlot:
    """A plot of one load in `path`, found to be possible before the load begins.

    Pass `show` to `run_load` as its progress, every LOAD_PLOT_SLICE_S. Raises what PlotFile does.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self.path = path
        self._clock = clock
        self._samples: list[tuple[float, int]] = []
        self._output = PlotFile(path)

    def __enter__(self) -> "LoadPlot":
        return self

    def __exit__(self, *_: object) -> None:
        self._output.close()

    def show(self, stage: str, numbers: int, numbers_all: int) -> None:  # noqa: ARG002
        """Take note of how many numbers were sent until now."""
        if stage == "send":
            self._samples.append((self._clock(), numbers))

    def intervals(self) -> list[Interval]:
        """Return the rates from the first send on; nothing where nothing was sent."""
        if not self._samples:
            return []
        begin_s = self._samples[0][0]
        kept = self._samples[:1]
        for sample in self._samples[1:]:
            if sample[0] - kept[-1][0] >= LOAD_PLOT_INTERVAL_S_MIN:
                kept.append(sample)
        last = self._samples[-1]
        if kept[-1] != last:
            # The rest is too short for an interval of its own.
            kept[-1:] = [last] if len(kept) > 1 else [*kept, last]
        return [
            Interval(first_s - begin_s, last_s - begin_s, (after - before) / (last_s - first_s))
            for (first_s, before), (last_s, after) in pairwise(kept)
            if last_s > first_s
        ]

    def write(self, result: LoadResult) -> None:
        """Draw it. Raises OSError; where nothing was sent there is nothing to draw."""
        intervals = self.intervals()
        if intervals:
            self._output.save(_figure(intervals, result))


def _figure(intervals: list[Interval], result: LoadResult) -> Any:
    import matplotlib  # noqa: PLC0415
    from matplotlib.figure import Figure  # noqa: PLC0415

    parameters = result.parameters
    unit, name = _unit(max(interval.numbers_per_s for interval in intervals))
    rates = [interval.numbers_per_s / unit for interval in intervals]
    # When all was sent, clients wait for the server: that is no rate of sending.
    median = statistics.median([rate for rate in rates if rate > 0] or [0])
    with matplotlib.rc_context({"font.size": 9}):
        figure = Figure(figsize=(8, 4), layout="constrained")
        axes = figure.add_subplot()
        edges = [interval.begin_s for interval in intervals] + [intervals[-1].end_s]
        axes.stairs(rates, edges, fill=True, alpha=0.25, color="#0072b2")
        axes.stairs(rates, edges, color="#0072b2", label="sent")
        axes.axhline(median, color="#d55e00", linestyle="--", label=f"median {median:.3g} {name}/s")
        figure.suptitle(
            f"numbers-uring load: {result.numbers_sent:,} numbers, mix {parameters.mix}, "
            f"{parameters.clients:,} clients, sends of {parameters.send_bytes:,} bytes"
        )
        axes.set_title(
            f"{result.numbers_taken:,} numbers taken in within {result.seconds:.3f} s: "
            f"{result.numbers_per_s / unit:.3g} {name}/s",
            fontsize="medium",
        )
        axes.set_xlabel("time since the first send [s]")
        axes.set_ylabel(f"rate [{name}/s]")
        axes.set_xlim(0, intervals[-1].end_s)
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
        axes.legend(loc="best")
    return figure


def _unit(rate: float) -> tuple[float, str]:
    for unit, name in ((1e6, "million numbers"), (1e3, "thousand numbers")):
        if rate >= unit:
            return unit, name
    return 1, "numbers"
