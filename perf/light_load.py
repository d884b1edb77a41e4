"""The lightest load there is: all of it waits in the clients' sockets before the server begins.

A sender that works beside the server takes processor time that the server would use, and where two
reactors have two processors, it takes it from the second. So the server is stopped by SIGSTOP, each
client sends all its lines and shuts its side down, and the time begins when the server goes on.
Linux moves what waits in a client's send buffer to the server as that receives.
"""

import os
import signal
import socket
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace

from numbers_uring.limits import LINE_BYTES
from numbers_uring.load.lines import make_lines
from numbers_uring.load.model import LoadParameters

LIGHT_CLIENT_BYTES = 2_000_000
"""What a client sends at most: somewhat less than a send buffer takes in on loopback."""

_CHUNK_LINES = 100_000
_SETTLE_S = 0.02
_TIMEOUT_S = 60.0


def settled_ns(processor_time_ns: Callable[[], int]) -> int:
    """Return the processor time of a process once it has nothing more to do."""
    before, now = -1, processor_time_ns()
    while now != before:
        time.sleep(_SETTLE_S)
        before, now = now, processor_time_ns()
    return now


class LightLoad:
    """The lines of one load, in memory."""

    def __init__(self, parameters: LoadParameters) -> None:
        self.parameters = parameters
        plain = replace(parameters, port=1, clients=1, send_bytes=LINE_BYTES)
        lines = bytearray()
        for first in range(0, plain.numbers, _CHUNK_LINES):
            lines += make_lines(plain, first, min(_CHUNK_LINES, plain.numbers - first))
        self._lines = memoryview(lines)

    def run(self, pid: int, port: int, processor_time_ns: Callable[[], int]) -> float:
        """Let the server with this process id take in all lines; return the numbers in a second.

        `processor_time_ns` returns its processor time. Raises OSError, also where a client is reset
        or its lines do not fit into its send buffer.
        """
        clients = self.parameters.clients
        with ExitStack() as stack:
            sockets = [
                stack.enter_context(socket.create_connection(("127.0.0.1", port), _TIMEOUT_S))
                for _ in range(clients)
            ]
            # All are accepted then, and with several reactors handed over.
            settled_ns(processor_time_ns)
            os.kill(pid, signal.SIGSTOP)
            try:
                for part, client in enumerate(sockets):
                    self._send(client, part)
                    client.settimeout(_TIMEOUT_S)
                begin_s = time.perf_counter()
            finally:
                os.kill(pid, signal.SIGCONT)
            ends = [client.recv(1) for client in reversed(sockets)]
            seconds = time.perf_counter() - begin_s
            if any(ends):
                raise OSError("the server has said something")
        return self.parameters.numbers / seconds

    def _send(self, client: socket.socket, part: int) -> None:
        numbers, clients = self.parameters.numbers, self.parameters.clients
        first, end = (numbers * i // clients * LINE_BYTES for i in (part, part + 1))
        client.setblocking(False)
        while first < end:
            # Raises BlockingIOError, an OSError, where the buffer is full.
            first += client.send(self._lines[first:end])
        client.shutdown(socket.SHUT_WR)
