"""A log that outgrows the memory the server may use, in a control group made for the test."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from numbers_uring.load.model import LoadParameters, Mix
from numbers_uring.load.run import run_load
from support.processes import ServerProcess

LIMIT_BYTES = 192 * 1024 * 1024
NUMBERS = 40_000_000


@pytest.fixture
def limited_group() -> Iterator[Path]:
    """A memory control group, of either version, with LIMIT_BYTES."""
    name = f"numbers-uring-test-{os.getpid()}"
    for root, limit in (
        (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes"),
        (Path("/sys/fs/cgroup"), "memory.max"),
    ):
        group = root / name
        try:
            group.mkdir()
        except OSError:
            continue
        try:
            (group / limit).write_text(str(LIMIT_BYTES))
        except OSError:
            group.rmdir()
            continue
        yield group
        group.rmdir()
        return
    pytest.skip("no memory control group can be made here")


@pytest.mark.parametrize("write_behind", ["on", "off"])
def test_a_log_larger_than_the_memory_limit_is_written_whole(
    limited_group: Path, serve: Callable[..., ServerProcess], backend: str, write_behind: str
) -> None:
    join = f'echo $$ > {limited_group}/cgroup.procs && exec "$@"'
    server = serve(
        *("--backend", backend, "--write-behind", write_behind),
        prefix=["sh", "-c", join, "sh"],
    )
    result = run_load(
        LoadParameters(
            port=server.port, numbers=NUMBERS, mix=Mix.SEQUENTIAL, send_bytes=262_144, timeout_s=90
        )
    )
    assert result.numbers_taken == NUMBERS, server.stderr
    assert server.terminate() == 0
    assert server.log_path.stat().st_size == NUMBERS * 10
    assert server.reported() == (NUMBERS, 0, NUMBERS)
    server.log_path.unlink()
