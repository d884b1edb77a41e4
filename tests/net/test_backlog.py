"""How many clients wait in a backlog, as far as the system tells."""

import errno
import os
import socket

import pytest

from numbers_uring.limits import BACKLOG_CONNECTIONS
from numbers_uring.net.listeners import backlog_connections, listen_tcp
from support.waiting import DEADLINE_S


class Listener(socket.socket):
    """A listening socket with `answer` to getsockopt(2), or its failure."""

    answer: bytes | int = b""

    def getsockopt(self, *_: int) -> bytes:  # type: ignore[override]
        if isinstance(self.answer, int):
            raise OSError(self.answer, os.strerror(self.answer))
        return self.answer


def test_it_is_known_of_a_tcp_socket() -> None:
    (listener,) = listen_tcp("127.0.0.1", 0)
    with listener:
        assert backlog_connections(listener) == 0
        clients = [
            socket.create_connection(listener.getsockname(), timeout=DEADLINE_S) for _ in range(3)
        ]
        assert backlog_connections(listener) == 3
        for client in clients:
            client.close()


@pytest.mark.parametrize(
    "answer",
    [b"", b"\0" * 4, b"\0" * 27, errno.ENOPROTOOPT, errno.EOPNOTSUPP, errno.EPERM],
    ids=str,
)
def test_where_it_is_unknown_it_is_the_most_that_can_wait(answer: bytes | int) -> None:
    with Listener(socket.AF_INET, socket.SOCK_STREAM) as listener:
        listener.answer = answer
        assert backlog_connections(listener) == BACKLOG_CONNECTIONS


def test_an_mptcp_socket_counts_as_unknown() -> None:
    try:
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262)
    except OSError as error:
        pytest.skip(f"no MPTCP here: {error}")
    with listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(10)
        with socket.create_connection(listener.getsockname(), timeout=DEADLINE_S):
            assert backlog_connections(listener) == BACKLOG_CONNECTIONS
