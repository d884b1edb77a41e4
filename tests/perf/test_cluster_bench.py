"""perf/cluster_bench.py: that each table can be measured, and that nothing lost goes unseen."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from bench import LogCheck
from brokers import SYNCED
from cluster_bench import ClusterBench
from numbers_uring.load.lines import make_lines
from numbers_uring.load.model import LoadParameters
from support.waiting import DEADLINE_S

BENCH = Path(__file__).parents[2] / "perf" / "cluster_bench.py"
NUMBERS = 20_000


def test_a_whole_cluster_is_measured_and_its_logs_are_checked(tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    stores = tmp_path / "stores"
    stores.mkdir()
    done = subprocess.run(
        [
            *(sys.executable, str(BENCH), "all", "--rounds", "1", "--numbers", str(NUMBERS)),
            *("--partitions", "1", "--json", str(figures), "--folder", str(stores)),
        ],
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "### all: partitions 1" in done.stdout
    (row,) = json.loads(figures.read_text())["rows"]
    (measured,) = row["rounds"]
    assert measured["numbers_per_s"] > 0
    assert set(measured["cpu_ns_per_number"]) == {"node", "nats-server", "collectors"}
    assert all(spent > 0 for spent in measured["cpu_ns_per_number"].values())
    assert list(stores.iterdir()) == []


def test_the_parts_of_a_cluster_are_measured_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bench = ClusterBench(1, NUMBERS, tmp_path, None)
    bench.broker(2, [SYNCED])
    bench.node(2, reactors=(2,))
    bench.collector(2, collectors=(2,))
    assert [row.what for row in bench.rows] == [
        *("stored", "delivered", "stored, at once", "delivered, at once"),
        *("unique", "repeats"),
        "logged",
    ]
    assert "| reactors 2 | unique |" in capsys.readouterr().out


def test_logs_that_are_not_what_was_sent_are_no_figures(tmp_path: Path) -> None:
    parameters = LoadParameters(numbers=1000)
    lines = make_lines(parameters, 0, 1000)
    check = LogCheck()
    one, other = tmp_path / "one.log", tmp_path / "other.log"
    one.write_bytes(lines[:4000])
    for rest, right in ((lines[4000:], True), (lines[4010:], False), (lines[3990:], False)):
        other.write_bytes(rest)
        if right:
            check.check(parameters, one, other)
        else:
            with pytest.raises(RuntimeError, match="not the set of the numbers sent"):
                check.check(parameters, one, other)
