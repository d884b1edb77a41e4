"""The sockets that clients connect to, and the files of those that are unix sockets."""

import errno
import fcntl
import os
import socket
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from numbers_uring.addresses import TcpAddress, UnixAddress, host_text
from numbers_uring.errors import StartError
from numbers_uring.net import unix
from numbers_uring.net.listeners import (
    Listeners,
    address_text,
    backlog_connections,
    listen,
    try_listening,
)
from ports import reserve_port
from support.waiting import DEADLINE_S


def listen_on(path: Path, mode: int = 0o660, group: str | None = None) -> Listeners:
    return listen([UnixAddress(str(path))], unix_mode=mode, unix_group=group)


def connects(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        return client.connect_ex(str(path)) == 0


@pytest.fixture
def port() -> int:
    """A port that is free on all addresses."""
    return reserve_port()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "numbers.sock"


def test_a_unix_socket_listens_under_its_name_and_leaves_none_behind(path: Path) -> None:
    listeners = listen_on(path)
    (listener,) = listeners.sockets
    assert address_text(listener) == f"unix:{path}"
    assert connects(path)
    assert backlog_connections(listener) > 0
    listeners.close()
    assert not path.exists()


@pytest.mark.parametrize("mode", [0o600, 0o660, 0o666, 0o777])
def test_the_file_has_the_mode_whatever_the_umask(path: Path, mode: int) -> None:
    before = os.umask(0o027)
    try:
        listeners = listen_on(path, mode)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == mode
    listeners.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files to any group")
@pytest.mark.parametrize("group", ["daemon", "1"])
def test_the_file_has_the_group_by_name_or_number(path: Path, group: str) -> None:
    listeners = listen_on(path, group=group)
    assert path.stat().st_gid == 1
    listeners.close()


def test_a_group_that_is_not_there_is_refused(path: Path) -> None:
    with pytest.raises(StartError, match=r"group 'no\.such' does not exist"):
        listen_on(path, group="no.such")
    assert not path.exists()


def test_a_stale_file_is_replaced(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    assert path.is_socket()
    listeners = listen_on(path)
    assert connects(path)
    listeners.close()


def test_a_live_one_is_refused_and_goes_on(path: Path) -> None:
    first = listen_on(path)
    with pytest.raises(StartError, match="another process listens"):
        listen_on(path)
    assert connects(path)
    first.close()


def test_one_whose_backlog_is_full_is_a_live_one(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as busy:
        busy.bind(str(path))
        busy.listen(0)
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
            with pytest.raises(StartError, match="another process listens"):
                listen_on(path)


@pytest.mark.parametrize("make", [Path.touch, Path.mkdir, lambda path: path.symlink_to("nowhere")])
def test_what_is_no_socket_is_refused_and_left_alone(
    path: Path, make: Callable[[Path], None]
) -> None:
    make(path)
    with pytest.raises(StartError, match="not a socket"):
        listen_on(path)
    assert path.exists() or path.is_symlink()


def test_a_folder_that_is_missing_or_locked_is_said(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(StartError, match="No such file"):
        listen_on(path / "x" / "y.sock")
    monkeypatch.setattr(unix, "DIRECTORY_LOCK_RETRY_S", 0)
    fd = os.open(path.parent, os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_EX)
    with pytest.raises(StartError, match="locked"):
        listen_on(path)
    os.close(fd)
    listen_on(path).close()


def test_a_file_that_another_server_put_in_its_place_is_left_alone(path: Path) -> None:
    first = listen_on(path)
    path.unlink()
    second = listen_on(path)
    first.close()
    assert connects(path)
    second.close()


def test_an_abstract_name_is_told_with_an_at_sign(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"\0{tmp_path}")
        assert address_text(listener) == f"unix:@{tmp_path}"


def test_listening_on_all_addresses_or_on_none(path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = TcpAddress(*other.getsockname())
        with pytest.raises(StartError, match=f"{taken}: {os.strerror(errno.EADDRINUSE)}"):
            listen([UnixAddress(str(path)), taken], unix_mode=0o600, unix_group=None)
    assert not path.exists()


# IPv4 and IPv6 on one port.


def v6only(listeners: Listeners) -> list[int]:
    return [
        listener.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)
        for listener in listeners.sockets
        if listener.family == socket.AF_INET6
    ]


@pytest.mark.parametrize(
    ("hosts", "alone"),
    [
        (["::"], 0),
        (["0.0.0.0", "::"], 1),
        (["::", "0.0.0.0"], 1),
        (["::", "127.0.0.1"], 1),
        (["::1"], 1),
        (["::1", "127.0.0.1"], 1),
        (["::ffff:127.0.0.1"], 0),
    ],
)
def test_the_unspecified_ipv6_address_takes_ipv4_unless_an_ipv4_address_is_given(
    hosts: list[str], alone: int, port: int
) -> None:
    addresses = [TcpAddress(host, port) for host in hosts]
    # What is tried first, as `doctor` does, leaves nothing in the way.
    try_listening(addresses, unix_group=None)
    listeners = listen(addresses, unix_mode=0o600, unix_group=None)
    try:
        assert v6only(listeners) == [alone]
        assert sorted(map(address_text, listeners.sockets)) == sorted(map(str, addresses))
        if "::" in hosts:
            for host in ("127.0.0.1", "::1"):
                socket.create_connection((host, port), timeout=DEADLINE_S).close()
    finally:
        listeners.close()


def test_a_name_for_both_families_keeps_them_apart() -> None:
    listeners = listen([TcpAddress("localhost", 0)], unix_mode=0o600, unix_group=None)
    assert all(v6only(listeners))
    listeners.close()


@pytest.mark.parametrize("setting", ["0", "1"])
def test_the_systems_default_does_not_matter(namespaces: None, setting: str) -> None:
    program = (
        "from numbers_uring.addresses import TcpAddress\n"
        "from numbers_uring.net.listeners import listen\n"
        "import socket\n"
        "(one,) = listen([TcpAddress('::', 0)], unix_mode=0, unix_group=None).sockets\n"
        "socket.create_connection(('127.0.0.1', one.getsockname()[1]), timeout=60)\n"
    )
    script = 'ip link set lo up; echo "$1" > /proc/sys/net/ipv6/bindv6only; exec "$2" -c "$3"'
    command = ["unshare", "--net", "sh", "-ec", script, "-", setting, sys.executable, program]
    subprocess.run(command, check=True, timeout=DEADLINE_S)


def test_a_link_local_address_is_shown_with_its_zone(namespaces: None) -> None:
    program = (
        "from numbers_uring.addresses import TcpAddress, tcp_address\n"
        "from numbers_uring.net.listeners import address_text, listen\n"
        "import socket\n"
        "here = TcpAddress('fe80::7%lo', 4000)\n"
        "(one,) = listen([here], unix_mode=0, unix_group=None).sockets\n"
        "assert address_text(one) == '[fe80::7%lo]:4000' == str(here)\n"
        "client = socket.create_connection((here.host, here.port), timeout=60)\n"
        "peer = tcp_address(one.accept()[1])\n"
        "assert peer.host == 'fe80::7%lo', peer\n"
    )
    script = 'ip link set lo up; ip address add fe80::7/64 dev lo nodad; exec "$1" -c "$2"'
    command = ["unshare", "--net", "sh", "-ec", script, "-", sys.executable, program]
    subprocess.run(command, check=True, timeout=DEADLINE_S)


def test_a_zone_whose_interface_is_gone_is_shown_as_its_number() -> None:
    assert host_text("fe80::1", 999_999) == "fe80::1%999999"
    assert host_text("fe80::1", 0) == "fe80::1"
    assert host_text("fe80::1%eth0", 2) == "fe80::1%eth0"
