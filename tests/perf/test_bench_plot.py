"""The picture of perf/bench.py's tables: what is read from them, and that it is drawn."""

import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

from bench_plot import PLOTTED, STYLES, Point, plot, points_of
from numbers_uring.load.plot_file import PlotFile
from support.waiting import DEADLINE_S

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "perf" / "RESULTS.md"
PRINTED = """
### sends: unique, 5 clients, 1 MiB sends

| contender | M numbers/s | CPU ns/number | of discard | of c | resident MiB |
|---|---|---|---|---|---|
| discard | 399.1 (389.6-439.4) | 1.6 (1.5-1.8) | 100 % | 800 % | 2 |
| epoll | 0.258 (0.250-0.300) | 17.2 (17.0-20.7) | 15 % | 97 % | 142 |

### log: unique, 5 clients, 256 KiB sends

| discard | 1.0 (1.0-1.0) | 1.6 (1.5-1.8) | 100 % | 800 % | 2 |

### clients: unique, 500 clients, 10 B sends

| uring | 0.1 (0.1-0.2) | 4316.6 (4315.6-4317.6) | 74 % | 76 % | 145 |
"""


def draw(*paths: Path) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, str(ROOT / "perf" / "bench_plot.py"), *map(str, paths)]
    return subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S, check=False)


def test_the_tables_that_are_drawn_are_read_and_no_others() -> None:
    assert points_of(PRINTED) == [
        Point("sends", 5, 2**20, "discard", 399.1, 389.6, 439.4),
        Point("sends", 5, 2**20, "epoll", 0.258, 0.25, 0.3),
        Point("clients", 500, 10, "uring", 0.1, 0.1, 0.2),
    ]


def test_the_recorded_figures_have_every_contender_at_every_point() -> None:
    points = points_of(RESULTS.read_text())
    assert {point.table for point in points} == set(PLOTTED)
    places = {point[:3] for point in points}
    assert {(*place, name) for place in places for name in STYLES} == {p[:4] for p in points}


def test_the_recorded_figures_are_drawn_the_same_way_each_time(tmp_path: Path) -> None:
    pictures = [tmp_path / "first.svg", tmp_path / "second.svg"]
    for picture in pictures:
        with PlotFile(picture) as file:
            plot(points_of(RESULTS.read_text()), file)
    assert ElementTree.parse(pictures[0]).getroot().tag.endswith("svg")
    assert pictures[0].read_bytes() == pictures[1].read_bytes()


def test_what_has_no_figures_is_refused_in_one_line(tmp_path: Path) -> None:
    empty = tmp_path / "empty.md"
    empty.touch()
    done = draw(empty, tmp_path / "picture.svg")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "there are no figures" in done.stderr
    assert not (tmp_path / "picture.svg").exists()


def test_tables_that_are_not_drawn_are_refused_before_anything_is_measured(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "perf" / "bench.py"), "mixes"]
    done = subprocess.run(
        [*command, "--plot", str(tmp_path / "picture.svg")],
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert done.returncode == 2
    assert "--plot draws sends and clients" in done.stderr
    assert done.stdout == ""
