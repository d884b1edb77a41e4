"""What people write instead, each in a few lines of Python: contenders for perf/bench.py.

    python perf/peers.py threads PORT LOG     a thread for each client, line by line (socketserver)
    python perf/peers.py asyncio PORT LOG     asyncio's streams, line by line
    python perf/peers.py uvloop PORT LOG      a protocol on uvloop, which takes in whole chunks

Each does the task, and no more: it checks lines, keeps the numbers it has seen in a set, writes new
ones to LOG before it closes their connection, closes one that sends an invalid line, and stops at
`terminate` and SIGTERM. There are no reports, limits or bounds. Prints "listening on
127.0.0.1:PORT" on standard error.
"""

import asyncio
import re
import signal
import sys
import threading
from collections.abc import Callable
from io import BufferedWriter
from pathlib import Path
from socketserver import StreamRequestHandler, ThreadingTCPServer

TERMINATE = b"terminate\n"
LINES = re.compile(rb"(?:[0-9]{9}\n)*")
BEGUN = re.compile(rb"[0-9]{0,9}")


def valid(line: bytes) -> bool:
    return len(line) == 10 and line[9:] == b"\n" and line[:9].isdigit()


def say(port: int) -> None:
    print(f"listening on 127.0.0.1:{port}", file=sys.stderr, flush=True)


def serve_threads(port: int, log: BufferedWriter) -> None:
    seen: set[bytes] = set()
    lock = threading.Lock()

    class Client(StreamRequestHandler):
        def handle(self) -> None:
            for line in self.rfile:
                if not valid(line):
                    if line == TERMINATE:
                        threading.Thread(target=server.shutdown).start()
                    break
                with lock:
                    if line not in seen:
                        seen.add(line)
                        log.write(line)
            with lock:
                log.flush()

    ThreadingTCPServer.daemon_threads = True
    ThreadingTCPServer.request_queue_size = 128
    with ThreadingTCPServer(("127.0.0.1", port), Client) as server:
        signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start())
        say(server.server_address[1])
        server.serve_forever()


async def serve_streams(port: int, log: BufferedWriter) -> None:
    seen: set[bytes] = set()
    stopped = asyncio.Event()

    async def client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async for line in reader:
            if not valid(line):
                if line == TERMINATE:
                    stopped.set()
                break
            if line not in seen:
                seen.add(line)
                log.write(line)
        log.flush()
        writer.close()

    await run_until(stopped, await asyncio.start_server(client, "127.0.0.1", port))


async def serve_protocol(port: int, log: BufferedWriter) -> None:
    seen: set[bytes] = set()
    stopped = asyncio.Event()

    class Client(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self.transport = transport
            self.tail = b""

        def data_received(self, data: bytes) -> None:
            data = self.tail + data
            end = LINES.match(data).end()  # type: ignore[union-attr] # it matches nothing, too
            self.tail = data[end:]
            if new := set(data[:end].split()) - seen:
                seen.update(new)
                log.write(b"\n".join([*new, b""]))
                log.flush()
            if not BEGUN.fullmatch(self.tail) and not TERMINATE.startswith(self.tail):
                self.transport.close()
            elif self.tail == TERMINATE:
                stopped.set()

    loop = asyncio.get_running_loop()
    await run_until(stopped, await loop.create_server(Client, "127.0.0.1", port))


async def run_until(stopped: asyncio.Event, server: asyncio.Server) -> None:
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    say(server.sockets[0].getsockname()[1])
    await stopped.wait()
    server.close()


def serve_uvloop(port: int, log: BufferedWriter) -> None:
    import uvloop  # noqa: PLC0415 - the other ones do without it

    uvloop.run(serve_protocol(port, log))


SERVERS: dict[str, Callable[[int, BufferedWriter], None]] = {
    "threads": serve_threads,
    "asyncio": lambda port, log: asyncio.run(serve_streams(port, log)),
    "uvloop": serve_uvloop,
}


def main() -> None:
    name, port, path = sys.argv[1:]
    with Path(path).open("wb") as log:
        SERVERS[name](int(port), log)


if __name__ == "__main__":
    main()
