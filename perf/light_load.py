"""The lightest load there is: lines in memory, handed to the sockets by sendfile(2).

What `numbers-uring load` sends, it copies; on a machine where sender and server share the
processors, that time is missing to the server.
"""

import os
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from numbers_uring.limits import LINE_BYTES
from numbers_uring.load.lines import make_lines
from numbers_uring.load.model import LoadParameters

_CHUNK_LINES = 100_000


class LightLoad:
    """The lines of one load, in a file in memory until `close`."""

    def __init__(self, parameters: LoadParameters) -> None:
        self.parameters = parameters
        self._fd = os.memfd_create("lines")
        plain = replace(parameters, port=1, clients=1, send_bytes=LINE_BYTES)
        for first in range(0, plain.numbers, _CHUNK_LINES):
            lines = make_lines(plain, first, min(_CHUNK_LINES, plain.numbers - first))
            if os.write(self._fd, lines) != len(lines):
                raise OSError("not enough memory for the lines")

    def close(self) -> None:
        os.close(self._fd)

    def run(self, port: int) -> float:
        """Send all lines, a part by each client; return the numbers taken in a second.

        A client shuts its side down and waits for the server to close. Raises OSError, also where
        a client is reset.
        """
        clients = self.parameters.clients
        sockets = [socket.create_connection(("127.0.0.1", port), 60) for _ in range(clients)]
        begin_s = time.perf_counter()
        with ThreadPoolExecutor(clients) as pool:
            list(pool.map(self._send, sockets, range(clients)))
        return self.parameters.numbers / (time.perf_counter() - begin_s)

    def _send(self, client: socket.socket, part: int) -> None:
        numbers, clients = self.parameters.numbers, self.parameters.clients
        offset, end = (numbers * i // clients * LINE_BYTES for i in (part, part + 1))
        with client:
            # A time-out makes the descriptor non-blocking, which sendfile would tell of.
            client.settimeout(None)
            while offset < end:
                size = min(end - offset, self.parameters.send_bytes)
                offset += os.sendfile(client.fileno(), self._fd, offset, size)
            client.shutdown(socket.SHUT_WR)
            if client.recv(1):
                raise OSError("the server has said something")
