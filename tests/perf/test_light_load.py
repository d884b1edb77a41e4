"""The load that waits in the sockets: the server takes in all of it, and nothing before."""

from functools import partial
from pathlib import Path

import pytest

from bench import cpu_ns
from light_load import LightLoad
from numbers_uring.limits import LINE_BYTES
from numbers_uring.load.model import LoadParameters, Mix
from support.processes import ServerProcess


def load_of(clients: int, numbers: int) -> LightLoad:
    return LightLoad(
        LoadParameters(
            port=1, clients=clients, numbers=numbers, mix=Mix.UNIQUE, send_bytes=LINE_BYTES
        )
    )


def test_all_that_waited_is_on_file_when_the_clients_are_closed(tmp_path: Path) -> None:
    numbers = 200_000
    with ServerProcess(tmp_path / "log") as server:
        pid = server.process.pid
        assert load_of(4, numbers).run(pid, server.port, partial(cpu_ns, pid)) > 0
        assert len(server.logged_set()) == numbers


def test_what_does_not_fit_into_the_sockets_is_an_error_and_the_server_goes_on(
    tmp_path: Path,
) -> None:
    with ServerProcess(tmp_path / "log") as server:
        pid = server.process.pid
        with pytest.raises(BlockingIOError):
            load_of(1, 2_000_000).run(pid, server.port, partial(cpu_ns, pid))
        assert server.terminate() == 0
