"""The figures of a run in perf/RESULTS.md: each part in its place, and nothing else changed."""

import re
import subprocess
import sys
from pathlib import Path

from support.waiting import DEADLINE_S

ROOT = Path(__file__).parents[2]
RESULTS = "# Text\n\n<!-- sends -->\nold\n<!-- end -->\n\nmore\n\n<!-- log -->\n<!-- end -->\n"


def write(results: Path, *printed: Path) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, str(ROOT / "perf" / "write_results.py"), "--results", str(results)]
    command += map(str, printed)
    return subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S, check=False)


def test_a_part_is_replaced_and_the_others_stay(tmp_path: Path) -> None:
    results, sends = tmp_path / "RESULTS.md", tmp_path / "sends.md"
    results.write_text(RESULTS)
    sends.write_text("a machine\n\n\n### sends\n| 1 |\n")
    for _ in range(2):
        done = write(results, sends)
        assert (done.returncode, done.stderr) == (0, "")
        expected = "<!-- sends -->\n\na machine\n\n### sends\n| 1 |\n\n<!-- end -->"
        assert results.read_text() == RESULTS.replace("<!-- sends -->\nold\n<!-- end -->", expected)


def test_a_part_without_a_place_is_an_error_and_changes_nothing(tmp_path: Path) -> None:
    results, other = tmp_path / "RESULTS.md", tmp_path / "other.md"
    results.write_text(RESULTS)
    other.write_text("a machine\n")
    done = write(results, other)
    assert (done.returncode, done.stderr) == (1, "Error: RESULTS.md has no place for other\n")
    assert results.read_text() == RESULTS


def test_each_part_of_make_bench_has_its_place() -> None:
    parts = re.search(r"^BENCHES \?= (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert parts is not None
    results = (ROOT / "perf" / "RESULTS.md").read_text()
    for part in parts[1].split():
        assert results.count(f"<!-- {part} -->\n") == 1
