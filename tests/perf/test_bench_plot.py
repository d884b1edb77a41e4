"""The pictures of perf/bench.py's figures, and the table of the README: what is read and drawn."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

import readme_figures
from bench import as_json
from bench_plot import PLOTTED, STYLES, Point, caption_of, plot, points_of, read
from numbers_uring.load.plot_file import PlotFile
from support.waiting import DEADLINE_S

ROOT = Path(__file__).parents[2]
RECORDED = {name: ROOT / "perf" / "figures" / f"{name}.json" for name in (*PLOTTED, "peers")}


def row(table: str, contender: str, *rates: float, mix: str = "unique") -> dict[str, Any]:
    rounds = [{"numbers_per_s": rate, "resident_mib": 20.0} for rate in rates]
    where = {"table": table, "contender": contender, "mix": mix}
    return where | {"clients": 5, "send_bytes": 2**20, "rounds": rounds}


def figures(*rows: dict[str, Any]) -> dict[str, Any]:
    return {"machine": "2 x CPU", "date": "2026-01-02", "rows": list(rows)}


def draw(*paths: Path) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, str(ROOT / "perf" / "bench_plot.py"), *map(str, paths)]
    return subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S, check=False)


def test_points_are_medians_of_what_was_measured_of_the_tables_that_are_drawn() -> None:
    found = figures(
        row("sends", "discard", 399.14e6, 389.6e6, 439.4e6),
        row("log", "epoll", 1e6),
        row("clients", "uring", 123_456, mix="hot"),
    )
    assert points_of(json.loads(as_json(found))) == [
        Point("sends", "unique", 5, 2**20, "discard", 399.14, 389.6, 439.4),
        Point("clients", "hot", 5, 2**20, "uring", 0.123456, 0.123456, 0.123456),
    ]


def test_a_picture_says_where_and_when_each_of_its_figures_was_measured() -> None:
    first, second = figures(), figures() | {"date": "2026-03-04"}
    assert caption_of([first, second]).startswith("2 x CPU\n2026-01-02, 2026-03-04: ")


def test_the_recorded_figures_have_every_contender_at_every_point() -> None:
    points = [point for name in PLOTTED for point in points_of(read(RECORDED[name]))]
    assert {point.table for point in points} == set(PLOTTED)
    places = {point[:4] for point in points}
    assert {(*place, name) for place in places for name in STYLES} == {p[:5] for p in points}


def throughput(file: PlotFile) -> None:
    found = [read(RECORDED[name]) for name in PLOTTED]
    plot([point for each in found for point in points_of(each)], caption_of(found), file)


def peers(file: PlotFile) -> None:
    readme_figures.draw(read(RECORDED["peers"]), file)


@pytest.mark.parametrize("make", [throughput, peers])
def test_the_recorded_figures_are_drawn_the_same_way_each_time(
    make: Callable[[PlotFile], None], tmp_path: Path
) -> None:
    pictures = [tmp_path / "first.svg", tmp_path / "second.svg"]
    for picture in pictures:
        with PlotFile(picture) as file:
            make(file)
    assert ElementTree.parse(pictures[0]).getroot().tag.endswith("svg")
    assert pictures[0].read_bytes() == pictures[1].read_bytes()


@pytest.mark.parametrize("text", ["", "[]", "{}", as_json(figures())], ids=str)
def test_what_has_no_figures_is_refused_in_one_line(text: str, tmp_path: Path) -> None:
    empty = tmp_path / "empty.json"
    empty.write_text(text)
    done = draw(empty, tmp_path / "picture.svg")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "there are no figures" in done.stderr or "is not what bench.py" in done.stderr
    assert not (tmp_path / "picture.svg").exists()


# The README.


def test_the_readme_has_the_figures_that_were_measured() -> None:
    """If this fails, run perf/readme_figures.py."""
    table = readme_figures.table(read(RECORDED["peers"]))
    readme = readme_figures.README.read_text()
    assert readme_figures.with_table(readme, table) == readme


def test_the_table_has_medians_and_ratios_of_the_same_round() -> None:
    slow = [row("peers", name, 1e6, 2e6, 2.5e6) for name in ("threads", "asyncio", "uvloop")]
    fast = [row("peers", name, 99e6, 50e6, 75e6) for name in ("uring", "epoll", "2 reactors")]
    others = [row("peers", "c", 100e6, 100e6, 50e6), row("peers", "discard", 4e8, 4e8, 4e8)]
    lines = readme_figures.table(figures(*slow, *fast, *others)).splitlines()
    assert "| Python, asyncio streams | 2.00 | 2.0 % | 20 MiB |" in lines
    assert "| **numbers-uring, epoll** | **75.0** | **99 %** | **20 MiB** |" in lines
    assert lines[-1] == "2026-01-02, 2 x CPU: medians of 3 rounds, in turn."


def test_a_readme_without_a_place_for_it_is_refused() -> None:
    with pytest.raises(ValueError, match="no place"):
        readme_figures.with_table("# Title\n", "| |\n")
