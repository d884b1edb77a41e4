"""The tests run the same whatever make was told that runs them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from support.outer_make import without_outer_make

SHOW = "import conftest, json, os; print(json.dumps(dict(os.environ)))"
OUTER = """\
all:
\t@$(MAKE) --no-print-directory inner TEST_PROCESSES=6
inner:
\t@exec "$$SHOW_WITH" -c "$$SHOW"
"""


@pytest.mark.parametrize(
    "arguments",
    [
        ["PYTHON=/usr/bin/python3"],
        ["VENV:=.venv-3.11.2", "BUILDER=", 'ARGS=tests/log -k "a -- PATH=1" x\\y $$x'],
        ["--jobs=2", "--output-sync=target", "SOAK_ROUNDS=12", "OLDEST_PYTHON=python3"],
        ["--jobs=2", "--silent", "--keep-going"],
    ],
)
def test_what_make_was_told_does_not_reach_what_the_tests_run(
    arguments: list[str], tmp_path: Path
) -> None:
    (tmp_path / "Makefile").write_text(OUTER)
    ours = {
        **without_outer_make(os.environ),
        "PWD": str(tmp_path),
        "PYTHONPATH": str(Path(__file__).parent),
        "SHOW": SHOW,
        "SHOW_WITH": sys.executable,
    }

    def environment(*command: str) -> dict[str, str]:
        output = subprocess.run(
            command, cwd=tmp_path, env=ours, check=True, stdout=subprocess.PIPE
        ).stdout
        shown: dict[str, str] = json.loads(output)
        return shown

    read = dict(each.split("=") for each in arguments if each.startswith("SOAK_"))
    assert environment("make", *arguments) == {
        **environment(sys.executable, "-c", SHOW),
        **read,
        "TEST_PROCESSES": "6",
    }
