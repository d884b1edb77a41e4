"""Reserved ports: no program is given one by chance, and no two are given the same."""

import socket
import subprocess
import sys
from pathlib import Path

import ports
from ports import reserve_port


def test_each_port_is_given_out_once_whichever_process_asks() -> None:
    script = "from ports import reserve_port\nprint([reserve_port() for _ in range(20)])\ninput()"
    command = [sys.executable, "-c", script]
    path = str(Path(ports.__file__).parent)
    with (
        subprocess.Popen(
            command, cwd=path, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as first,
        subprocess.Popen(
            command, cwd=path, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as second,
    ):
        given = [reserve_port() for _ in range(20)]
        for other in (first, second):
            assert other.stdout is not None
            given += map(int, other.stdout.readline().strip("[]\n").split(","))
    assert len(set(given)) == 60


def test_linux_gives_no_such_port_to_a_client_by_itself() -> None:
    ephemeral = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text()
    lowest, highest = map(int, ephemeral.split())
    assert not lowest <= reserve_port() <= highest


def test_a_port_where_another_program_listens_is_passed_over() -> None:
    port = reserve_port()
    with socket.create_server(("127.0.0.1", port)):
        ports._reservations.pop().close()
        assert reserve_port() != port
