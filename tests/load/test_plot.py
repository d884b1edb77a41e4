"""`load --plot`: the rate over time, and that a plot that can't be made is refused beforehand."""

import socket
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path
from xml.etree import ElementTree

import click
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from numbers_uring.errors import ExitCode, StartError
from numbers_uring.limits import LOAD_PLOT_INTERVAL_S_MIN
from numbers_uring.load.model import Latency, LoadParameters, LoadResult
from numbers_uring.load.plot import Interval, LoadPlot
from numbers_uring.load.plot_file import FORMATS
from support.waiting import DEADLINE_S

NUMBERS = 200_000
BEGINNINGS = {"svg": b"<?xml", "png": b"\x89PNG", "pdf": b"%PDF"}


class Clock:
    """A clock that is set by hand, in seconds."""

    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def load(port: int, *options: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "numbers_uring", "load", "--port", str(port)]
    return subprocess.run(
        [*command, "--numbers", str(NUMBERS), *options],
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )


@pytest.fixture
def sink() -> int:
    """A server that takes in everything from one client after the other; its port."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=64)

    def take() -> None:
        with closing(listener):
            for _ in range(64):
                client, _ = listener.accept()
                with client:
                    while client.recv(65536):
                        pass

    threading.Thread(target=take, daemon=True).start()
    return int(listener.getsockname()[1])


def plotted(samples: list[tuple[float, int]], path: Path) -> list[Interval]:
    clock = Clock()
    with LoadPlot(path / "plot.svg", clock) as plot:
        for at_s, numbers in samples:
            clock.now_s = at_s
            plot.show("send", numbers, 10)
        return plot.intervals()


def result(taken: int = 10) -> LoadResult:
    none = Latency(samples=0)
    return LoadResult(
        parameters=LoadParameters(numbers=10),
        prepared=True,
        prepare_seconds=0,
        seconds=1,
        numbers_sent=taken,
        numbers_taken=taken,
        numbers_not_taken_min=0,
        numbers_per_s=taken,
        bytes_per_s=10 * taken,
        cpu_user_seconds=0,
        cpu_system_seconds=0,
        drained_ms=none,
        acknowledged_ms=none,
        clients_drained=1,
        clients_failed=0,
        clients_unfinished=0,
    )


def test_a_home_directory_that_does_not_exist_does_not_matter(
    sink: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HOME", "MPLCONFIGDIR", "XDG_CACHE_HOME", "XDG_CONFIG_HOME"):
        monkeypatch.setenv(name, "/dev/null/none")
    done = load(sink, "--clients", "1", "--plot", str(tmp_path / "plot.svg"))
    assert (done.returncode, done.stderr) == (ExitCode.CLEAN, "")


@pytest.mark.parametrize("ending", FORMATS)
def test_the_ending_of_the_name_says_the_format(ending: str, sink: int, tmp_path: Path) -> None:
    plot = tmp_path / f"plot.{ending}"
    done = load(sink, "--clients", "1", "--plot", str(plot))
    assert (done.returncode, done.stderr) == (ExitCode.CLEAN, "")
    assert plot.read_bytes().startswith(BEGINNINGS[ending])
    if ending == "svg":
        assert ElementTree.parse(plot).getroot().tag.endswith("svg")


def test_a_plot_that_cannot_be_written_is_refused_before_the_load(tmp_path: Path) -> None:
    # No server listens there: a load that had begun would say so.
    for name, code in (
        ("plot.gif", ExitCode.USAGE),
        ("plot", ExitCode.USAGE),
        ("missing/plot.svg", ExitCode.NOT_STARTED),
    ):
        done = load(1, "--plot", str(tmp_path / name))
        assert done.returncode == code
        assert done.stderr.startswith("numbers-uring: error: ")
        assert name in done.stderr
        assert done.stderr.count("\n") == 1


def test_a_plot_for_which_there_is_no_space_leaves_the_old_one(sink: int, small_disk: Path) -> None:
    plot = small_disk / "plot.svg"
    plot.write_text("the old one")
    (small_disk / "rest").write_bytes(bytes(1024 * 1024 - 2 * 4096))
    done = load(sink, "--clients", "1", "--plot", str(plot))
    assert done.returncode == ExitCode.FAILED
    assert done.stdout.startswith("Sent ")
    assert done.stderr == f"numbers-uring: error: cannot write {plot}: No space left on device\n"
    assert plot.read_text() == "the old one"


def test_a_load_that_cannot_begin_leaves_no_plot_behind(tmp_path: Path) -> None:
    done = load(1, "--plot", str(tmp_path / "plot.svg"))
    assert done.returncode == ExitCode.NOT_STARTED
    assert "cannot connect" in done.stderr
    assert not list(tmp_path.iterdir())


def test_without_matplotlib_one_line_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # This is what makes an import fail.
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(StartError, match=r"pip install 'numbers-uring\[plot\]'$"):
        LoadPlot(tmp_path / "plot.svg")
    with pytest.raises(click.UsageError):
        LoadPlot(tmp_path / "plot.txt")
    assert not list(tmp_path.iterdir())


def test_rates_are_differences_over_times(tmp_path: Path) -> None:
    assert plotted([(100, 0), (100.5, 50), (102.5, 250)], tmp_path) == [
        (0, 0.5, 100),
        (0.5, 2.5, 100),
    ]


def test_what_is_too_short_for_a_rate_belongs_to_its_neighbour(tmp_path: Path) -> None:
    short = LOAD_PLOT_INTERVAL_S_MIN / 2
    assert plotted([(0, 0), (short, 5), (1, 100), (1 + short, 101)], tmp_path) == [
        (0, 1 + short, 101 / (1 + short))
    ]


@given(steps=st.lists(st.tuples(st.floats(0, 0.3), st.integers(0, 10**7)), max_size=40))
@settings(deadline=None)  # The first plot of a process imports what draws it.
def test_the_intervals_cover_the_run_and_add_up_to_what_was_sent(
    steps: list[tuple[float, int]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    at_s, numbers = 1000.0, 0
    samples = [(at_s, numbers)]
    for seconds, sent in steps:
        at_s, numbers = at_s + seconds, numbers + sent
        samples.append((at_s, numbers))
    intervals = plotted(samples, tmp_path_factory.getbasetemp())
    if at_s == samples[0][0]:
        assert not intervals
        return
    assert intervals[0].begin_s == 0
    assert intervals[-1].end_s == pytest.approx(at_s - 1000)
    assert [one.end_s for one in intervals[:-1]] == [one.begin_s for one in intervals[1:]]
    total = sum(one.numbers_per_s * (one.end_s - one.begin_s) for one in intervals)
    assert total == pytest.approx(numbers)


def test_the_same_run_makes_the_same_file(tmp_path: Path) -> None:
    pictures = set()
    for name in ("first.svg", "second.svg"):
        clock = Clock()
        with LoadPlot(tmp_path / name, clock) as plot:
            for numbers in (0, 4, 10):
                plot.show("prepare", 10, 10)
                plot.show("send", numbers, 10)
                clock.now_s += 1
            plot.write(result())
        pictures.add((tmp_path / name).read_bytes())
    assert len(pictures) == 1
    assert b"date" not in pictures.pop().lower()


def test_nothing_sent_is_nothing_drawn(tmp_path: Path) -> None:
    with LoadPlot(tmp_path / "plot.svg") as plot:
        plot.write(result(0))
    assert not list(tmp_path.iterdir())
