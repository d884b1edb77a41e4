"""Draws figures of perf/bench.py: throughput by send size and by clients.

    python perf/bench.py sends --json sends.json
    python perf/bench_plot.py sends.json throughput.svg

The picture, SVG, PNG or PDF, has what is in all files that come before it.
"""

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import click

from numbers_uring.errors import StartError
from numbers_uring.load.plot_file import PlotFile

PLOTTED = ("sends", "clients")
"""The tables that are drawn."""

STYLES: dict[str, dict[str, Any]] = {
    "discard": {"label": "receive and throw away, in C", "color": "#777777", "linestyle": "--"},
    "c": {"label": "plain C server", "color": "#cc79a7", "linestyle": ":", "marker": "s"},
    "epoll": {"label": "numbers-uring, epoll", "color": "#0072b2", "marker": "o"},
    "uring": {"label": "numbers-uring, io_uring", "color": "#d55e00", "marker": "D"},
}
"""The contenders that are drawn, in the order of the legend."""


class Point(NamedTuple):
    """One contender in one scenario; rates are in millions of numbers a second."""

    table: str
    mix: str
    clients: int
    send_bytes: int
    contender: str
    median: float
    least: float
    most: float


def points_of(figures: Mapping[str, Any]) -> list[Point]:
    """Return the points of all tables among PLOTTED in what bench.py --json has written."""
    return [point_of(row) for row in figures["rows"] if row["table"] in PLOTTED]


def point_of(row: Mapping[str, Any]) -> Point:
    rates = [one["numbers_per_s"] / 1e6 for one in row["rounds"]]
    where = (row["table"], row["mix"], row["clients"], row["send_bytes"], row["contender"])
    return Point(*where, statistics.median(rates), min(rates), max(rates))


def caption_of(figures: Sequence[Mapping[str, Any]]) -> str:
    """Return where and when they were measured."""
    dates = {each["date"]: None for each in figures}
    machines = {each["machine"]: None for each in figures}
    return "\n".join([*machines, f"{', '.join(dates)}: medians, bars from the least to the most"])


def plot(points: list[Point], caption: str, file: PlotFile) -> None:
    """Draw them. Raises OSError, ValueError without points."""
    import matplotlib  # noqa: PLC0415 - an extra
    from matplotlib.figure import Figure  # noqa: PLC0415

    panels = _panels(points)
    columns = min(2, len(panels))
    lines = -(-len(panels) // columns)
    with matplotlib.rc_context({"font.size": 9}):
        figure = Figure(figsize=(4.5 * columns, 2.8 * lines + 0.9), layout="constrained")
        grid = figure.subplots(lines, columns, squeeze=False, sharey=True)
        for axes, (title, x_name, shown) in zip(grid.flat, panels, strict=False):
            _draw(axes, shown, x_name)
            axes.set_title(title, fontsize="medium")
            axes.set_xlabel(x_name.replace("send_bytes", "bytes a send"))
        for axes in list(grid.flat)[len(panels) :]:
            axes.set_visible(False)
        for axes in grid[:, 0]:
            axes.set_ylabel("million numbers/s")
        handles, labels = grid[0][0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=len(labels))
        figure.supxlabel(caption, fontsize="small", color="#555555")
    file.save(figure)


def _panels(points: list[Point]) -> list[tuple[str, str, list[Point]]]:
    """Return what goes together: title, the field that is on the axis, points."""
    if not points:
        raise ValueError(f"there are no figures of the tables {' and '.join(PLOTTED)}")
    panels = []
    for mix in dict.fromkeys(point.mix for point in points):
        same_mix = [point for point in points if point.mix == mix]
        sends = [point for point in same_mix if point.table == "sends"]
        if sends:
            title = f"{mix} numbers, {sends[0].clients} clients"
            panels.append((title, "send_bytes", sends))
        clients = [point for point in same_mix if point.table == "clients"]
        for size in sorted({point.send_bytes for point in clients}):
            same = [point for point in clients if point.send_bytes == size]
            panels.append((f"{mix} numbers, sends of {size:,} bytes", "clients", same))
    return panels


def _draw(axes: Any, points: list[Point], x_name: str) -> None:
    for contender, style in STYLES.items():
        shown = sorted(point for point in points if point.contender == contender)
        if shown:
            bars = [[p.median - p.least for p in shown], [p.most - p.median for p in shown]]
            axes.errorbar(
                [getattr(point, x_name) for point in shown],
                [point.median for point in shown],
                yerr=bars,
                markersize=4,
                elinewidth=0.8,
                capsize=2,
                **style,
            )
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.grid(alpha=0.3)


def read(path: Path) -> dict[str, Any]:
    """Return what bench.py --json has written. Raises ClickException."""
    try:
        figures = json.loads(path.read_text())
        if not {"machine", "date", "rows"} <= figures.keys():
            raise ValueError("it lacks a part")
    except (OSError, ValueError, AttributeError) as error:
        raise click.ClickException(f"{path} is not what bench.py --json writes: {error}") from error
    return dict(figures)


@click.command(help=__doc__)
@click.argument(
    "paths",
    metavar="FIGURES...",
    nargs=-1,
    required=True,
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
)
@click.argument("picture", type=click.Path(path_type=Path, dir_okay=False))
def main(paths: tuple[Path, ...], picture: Path) -> None:
    figures = [read(path) for path in paths]
    points = [point for each in figures for point in points_of(each)]
    try:
        with PlotFile(picture) as file:
            plot(points, caption_of(figures), file)
    except (OSError, ValueError, StartError) as error:
        raise click.ClickException(f"cannot draw {picture}: {error}") from error


if __name__ == "__main__":
    main()
