"""A TCP proxy in front of a server, through which each byte takes a while, as from far away."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from ports import reserve_port


@contextmanager
def slow_link(
    to_port: int, delay_s: float = 0.0, *, bytes_per_s: float | None = None
) -> Iterator[int]:
    """Return a port of 127.0.0.1 that leads to `to_port`, with `delay_s` each way.

    With `bytes_per_s` it is a slow line as well, which holds back who sends faster.
    """
    port, loop = reserve_port(), asyncio.new_event_loop()
    listening = threading.Event()
    tasks: set[asyncio.Task[None]] = set()

    async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(1 << 20 if bytes_per_s is None else 1 << 14):
                if bytes_per_s is not None:
                    await asyncio.sleep(len(data) / bytes_per_s)
                # What follows is on its way at the same time: a delay holds nothing back.
                loop.call_later(delay_s, _write, writer, data)
        loop.call_later(delay_s, writer.close)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there_reader, there_writer = await asyncio.open_connection("127.0.0.1", to_port)
        for one in (forward(reader, there_writer), forward(there_reader, writer)):
            task = loop.create_task(one)
            tasks.add(task)

    async def run() -> None:
        server = await asyncio.start_server(serve, "127.0.0.1", port)
        listening.set()
        await stop.wait()
        server.close()
        for task in tasks:
            task.cancel()

    stop = asyncio.Event()
    thread = threading.Thread(target=lambda: loop.run_until_complete(run()))
    thread.start()
    assert listening.wait(60)
    try:
        yield port
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
        loop.close()


def _write(writer: asyncio.StreamWriter, data: bytes) -> None:
    if not writer.is_closing():
        writer.write(data)
