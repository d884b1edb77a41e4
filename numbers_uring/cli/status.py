"""The command `status`: one server at a glance, from its metrics port."""

import json
import re
import signal
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import click

from numbers_uring import __version__
from numbers_uring.addresses import TcpAddress, parse_tcp_address
from numbers_uring.cli.help import Command
from numbers_uring.errors import ExitCode, StartError
from numbers_uring.limits import STATUS_HEADER_LINES, STATUS_INTERVAL_S
from numbers_uring.system.diagnostics import Diagnostics
from numbers_uring.system.stdio import PROGRAM

if TYPE_CHECKING:
    from numbers_uring.metrics.figures import Figures


class _MetricsUrl(click.ParamType):  # type: ignore[type-arg] # generic only in click's newest
    """A metrics port as --metrics has it, or as the server's start line names it."""

    name = "url"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> TcpAddress:
        if isinstance(value, TcpAddress):
            return value
        text = re.sub("^http://", "", str(value), flags=re.IGNORECASE)
        text = text.removesuffix("/").removesuffix("/metrics")
        try:
            address = parse_tcp_address(text)
        except ValueError:
            address = TcpAddress("", 0)
        if not address.port or re.search(r"[/@?#\\\s]", address.host):
            self.fail(f"{value!r} is not of the form http://HOST:PORT.", param, ctx)
        return address


_EXAMPLES = (
    ("Show what the server with `serve --metrics 127.0.0.1:4001` does:", "status"),
    (
        "Print a line each second, for a server on another host:",
        "status --watch http://numbers-1:4001",
    ),
)


@click.command(cls=Command, examples=_EXAMPLES)
@click.argument(
    "url", type=_MetricsUrl(), default="http://127.0.0.1:4001", metavar="[http://HOST:PORT]"
)
@click.option("--watch", is_flag=True, help="Print a line each second, until SIGINT or SIGTERM.")
@click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object; with --watch one in a line."
)
@click.version_option(__version__, prog_name=PROGRAM)
@click.pass_obj
def status(say: Diagnostics, /, url: TcpAddress, *, watch: bool, as_json: bool) -> int:
    """Show what a server, or a node, does now, from its metrics port.

    http://HOST:PORT is the address of `serve --metrics`, http://127.0.0.1:4001 if it is left out.
    The rates are those of one second; the totals are of the server's run.

    Exit status: 0 shown, or a --watch was ended by a signal, 2 wrong usage, 3 no server answers
    there.
    """
    from numbers_uring.metrics.scrape import scrape

    before = scrape(url)
    if watch:
        _watch(url, before, as_json=as_json, say=say)
        return ExitCode.CLEAN
    time.sleep(STATUS_INTERVAL_S)
    now = scrape(url)
    click.echo(json.dumps(_fields(before, now)) if as_json else _text(url, before, now))
    return ExitCode.CLEAN


# One status.


def _fields(before: "Figures | None", now: "Figures") -> dict[str, object]:
    from numbers_uring.metrics.figures import rate

    return {
        "state": now.state,
        "version": now.version,
        "backend": now.backend,
        "kernel": now.kernel,
        "uptime_s": now.uptime_s,
        "numbers_per_s": rate(before, now, "numbers"),
        "unique_per_s": rate(before, now, "unique"),
        "received_bytes_per_s": rate(before, now, "received_bytes"),
        "unique": now.unique,
        "duplicate": now.duplicate,
        "received_bytes": now.received_bytes,
        "connections": now.connections,
        "connections_max": now.connections_max,
        "connections_waiting": now.connections_waiting,
        "accepted": now.accepted,
        "held_back_s": now.held_back_s,
        "log_written_bytes": None if now.acknowledged is not None else now.log_written_bytes,
        "acknowledged": now.acknowledged,
        "in_flight": now.in_flight,
    }


def _text(url: TcpAddress, before: "Figures", now: "Figures") -> str:
    from numbers_uring.metrics.glance import Row, rows

    used = (f"backend {now.backend}", f"kernel {now.kernel}")
    server = Row("server", (str(url), f"{PROGRAM} {now.version}", *used))
    shown = [server, *rows(before, now)]
    return "\n".join(f"{row.title:<9}  {', '.join(row.parts)}" for row in shown)


# One after the other.


def _watch(url: TcpAddress, before: "Figures | None", *, as_json: bool, say: Diagnostics) -> None:
    """Write a line each second until SIGINT or SIGTERM. Raises StartError if no one reads it."""
    from numbers_uring.cli.output import WatchOutput
    from numbers_uring.metrics.scrape import scrape

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    output, table, said = WatchOutput(), _Table(), False
    with suppress(KeyboardInterrupt):
        due_s = time.monotonic()
        while True:
            # A second that was missed is left out.
            due_s = max(due_s + STATUS_INTERVAL_S, time.monotonic())
            time.sleep(max(due_s - time.monotonic(), 0))
            try:
                now = scrape(url)
            except StartError as error:
                if not said:
                    say(f"{error}; retrying")
                before, said = None, True
                continue
            said = False
            if as_json:
                text = json.dumps(_fields(before, now))
            else:
                columns = output.size()[0] if output.is_terminal else 0
                text = table.next_line(_row(before, now), columns)
            output.write(text)
            before = now


def _row(before: "Figures | None", now: "Figures") -> dict[str, str]:
    """Return what a line shows, by the titles of its columns."""
    from numbers_uring.metrics.figures import rate
    from numbers_uring.metrics.glance import count, duration, megabytes

    waiting = now.connections_waiting
    row = {
        "numbers/s": count(rate(before, now, "numbers")),
        "unique/s": count(rate(before, now, "unique")),
        "MB/s": megabytes(rate(before, now, "received_bytes")),
        "unique": count(now.unique),
        "duplicate": count(now.duplicate),
        "clients": f"{now.connections}/{now.connections_max}",
        "waiting": "-" if waiting is None else str(waiting),
        "held back": f"{now.held_back_s:.1f} s",
        "log MB": megabytes(now.log_written_bytes),
    }
    if now.acknowledged is not None:
        del row["log MB"]
        row["in flight"] = count(now.in_flight)
    return row | {"state": now.state, "uptime": duration(now.uptime_s)}


_WIDTHS = {
    **{"numbers/s": 12, "unique/s": 12, "MB/s": 8, "unique": 14, "duplicate": 15, "clients": 10},
    **{"waiting": 8, "held back": 11, "log MB": 10, "in flight": 10, "state": 10, "uptime": 11},
}
_LEFT_OUT = (
    *("MB/s", "uptime", "log MB", "in flight", "unique/s", "held back", "duplicate"),
    *("waiting", "state", "unique", "clients"),
)
"""What a narrow terminal does not show, the first ones first."""


class _Table:
    """Lines below a header, which stands there again and again."""

    def __init__(self) -> None:
        self._titles: list[str] = []
        self._lines = 0

    def next_line(self, row: dict[str, str], columns: int) -> str:
        """Return the line, of at most so many characters (0: any number), and its header if due."""
        # A total that has become longer than its column moves the others.
        cells = {title: f" {text:>{_WIDTHS[title] - 1}}" for title, text in row.items()}
        for title in _LEFT_OUT:
            if not columns or sum(map(len, cells.values())) <= columns:
                break
            cells.pop(title, None)
        if list(cells) != self._titles or self._lines == STATUS_HEADER_LINES:
            self._titles, self._lines = list(cells), 0
        self._lines += 1
        line = "".join(cells.values())
        if self._lines > 1:
            return line
        header = "".join(f"{title:>{len(cell)}}" for title, cell in cells.items())
        return f"{header}\n{line}"
