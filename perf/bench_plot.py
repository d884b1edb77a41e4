"""Draws tables of perf/bench.py: throughput by send size and by clients, below the ceiling.

    python perf/bench_plot.py perf/RESULTS.md throughput.svg

bench.py --plot does the same with what it has just measured; this reads what it has printed.
"""

import re
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
"""The contenders that are drawn, in the order of the legend; discard is the ceiling."""

_SCENARIO = re.compile(r"### (\w+): \w+, (\d+) clients, ([\d.]+) (B|KiB|MiB) sends")
_ROW = re.compile(r"\| ([\w-]+) \| ([\d.]+) \(([\d.]+)-([\d.]+)\) \|")
_UNITS = {"B": 1, "KiB": 2**10, "MiB": 2**20}


class Point(NamedTuple):
    """One contender in one scenario; rates are in millions of numbers a second."""

    table: str
    clients: int
    send_bytes: int
    contender: str
    median: float
    least: float
    most: float


def points_of(text: str) -> list[Point]:
    """Return the figures of all tables among PLOTTED that bench.py has printed into `text`."""
    points: list[Point] = []
    scenario: tuple[str, int, int] | None = None
    for line in text.splitlines():
        if line.startswith("#"):
            found = _SCENARIO.match(line)
            scenario = None
            if found is not None and found[1] in PLOTTED:
                size = round(float(found[3]) * _UNITS[found[4]])
                scenario = (found[1], int(found[2]), size)
        elif scenario is not None and (row := _ROW.match(line)):
            rates = (float(rate) for rate in row.groups()[1:])
            points.append(Point(*scenario, row[1], *rates))
    return points


def plot(points: list[Point], file: PlotFile) -> None:
    """Draw them. Raises OSError, ValueError without points.

    Lines are medians of the rounds, bars reach from the least to the most.
    """
    import matplotlib  # noqa: PLC0415 - an extra
    from matplotlib.figure import Figure  # noqa: PLC0415

    panels = _panels(points)
    columns = min(2, len(panels))
    lines = -(-len(panels) // columns)
    with matplotlib.rc_context({"font.size": 9}):
        figure = Figure(figsize=(4.5 * columns, 2.8 * lines + 0.6), layout="constrained")
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
        figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    file.save(figure)


def _panels(points: list[Point]) -> list[tuple[str, str, list[Point]]]:
    """Return what goes together: title, the field that is on the axis, points."""
    if not points:
        raise ValueError(f"there are no figures of the tables {' and '.join(PLOTTED)}")
    panels = []
    sends = [point for point in points if point.table == "sends"]
    if sends:
        panels.append((f"by send size, {sends[0].clients} clients", "send_bytes", sends))
    clients = [point for point in points if point.table == "clients"]
    for size in sorted({point.send_bytes for point in clients}):
        same = [point for point in clients if point.send_bytes == size]
        panels.append((f"by clients, sends of {size:,} bytes", "clients", same))
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


@click.command(help=__doc__)
@click.argument("printed", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.argument("picture", type=click.Path(path_type=Path, dir_okay=False))
def main(printed: Path, picture: Path) -> None:
    try:
        with PlotFile(picture) as file:
            plot(points_of(printed.read_text()), file)
    except (OSError, ValueError, StartError) as error:
        raise click.ClickException(f"cannot draw {printed}: {error}") from error


if __name__ == "__main__":
    main()
