"""Commands that need a library of an extra, which is there and can't be loaded."""

from pathlib import Path

import pytest

from support.processes import assert_one_line_error, run_command

PROBLEM = "libcrypto.so.3: failed to map segment from shared object"
NATS = ["--nats", "nats://127.0.0.1:1"]
SERVE = ["serve", "--port", "0"]


@pytest.mark.parametrize(
    ("module", "arguments"),
    [
        ("prometheus_client", [*SERVE, "--metrics", "127.0.0.1:0"]),
        ("nats", [*SERVE, "--forward", NATS[1], "--partitions", "1"]),
        ("nats", ["cluster", "status"]),
        ("nkeys", ["cluster", "status", *NATS, "--nats-credentials", "/dev/null"]),
        ("matplotlib", ["load", "--plot", "plot.svg", "--port", "1"]),
    ],
    ids=["metrics", "forward", "cluster", "credentials", "plot"],
)
def test_a_library_that_cannot_be_loaded_is_not_said_to_be_missing(
    tmp_path: Path, module: str, arguments: list[str]
) -> None:
    modules = tmp_path / "modules"
    modules.mkdir()
    (modules / f"{module}.py").write_text(f"raise ImportError({PROBLEM!r})\n")
    directory = tmp_path / "directory"
    directory.mkdir()
    done = run_command(*arguments, environment={"PYTHONPATH": str(modules)}, cwd=directory)
    assert_one_line_error(done, 3, "can't be loaded", PROBLEM)
    assert "pip install" not in done.stderr
    assert not list(directory.iterdir())
