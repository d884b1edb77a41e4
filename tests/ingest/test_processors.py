"""The C sources on other processors: aarch64, emulated by qemu, and big-endian ones."""

import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from support.waiting import DEADLINE_S

ROOT = Path(__file__).resolve().parents[2]
NATIVE = ROOT / "native"
PROGRAMS = ROOT / "tests" / "native"
COMPILER = "aarch64-linux-gnu-gcc"
WARNINGS = ("-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", f"-I{NATIVE}")
# An unaligned word, which this processor would let pass, ends the program.
CHECKED = ("-static", "-pthread", "-fsanitize=undefined", "-fsanitize-undefined-trap-on-error")

pytestmark = [
    pytest.mark.same_with_reactors,
    pytest.mark.skipif(shutil.which(COMPILER) is None, reason=f"{COMPILER} is not installed"),
]
needs_qemu = pytest.mark.skipif(
    shutil.which("qemu-aarch64") is None, reason="qemu-aarch64 is not installed"
)


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, capture_output=True, check=False, cwd=ROOT, text=True, timeout=DEADLINE_S
    )


def assert_succeeds(*command: str | Path) -> None:
    done = run(*command)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def built(folder: Path, name: str, *wings: str) -> Path:
    """Return the program of tests/native with the sources of these wings."""
    program = folder / name
    sources = [path for wing in wings for path in sorted((NATIVE / wing).glob("*.c"))]
    assert_succeeds(COMPILER, *WARNINGS, *CHECKED, PROGRAMS / f"{name}.c", *sources, "-o", program)
    return program


@needs_qemu
def test_the_kernels_on_aarch64_agree_and_touch_nothing_beyond_their_inputs(tmp_path: Path) -> None:
    program = built(tmp_path, "check_kernels", "ingest", "cluster")
    # Pages of 64 KiB, as some distributions have them on this processor.
    assert_succeeds("qemu-aarch64", "-p", "65536", program)


@needs_qemu
def test_threads_on_aarch64_share_a_bitmap(tmp_path: Path) -> None:
    assert_succeeds("qemu-aarch64", built(tmp_path, "race_kernel", "ingest"))


def test_each_source_compiles_for_aarch64_without_a_warning() -> None:
    # Debian has Python's headers for the processor of the host alone.
    sources = [path for path in sorted(NATIVE.glob("*/*.c")) if "Python.h" not in path.read_text()]
    assert len(sources) == len(list(NATIVE.glob("*/*.c"))) - 1
    for source in sources:
        assert_succeeds(COMPILER, *WARNINGS, "-fsyntax-only", source)


def test_a_big_endian_compiler_is_refused_by_one_error() -> None:
    # The header alone, which is the first of the extension: Debian has no big-endian aarch64 libc.
    command = (COMPILER, "-fsyntax-only", "-fno-diagnostics-show-caret", "-x", "c", "native/base.h")
    assert_succeeds(*command)
    refused = run(*command, "-mbig-endian")
    assert refused.returncode == 1
    (line,) = refused.stderr.splitlines()
    assert line.endswith('#error "numbers-uring needs a little-endian processor"')


@pytest.mark.parametrize("file", ["native/check_build.py", "setup.py"])
def test_a_big_endian_host_is_refused_before_anything_is_built(
    file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "byteorder", "big")
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "argv", [file, "--version"])
    with pytest.raises(SystemExit) as refused:
        runpy.run_path(str(ROOT / file), run_name="__main__")
    assert refused.value.code == (
        "numbers-uring needs a little-endian processor, and this one is big-endian"
    )
