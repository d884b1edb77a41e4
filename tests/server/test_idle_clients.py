"""What counts as a client's silence, on each backend: only time in which the server reads."""

import signal
import socket
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from support.clients import sees_fin
from support.faults import needs_strace, strace
from support.logs import lines
from support.processes import ServerProcess
from support.waiting import DEADLINE_S, wait_until

Serve = Callable[..., ServerProcess]

CLIENTS = 3


class Talkers:
    """Clients that send a line every few milliseconds until they are stopped."""

    def __init__(self, server: ServerProcess, stack: ExitStack) -> None:
        self.sockets = [stack.enter_context(server.connect()) for _ in range(CLIENTS)]
        self.sent = [0] * CLIENTS
        self.failures: list[OSError] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._talk, daemon=True)
        self._thread.start()

    def _talk(self) -> None:
        while not self._over.wait(0.01):
            for number, client in enumerate(self.sockets):
                try:
                    client.sendall(lines([number * 1_000_000 + self.sent[number]]))
                    self.sent[number] += 1
                except OSError as error:
                    self.failures.append(error)
                    return

    def stop(self) -> set[int]:
        """Return the numbers that they have sent; all are acknowledged by a FIN."""
        self._over.set()
        self._thread.join(DEADLINE_S)
        assert not self.failures
        for client in self.sockets:
            client.shutdown(socket.SHUT_WR)
        assert all(map(sees_fin, self.sockets))
        return {
            number * 1_000_000 + i for number, sent in enumerate(self.sent) for i in range(sent)
        }


@pytest.mark.parametrize("reactors", ["1", "2"])
def test_clients_that_send_all_the_time_are_not_idle_while_the_process_is_stopped(
    serve: Serve, backend: str, reactors: str
) -> None:
    server = serve("--backend", backend, "--reactors", reactors, "--idle-timeout", "1")
    with ExitStack() as stack:
        talkers = Talkers(server, stack)
        for _ in range(2):
            size = server.log_path.stat().st_size
            wait_until(lambda size=size: server.log_path.stat().st_size > size, "numbers")  # type: ignore[misc]
            server.process.send_signal(signal.SIGSTOP)
            time.sleep(1.5)  # Time itself is the subject.
            server.process.send_signal(signal.SIGCONT)
        sent = talkers.stop()
    assert server.stop() == 0
    assert server.logged_set() == sent
    assert " 0 for being idle" in server.stderr


@needs_strace
@pytest.mark.parametrize("reactors", ["1", "2"])
def test_clients_that_send_all_the_time_are_not_idle_while_the_disk_syncs(
    serve: Serve, backend: str, reactors: str, tmp_path: Path
) -> None:
    server = serve(
        *("--backend", backend, "--reactors", reactors),
        *("--idle-timeout", "1", "--fsync", "always"),
    )
    trace = tmp_path / "trace"
    slow = ("-P", str(server.log_path), "-e", "inject=fdatasync:delay_enter=1500ms")
    with ExitStack() as stack:
        stack.enter_context(strace(server, trace, *slow))
        talkers = Talkers(server, stack)
        wait_until(lambda: trace.read_text().count("fdatasync(") >= 3, "three syncs")
        sent = talkers.stop()
    assert server.stop() == 0
    assert server.logged_set() == sent
    assert " 0 for being idle" in server.stderr


def test_a_stopped_process_does_not_take_from_a_silent_client_what_it_has_left(
    serve: Serve, backend: str
) -> None:
    server = serve("--backend", backend, "--idle-timeout", "2")
    with server.connect() as client:
        client.sendall(lines([1]))
        wait_until(lambda: server.logged() == [1], "the number")
        server.process.send_signal(signal.SIGSTOP)
        time.sleep(2.5)
        server.process.send_signal(signal.SIGCONT)
        client.settimeout(0.5)
        with pytest.raises(TimeoutError):
            client.recv(1)
        client.settimeout(DEADLINE_S)
        assert sees_fin(client), "it is idle in the end"
    assert server.stop() == 0
    assert " 1 for being idle" in server.stderr
