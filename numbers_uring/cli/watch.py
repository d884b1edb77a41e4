"""Shows the status of a cluster again and again, until a signal: `cluster status --watch`."""

import asyncio
import json
import signal
from collections.abc import Callable
from typing import TYPE_CHECKING

from numbers_uring.cli.output import WatchOutput
from numbers_uring.cluster.bucket import VersionError
from numbers_uring.cluster.connection import until_closed
from numbers_uring.cluster.status import ClusterStatus, StatusReader
from numbers_uring.cluster.status_text import as_text, body, head
from numbers_uring.cluster.tasks import end_tasks
from numbers_uring.errors import StartError

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
    output = WatchOutput()
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    showing = asyncio.create_task(_show(reader, interval_s, output, as_json=as_json, say=say))
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
    reader: StatusReader,
    interval_s: float,
    output: WatchOutput,
    *,
    as_json: bool,
    say: Callable[[str], None],
) -> None:
    said, loop = "", asyncio.get_running_loop()
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
            output.write(json.dumps(found.as_json()) if as_json else _text(found, output))
        await asyncio.sleep(due_s - loop.time())


def _text(found: ClusterStatus, output: WatchOutput) -> str:
    """Return a screenful for a terminal, and all of it, with an empty line, for anything else."""
    if not output.is_terminal:
        return as_text(found) + "\n"
    columns, lines_max = output.size()
    lines = [*head(found), *body(found)]
    if columns and lines_max:
        lines = [line[:columns] for line in lines[: lines_max - 1]]
    return _CLEAR + "\n".join(lines)
