"""Fixtures for all suites."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from support import ServerProcess


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., ServerProcess]]:
    """Start servers that end with the test; the log is numbers.log in `tmp_path`."""
    with ExitStack() as running:

        def start(*options: str, **settings: object) -> ServerProcess:
            server = ServerProcess(tmp_path / "numbers.log", *options, **settings)  # type: ignore[arg-type]
            return running.enter_context(server)

        yield start


@pytest.fixture(params=["epoll", "uring"])
def backend(request: pytest.FixtureRequest) -> str:
    """Each backend there is: every suite of the server's contract runs on all of them."""
    return str(request.param)
