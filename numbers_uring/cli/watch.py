"""Shows the status of a cluster again and again, until a signal: `cluster status --watch`."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from numbers_uring.cli.output import write_now
from numbers_uring.cluster.bucket import VersionError
from numbers_uring.cluster.connection import until_closed
from numbers_uring.cluster.status import ClusterStatus, StatusReader
from numbers_uring.cluster.status_text import as_text, body, head
from numbers_uring.cluster.tasks import end_tasks
from numbers_uring.errors import StartError
from numbers_uring.system.stdio import STDOUT, LineWriter

if TYPE_CHECKING:
    from nats.aio.client import Client

_CLEAR = "\x1b[H\x1b[2J"


async def watch_status(
    client: "Client",
    reader: StatusReader,
    interval_s: float,
    *,
    as_json: bool,
    say: Callable[[str], None],
) -> None:
    """Write the status every `interval_s` until SIGINT or SIGTERM.

    Raises StartError at once if standard output is closed or the first status cannot be read, and
    later if the connection is closed for good, the cluster is of another version, or no one reads
    what is written. `say` gets a line when a later status cannot be read.
    """
    if sys.__stdout__ is None:
        raise StartError("cannot write to standard output: it is closed")
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    showing = asyncio.create_task(_show(reader, interval_s, as_json=as_json, say=say))
    waiting = {
        showing,
        asyncio.create_task(until_closed(client)),
        asyncio.create_task(stop.wait()),
    }
    try:
        done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    except ConnectionError as error:
        raise StartError(f"the NATS server is no longer usable: {error}") from error
    finally:
        await end_tasks(*waiting)


async def _show(
    reader: StatusReader, interval_s: float, *, as_json: bool, say: Callable[[str], None]
) -> None:
    writer, said, loop = LineWriter(STDOUT), "", asyncio.get_running_loop()
    found: ClusterStatus | None = None
    while True:
        due_s = loop.time() + interval_s
        try:
            found = await reader.read()
        except VersionError:
            raise
        except StartError as error:
            if found is None:
                raise
            if str(error) != said:
                said = str(error)
                say(said)
        else:
            said = ""
            write_now(writer, json.dumps(found.as_json()) if as_json else _text(found))
        await asyncio.sleep(due_s - loop.time())


def _text(found: ClusterStatus) -> str:
    """Return a screenful for a terminal, and all of it, with an empty line, for anything else."""
    if not os.isatty(STDOUT):
        return as_text(found) + "\n"
    size = os.get_terminal_size(STDOUT)
    lines = [*head(found), *body(found)]
    if size.lines and size.columns:  # A terminal need not know its size.
        lines = [line[: size.columns] for line in lines[: size.lines - 1]]
    return _CLEAR + "\n".join(lines)
