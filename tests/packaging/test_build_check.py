"""What a host lacks to build is a line each, and what was half made is made again."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from support.waiting import DEADLINE_S

ROOT = Path(__file__).resolve().parents[2]

WITHOUT_MODULE = """\
#!{python}
import runpy, sys
sys.modules[{module!r}] = None
sys.argv = sys.argv[1:]
if sys.argv[0] == "-c":
    exec(sys.argv[1])
elif sys.argv[0] == "-m":
    runpy.run_module(sys.argv[1], run_name="__main__", alter_sys=True)
else:
    runpy.run_path(sys.argv[0], run_name="__main__")
"""


def base_python() -> Path:
    return Path(sys.base_prefix, "bin", f"python{sys.version_info[0]}.{sys.version_info[1]}")


def make(folder: Path, python: str, **environment: str) -> subprocess.CompletedProcess[str]:
    (folder / "native").mkdir(exist_ok=True)
    for name in ("Makefile", "native/check_build.py"):
        shutil.copy(ROOT / name, folder / name)
    return subprocess.run(
        ["make", "-s", f"PYTHON={python}", "VENV=.venv", ".venv/venv.stamp"],
        cwd=folder,
        env={"PATH": "/usr/bin:/bin", **environment},
        capture_output=True,
        check=False,
        text=True,
        timeout=DEADLINE_S,
    )


def test_without_venv_the_package_is_named_and_a_half_made_venv_is_made_again(
    tmp_path: Path,
) -> None:
    lacking = tmp_path / "python-without-venv"
    lacking.write_text(WITHOUT_MODULE.format(python=base_python(), module="ensurepip"))
    lacking.chmod(0o755)
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / "bin" / "python").symlink_to("/nonexistent")
    refused = make(tmp_path, str(lacking))
    assert refused.returncode != 0
    first, *rest = refused.stderr.splitlines()
    assert first == "numbers-uring needs Python's module ensurepip: install python3-venv"
    assert all(line.startswith("make: ***") for line in rest)

    made = make(tmp_path, str(base_python()))
    assert (made.returncode, made.stderr) == (0, "")
    done = subprocess.run([tmp_path / ".venv" / "bin" / "python", "-c", ""], check=False)
    assert done.returncode == 0


@pytest.mark.parametrize(
    ("environment", "line"),
    [
        ({"CC": "no-such-cc"}, "numbers-uring needs the C compiler no-such-cc: install gcc"),
        (
            {"CC": "gcc -nostdinc"},
            "numbers-uring needs the header sys/epoll.h: install libc6-dev\n"
            "numbers-uring needs the header linux/io_uring.h: install linux-libc-dev",
        ),
    ],
    ids=["compiler", "headers"],
)
def test_a_missing_part_of_the_compiler_is_a_line_with_its_package(
    environment: dict[str, str], line: str, tmp_path: Path
) -> None:
    refused = make(tmp_path, str(base_python()), **environment)
    assert refused.returncode != 0
    assert [each for each in refused.stderr.splitlines() if not each.startswith("make")] == (
        line.splitlines()
    )
    assert not (tmp_path / ".venv").exists()
