"""Writes the figures of perf/bench.py into the README: a table, and a picture beside it.

    python perf/bench.py peers --json perf/figures/peers.json
    python perf/readme_figures.py

`make bench` does both.
"""

import statistics
from collections.abc import Mapping
from pathlib import Path
from textwrap import fill
from typing import Any

import click

from bench_plot import Point, caption_of, point_of, read
from numbers_uring.errors import StartError
from numbers_uring.load.plot_file import PlotFile

ROOT = Path(__file__).resolve().parent.parent
FIGURES = ROOT / "perf" / "figures" / "peers.json"
PICTURE = ROOT / "docs" / "images" / "peers.svg"
README = ROOT / "README.md"
BEGIN, END = "<!-- perf/readme_figures.py begins -->\n", "<!-- perf/readme_figures.py ends -->\n"

DISCARD = "discard"
OURS = ("epoll", "uring", "2 reactors")
CONTENDERS = {
    "threads": "Python, a thread for each client",
    "asyncio": "Python, asyncio streams",
    "uvloop": "Python, a protocol on uvloop",
    "c": "plain C with our kernel",
    "uring": "numbers-uring, io_uring",
    "epoll": "numbers-uring, epoll",
    "2 reactors": "numbers-uring, epoll, 2 reactors",
    DISCARD: "C that throws away what it receives",
}
"""In the order of the table; the picture has those that have a result."""
COLORS = {"unique": "#0072b2", "duplicate": "#e69f00"}
"""Of the mixes that are in the picture."""


def table(figures: Mapping[str, Any]) -> str:
    """Return the table in Markdown, and the sentence below it that says how it was measured."""
    rows = {(row["contender"], row["mix"]): row for row in figures["rows"]}
    mixes = list(dict.fromkeys(row["mix"] for row in figures["rows"]))
    found = [
        f"| million numbers a second | {' | '.join(mixes)} | of plain C | memory |",
        f"|---|{'--:|' * (len(mixes) + 2)}",
    ]
    for contender, name in CONTENDERS.items():
        here = [rows[contender, mix] for mix in mixes]
        rates = [_digits(point_of(row).median) for row in here]
        ratios = [_ratio(rows[contender, mix], rows["c", mix]) for mix in mixes]
        of_c = ", ".join(f"{100 * ratio:.{0 if ratio > 0.1 else 1}f}" for ratio in ratios) + " %"
        memory = max(one["resident_mib"] for row in here for one in row["rounds"])
        cells = [name, *rates, "-" if contender == "c" else of_c, f"{memory:.0f} MiB"]
        if contender in OURS:
            cells = [f"**{cell}**" for cell in cells]
        found.append(f"| {' | '.join(cells)} |")
    rounds = len(figures["rows"][0]["rounds"])
    where = f"{figures['date']}, {figures['machine']}: medians of {rounds} rounds, in turn."
    found += ["", fill(where, 100)]
    return "\n".join(found) + "\n"


def _digits(rate: float) -> str:
    return f"{rate:.1f}" if rate >= 10 else f"{rate:.2f}"


def _ratio(row: Mapping[str, Any], base: Mapping[str, Any]) -> float:
    """Return the median of the rounds' own ratios."""
    pairs = zip(row["rounds"], base["rounds"], strict=True)
    ratios: list[float] = [a["numbers_per_s"] / b["numbers_per_s"] for a, b in pairs]
    return statistics.median(ratios)


def with_table(readme: str, text: str) -> str:
    """Return the README with that table in the place of the one it has. Raises ValueError."""
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError("the README has no place for the table")
    return f"{before}{begin}\n{text}\n{end}{after}"


def draw(figures: Mapping[str, Any], file: PlotFile) -> None:
    """Draw a bar for each contender and mix. Raises OSError."""
    import matplotlib  # noqa: PLC0415 - an extra
    from matplotlib.figure import Figure  # noqa: PLC0415

    names = {name: text for name, text in CONTENDERS.items() if name != DISCARD}
    points = [point_of(row) for row in figures["rows"] if row["contender"] in names]
    mixes = [mix for mix in COLORS if any(point.mix == mix for point in points)]
    with matplotlib.rc_context({"font.size": 10}):
        figure = Figure(figsize=(8.5, 4.0), layout="constrained")
        axes = figure.subplots()
        for n, mix in enumerate(mixes):
            shown = {point.contender: point for point in points if point.mix == mix}
            _bars(axes, [shown[name] for name in names], n, len(mixes))
        axes.set_yticks(range(len(names)), names.values())
        for label in axes.get_yticklabels():
            label.set_fontweight("bold" if "numbers-uring" in label.get_text() else "normal")
        axes.invert_yaxis()
        first = points[0]
        clients, size = first.clients, f"{first.send_bytes:,} bytes"
        axes.set_xlabel(f"million numbers/s, {clients} clients, {size} a send")
        axes.legend(title="numbers", loc="upper right", frameon=False)
        axes.margins(x=0.1)
        axes.spines[["top", "right"]].set_visible(False)
        figure.supxlabel(caption_of([figures]), fontsize="x-small", color="#555555")
    file.save(figure)


def _bars(axes: Any, points: list[Point], n: int, mixes: int) -> None:
    height = 0.8 / mixes
    places = [place + (n - (mixes - 1) / 2) * height for place in range(len(points))]
    medians = [point.median for point in points]
    spread = [
        [point.median - point.least for point in points],
        [point.most - point.median for point in points],
    ]
    axes.barh(
        places,
        medians,
        height,
        xerr=spread,
        color=COLORS[points[0].mix],
        label=points[0].mix,
        error_kw={"elinewidth": 0.8, "capsize": 2},
    )
    for place, point in zip(places, points, strict=True):
        axes.annotate(
            _digits(point.median),
            (point.most, place),
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
            fontsize="small",
        )


@click.command(help=__doc__)
def main() -> None:
    figures = read(FIGURES)
    try:
        README.write_text(with_table(README.read_text(), table(figures)))
        with PlotFile(PICTURE) as file:
            draw(figures, file)
    except (OSError, ValueError, KeyError, StartError) as error:
        raise click.ClickException(f"cannot show {FIGURES}: {error}") from error
    click.echo(table(figures), nl=False)


if __name__ == "__main__":
    main()
