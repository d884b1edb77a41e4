"""Hosts that can't be resolved, and addresses that can't be read: one line for each command."""

import errno
import os
import socket
from collections.abc import Callable
from typing import Any

import pytest

from numbers_uring.addresses import TcpAddress
from numbers_uring.errors import StartError
from numbers_uring.load.model import LoadParameters
from numbers_uring.load.run import run_load
from numbers_uring.net.listeners import (
    address_text,
    listen,
    listen_for_metrics,
    listen_tcp,
    try_listening,
)

HERE = TcpAddress("host.test", 4000)


def load_there() -> None:
    run_load(LoadParameters(host=HERE.host, port=HERE.port, clients=1, numbers=1))


@pytest.mark.parametrize(
    "start",
    [
        lambda: listen([HERE], unix_mode=0o600, unix_group=None),
        lambda: try_listening([HERE], unix_group=None),
        lambda: listen_for_metrics(HERE),
        load_there,
    ],
    ids=["serve", "doctor", "metrics", "load"],
)
@pytest.mark.parametrize(
    ("error", "words"),
    [
        (socket.gaierror(socket.EAI_NONAME, "Name or service not known"), "not known"),
        (OSError(errno.EMFILE, os.strerror(errno.EMFILE)), "Too many open files"),
        (LookupError("unknown encoding: idna"), "unknown encoding: idna"),
        (UnicodeError("label too long"), "label too long"),
        (UnicodeEncodeError("idna", "\udc80", 0, 1, "Invalid character"), "Invalid character"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_a_host_that_cannot_be_resolved_is_one_plain_line(
    start: Callable[[], object], error: Exception, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(socket, "getaddrinfo", fails)
    with pytest.raises(StartError, match=f"host 'host.test': .*{words}"):
        start()


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6, socket.AF_UNIX])
def test_an_address_that_cannot_be_read_is_one_plain_line(family: socket.AddressFamily) -> None:
    listener = socket.socket(family)
    listener.close()
    with pytest.raises(StartError, match=f"address of a listener: {os.strerror(errno.EBADF)}"):
        address_text(listener)


def test_a_port_that_cannot_be_read_leaves_no_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[socket.socket] = []

    class Socket(socket.socket):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            made.append(self)

        def getsockname(self) -> Any:
            raise OSError(errno.ENOBUFS, os.strerror(errno.ENOBUFS))

    two = [(socket.AF_INET, (f"127.0.0.{host}", 0)) for host in (1, 2)]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [(f, 0, 0, "", a) for f, a in two])
    monkeypatch.setattr(socket, "socket", Socket)
    with pytest.raises(StartError, match=os.strerror(errno.ENOBUFS)):
        listen_tcp("host.test", 0)
    assert [sock.fileno() for sock in made] == [-1]
